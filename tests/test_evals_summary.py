"""The evaluation's table, notes and pictures against figures worked out by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tables.sheet import csv_rows, format_score, markdown, notes, parts_of, score_table, tables_of
from uncomp_cli.evals.tables.summary import (
    CoverageMap,
    FailedSubtask,
    Figure,
    Kept,
    NeedleGrid,
    Row,
    Summary,
    coverage_maps,
    needle_grids,
    quality_curves,
    summarise,
    unanswered_fields,
)
from uncomp_cli.table import Table


def _outcome(
    setting: str, subtask: str, index: int, *, tokens: int = 1000, kept: float = 1.0, **metrics: float
) -> Outcome:
    contestant, _, budget = setting.partition(" ")
    return Outcome(subtask, index, "aware", setting, contestant, budget or "full", tokens, None, kept, 64, metrics)


def _scored(setting: str, subtask: str, values: Sequence[float], metric: str = "match", **more: float) -> list[Outcome]:
    return [_outcome(setting, subtask, index, **{metric: value}, **more) for index, value in enumerate(values)]


def _refused(outcome: Outcome) -> Outcome:
    return replace(outcome, metrics={}, kept_fraction=0.0, refused="the budget is below the window")


def _row(summary: Summary, setting: str, subtask: str | None = None) -> Row:
    rows = summary.overall if subtask is None else summary.by_subtask
    (found,) = (row for row in rows if (row.setting, row.subtask) == (setting, subtask))
    return found


def _mean(row: Row, metric: str) -> float:
    return row.figures[metric].mean.mean


def _difference(row: Row, metric: str) -> float:
    difference = row.figures[metric].difference
    assert difference is not None
    return difference.mean


TWO_SUBTASKS = [
    *_scored("full", "needle/uuid", [1.0, 1.0, 0.9, 0.9]),
    *_scored("full", "ruler/vt", [0.8, 0.6]),
    *_scored("window 20%", "needle/uuid", [0.5, 1.0, 0.5, 0.8], kept=0.2),
    *_scored("window 20%", "ruler/vt", [0.8, 0.4], kept=0.23),
]


def test_the_average_is_the_mean_of_the_subtasks_means_and_differences_are_by_sample() -> None:
    summary = summarise(TWO_SUBTASKS, regime="aware")
    ours = _row(summary, "window 20%")
    assert _mean(_row(summary, "full"), "match") == pytest.approx((0.95 + 0.7) / 2)
    assert _mean(ours, "match") == pytest.approx((0.7 + 0.6) / 2)
    assert _difference(ours, "match") == pytest.approx((-0.25 - 0.1) / 2)
    assert (ours.samples, ours.refused, ours.figures["match"].mean.count) == (6, 0, 6)
    assert ours.kept == Kept(pytest.approx((4 * 0.2 + 2 * 0.23) / 6), 0.2, 0.23)


def test_a_subtask_has_its_own_means_differences_and_kept_bytes() -> None:
    row = _row(summarise(TWO_SUBTASKS, regime="aware"), "window 20%", "needle/uuid")
    assert _mean(row, "match") == pytest.approx(0.7)
    assert _difference(row, "match") == pytest.approx((-0.5 + 0.0 - 0.4 - 0.1) / 4)
    assert row.kept == Kept(pytest.approx(0.2), 0.2, 0.2)
    assert row.samples == 4


def test_the_interval_of_a_difference_is_that_of_the_pairs() -> None:
    full = [0.5 + 0.05 * index for index in range(10)]
    ours = [value - 0.1 for value in full]  # hard samples are hard for both: the difference has no spread
    outcomes = _scored("full", "needle/uuid", full) + list(
        reversed(_scored("window 5%", "needle/uuid", ours, kept=0.05))
    )
    figure = _row(summarise(outcomes, regime="aware"), "window 5%").figures["match"]
    assert figure.difference is not None
    assert figure.difference.high - figure.difference.low < 1e-9
    assert figure.mean.high - figure.mean.low > 0.1


def test_zeros_and_ones_of_a_subtask_have_wilsons_interval() -> None:
    summary = summarise(_scored("full", "needle/uuid", [1.0] * 10, "exact"), regime="aware")
    assert _row(summary, "full", "needle/uuid").figures["exact"].mean.low == pytest.approx(0.7225, abs=1e-4)


def test_regimes_are_never_mixed() -> None:
    agnostic = [replace(outcome, regime="agnostic", metrics={"match": 0.0}) for outcome in TWO_SUBTASKS]
    assert summarise(TWO_SUBTASKS + agnostic, regime="aware") == summarise(TWO_SUBTASKS, regime="aware")
    assert _mean(_row(summarise(agnostic, regime="agnostic"), "full", "needle/uuid"), "match") == 0.0
    assert quality_curves(TWO_SUBTASKS + agnostic, regime="aware", metric="match") == quality_curves(
        TWO_SUBTASKS, regime="aware", metric="match"
    )


def test_without_full_there_are_no_differences_and_nothing_is_left_out() -> None:
    outcomes = _scored("window 20%", "needle/uuid", [0.0, 0.1], kept=0.2)
    summary = summarise(outcomes, regime="aware")
    assert _row(summary, "window 20%").figures["match"].difference is None
    assert _mean(_row(summary, "window 20%"), "match") == pytest.approx(0.05)
    assert summary.failed == ()


FULL_FAILS = [
    *_scored("full", "needle/uuid", [0.9, 0.7], nll=0.2),
    *_scored("full", "ruler/cwe", [0.6, 0.3], nll=2.0),
    *_scored("window 20%", "needle/uuid", [0.8, 0.6], nll=0.3, kept=0.2),
    *_scored("window 20%", "ruler/cwe", [1.0, 1.0], nll=9.0, kept=0.2),
]


def test_what_full_fails_counts_in_every_average_and_has_a_column_without_it() -> None:
    summary = summarise(FULL_FAILS, regime="aware")
    assert summary.failed == (FailedSubtask("ruler/cwe", pytest.approx(0.45), 2),)
    ours = _row(summary, "window 20%")
    assert (_mean(ours, "match"), _mean(ours, "nll"), ours.samples) == (pytest.approx(0.85), pytest.approx(4.65), 4)
    assert _mean(ours, "of_right") == pytest.approx(((0.8 + 0.6) / 2 + 1.0) / 2)  # cwe's second sample full fails
    assert _difference(ours, "of_right") == pytest.approx((-0.1 + 0.4) / 2)
    assert ours.figures["of_right"].mean.count == 3
    assert notes(summary) == ["the full cache itself gets 45.0 % (2 samples) of ruler/cwe right: see of_right"]


def test_a_full_cache_that_is_always_right_needs_no_second_column() -> None:
    assert "of_right" not in summarise(TWO_SUBTASKS, regime="aware").metrics


def test_of_choices_the_likeliest_says_what_is_right() -> None:
    outcomes = _scored("full", "leval/lectures", [1.0, 0.0], "choice", match=0.0)
    outcomes += _scored("window 20%", "leval/lectures", [0.0, 1.0], "choice", match=1.0, kept=0.2)
    assert _mean(_row(summarise(outcomes, regime="aware"), "window 20%"), "of_right") == 0.0


def test_a_full_cache_that_is_right_half_the_time_counts() -> None:
    assert summarise(_scored("full", "needle/uuid", [0.0, 1.0]), regime="aware").failed == ()


def test_subtasks_that_match_nothing_are_not_judged_by_it() -> None:
    outcomes = _scored("full", "fidelity/prose", [0.0, 0.0], "kl") + _scored(
        "window 5%", "fidelity/prose", [0.2, 0.4], "kl"
    )
    summary = summarise(outcomes, regime="aware")
    assert summary.failed == ()
    assert _difference(_row(summary, "window 5%"), "kl") == pytest.approx(0.3)
    assert "match" not in _row(summary, "window 5%").figures


def test_a_setting_that_was_refused_is_shown_and_not_averaged() -> None:
    outcomes = [*TWO_SUBTASKS[:-1], _refused(TWO_SUBTASKS[-1])]
    summary = summarise(outcomes, regime="aware")
    row = _row(summary, "window 20%")
    assert (row.figures, row.refused, row.samples, row.reason) == ({}, 1, 6, "the budget is below the window")
    assert row.kept == Kept(pytest.approx((4 * 0.2 + 0.23) / 5), 0.2, 0.23)
    assert _row(summary, "window 20%", "ruler/vt").figures == {}
    assert _mean(_row(summary, "window 20%", "needle/uuid"), "match") == pytest.approx(0.7)
    assert score_table(summary).rows[1] == ("window 20%", "refused 1 of 6", "", "6")
    assert notes(summary) == ["refused: window 20% on ruler/vt, 1 of 2 samples: the budget is below the window"]
    (full,) = quality_curves(outcomes, regime="aware", metric="match")
    assert full.label == "full"


def test_rows_are_full_first_then_contestants_with_the_largest_budget_first() -> None:
    outcomes = [
        *_scored("window 5%", "needle/uuid", [0.9], kept=0.05),
        *_scored("keydiff 20%", "needle/uuid", [0.9], kept=0.2),
        *_scored("window 20%", "needle/uuid", [0.9], kept=0.2),
        *_scored("full", "needle/uuid", [0.9]),
    ]
    names = [row.setting for row in summarise(outcomes, regime="aware").overall]
    assert names == ["full", "window 20%", "window 5%", "keydiff 20%"]


def test_the_json_has_every_figure_and_no_nan() -> None:
    summary = summarise([*TWO_SUBTASKS, _outcome("window 20%", "x/y", 0, kept=0.2, kl=float("nan"))], regime="aware")
    record = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert record["regime"] == "aware"
    assert record["metrics"] == ["match", "kl"]
    ours = record["overall"][1]
    assert ours["setting"] == "window 20%"
    assert ours["figures"]["match"]["mean"]["mean"] == pytest.approx(0.65)
    assert ours["figures"]["match"]["difference"]["low"] < -0.175
    assert ours["figures"]["kl"]["mean"]["mean"] is None
    assert len(record["by_subtask"]) == 5


def test_no_outcomes_give_an_empty_table() -> None:
    summary = summarise([], regime="aware")
    assert score_table(summary) == Table(("SETTING", "KEPT", "SAMPLES"), [])
    assert notes(summary) == []


SMALL = [
    *_scored("full", "needle/uuid", [1.0, 1.0], "exact", match=1.0, nll=0.1),
    *_scored("window 20%", "needle/uuid", [0.5, 0.5], "exact", match=0.5, nll=0.35, kept=0.2),
    *_scored("full", "ruler/cwe", [0.0], "exact", match=0.0, nll=0.1),
]


def test_the_table_has_scores_differences_and_intervals() -> None:
    summary = summarise(SMALL, regime="aware")
    overall = score_table(summary, metrics=["nll", "exact", "unmeasured"])
    assert [overall.columns, *(tuple(row.values()) for row in overall.record())] == [
        ("SETTING", "KEPT", "NLL", "EXACT", "SAMPLES"),
        ("full", "100.0 %", "0.100", "50.0 %", "3"),
        ("window 20%", "20.0 %", "0.350 (+0.250 +0.250…+0.250)", "50.0 % (-50.0 -50.0…-50.0)", "2"),
    ]
    by_subtask = score_table(summary, by_subtask=True, metrics=["exact"])
    assert [by_subtask.columns, *(tuple(row.values()) for row in by_subtask.record())] == [
        ("SUBTASK", "SETTING", "KEPT", "EXACT", "SAMPLES"),
        ("needle/uuid", "full", "100.0 %", "100.0 %", "2"),
        ("needle/uuid", "window 20%", "20.0 %", "50.0 % (-50.0 -50.0…-50.0)", "2"),
        ("ruler/cwe", "full", "100.0 %", "0.0 %", "1"),
    ]


def test_kept_bytes_that_vary_show_their_range() -> None:
    assert score_table(summarise(TWO_SUBTASKS, regime="aware")).rows[1][1] == "21.0 % (20.0…23.0)"


def test_a_rounded_zero_has_no_minus() -> None:
    assert [format_score("nll", value, signed=True) for value in (-0.0001, 0.0, -0.25)] == [
        "+0.000",
        "+0.000",
        "-0.250",
    ]
    assert format_score("exact", -0.00001) == "0.0"


def test_the_markdown_is_the_same_table_with_notes() -> None:
    text = markdown(summarise(SMALL, regime="aware"), metrics=["exact"])
    heading, overall, by_subtask, listed = text.rstrip("\n").split("\n\n")
    assert heading.startswith("Regime aware: question seen at compression.")
    assert overall.splitlines() == [
        "| SETTING | KEPT | EXACT | SAMPLES |",
        "|---|---|---|---|",
        "| full | 100.0 % | 50.0 % | 3 |",
        "| window 20% | 20.0 % | 50.0 % (-50.0 [-50.0, -50.0]) | 2 |",
    ]
    assert by_subtask.splitlines()[-1] == "| ruler/cwe | full | 100.0 % | 0.0 % | 1 |"
    assert listed.startswith("- the full cache itself gets 0.0 % (1 sample) of ruler/cwe right")


def test_notes_stand_below_the_last_table_of_a_part() -> None:
    (part,) = parts_of(SMALL)
    overall, by_subtask = tables_of(part, wide=True)
    assert (overall.title, by_subtask.title) == (
        "needle, ruler, regime aware: all subtasks",
        "needle, ruler, regime aware: by subtask",
    )
    assert overall.notes == ()
    assert by_subtask.notes[:1] == notes(summarise(SMALL, regime="aware"))
    (alone,) = tables_of(parts_of(SMALL[:4])[0])
    assert alone.title == "needle, regime aware: all subtasks"


def test_curves_rise_in_kept_bytes() -> None:
    needles = [outcome for outcome in FULL_FAILS if outcome.subtask == "needle/uuid"]
    outcomes = [*needles, *_scored("window 5%", "needle/uuid", [0.4, 0.2], kept=0.05)]
    full, window = quality_curves(outcomes, regime="aware", metric="match")
    assert (full.label, [(p.kept_fraction, p.mean) for p in full.points]) == ("full", [(1.0, pytest.approx(0.8))])
    assert window.label == "window"
    assert [p.kept_fraction for p in window.points] == pytest.approx([0.05, 0.2])
    assert [p.mean for p in window.points] == pytest.approx([0.3, 0.7])
    half = 0.3 - window.points[0].low
    assert half > 0.1  # two samples are stretched: what they span is no interval
    assert [(p.low, p.high) for p in window.points] == [
        pytest.approx((0.3 - half, min(1, 0.3 + half))),
        pytest.approx((0.7 - half, min(1, 0.7 + half))),
    ]
    assert [len(curve.points) for curve in quality_curves(outcomes, regime="aware", metric="nll")] == [1, 1]
    assert quality_curves(outcomes, regime="aware", metric="kl") == []


def _needle(setting: str, kind: str, index: int, tokens: int, depth: float, exact: float) -> Outcome:
    kept = 1.0 if setting == "full" else 0.2
    outcome = _outcome(setting, f"needle/{kind}", index, tokens=tokens, kept=kept, exact=exact, match=exact)
    return replace(outcome, depth=depth)


NEEDLES = [
    _needle("full", "uuid", 0, 1000, 0.0, 1.0),
    _needle("full", "uuid", 1, 1000, 1.0, 1.0),
    _needle("full", "uuid", 2, 4000, 0.0, 0.0),
    _needle("window 20%", "uuid", 0, 1000, 0.0, 1.0),
    _needle("window 20%", "uuid", 3, 1000, 0.0, 1.0),
    _needle("window 20%", "digits7", 0, 1000, 0.0, 0.0),
    _needle("window 20%", "uuid", 1, 1000, 1.0, 0.25),
    _needle("window 20%", "uuid", 2, 4000, 0.0, 1.0),
]


def test_heat_maps_are_the_mean_over_kinds_and_blank_where_full_fails() -> None:
    other_task = replace(_outcome("window 20%", "ruler/vt", 0, tokens=9000, exact=1.0), depth=0.5)
    full, window = needle_grids([*NEEDLES, other_task], regime="aware")
    assert full == NeedleGrid("full", 1.0, (0.0, 1.0), (1000, 4000), ((1.0, 0.0), (1.0, None)))
    assert window.title == "window 20%"
    assert window.kept_fraction == pytest.approx(0.2)
    # Two uuids of three needles: the mean of the kinds' means is 1/2.
    assert window.scores == ((0.5, None), (0.25, None))
    assert unanswered_fields(NEEDLES, regime="aware") == {(4000, 0.0)}
    assert needle_grids(NEEDLES, regime="agnostic") == []


def test_a_refused_needle_is_a_blank_field() -> None:
    outcomes = [*NEEDLES[:2], NEEDLES[3], _refused(NEEDLES[6])]
    assert needle_grids(outcomes, regime="aware")[1].scores == ((1.0,), (None,))


def test_coverage_is_the_mean_over_samples_by_layer_and_head() -> None:
    maps = [[[0.0, 0.5], [1.0, 1.0]], [[1.0, 0.5], [0.0, 1.0]]]
    followed = [
        replace(outcome, coverage_by_head=shares)
        for outcome, shares in zip(_scored("window 20%", "needle/uuid", [1.0, 0.0], kept=0.2), maps, strict=True)
    ]
    unfollowed = _scored("window 20%", "fidelity/prose", [0.1], "kl", kept=0.9)
    refused = [replace(followed[0], setting="window 5%"), _refused(replace(followed[1], setting="window 5%"))]
    (found,) = coverage_maps([*followed, *unfollowed, *refused], regime="aware")
    assert found == CoverageMap("window 20%", 0.2, ((0.5, 0.5), (0.5, 1.0)))
    assert coverage_maps(followed, regime="agnostic") == []


def test_a_missing_sample_leaves_the_others_paired() -> None:
    outcomes = [outcome for outcome in TWO_SUBTASKS if (outcome.setting, outcome.index) != ("full", 0)]
    figure: Figure = _row(summarise(outcomes, regime="aware"), "window 20%", "needle/uuid").figures["match"]
    assert figure.difference is not None
    assert (figure.difference.mean, figure.difference.count) == (pytest.approx((0.0 - 0.4 - 0.1) / 3), 3)
    assert figure.mean.count == 4


@pytest.mark.parametrize("width", [80, 60, 40])
def test_an_evaluation_is_read_at_any_width(width: int) -> None:
    settings = ("full", "uniform/window 20%", "uncertain/agreement/thin=gather:after=8,keep=0.3 5%")
    outcomes = [
        _outcome(setting, task, index, kept=1 - index / 10, match=float(index % 2), exact=0.5, nll=1.0 + index, kl=0.1)
        for setting in settings
        for task in ("needle/uuid", "ruler/niah_multikey_1")
        for index in range(4)
    ]
    (part,) = parts_of(outcomes)
    tables = tables_of(part)
    assert [table.title.rpartition(": ")[2] for table in tables] == [
        "all subtasks",
        "needle/uuid",
        "ruler/niah_multikey_1",
    ]
    assert tables[0].columns == ("SETTING", "KEPT", "MATCH", "OF_RIGHT", "KL", "SAMPLES")
    heads, rows = tables[0].lines(width)
    longest = max(len(word) for setting in settings for word in setting.split())
    assert max(map(len, heads + rows)) <= max(width, longest)
    assert any("(+0.0 " in row for row in rows)
    assert "--wide shows exact, nll too" in tables[-1].notes[-1]
    wide = tables_of(part, wide=True)
    assert [len(table.columns) for table in wide] == [8, 9]
    assert not any("--wide" in note for table in wide for note in table.notes)


def test_csv_has_every_figure_as_a_number() -> None:
    (own,), (part,) = parts_of(TWO_SUBTASKS), parts_of(TWO_SUBTASKS, dtype="float32")
    shares = [row.kept and row.kept.mean for row in own.summary.overall]
    assert [row.kept and row.kept.mean / 2 for row in part.summary.overall] == shares
    assert any("16-bit" in note for note in tables_of(part)[-1].notes)
    columns, rows = csv_rows([part])
    found = {(row[2], row[3]): dict(zip(columns, row, strict=True)) for row in rows}
    assert {subtask for subtask, _ in found} == {None, "needle/uuid", *(o.subtask for o in TWO_SUBTASKS)}
    summary = part.summary
    for row in (*summary.overall, *summary.by_subtask):
        line = found[row.subtask, row.setting]
        assert line["match"] == row.figures["match"].mean.mean
        assert (line["samples"], line["kept"]) == (row.samples, row.kept and row.kept.mean)
        assert line["kept_of_run"] == (row.kept and row.kept.mean / 2)
        apart = row.figures["match"].difference
        assert line["match_low"] == (None if apart is None else apart.low)
