"""Sharing one prefill, and decoding many settings as one batch, changes nothing: not what is kept, not what is said."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from support.families import read
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.spend.allocation import make_allocation, scorer_config
from uncomp_cli.engine.tokens.prompt import Prompt, open_question
from uncomp_cli.evals.judges.answers import judge_answers
from uncomp_cli.evals.judges.case import Case, read_case
from uncomp_cli.evals.judges.contestants import Setting, make_settings
from uncomp_cli.evals.judges.forced_rows import Rows, token_nll
from uncomp_cli.evals.judges.predictions import judge_fidelity
from uncomp_cli.evals.judges.prefill import without_question
from uncomp_cli.evals.tasks.task import Query, Sample
from uncomp_cli.models.runnable import LoadedModel

pytestmark = pytest.mark.model

CONTESTANTS = [
    "uniform",
    "adaptive",
    "pyramid",
    "uniform/keydiff",
    "uniform/expected",
    "uniform/repeat",
    "adaptive/repeat/4bit",
    "uncertain/repeat",
    "sinks",
    "uniform/8bit",
    "full/4bit",
    "uncertain",
    "uncertain:by=lmba-free/agreement/8bit",
    "uncomp:groups=2/agreement/held=0.5",
]
SETTINGS = make_settings(CONTESTANTS, ["30%"], seed=0)
HANDBOOK = Path(__file__).parent.parent / "docs/demo/lighthouse-handbook.md"


@pytest.fixture(scope="module")
def loaded(default_model: LoadedModel) -> LoadedModel:
    return default_model


@pytest.fixture(scope="module")
def case(loaded: LoadedModel) -> Case:
    return case_of(loaded)


@pytest.fixture(scope="module")
def small_case(small_model: LoadedModel) -> Case:
    """For every contestant; the default model itself is held against sessions of its own below."""
    return case_of(small_model)


def case_of(loaded: LoadedModel) -> Case:
    text = HANDBOOK.read_text(encoding="utf-8")[:500]
    fact = "The special magic number for walnut is 7302846."
    context = f"{text[:300]} {fact} {text[300:]}"
    begin = context.index(fact)
    query = Query(
        question="\n\nThe special magic number for walnut mentioned in the text is",
        answer=" 7302846",
        accepted=("7302846",),
        max_new_tokens=9,
        evidence=((begin, begin + len(fact)),),
    )
    sample = Sample("needle/digits7", 0, 150, context, (query,))
    return read_case(Decoder(loaded.model, loaded.spec), loaded.tokenizer, sample)


def alone(case: Case, prompt: Prompt, setting: Setting) -> Context:
    """An ordinary prefill of its own."""
    config = scorer_config(setting.preset)
    allocation = make_allocation(case.decoder.spec, setting.preset, prompt, available=0)
    _, done = read(case.decoder, prompt, allocation, config)
    done.begin(0)
    return done


def positions(cache: RaggedKVCache) -> Iterator[list[int]]:
    for index in range(len(cache.layers)):
        layer = cache.layer(index)
        yield from (layer.head(g)[2].tolist() for g in range(cache.num_kv_heads))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.label)
def test_a_shared_prefill_keeps_what_its_own_would(small_case: Case, setting: Setting) -> None:
    config = scorer_config(setting.preset)
    for regime, prompt in (
        ("aware", open_question(small_case.prompt, recent=config.recent)),
        ("agnostic", without_question(small_case.prompt, window=config.window)),
    ):
        own, shared = alone(small_case, prompt, setting).cache, small_case.reading.compress(setting, regime)
        if regime == "agnostic":
            own.settle()  # as what is saved
        assert list(positions(own)) == list(positions(shared))
        assert own.nbytes == shared.nbytes
        for index in range(len(own.layers)):
            for g in range(own.num_kv_heads):
                for a, b in zip(own.layer(index).head(g)[:2], shared.layer(index).head(g)[:2], strict=True):
                    if setting.preset.kv_bits == 16:
                        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
                    else:  # rounding may put a number on the other side of a quantisation step, rarely
                        assert (a - b).abs().mean() < 2e-3


@pytest.mark.slow
def test_rows_of_one_batch_score_and_write_what_each_context_alone_does(case: Case, loaded: LoadedModel) -> None:
    settings = [s for s in SETTINGS if s.contestant in ("full", "uniform", "adaptive", "uniform/8bit", "uncertain")]
    outcomes = {o.setting: o for o in judge_answers(case, settings, "aware", stop_ids=())}
    reference = list(case.answers[0])
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=9))
    for setting in settings:
        context = engine.read(case.prompt, setting.preset).finish()
        text = "".join(step.text for step in engine.writer(engine.asked(context)).write())
        nll = token_nll(context.predict(reference)[None], reference)[0, 1:].mean()
        outcome = outcomes[setting.label]
        assert outcome.metrics["nll"] == pytest.approx(float(nll), abs=2e-4), setting.label
        assert outcome.metrics["match"] == float("7302846" in text), setting.label
        assert outcome.kv_bytes == case.reading.compress(setting, "aware").nbytes


def test_everything_kept_is_the_full_cache_for_every_contestant(small_case: Case) -> None:
    contestants = ["uniform", "adaptive", "pyramid", "sinks", "random", "reversed"]
    contestants += [f"uniform/{name}" for name in ("keydiff", "expected", "tova", "agreement", "distinct", "repeat")]
    contestants += ["uncertain", "zigzag/agreement", "uncomp"]
    settings = make_settings(contestants, ["100%"], seed=0)
    for regime in ("aware", "agnostic"):
        outcomes = judge_answers(small_case, settings, regime, stop_ids=())
        full = next(o for o in outcomes if o.setting == "full")
        for outcome in outcomes:
            assert outcome.metrics == pytest.approx(full.metrics, abs=1e-5)
            assert outcome.metrics["coverage"] == 1.0
        for outcome in judge_fidelity(small_case, settings, regime, stop_ids=()):
            assert outcome.metrics["kl"] == pytest.approx(0, abs=1e-6)
            assert (outcome.metrics["agreement"], outcome.metrics["divergence"]) == (1.0, 1.0)


def test_rows_do_not_see_each_other(case: Case) -> None:
    full, tiny = (
        next(s for s in make_settings(["uniform"], ["30%"], seed=0) if s.budget == b) for b in ("full", "30%")
    )
    caches = [case.reading.compress(setting, "aware") for setting in (full, tiny)]
    together = Rows(case.decoder, caches, position=case.seen_tokens("aware"), reserve=8).feed([5, 6, 7])
    for row, cache in enumerate(caches):
        apart = Rows(case.decoder, [cache], position=case.seen_tokens("aware"), reserve=8).feed([5, 6, 7])
        torch.testing.assert_close(together[row], apart[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
