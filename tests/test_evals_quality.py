"""Quality against budget: the loss in closed form, samples that were not calibrated on, a small model's curve."""

from dataclasses import replace
from math import exp, log
from pathlib import Path

import pytest
import torch

from uncomp_cli.budget.presets import Preset, load_preset, save_preset
from uncomp_cli.calibrate.budget_curve import (
    QualityCurve,
    likelihood_lost,
    measure_quality,
    quality_curve,
    quality_file_settings,
    quality_settings,
)
from uncomp_cli.engine.engine import Engine
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.evals.journal import Journal
from uncomp_cli.evals.judges.case import tokenise
from uncomp_cli.evals.judges.contestants import FULL, Setting
from uncomp_cli.evals.judges.forced_rows import token_nll
from uncomp_cli.evals.tables.outcome import OUTCOMES, Outcome
from uncomp_cli.evals.tables.statistics import paired_difference
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.maker import CONTINUATION, SampleMaker, choose_sources, held_out_maker, held_out_samples
from uncomp_cli.evals.tasks.task import Query, Sample
from uncomp_cli.models.runnable import LoadedModel, fingerprint
from uncomp_cli.steps import Progress
from uncomp_cli.uncertainty.profile import SampleInfo, UncertaintyProfile

HAYSTACK = Haystack.generated_for(400, seed=1)
MINE = Preset("mine", "d", "20%", "uncertain", floor_tokens=512)
SETTINGS = tuple(
    Setting(name, replace(MINE, budget=budget)) for name, budget in ((FULL, "full"), ("mine", "10%"), ("mine", "5%"))
)
BUDGETS = ("full", "50%", "20%")


def count_words(text: str) -> int:
    return len(text.split())


def maker(*tasks: str, seed: int = 1, haystack: Haystack = HAYSTACK) -> SampleMaker:
    return SampleMaker(choose_sources(tasks), haystack, count_words, seed)


def test_of_several_facts_one_is_asked_in_turn_that_eviction_can_change() -> None:
    samples = list(maker("multiquestion/facts", "conversation/facts").make((300,), 12))
    answers = [sample.queries[0].answer for sample in samples]
    assert all(len(sample.queries) == 1 for sample in samples)
    assert len(set(answers)) == 12
    assert all(count_words(answer) >= 2 for answer in answers[1::2])  # sentences
    asked = [sample.queries[0].question.split()[1] for sample in maker("multiquestion/facts").make((300,), 10)]
    assert set(asked) == {"How", "When", "Where", "What"}
    hyphened = replace(maker("multiquestion/facts"), count_tokens=lambda text: len(text.replace("-", " ").split()))
    assert all("-" in sample.queries[0].answer for sample in hyphened.make((300,), 10))  # the others have one token


def outcome(subtask: str, index: int, setting: str, nll: float, *, kept: float = 1.0) -> Outcome:
    contestant, _, budget = setting.partition(" ")
    return Outcome(subtask, index, "aware", setting, contestant, budget, 300, None, kept, 1, {"nll": nll})


def refusal(subtask: str, index: int, setting: str, reason: str) -> Outcome:
    return replace(outcome(subtask, index, setting, 0), metrics={}, refused=reason)


@pytest.mark.parametrize(("rise", "lost"), [(0, 0), (log(2), 0.5), (log(10), 0.9), (-log(2), -1), (1e-9, 1e-9)])
def test_the_loss_is_the_share_of_the_likelihood(rise: float, lost: float) -> None:
    assert likelihood_lost(rise) == pytest.approx(lost, rel=1e-9)


def test_a_point_is_the_transformed_mean_of_pairs_with_each_task_the_same_weight() -> None:
    full = {("a", 0): 1.0, ("a", 1): 2.0, ("a", 2): 0.5, ("a", 3): 0.1, ("b", 0): 3.0, ("b", 1): 1.0}
    rises = {("a", 0): 0.1, ("a", 1): 0.3, ("a", 2): 0.2, ("a", 3): 0.2, ("b", 0): 0.5, ("b", 1): 0.7}
    outcomes = [outcome(*key, FULL, nll) for key, nll in full.items()]
    outcomes += [outcome(*key, "mine 10%", full[key] + rises[key], kept=0.1 + key[1] / 100) for key in full]
    outcomes += [outcome(*key, "mine 5%", full[key] - rises[key], kept=0.05) for key in full]
    curve = quality_curve(outcomes, SETTINGS)
    ten, five = curve.points
    assert (ten.budget, five.budget, ten.samples) == ("10%", "5%", 6)
    assert ten.kept_fraction == pytest.approx(0.1 + (0 + 1 + 2 + 3 + 0 + 1) / 600)
    assert ten.loss == pytest.approx(1 - exp(-(0.2 + 0.6) / 2))
    assert five.loss == pytest.approx(1 - exp((0.2 + 0.6) / 2))
    zeros = dict.fromkeys(full, 0.0)
    expected = paired_difference(rises, zeros, stratum=lambda key: key[0])
    assert (ten.loss_low, ten.loss_high) == pytest.approx((1 - exp(-expected.low), 1 - exp(-expected.high)))
    assert ten.loss_low < ten.loss < ten.loss_high
    assert curve.refused == {}


def test_tasks_of_one_sample_lend_each_other_their_spread() -> None:
    keys = [("a", 0), ("a", 1), ("b", 0)]
    rises = dict(zip(keys, (0.1, 0.1, 0.9), strict=True))
    outcomes = [outcome(*key, FULL, 1.0) for key in keys]
    outcomes += [outcome(*key, f"mine {budget}", 1 + rises[key]) for key in keys for budget in ("10%", "5%")]
    point = quality_curve(outcomes, SETTINGS).points[0]
    assert point.loss_high > point.loss + 0.1  # by strata it would be the loss itself: both spread by nothing
    assert point.loss == pytest.approx(1 - exp(-1.1 / 3))


def test_a_budget_that_one_sample_refuses_has_no_point() -> None:
    outcomes = [outcome("a", index, setting.label, 1.0) for index in range(3) for setting in SETTINGS[:2]]
    outcomes += [outcome("a", 0, "mine 5%", 1.0), refusal("a", 1, "mine 5%", "too few tokens")]
    curve = quality_curve(outcomes, SETTINGS)
    assert [point.budget for point in curve.points] == ["10%"]
    assert curve.refused == {"5%": "too few tokens"}


def test_samples_are_none_of_those_that_were_calibrated_on() -> None:
    calibrated = maker("needle/digits7", CONTINUATION)
    other = held_out_maker(calibrated, longest=300, generated=True)
    assert other.haystack.sha256 != calibrated.haystack.sha256
    assert held_out_maker(calibrated, longest=300, generated=False).haystack == calibrated.haystack
    for chosen in (other, replace(other, haystack=calibrated.haystack)):
        known = {one.sha256 for one in calibrated.make([300], 10)}
        samples = held_out_samples(chosen, [300], 10, known=known)
        assert len({sample.context for sample in samples}) == 10
        assert not {sample.context for sample in samples} & {one.context for one in calibrated.make([300], 10)}


def test_a_known_sample_is_left_out_and_one_left_is_too_few() -> None:
    made = maker("needle/digits7")
    known = [one.sha256 for one in made.make([300], 4)]
    left = held_out_samples(made, [300], 4, known=known[:1])
    assert [sample.context for sample in left] == [one.context for one in made.make([300], 4)][1:]
    with pytest.raises(UsageError, match="1 of the samples to measure quality on") as caught:
        held_out_samples(made, [300], 4, known=known[1:])
    assert "--quality-samples" in str(caught.value.hint)


def test_a_text_that_is_too_short_gives_a_sample_once() -> None:
    short = Haystack.of_texts("short", ["\n\n".join(HAYSTACK.paragraphs[:8])])
    words = count_words(" ".join(short.paragraphs))
    samples = held_out_samples(maker("needle/digits7", CONTINUATION, haystack=short), [words - 64], 8, known=())
    assert len([sample for sample in samples if sample.subtask == CONTINUATION]) < 4
    assert len({sample.index for sample in samples}) == len(samples)


def test_a_sample_has_the_same_number_whatever_is_beside_it() -> None:
    def indices(*tasks: str, lengths: tuple[int, ...]) -> dict[str, tuple[int, int]]:
        found = held_out_samples(maker(*tasks), lengths, 4 * len(tasks), known=())
        return {sample.context: (sample.tokens, sample.index) for sample in found}

    alone = indices("needle/digits7", lengths=(300,))
    beside = indices(CONTINUATION, "needle/digits7", lengths=(350, 300))
    shared = alone.keys() & beside.keys()
    assert shared
    assert all(alone[context] == beside[context] for context in shared)
    assert {tokens for tokens, _ in beside.values()} == {300, 350}


@pytest.fixture
def preset(loaded: LoadedModel, tmp_path: Path) -> Preset:
    """`mine`, saved with a profile in which one head of each layer matters more than the other."""
    loss = torch.tensor([1.0, 0.3]).repeat(1, loaded.spec.num_layers, 1)
    profile = UncertaintyProfile(
        fingerprint(loaded), (SampleInfo("text", f"{7:064x}", 2000, "plain"),), {"loss": loss}, {}
    )
    return load_preset(str(save_preset(MINE, tmp_path, profile)))


def sample(number: int, *, answer: str = " at dusk", times: int = 3) -> Sample:
    text = f"{number} boats lay there. " + "The harbour was quiet and the lamps were lit along the old wall. " * times
    return Sample("told", number, 300, text, (Query(" When were the lamps lit?", answer, ()),))


SAMPLES = tuple(map(sample, range(3)))


def finish(
    loaded: LoadedModel,
    preset: Preset,
    samples: tuple[Sample, ...],
    budgets: tuple[str, ...],
    path: Path,
    *,
    stop_after: int = 99,
) -> tuple[list[Progress], QualityCurve | None]:
    steps: list[Progress] = []
    with Journal.open(path, OUTCOMES, quality_file_settings(maker(CONTINUATION), loaded)) as results:
        work = measure_quality(loaded, preset, samples, budgets, results=results)
        while len(steps) <= stop_after:
            try:
                steps.append(next(work))
            except StopIteration as done:
                return steps, done.value
    return steps, None


def own_nll(loaded: LoadedModel, preset: Preset, asked: Sample) -> float:
    """What a context of its own, read with this preset, thinks of the answer from its second token on."""
    prompt, (answer,) = tokenise(loaded.tokenizer, asked)
    context = Engine(loaded).read(prompt, preset).finish()
    return float(token_nll(context.predict(answer)[None], answer)[0, 1:].mean())


def test_the_full_budget_loses_nothing_and_others_what_a_context_of_their_own_loses(
    loaded: LoadedModel, preset: Preset, tmp_path: Path
) -> None:
    steps, curve = finish(loaded, preset, SAMPLES, BUDGETS, tmp_path / "x.jsonl")
    assert [step.rate for step in steps] == ["0 of 3", "1 of 3", "2 of 3", "3 of 3"]
    assert "told" in steps[0].label
    assert curve is not None
    full, half, fifth = curve.points
    assert (full.budget, half.budget, fifth.budget) == BUDGETS
    assert (full.loss, full.loss_low, full.loss_high) == pytest.approx((0, 0, 0), abs=1e-5)
    assert full.kept_fraction >= 1 > half.kept_fraction > fifth.kept_fraction > 0
    everything = replace(preset, budget="full", policy="full", floor_tokens=0, profile=None)
    for point in (half, fifth):
        budgeted = replace(preset, budget=point.budget, floor_tokens=0)
        rises = [own_nll(loaded, budgeted, one) - own_nll(loaded, everything, one) for one in SAMPLES]
        assert point.loss == pytest.approx(1 - exp(-sum(rises) / 3), abs=1e-4)
        assert abs(point.loss) > 1e-3
        assert point.samples == 3


def test_a_budget_too_small_is_told_and_the_others_are_measured(
    loaded: LoadedModel, preset: Preset, tmp_path: Path
) -> None:
    _, curve = finish(loaded, preset, SAMPLES[:2], ("50%", "1"), tmp_path / "x.jsonl")
    assert curve is not None
    assert [point.budget for point in curve.points] == ["50%"]
    assert "always kept" in curve.refused["1"]


def test_a_run_that_was_stopped_reads_only_what_is_missing(loaded: LoadedModel, preset: Preset, tmp_path: Path) -> None:
    at_once = finish(loaded, preset, SAMPLES, BUDGETS, tmp_path / "a.jsonl")[1]
    stopped, nothing = finish(loaded, preset, SAMPLES, BUDGETS, tmp_path / "b.jsonl", stop_after=1)
    assert (len(stopped), nothing) == (2, None)
    steps, curve = finish(loaded, preset, SAMPLES, BUDGETS, tmp_path / "b.jsonl")
    assert [step.rate for step in steps] == ["0 of 2", "1 of 2", "2 of 2"]
    assert curve == at_once
    steps, fewer = finish(loaded, preset, SAMPLES[:2], BUDGETS[1:], tmp_path / "b.jsonl")
    assert len(steps) == 1
    assert fewer is not None
    assert [point.samples for point in fewer.points] == [2, 2]


def test_outcomes_are_those_of_one_profile(preset: Preset, loaded: LoadedModel, tmp_path: Path) -> None:
    before = {setting.label for setting in quality_settings(preset, ["10%"])}
    assert all(setting.preset.floor_tokens == 0 for setting in quality_settings(preset, ["10%"]))
    assert {setting.label for setting in quality_settings(replace(preset, budget="7%"), ["10%"])} == before
    values = {"loss": torch.ones(1, loaded.spec.num_layers, 2)}
    other = UncertaintyProfile(fingerprint(loaded), (SampleInfo("text", f"{8:064x}", 2000, "plain"),), values, {})
    again = load_preset(str(save_preset(MINE, tmp_path, other)))
    assert {setting.label for setting in quality_settings(again, ["10%"])} & before == {FULL}


def test_what_cannot_be_judged_is_refused_before_anything_is_read(
    loaded: LoadedModel, preset: Preset, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="an answer of 1 token,"):
        finish(loaded, preset, (SAMPLES[0], sample(9, answer="x")), BUDGETS, tmp_path / "x.jsonl")
    with pytest.raises(DoesNotFitError, match="4,096"):
        finish(loaded, preset, (SAMPLES[0], sample(9, times=70)), BUDGETS, tmp_path / "x.jsonl")
    with pytest.raises(UsageError, match="budget auto"):
        finish(loaded, preset, SAMPLES, ("auto",), tmp_path / "x.jsonl")
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 1
