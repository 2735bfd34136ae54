"""Judges against another way to the figures: a token too early or too late, or evidence beside the fact, is seen."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.evals.judges.case import Case, read_case
from uncomp_cli.evals.judges.contestants import make_settings
from uncomp_cli.evals.judges.predictions import NEXT_TOKENS, UNRELATED, compare_logits, judge_fidelity, judge_perplexity
from uncomp_cli.evals.tasks.task import Query, Sample
from uncomp_cli.models.runnable import LoadedModel

pytestmark = pytest.mark.model

ROOT = Path(__file__).parent.parent
HANDBOOK = (ROOT / "docs/demo/lighthouse-handbook.md").read_text(encoding="utf-8")
LICENCE = (ROOT / "LICENSE").read_text(encoding="utf-8")
FACT = "The special magic number for walnut is 7302846."


@pytest.fixture(scope="module")
def loaded(default_model: LoadedModel) -> LoadedModel:
    return default_model


@pytest.fixture(scope="module")
def decoder(loaded: LoadedModel) -> Decoder:
    return Decoder(loaded.model, loaded.spec)


def fact_sample(*, system: str | None) -> Sample:
    context = f"  {HANDBOOK[:300]} {FACT} {HANDBOOK[300:500]}"
    begin = context.index(FACT)
    query = Query("\n\nThe number is", " 7302846", ("7302846",), evidence=((begin, begin + len(FACT)),))
    return Sample("needle/digits7", 0, 200, context, (query,), system=system)


def stock_losses(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """Losses of all tokens but the first, by one forward of transformers itself."""
    decoder_name = loaded.model.config._attn_implementation
    loaded.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    loaded.model.set_attn_implementation(decoder_name)
    return cross_entropy(logits[:-1].float(), torch.tensor(ids[1:]), reduction="none")


def test_perplexity_is_that_of_one_stock_forward(small_model: LoadedModel) -> None:
    context, control = HANDBOOK[:900], LICENCE[3000:3900]
    sample = Sample("perplexity/continuation", 0, 220, context, (Query("", HANDBOOK[900:4200], ()),), control=control)
    case = read_case(Decoder(small_model.model, small_model.spec), small_model.tokenizer, sample)
    text = list(case.answers[0][:NEXT_TOKENS])
    outcomes = {o.setting: o.metrics for o in judge_perplexity(case, make_settings([], [], seed=0), "agnostic", ())}
    for setting, before in (("full", context), (UNRELATED, control)):
        ids = small_model.tokenizer(before, add_special_tokens=False)["input_ids"]
        losses = stock_losses(small_model, [*ids, *text])[len(ids) :]  # of the text's tokens from the second on
        assert outcomes[setting]["nll"] == pytest.approx(float(losses.mean()), abs=1e-3)
        assert outcomes[setting]["nll_to_32"] == pytest.approx(float(losses[:31].mean()), abs=1e-3)
        assert outcomes[setting]["nll_to_512"] == pytest.approx(float(losses[127:].mean()), abs=1e-3)
    assert outcomes["full"]["gain_lost"] == pytest.approx(0, abs=1e-6)
    assert outcomes[UNRELATED]["gain_lost"] == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_fidelity_is_that_of_two_contexts(loaded: LoadedModel, decoder: Decoder) -> None:
    query = Query("\n\nIn short, the text says that", "", (), max_new_tokens=8)
    case = read_case(decoder, loaded.tokenizer, Sample("fidelity/continuation", 0, 100, HANDBOOK[:400], (query,)))
    settings = make_settings(["uniform"], ["40%"], seed=0)
    outcomes = {o.setting: o.metrics for o in judge_fidelity(case, settings, "aware", ())}
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=8))
    contexts = [engine.read(case.prompt, setting.preset).finish() for setting in settings]
    text = [step.token for step in engine.writer(engine.asked(contexts[0])).write()]
    assert len(text) == 8  # no stop token came, which fidelity would pass over
    full, ours = (context.predict(text)[1:] for context in contexts)
    expected = compare_logits(full, ours)
    assert expected["kl"] > 1e-3
    assert outcomes["uniform 40%"] == pytest.approx(expected, rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("system", [None, "", "Answer in one word."])
def test_evidence_is_the_fact_in_text_and_in_chat(loaded: LoadedModel, decoder: Decoder, system: str | None) -> None:
    case: Case = read_case(decoder, loaded.tokenizer, fact_sample(system=system))
    ids = [case.prompt.context.ids[i] for i in case.evidence.tolist()]
    assert loaded.tokenizer.decode(ids).strip() == FACT


def test_an_answer_of_one_token_has_no_likelihood_before_the_eviction(loaded: LoadedModel, decoder: Decoder) -> None:
    from uncomp_cli.evals.judges.answers import judge_answers

    query = Query("\n\nIt stands in the city of", " Paris", ("Paris",), max_new_tokens=2)
    sample = Sample("ruler/qa_1", 0, 100, HANDBOOK[:300], (query,))
    case = read_case(decoder, loaded.tokenizer, sample)
    assert len(case.answers[0]) == 1
    settings = make_settings([], [], seed=0)
    (aware,), (agnostic,) = (judge_answers(case, settings, regime, (2,)) for regime in ("aware", "agnostic"))
    assert "nll" not in aware.metrics
    assert agnostic.metrics["nll"] > 0
