"""One exact prefill, many settings: the document is read once, each setting then evicts from what was read.

Nothing in a prefill depends on the setting but what is stored: a layer's attention is computed in full before its
eviction. So the queries, keys and values of every layer are recorded once, and handed layer by layer to a fresh
`PrefillState` of the setting. The cache is the one that `Session.read` makes; retrieval.py compares the two.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scoring import make_scorer
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.attention import AttentionState
from uncomp_cli.engine.decode import AppendState
from uncomp_cli.engine.model import Decoder
from uncomp_cli.engine.prefill import Prefilled, PrefillState, prefill
from uncomp_cli.engine.prompt import Prompt
from uncomp_cli.engine.session import Session, make_plan, scorer_config
from uncomp_cli.models.load import LoadedModel

__all__ = ["Recording", "evict", "forced_nll", "read_alone", "record", "session_answer"]

MAX_NEW_TOKENS = 24


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What one layer handed to attention."""

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    sliding_window: int | None


@dataclass(frozen=True, slots=True)
class Recording:
    """A prompt that was read exactly: every layer's call and the logits [1, vocab] after its last token."""

    prompt: Prompt
    calls: tuple[LayerCall, ...]
    logits: Tensor


class _Recorder:
    """Passes every call on, and keeps it."""

    def __init__(self, inner: AttentionState) -> None:
        self.inner = inner
        self.calls: list[LayerCall] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
    ) -> Tensor:
        self.calls.append(LayerCall(query, key, value, scaling, sliding_window))
        return self.inner.attend(layer, query, key, value, scaling=scaling, sliding_window=sliding_window)


def record(decoder: Decoder, prompt: Prompt, full: Preset) -> Recording:
    """Read `prompt`, which has one question, with nothing evicted."""
    recorder = _Recorder(_state(decoder, prompt, full))
    ids = torch.tensor([[*prompt.context, *prompt.questions[0]]])
    logits = decoder.forward(ids, torch.arange(ids.shape[1])[None], recorder, 1)[:, -1]
    return Recording(prompt, tuple(recorder.calls), logits)


@torch.no_grad()
def evict(decoder: Decoder, recording: Recording, preset: Preset) -> Prefilled:
    """What reading the prompt under `preset` leaves. Raises DoesNotFitError when its budget is too small."""
    state = _state(decoder, recording.prompt, preset)
    for layer, call in enumerate(recording.calls):
        state.attend(layer, call.query, call.key, call.value, scaling=call.scaling, sliding_window=call.sliding_window)
    read = Prefilled([recording.prompt], state.cache, state.questions)
    read.logits = recording.logits
    read.begin_question(0)
    return read


def _state(decoder: Decoder, prompt: Prompt, preset: Preset) -> PrefillState:
    spec, config = decoder.spec, scorer_config(preset)
    return PrefillState(
        [prompt],
        [make_plan(spec, preset, prompt, available=0)],
        scorer=make_scorer(config),
        config=config,
        cache=RaggedKVCache(num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads),
        on_layer=lambda layer: None,
    )


def read_alone(decoder: Decoder, prompt: Prompt, preset: Preset) -> Prefilled:
    """The same by an ordinary prefill, for comparison."""
    state = _state(decoder, prompt, preset)
    steps = prefill(decoder, [prompt], state.plans, scorer=state.scorer, config=state.config)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value


def session_answer(loaded: LoadedModel, prompt: Prompt, preset: Preset) -> tuple[str, float]:
    """The greedy answer by the path of `uncomp ask`, and the fraction of the full cache that was allocated."""
    session = Session(loaded, preset, replace(SamplingConfig(), max_new_tokens=MAX_NEW_TOKENS))
    for _ in session.read(prompt):
        pass
    text = "".join(step.texts[0] for step in session.answer())
    return text, session.stats.kept_fraction


def forced_nll(decoder: Decoder, read: Prefilled, answer_ids: list[int]) -> tuple[float, bool]:
    """Mean negative log-likelihood (nats) per token of the given answer, and whether argmax would have said it."""
    logits = read.logits
    if len(answer_ids) > 1:
        positions = read.next_positions(0) + torch.arange(len(answer_ids) - 1)
        state = AppendState(read.cache, positions.to(decoder.device))
        given = torch.tensor([answer_ids[:-1]])
        following = decoder.forward(given, positions, state, len(answer_ids) - 1)[0]
        logits = torch.cat([logits, following])
    wanted = torch.tensor(answer_ids, device=logits.device)
    nll = torch.nn.functional.cross_entropy(logits.float(), wanted)
    return float(nll), bool((logits.argmax(dim=-1) == wanted).all())
