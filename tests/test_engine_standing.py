"""Whether a passage stands out for a question: against explicit weights, and what is kept where none does."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from support.batches import HALF, engine_of, load_tiny
from support.families import make_prompt
from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import Limits
from uncomp_cli.engine.engine import OPEN, Engine
from uncomp_cli.engine.forward.attention import AttentionState, Form, attend_causal
from uncomp_cli.engine.read import reader
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import UsageError
from uncomp_cli.uncertainty.error_rates import RiskBin, RiskCurve

HEADS = ((0, 1), (2, 0))
CURVE = RiskCurve({"attention": 1.0}, HEADS, (0.0, 0.5), (RiskBin(0, 1, 0.5, 0.2, 0.8, 9),), 0.5, 0.3, 0.7, 9, (100,))
WATCHED = replace(HALF, risk=(CURVE,), open_below=1e-6, floor_tokens=16)
OPEN_TO_ALL = replace(WATCHED, open_below=0.999)
CONTEXT, PROTECTED, QUESTION = 120, 6, 14


def prompt_of(*questions: int) -> Prompt:
    return make_prompt(CONTEXT, questions or (QUESTION,), protected=PROTECTED)


class Recorder(AttentionState):
    """Exact attention; keeps the queries and keys of every layer."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, float]] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        self.calls.append((query[0], key[0], form.scaling))
        return attend_causal(query[0], key[0], value[0], form)[None]


def explicit(engine: Engine, prompt: Prompt, *, sinks: int) -> float:
    """The largest share of a question's row on eight neighbours of the document, from explicit weights."""
    recorder = Recorder()
    ids = torch.tensor([[*prompt.context, *prompt.questions[0]]])
    engine.decoder.forward(ids, torch.arange(ids.shape[1])[None], recorder, 1)
    masses = []
    for layer, head in HEADS:
        query, key, scaling = recorder.calls[layer]
        per_group = len(query) // len(key)
        rows = query[head * per_group : (head + 1) * per_group, CONTEXT:]
        logits = scaling * rows @ key[head, sinks:].T
        late = torch.arange(CONTEXT, ids.shape[1])[:, None] < torch.arange(sinks, ids.shape[1])
        weights = logits.masked_fill(late, float("-inf")).softmax(dim=-1)
        masses.append(weights.mean(dim=0)[:, PROTECTED - sinks : CONTEXT - sinks])
    mean = torch.stack(masses).mean(dim=0)
    return max(float(mean[:, at : at + 8].sum(dim=-1).max()) for at in range(mean.shape[1] - 7))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of(load_tiny("llama"))


def test_it_is_what_the_watched_heads_pay_to_eight_neighbours(engine: Engine) -> None:
    (share,) = engine.read(prompt_of(), WATCHED).finish().standing
    assert share == pytest.approx(explicit(engine, prompt_of(), sinks=WATCHED.scorer.sinks), rel=1e-4)
    assert 0.02 < share < 0.98


def test_each_of_several_questions_has_its_own(engine: Engine) -> None:
    prompt = prompt_of(QUESTION, 9)
    together = engine.read(prompt, WATCHED).finish().standing
    alone = [engine.read(replace(prompt, questions=(one,)), WATCHED).finish().standing[0] for one in prompt.questions]
    assert together == pytest.approx(alone, rel=1e-4)


def test_of_chunks_the_largest_counts(engine: Engine) -> None:
    long = make_prompt(200, (QUESTION,), protected=PROTECTED)
    beginning = replace(long, context=long.context[:128])
    chunked = Engine(engine.loaded, sampling=engine.sampling, limits=Limits(chunk_tokens=128))
    reading = chunked.read(long, WATCHED)
    assert reading.planned.chunk_tokens == 128
    (share,) = reading.finish().standing
    (first,) = engine.read(beginning, WATCHED).finish().standing
    (last,) = engine.read(long, WATCHED).finish().standing
    assert share >= first > last


@pytest.mark.parametrize("preset", [replace(WATCHED, open_below=0.0), replace(WATCHED, risk=()), WATCHED.keeping_all()])
def test_nothing_is_watched_where_nothing_is_asked_of_it(engine: Engine, preset: Preset) -> None:
    assert engine.read(prompt_of(), preset).finish().standing == ()


def test_for_an_open_question_everything_is_kept_in_8_bits(engine: Engine) -> None:
    reading = engine.read(prompt_of(), replace(OPEN_TO_ALL, thinning="gather:after=2,keep=0.5"))
    context = reading.finish()
    account = context.account
    assert account.plan.keeps_everything
    assert (account.preset.kv_bits, account.preset.thinning) == (8, "none")
    assert account.preset.risk == OPEN_TO_ALL.risk  # nothing stands out for what is not in the text either
    assert account.notes == (f"{OPEN}: everything is kept, in 8 bits, and nothing is thinned",)
    assert set(context.hidden_kept) == {1.0}
    assert len(context.standing) == 1
    assert reading.planned.drops  # as it was planned before anything was known
    plain = engine.read(prompt_of(), WATCHED.keeping_all(kv_bits=8)).finish()
    assert torch.equal(context.predict([5, 6, 7]), plain.predict([5, 6, 7]))


def test_one_open_question_of_several_is_enough(engine: Engine) -> None:
    shares = engine.read(prompt_of(QUESTION, 9), WATCHED).finish().standing
    between = replace(WATCHED, open_below=sum(shares) / 2)
    assert engine.read(prompt_of(QUESTION, 9), between).finish().account.plan.keeps_everything


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        (replace(OPEN_TO_ALL, floor_tokens=0), "budget 50% was named and stays: -p full --kv-bits 8 keeps all"),
        (replace(OPEN_TO_ALL, floor_tokens=0, budget="40KiB"), "budget 40KiB was named and stays"),
    ],
)
def test_a_budget_that_was_named_stays_and_is_warned_of(engine: Engine, preset: Preset, said: str) -> None:
    account = engine.read(prompt_of(), preset).finish().account
    assert not account.plan.keeps_everything
    (note,) = account.notes
    assert note.startswith(f"{OPEN}; {said}")


def test_what_has_no_room_is_not_kept_whole(engine: Engine) -> None:
    account = engine.read(prompt_of(), replace(OPEN_TO_ALL, budget="24KiB")).finish().account
    assert not account.plan.keeps_everything
    assert account.notes == (f"{OPEN}; there is no room for all of it",)
    roomy = engine.read(prompt_of(), replace(OPEN_TO_ALL, budget="48KiB")).finish().account
    assert roomy.plan.keeps_everything


def test_what_is_kept_without_its_output_is_watched_too(engine: Engine) -> None:
    planned = engine.read(prompt_of(), WATCHED).planned
    recorder = Recorder()
    ids = torch.tensor([[*planned.prompt.context, *planned.prompt.questions[0]]])
    engine.decoder.forward(ids, torch.arange(ids.shape[1])[None], recorder, 1)
    reader = Reader(engine.decoder, planned)
    reader.begin(*reader.chunks)
    for layer, (query, key, scaling) in enumerate(recorder.calls):
        reader.keep(layer, query[None], key[None], key[None], Form(scaling))
    (share,) = reader.context(torch.zeros(1, 4)).standing
    assert share == pytest.approx(explicit(engine, prompt_of(), sinks=WATCHED.scorer.sinks), rel=1e-4)


def test_a_share_is_one() -> None:
    with pytest.raises(UsageError, match="open_below is 1"):
        replace(WATCHED, open_below=1.0)


def test_of_a_longer_text_than_was_measured_nothing_is_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for most, told in ((CONTEXT + QUESTION, 1), (CONTEXT + QUESTION - 1, 0)):
        monkeypatch.setattr(reader, "MEASURED_TOKENS", most)
        assert len(engine.read(prompt_of(), OPEN_TO_ALL).finish().standing) == told
