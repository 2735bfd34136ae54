"""A compressed context between memory and a file: what is known of its tokens, and the record that goes with them.

cache/cache_file.py has the keys and values; what made them is origin.py's.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.ragged import LayerCache, RaggedKVCache
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.context.origin import Origin
from uncomp_cli.engine.tokens.prompt import Prompt, encode_words
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.models.loading import LoadedModel

__all__ = [
    "HeldContext",
    "preset_of",
    "prompt_of",
    "record_of",
    "tensors_of",
    "text_of",
    "uncertainty_of",
]


@dataclass(frozen=True, slots=True)
class HeldContext:
    """A context in memory: `layers` and `mark` are its cache without a question, `seconds` what getting it took.

    `record` is that of the file it was loaded from; None when it was read.
    """

    prompt: Prompt
    cache: RaggedKVCache
    layers: tuple[LayerCache | None, ...]
    mark: list[list[int]]
    uncertainty: Uncertainty | None
    seconds: float
    record: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        cache: RaggedKVCache,
        uncertainty: Uncertainty | None,
        seconds: float,
        record: Mapping[str, Any] | None = None,
    ) -> "HeldContext":
        """A context whose cache holds no question yet."""
        return cls(prompt, cache, tuple(cache.layers), cache.mark(), uncertainty, seconds, record)

    def begin(self) -> None:
        """Take everything out of the cache that a question brought in: itself, its answer, what was read again."""
        self.cache.layers = list(self.layers)
        self.cache.rollback(self.mark)

    @property
    def plan(self) -> BudgetPlan:
        """What every head holds of the context."""
        layers = [self.cache.layer(index) for index in range(len(self.cache.layers))]
        kept = (
            tuple(layer.num_quantized(i) + length for i, length in enumerate(lengths))
            for layer, lengths in zip(layers, self.mark, strict=True)
        )
        return BudgetPlan(len(self.prompt.context), tuple(kept), kv_bits=self.cache.kv_bits)


def record_of(held: HeldContext, origin: Origin, preset: Preset, loaded: LoadedModel) -> dict[str, Any]:
    """What `uncomp cache show` tells, and what loading checks, as JSON data."""
    context = len(held.prompt.context)
    return {
        "key": origin.key,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {"name": loaded.info.name, **origin.model},
        "preset": preset.name,
        "compression": origin.compression,
        "query_aware": False,
        "context_sha256": origin.context_sha256,
        "context_tokens": context,
        "kept_entries": held.plan.entries,
        "kv_full_bytes": loaded.spec.full_kv_bytes(context),
        "uncertainty": None if held.uncertainty is None else asdict(held.uncertainty),
    }


def tensors_of(prompt: Prompt) -> dict[str, Tensor]:
    """What is known of a context's tokens, in as few bytes as it needs."""
    text = prompt.context
    tensors = {"ids": torch.tensor(text.ids), "words": text.words, "offsets": text.offsets}
    return {"protected": text.protected, **{name: tensor.to(torch.int32) for name, tensor in tensors.items()}}


def prompt_of(tensors: Mapping[str, Tensor], asked: Prompt) -> Prompt:
    """The saved context with the questions of `asked`."""
    read = {name: tensor.cpu() for name, tensor in tensors.items()}
    words, offsets = read["words"].long(), read["offsets"].long()
    context = Tokens.of(read["ids"].tolist(), protected=read["protected"], words=words, offsets=offsets)
    return Prompt(context, asked.questions)


def text_of(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[str, Tensor]:
    """A context's document as text and every token's characters in it, -1 for the template's.

    Both are made from the tokens, so that the document itself is not needed; empty for a text that has other tokens
    when it is read.
    """
    of_document = prompt.context.offsets[:, 0] >= 0
    ids = prompt.context.take(of_document).ids
    text = tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
    again = encode_words(tokenizer, text, strip=False)
    offsets = torch.full((len(prompt.context), 2), -1)
    if again.ids != ids:
        return "", offsets
    offsets[of_document] = again.offsets
    return text, offsets


def preset_of(preset: Preset, record: Mapping[str, Any]) -> Preset:
    """The preset that a saved context was compressed with, as far as it is told in reports."""
    saved = record["compression"]
    return replace(
        preset,
        name=record["preset"],
        policy=saved["policy"],
        scorer=ScorerConfig(**saved["scorer"]),
        budget=Budget.parse(saved["budget"]),
        floor_tokens=saved["floor_tokens"],
        kv_bits=saved["kv_bits"],
        profile=None,
        quality=(),
    )


def uncertainty_of(record: Mapping[str, Any]) -> Uncertainty | None:
    """What the budget was spread by, or None."""
    saved = record["uncertainty"]
    return None if saved is None else Uncertainty(saved["key"], tuple(map(tuple, saved["values"])))
