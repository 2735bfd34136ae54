"""What `--chunk`, `--kv-mem` and `--constant-size` say, as one `Limits`."""

from uncomp_cli.budget.amount import Budget
from uncomp_cli.config import Limits
from uncomp_cli.errors import UsageError

__all__ = ["limits_of"]

_AUTO = "auto"
_MOST_DIGITS = 18


def limits_of(chunk: str, kv_mem: str, *, constant_size: bool) -> Limits:
    """What --chunk, --kv-mem and --constant-size say. Raises UsageError for a value that is neither auto nor fits."""
    return Limits(chunk_tokens=_chunk_tokens(chunk), kv_bytes=_kv_bytes(kv_mem), constant_size=constant_size)


def _chunk_tokens(text: str) -> int | None:
    word = text.strip().replace(",", "")
    if word.lower() == _AUTO:
        return None
    if not word.isdecimal() or len(word) > _MOST_DIGITS:
        raise UsageError(f"chunk '{text}' is not a number of tokens", hint="use --chunk 2048, or --chunk auto")
    return int(word)


def _kv_bytes(text: str) -> int | None:
    if text.strip().lower() == _AUTO:
        return None
    hint = "use --kv-mem 256MiB, or --kv-mem auto"
    try:
        amount = Budget.parse(text)
    except UsageError as error:
        raise UsageError(f"kv-mem '{text}' is not an amount of memory", hint=hint) from error
    if amount.kind != "bytes":
        raise UsageError(f"kv-mem '{text}' is no amount of memory in bytes", hint=hint)
    return int(amount.amount)
