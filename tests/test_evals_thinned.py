"""Thinned settings beside others: each has its own prefill and first logits, and nothing else is different."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from support.tiny import make_character_model
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import SamplingConfig
from uncomp_cli.documents.prose import write_prose
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.evals.judges.answers import judge_answers
from uncomp_cli.evals.judges.case import Case, read_case
from uncomp_cli.evals.judges.contestants import Setting, make_settings
from uncomp_cli.evals.judges.forced_rows import token_nll
from uncomp_cli.evals.judges.predictions import judge_fidelity
from uncomp_cli.evals.tasks.task import Query, Regime, Sample
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

LAYERS, KV_HEADS, CONTEXT = 4, 2, 700
REGIMES: tuple[Regime, ...] = ("aware", "agnostic")
NEARLY_ALL = "gather:after=1,keep=0.9999"  # thinned as far as the engine knows, and every token goes on
THINNED = "gather:after=2,keep=0.5"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = make_character_model(tmp_path_factory.mktemp("models") / "tiny", layers=LAYERS, trained=2048, spread=0.3)
    return load_model(str(path), device="cpu")


def case_of(loaded: LoadedModel, question: str = " Whose is it, and since when?") -> Case:
    context = write_prose(900, seed=1).replace("\n", " ")[:CONTEXT]
    query = Query(question, " the baker's", accepted=("baker",), max_new_tokens=6, evidence=((90, 130),))
    sample = Sample("needle/words", 0, 730, context, (query,))
    case = read_case(Decoder(loaded.model, loaded.spec), loaded.tokenizer, sample)
    assert case.context_len == CONTEXT
    return case


@pytest.fixture(scope="module")
def case(loaded: LoadedModel) -> Case:
    return case_of(loaded)


def settings_of(contestants: Sequence[str], budget: str = "30%") -> list[Setting]:
    """The settings of these contestants, without the full cache that is always there."""
    return make_settings(contestants, [budget], seed=3)[1:]


def heads(cache: RaggedKVCache) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    for index in range(len(cache.layers)):
        layer = cache.layer(index)
        yield from (layer.head(g) for g in range(cache.num_kv_heads))


@pytest.mark.sparse(1)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("thinning", ["gather:after=1,keep=1", NEARLY_ALL])
@pytest.mark.parametrize("contestant", ["full", "uniform", "adaptive", "random", "uncomp", "uniform/agreement/held=1"])
def test_a_schedule_of_ones_is_the_shared_exact_prefill(
    case: Case, contestant: str, thinning: str, regime: Regime
) -> None:
    """The same tokens, keys and values are kept, the random control's draw included, and the same token follows."""
    (setting,) = settings_of([f"{contestant}/thin={thinning}"])
    read, _ = case.reading.read_thinned(setting, regime)
    shared = case.reading.compress(setting, regime)
    for own, other in zip(heads(read.cache), heads(shared), strict=True):
        assert own[2].tolist() == other[2].tolist()
        torch.testing.assert_close(own[0], other[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(own[1], other[1], rtol=1e-4, atol=1e-4)
    assert read.hidden_kept == (1.0,) * LAYERS
    if regime == "aware":
        torch.testing.assert_close(read.questions.logits, case.reading.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("regime", REGIMES)
def test_full_with_thinning_keeps_all_that_each_layer_saw(case: Case, regime: Regime) -> None:
    (setting,) = settings_of([f"full/thin={THINNED}"])
    assert setting.label == f"full/thin={THINNED}"
    ((one,), refused) = case.compress([setting], regime)
    assert refused == []
    counts = [len(positions) for _, _, positions in heads(one.cache)]
    seen = case.seen_tokens(regime)
    assert counts[: 2 * KV_HEADS] == [seen] * 2 * KV_HEADS
    assert all(CONTEXT / 2 <= count < 0.6 * seen for count in counts[2 * KV_HEADS :])
    expected = sum(counts) / (LAYERS * KV_HEADS * seen)
    assert expected < one.outcome.kept_fraction < expected * 1.25  # positions and slack are allocated too
    assert one.outcome.coverage_by_head is not None
    assert one.outcome.coverage_by_head[0] == [1.0] * KV_HEADS


def test_each_row_begins_with_its_own_logits_and_scores_what_a_context_of_its_own_does(
    case: Case, loaded: LoadedModel
) -> None:
    settings = settings_of(["uniform", f"uniform/thin={THINNED}", f"full/thin={THINNED}", "full/thin=uncertain"])
    compressed, _ = case.compress(settings, "aware")
    _, logits = case.begin(compressed, "aware", 0, room=20)
    by_label = {one.outcome.setting: row for one, row in zip(compressed, logits, strict=True)}
    outcomes = {outcome.setting: outcome for outcome in judge_answers(case, settings, "aware", stop_ids=())}
    reference = list(case.answers[0])
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=6))
    for setting in settings:
        context = engine.read(case.prompt, setting.preset).finish()
        expected = context.predict(reference)
        torch.testing.assert_close(by_label[setting.label], expected[0], rtol=1e-4, atol=1e-4)
        nll = float(token_nll(expected[None], reference)[0, 1:].mean())
        assert outcomes[setting.label].metrics["nll"] == pytest.approx(nll, abs=2e-4)
        text = "".join(step.text for step in engine.writer(engine.asked(context)).write())
        assert outcomes[setting.label].answer == text
    labels = [settings[0].label, settings[1].label]
    assert not torch.allclose(by_label[labels[0]], by_label[labels[1]], atol=1e-3)


@pytest.mark.parametrize("regime", REGIMES)
def test_settings_that_thin_alike_are_read_together_as_each_would_be_alone(
    case: Case, regime: Regime, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, decoder = [], case.reading.decoder
    read = decoder.layer_by_layer
    monkeypatch.setattr(decoder, "layer_by_layer", lambda *given: (passes.append(given), read(*given))[1])
    alike = [f"uniform/thin={THINNED}", f"uniform/8bit/thin={THINNED}", f"full/thin={THINNED}"]
    settings = settings_of([*alike, "uniform/thin=gather:after=2,keep=0.3", f"uniform/keydiff/thin={THINNED}"])
    together, _ = case.compress(settings, regime)
    assert len(passes) == 3
    for one in together:
        (setting,) = (setting for setting in settings if setting.label == one.outcome.setting)
        left = case.reading.leave(setting, regime)
        torch.testing.assert_close(left.logits, one.logits)
        for own, shared in zip(heads(left.cache), heads(one.cache), strict=True):
            assert own[2].tolist() == shared[2].tolist()
            torch.testing.assert_close(own[0], shared[0])


def test_fidelity_tells_a_thinned_cache_from_the_full_one(case: Case) -> None:
    settings = [*make_settings([], [], seed=0), *settings_of([f"full/thin={NEARLY_ALL}", f"full/thin={THINNED}"])]
    for regime in REGIMES:
        full, same, thinned = judge_fidelity(case, settings, regime, stop_ids=())
        assert full.metrics["kl"] == pytest.approx(0, abs=1e-6)
        assert same.metrics["kl"] == pytest.approx(0, abs=1e-5)
        assert thinned.metrics["kl"] > 1e-4


def test_in_the_agnostic_regime_the_last_tokens_observe_and_the_question_is_not_seen(loaded: LoadedModel) -> None:
    (setting,) = settings_of([f"uniform/thin={THINNED}"])
    first, second = (case_of(loaded, question) for question in (" Whose is it?", " When did they leave for the sea?"))
    one, other = (case.reading.read_thinned(setting, "agnostic")[0] for case in (first, second))
    window = set(range(CONTEXT - setting.preset.scorer.window, CONTEXT))
    for own, others in zip(heads(one.cache), heads(other.cache), strict=True):
        assert own[2].tolist() == others[2].tolist()
        assert window <= set(own[2].tolist())
        torch.testing.assert_close(own[0], others[0])
    assert int(max(positions.max() for _, _, positions in heads(one.cache))) == CONTEXT - 1


def test_a_model_that_cannot_be_thinned_is_refused_and_not_judged_as_if_it_were(case: Case) -> None:
    decoder = Decoder(case.decoder.model, replace(case.decoder.spec, model_type="gemma3_text"))
    case.reading.decoder, before = decoder, case.reading.decoder
    try:
        done, (refused,) = case.compress(settings_of([f"uniform/thin={THINNED}"]), "aware")
    finally:
        case.reading.decoder = before
    assert done == []
    assert "without thinning" in str(refused.refused)


def test_a_result_does_not_depend_on_the_memory_that_is_free(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little for one pass is a refusal, though chunks would fit."""
    monkeypatch.setattr("uncomp_cli.evals.judges.prefill.free_bytes", lambda device: 1800 * 1024)
    done, (refused,) = case.compress(settings_of([f"full/thin={THINNED}"]), "aware")
    assert done == []
    assert "in one pass" in str(refused.refused)


def test_a_budget_that_is_too_small_is_refused_under_thinning_too(case: Case) -> None:
    done, (refused,) = case.compress(settings_of([f"uniform/thin={THINNED}"], "4"), "aware")
    assert done == []
    assert "always kept" in str(refused.refused)
