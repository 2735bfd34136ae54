"""How well a long text is predicted while the cache keeps its size: perplexity by offset, with the bytes held.

    python benchmarks/long_decode.py TEXT [--budget 20%] [--prompt 2000] [--tokens 2000] [--step 250] [--skip 5000]

TEXT (a file, or a directory of .md files as benchmarks/plays.py writes it) is read as a prompt, then continued with its
own tokens. Rows: the full cache; growth behind the budget; the budget held constant by attention; and the control,
which keeps the prompt and of what follows only the latest. Tokens are fed a block at a time, which is the same as one
by one: a constant cache is cut where a block ends. The last line of stdout is JSON.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from uncomp_cli.budget.presets import load_preset
from uncomp_cli.cache.layer import LayerCache
from uncomp_cli.cache.needs import ConstantConfig
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.spend.compression import plan_compression
from uncomp_cli.engine.spend.memory import free_bytes
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.engine.write.fixed_size import ConstantSize, shield
from uncomp_cli.models.loading import load_model

QUESTION_TOKENS = 32
SINKS = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One way: perplexity of each step of tokens, and cache bytes at its end."""

    name: str
    perplexity: tuple[float, ...]
    kv_bytes: tuple[int, ...]


def text_of(path: Path) -> str:
    """A file, or all plays below a directory one after the other."""
    files = sorted(path.rglob("*.md")) if path.is_dir() else [path]
    return "\n\n".join(file.read_text(encoding="utf-8") for file in files)


def read(decoder: Decoder, ids: Sequence[int], budget: str) -> Context:
    """The text's beginning, compressed by the preset `balanced`; its last tokens observe and are kept."""
    context = tuple(ids[:-QUESTION_TOKENS])
    prompt = Prompt(Tokens.of(context, protected=torch.arange(len(context)) < SINKS), (tuple(ids[-QUESTION_TOKENS:]),))
    preset = replace(load_preset("balanced"), budget=budget, floor_tokens=0)
    planned = plan_compression(decoder.spec, preset, prompt, available=free_bytes(decoder.device))
    steps = Reader(decoder, planned).read()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            done: Context = end.value
            return done


def latest(layer: LayerCache, _queries: Tensor, _ages: Tensor, _form: Form) -> Tensor:
    """The control's needs: the newer the better."""
    longest = max(layer.lengths)
    return (torch.arange(longest) / longest).expand(len(layer.lengths), -1)


def follow(
    decoder: Decoder, done: Context, ids: Sequence[int], constant: ConstantSize | None, *, block: int, step: int
) -> tuple[list[float], list[int]]:
    """Perplexity of every `step` tokens of `ids` behind the prompt, and the cache's bytes at its end."""
    logits, held = [done.begin().logits], []
    cache: RaggedKVCache = done.cache if constant is None else constant.cache
    first = done.prompt_tokens()
    for begin in range(0, len(ids), block):
        given = torch.tensor([ids[begin : begin + block]])
        positions = first + begin + torch.arange(given.shape[1])[None]
        state = AppendState(cache, positions, on_query=None if constant is None else constant.observe)
        logits.append(decoder.forward(given, positions, state, given.shape[1])[0])
        held += [cache.nbytes] * given.shape[1]
    nll = torch.nn.functional.cross_entropy(torch.cat(logits)[:-1].float(), torch.tensor(ids), reduction="none")
    return [math.exp(part.mean()) for part in nll.split(step)], held[step - 1 :: step]


def measure(decoder: Decoder, ids: Sequence[int], arguments: argparse.Namespace) -> list[Row]:
    """All ways, each behind its own cache of the same text."""
    beginning, following = ids[: arguments.prompt], ids[arguments.prompt : arguments.prompt + arguments.tokens]
    full, kept = (read(decoder, beginning, budget) for budget in ("full", arguments.budget))
    kept.begin()
    attention = ConstantConfig(block=arguments.block, prompt_share=arguments.prompt_share)
    control = ConstantConfig(block=arguments.block, prompt_share=1.0)
    held = [
        ConstantSize(kept.cache, decoder.spec, shields=[shield(kept.prompt)], config=config, needs=needs)
        for config, needs in ((attention, None), (control, latest))
    ]
    ways = (
        ("full cache", full, None),
        (f"{arguments.budget}, growing", kept, None),
        (f"{arguments.budget}, constant", kept, held[0]),
        (f"{arguments.budget}, oldest generated dropped", kept, held[1]),
    )
    rows = []
    for name, done, constant in ways:
        found = follow(decoder, done, following, constant, block=arguments.block, step=arguments.step)
        rows.append(Row(name, *map(tuple, found)))
    return rows


def table(rows: Sequence[Row], step: int) -> str:
    """Perplexities by offset, and the bytes at the beginning and the end."""
    offsets = [step * (i + 1) for i in range(len(rows[0].perplexity))]
    lines = ["| cache | " + " | ".join(f"to {at:,}" for at in offsets) + " | MB first, last |"]
    lines.append("|---|" + "---:|" * (len(offsets) + 1))
    for row in rows:
        figures = " | ".join(f"{value:.2f}" for value in row.perplexity)
        lines.append(f"| {row.name} | {figures} | {row.kv_bytes[0] / 1e6:.2f}, {row.kv_bytes[-1] / 1e6:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--budget", default="20%")
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--step", type=int, default=250)
    parser.add_argument("--skip", type=int, default=5000, help="characters left out at the beginning")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--prompt-share", type=float, default=0.5)
    arguments = parser.parse_args()
    loaded = load_model(arguments.model)
    decoder = Decoder(loaded.model, loaded.spec)
    ids = loaded.tokenizer(text_of(arguments.text)[arguments.skip :], add_special_tokens=False).input_ids
    with torch.inference_mode():
        rows = measure(decoder, ids, arguments)
    print(table(rows, arguments.step))
    settings = {name: value for name, value in vars(arguments).items() if name != "text"}
    print(json.dumps({"text": arguments.text.name, **settings, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
