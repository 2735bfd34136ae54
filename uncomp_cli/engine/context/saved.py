"""A saved context: what it was made from (the model, the way of compressing, the tokens) and the record beside it.

    key = sha256 of all of it

Two contexts of one key are interchangeable; they are the same numbers unless the device or, where that was left to the
memory that was free, the budget or the chunks they were read in differ. A saved one is used only with the model that
made it: other weights, another tokenizer, configuration, RoPE or number format is refused by both values. Whether a
text was read in float32 or in bfloat16 is in the key; it opens under both, since the weights are the same.
cache/cache_file.py has the keys and values.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.cache_file import StoredCache
from uncomp_cli.cache.header import MadeBy, MadeWith, Record
from uncomp_cli.cache.ragged import RaggedKVCache, positions_of
from uncomp_cli.cache.states import States
from uncomp_cli.config import Limits, Matmul
from uncomp_cli.engine.context.context import Account, Context
from uncomp_cli.engine.context.sketch import Sketch, sketched_layers
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import UsageError
from uncomp_cli.models.conversion import file_sha256
from uncomp_cli.models.rotary import regime_lengths
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.models.shape import text_config
from uncomp_cli.spec import ModelSpec

_OF_WEIGHTS_AS_THEY_ARE: tuple[Matmul, ...] = ("float32", "bfloat16")
_SHORT = 16
_TEXTS = "texts"
_SKETCH = "sketch.1.directions", "sketch.1.mean"
"""With the version of what is in them: passages, layers, codes."""
_TOKEN_TENSORS = {
    "ids": (torch.int32,),
    "words": (torch.int32,),
    "offsets": (torch.int32, 2),
    "protected": (torch.bool,),
}
_WORDS = {
    "weights_sha256": "the weights",
    "config_sha256": "the configuration",
    "tokenizer_sha256": "the tokenizer",
    "rope": "the RoPE",
    "dtype": "the number format",
    "quantization": "the quantization of the weights",
    "matmul": "the products (--matmul)",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """`context_sha256` is of the token ids and of which are never evicted."""

    model: MadeWith
    compression: MadeBy
    context_sha256: str

    @property
    def key(self) -> str:
        """The hash of all of it, in hexadecimal."""
        data = asdict(self)
        del data["model"]["name"]  # its weights decide, not what they are called
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    @property
    def alike(self) -> tuple[str, ...]:
        """The keys of contexts that are as good as this one: read in another type too, where weights are the same."""
        if self.model.matmul not in _OF_WEIGHTS_AS_THEY_ARE:
            return (self.key,)
        return tuple(replace(self, model=replace(self.model, matmul=each)).key for each in _OF_WEIGHTS_AS_THEY_ARE)

    def check_model(self, name: str, saved: MadeWith) -> None:
        """Raise UsageError, with both values, unless what was saved as `name` was made with this model."""
        for key, words in _WORDS.items():
            mine, theirs = getattr(self.model, key), getattr(saved, key)
            if mine != theirs and not (key == "matmul" and {mine, theirs} <= {*_OF_WEIGHTS_AS_THEY_ARE}):
                message = (
                    f"cache '{name}' was made with another model: {words} was {_shown(theirs)}, not {_shown(mine)}"
                )
                raise UsageError(
                    message, hint="use it with the model and settings of `uncomp cache show`, or read anew"
                )

    def check_context(self, name: str, saved: str) -> None:
        """Raise UsageError, with both hashes, unless what was saved as `name` has these tokens."""
        if self.context_sha256 != saved:
            raise UsageError(
                f"cache '{name}' was made from other text: its tokens have the hash {_shown(saved)}, these have "
                f"{_shown(self.context_sha256)}",
                hint=f"leave -f, --system and --pin out to ask about what is saved, or uncomp cache remove {name}",
            )


def origin_of(loaded: LoadedModel, preset: Preset, prompt: Prompt, *, limits: Limits, matmul: Matmul) -> Origin:
    """The origin of the context of `prompt` when it is read now."""
    ids = torch.tensor(prompt.context.ids, dtype=torch.int64)
    digest = hashlib.sha256(ids.numpy().tobytes())
    digest.update(prompt.context.protected.numpy().tobytes())
    return Origin(_made_with(loaded, matmul=matmul), _made_by(preset, limits), digest.hexdigest())


def _made_with(loaded: LoadedModel, *, matmul: Matmul) -> MadeWith:
    tokenizer = f"{loaded.tokenizer.backend_tokenizer.to_str()}{loaded.tokenizer.chat_template}"
    return MadeWith(
        name=loaded.info.name,
        weights_sha256=loaded.info.sha256,
        config_sha256=file_sha256(loaded.info.path / "config.json"),
        tokenizer_sha256=hashlib.sha256(tokenizer.encode()).hexdigest(),
        rope=_rope(loaded),
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        quantization=loaded.quantization,
        matmul=matmul,
    )


def _made_by(preset: Preset, limits: Limits) -> MadeBy:
    profile = preset.profile_path
    return MadeBy(
        policy=preset.policy,
        scorer=preset.scorer,
        budget=str(preset.budget),
        floor_tokens=preset.floor_tokens,
        kv_bits=preset.kv_bits,
        profile_sha256=None if profile is None else file_sha256(profile),
        chunk_tokens=limits.chunk_tokens,
        kv_mem_bytes=limits.kv_bytes,
    )


def record_of(context: Context, origin: Origin, loaded: LoadedModel) -> Record:
    """What `uncomp cache show` tells, and what loading checks."""
    account, tokens = context.account, len(context.prompt.context)
    return Record(
        key=origin.key,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=origin.model,
        preset=account.preset.name,
        compression=origin.compression,
        query_aware=False,
        context_sha256=origin.context_sha256,
        context_tokens=tokens,
        kept_entries=account.plan.entries,
        kv_full_bytes=loaded.spec.full_kv_bytes(tokens),
        uncertainty=account.uncertainty,
    )


def tensors_of(text: Tokens, texts: bytes = b"", sketch: Sketch | None = None) -> dict[str, Tensor]:
    """What is known of a context's tokens, in as few bytes as it needs, the texts of its documents, and its sketch."""
    tensors = {"ids": torch.tensor(text.ids), "words": text.words, "offsets": text.offsets}
    known = {"protected": text.protected, **{name: tensor.to(torch.int32) for name, tensor in tensors.items()}}
    known |= {} if sketch is None else dict(zip(_SKETCH, sketch.tensors, strict=True))
    return {**known, _TEXTS: torch.frombuffer(bytearray(texts), dtype=torch.uint8)} if texts else known


def texts_of(tensors: Mapping[str, Tensor]) -> bytes:
    """The texts of the documents, none where none were saved."""
    found = tensors.get(_TEXTS)
    return b"" if found is None else found.cpu().numpy().tobytes()


def sketch_of(tensors: Mapping[str, Tensor]) -> Sketch | None:
    """The sketch of a context; None where none was saved, or one of another version."""
    directions, mean = map(tensors.get, _SKETCH)
    return None if directions is None or mean is None else Sketch(directions.cpu(), mean.cpu())


def misfit(stored: StoredCache, spec: ModelSpec, states: States) -> str | None:
    """Why a file whose bytes are as they were written is no context of the model; None when it is one.

    The model's other layers have states like `states`.
    """
    cache, tensors, record = stored
    other = _other_shape(cache, spec, states)
    if other is not None:
        return other
    count = record.context_tokens
    for name, (dtype, *shape_of_one) in _TOKEN_TENSORS.items():
        found = tensors.get(name)
        if found is None or found.dtype != dtype or list(found.shape) != [count, *shape_of_one]:
            return f"its {name} are not those of {count:,} tokens"
    fault = _text_fault(tensors, record, spec) or _sketch_fault(tensors, spec, count)
    if fault is not None:
        return fault
    heads = (held for number in range(spec.num_layers) for held in positions_of(cache.layer(number)))
    last = max((int(held[-1]) for held in heads if len(held)), default=-1)  # they rise
    return None if last < count else f"a head holds the position {last:,} of {count:,} tokens"


def _text_fault(tensors: Mapping[str, Tensor], record: Record, spec: ModelSpec) -> str | None:
    ids, words = tensors["ids"], tensors["words"]
    if not bool(((ids >= 0) & (ids < spec.vocab_size)).all()):
        return "it has tokens that the model does not know"
    if not bool((words[:1] >= 0).all()) or not bool((words[1:] >= words[:-1]).all()):
        return "its words are not numbered in order"
    whole = len(texts_of(tensors)) == sum(each.text_bytes for each in record.documents)
    return None if whole else "its texts are not those of its documents"


def _sketch_fault(tensors: Mapping[str, Tensor], spec: ModelSpec, tokens: int) -> str | None:
    there = [tensors[name] for name in _SKETCH if name in tensors]
    if not there:
        return None
    heads = [len(sketched_layers(spec)) * spec.num_kv_heads, spec.head_dim]
    shapes = [[min(len(there[0]), tokens), *heads], heads]
    kinds = [(torch.uint8, shapes[0]), (torch.float16, shapes[1])]
    fits = [(tensor.dtype, list(tensor.shape)) for tensor in there] == kinds and bool(there[1].isfinite().all())
    return None if fits else "its sketch is not of its passages and the model's heads"


def _other_shape(cache: RaggedKVCache, spec: ModelSpec, states: States) -> str | None:
    """How a cache is not shaped as the model's; None when it is."""
    shape = (len(cache.layers), cache.num_rows, cache.num_kv_heads)
    if shape != (spec.num_layers, 1, spec.num_kv_heads):
        return f"it has {' x '.join(map(str, shape))} layers, rows and heads, not those of the model"
    if any(cache.layer(number).keys.shape[1] != spec.head_dim for number in range(spec.num_layers)):
        return f"its heads are not of dimension {spec.head_dim}"
    return None if _kinds(cache.states) == _kinds(states) else "its states are not those of the model's layers"


def _kinds(states: States) -> dict[str, tuple[torch.dtype, list[int]]]:
    """The type and shape of every state, by its name."""
    return {name: (tensor.dtype, list(tensor.shape)) for name, tensor in states.named().items()}


def prompt_of(tensors: Mapping[str, Tensor], asked: Prompt) -> Prompt:
    """The saved context with the questions of `asked`."""
    read = {name: tensor.cpu() for name, tensor in tensors.items()}
    words, offsets = read["words"].long(), read["offsets"].long()
    context = Tokens.of(read["ids"].tolist(), protected=read["protected"], words=words, offsets=offsets)
    return Prompt(context, asked.questions)


def account_of(
    cache: RaggedKVCache,
    context_tokens: int,
    spec: ModelSpec,
    preset: Preset,
    uncertainty: Uncertainty | None,
    *,
    seconds: float,
    record: Record | None = None,
    texts: bytes = b"",
) -> Account:
    """The account of a context that holds no question: its plan is what it holds. `record`, `texts` are its file's."""
    if record is not None:
        preset, uncertainty = _preset_of(preset, record), record.uncertainty
    layers = [cache.layer(index) for index in range(len(cache.layers))]
    kept = (tuple(layer.num_quantized(i) + length for i, length in enumerate(layer.lengths)) for layer in layers)
    plan = BudgetPlan(context_tokens, tuple(kept), kv_bits=cache.kv_bits)
    if uncertainty is None:
        return Account(preset, plan, None, None, seconds, record=record, texts=texts)
    weights = make_policy(preset.policy).weights(spec, uncertainty)
    trust = tuple(tuple(weight**2 for weight in layer) for layer in weights)
    return Account(preset, plan, uncertainty, trust, seconds, record=record, texts=texts)


def _preset_of(preset: Preset, record: Record) -> Preset:
    """The preset that a saved context was compressed with, as far as it is told in reports."""
    saved = record.compression
    return replace(
        preset,
        name=record.preset,
        policy=saved.policy,
        scorer=saved.scorer,
        budget=Budget.parse(saved.budget),
        floor_tokens=saved.floor_tokens,
        kv_bits=saved.kv_bits,
        profile=None,
        quality=(),
    )


def _rope(loaded: LoadedModel) -> dict[str, Any]:
    """How the model turns its keys, as JSON data. How much of a text may be read (--context) does not change them."""
    text = text_config(loaded.model.config)
    described = {**_plain(getattr(text, "rope_parameters", None)), "length": int(text.max_position_embeddings)}
    regimes = regime_lengths(loaded.model.config)
    if regimes:
        described["regime"] = regimes[-1]  # what is saved is read for any question, so for the longest text
    return described


def _plain(value: Any) -> dict[str, Any]:
    """A configuration's mapping as plain JSON data, whatever its classes and number types."""
    found: dict[str, Any] = json.loads(json.dumps(dict(value or {}), default=str, sort_keys=True))
    return found


def _shown(value: Any) -> str:
    """A hash by its beginning, anything else as it is."""
    if isinstance(value, str):
        return value[:_SHORT] if len(value) > _SHORT else value
    return "none" if value is None else json.dumps(value, sort_keys=True)
