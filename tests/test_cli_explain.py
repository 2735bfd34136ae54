"""`ask --explain-budget`: where the bytes went, as a record and as lines of at most 80 columns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.commands import last_object, run_here, two_lines
from uncomp_cli.asking.account import Spent, budget_lines, budget_record
from uncomp_cli.budget.loss_curve import QualityPoint
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.presets import load_preset, save_preset
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.models.catalog import show_model
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.profile import ModelFingerprint, SampleInfo, UncertaintyProfile

KEPT = ((900, 20), (100, 80), (10, 90))
SPEC = ModelSpec(
    model_type="llama", num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16, hidden_size=64, intermediate_size=96,
    vocab_size=99, trained_length=4096, dtype_bytes=4, sliding_windows=(None,) * 3,
)  # fmt: skip
BYTES = (120_000, 24_000, 13_000)
MEASURED = Uncertainty("entropy/q/r1/4", ((4.0, 2.0, 1.0, 0.0), (1.5, 1.5, 1.0, 1.0), (0.5, 0.5, 2.0, 3.0)), "live")


def spent(**changes: object) -> Spent:
    plan = BudgetPlan(seq_len=1000, kept=KEPT)
    return replace(Spent(plan, SPEC, BYTES, MEASURED), **changes)


def wide(num_layers: int, num_kv_heads: int) -> Spent:
    """A model of this shape whose heads keep more from one to the next."""
    spec = replace(
        SPEC,
        num_layers=num_layers,
        num_kv_heads=num_kv_heads,
        num_heads=num_kv_heads,
        sliding_windows=(None,) * num_layers,
    )
    kept = tuple(tuple(100 * layer + 50 * head + 1 for head in range(num_kv_heads)) for layer in range(num_layers))
    values = tuple(tuple(float(count) for count in counts) for counts in kept)
    return Spent(
        BudgetPlan(131_072, kept), spec, [2**20 * (layer + 1) for layer in range(num_layers)],
        Uncertainty("lmba/sinkfree", values),
    )  # fmt: skip


def test_the_record_tells_tokens_and_bytes_of_every_layer() -> None:
    record = budget_record(spent())
    assert record["entries"] == 1200
    assert record["full_entries"] == 6000
    assert record["bytes"] == 157_000
    assert record["layers"] == [
        {"layer": 0, "kept": [900, 20], "bytes": 120_000},
        {"layer": 1, "kept": [100, 80], "bytes": 24_000},
        {"layer": 2, "kept": [10, 90], "bytes": 13_000},
    ]
    assert (record["measure"], record["source"]) == ("entropy/q/r1/4", "live")


def test_head_groups_hold_every_head_once_by_its_distance_from_the_mean() -> None:
    groups = budget_record(spent())["groups"]  # the mean is 200 tokens
    assert [(group["heads"], group["entries"]) for group in groups] == [(1, 900), (1, 100), (4, 200)]
    assert [group["share"] for group in groups] == pytest.approx([0.75, 1 / 12, 1 / 6])


def test_the_top_heads_come_with_what_was_measured_of_them() -> None:
    top = budget_record(spent())["top_heads"]
    assert [(head["layer"], head["head"], head["kept"]) for head in top] == [
        (0, 0, 900), (1, 0, 100), (2, 1, 90), (1, 1, 80), (0, 1, 20),
    ]  # fmt: skip
    assert [head["uncertainty"] for head in top] == pytest.approx([3.0, 1.5, 2.5, 1.0, 0.5])


def test_a_policy_that_measures_nothing_says_so() -> None:
    record = budget_record(spent(uncertainty=None))
    assert (record["measure"], record["source"]) == (None, None)
    assert {head["uncertainty"] for head in record["top_heads"]} == {None}
    assert "nothing was measured: the policy alone decides" in list(budget_lines(spent(uncertainty=None)))


def test_the_lines_say_it_to_people() -> None:
    lines = list(budget_lines(spent()))
    assert lines == [
        "3 layers x 2 heads keep 1,200 of 6,000 entries (20.0 %) in 153 KiB",
        "by entropy/q/r1/4, measured on this prompt",
        "layer tokens    bytes                  per KV head",
        "    0    920  117 KiB ████████████████ 900  20",
        "    1    180 23.4 KiB ███▎             100  80",
        "    2    100 12.7 KiB █▊                10  90",
        "head groups, mean 200 tokens",
        "over 2x the mean    ████████████          1 head, 75.0 % of the tokens",
        "0.5x to 2x the mean █▍                    1 head, 8.3 % of the tokens",
        "under 0.5x the mean ██▋                  4 heads, 16.7 % of the tokens",
        "heads that keep most",
        "layer 0, KV head 0         900 tokens, measured 3",
        "layer 1, KV head 0         100 tokens, measured 1.5",
        "layer 2, KV head 1          90 tokens, measured 2.5",
        "layer 1, KV head 1          80 tokens, measured 1",
        "layer 0, KV head 1          20 tokens, measured 0.5",
    ]


def test_a_profile_is_told_from_a_live_measurement() -> None:
    held = replace(MEASURED, source="profile")
    assert "by entropy/q/r1/4, from the preset's profile" in list(budget_lines(spent(uncertainty=held)))


@pytest.mark.parametrize("shape", [(30, 3), (32, 8), (80, 8), (80, 64), (1, 1)])
def test_every_layer_has_a_line_that_fits_80_columns(shape: tuple[int, int]) -> None:
    shown = wide(*shape)
    lines = list(budget_lines(shown))
    assert [line.split()[0] for line in lines[3 : 3 + shape[0]]] == [str(layer) for layer in range(shape[0])]
    assert max(map(len, lines)) <= 80
    assert len(lines) == shape[0] + 8 + min(5, shape[0] * shape[1])


def test_bars_are_as_long_as_the_bytes() -> None:
    lines = list(budget_lines(wide(16, 2)))
    bars = [line.count("█") for line in lines[3:19]]
    assert bars == list(range(1, 17))


def test_more_heads_than_fit_are_told_by_their_range() -> None:
    assert list(budget_lines(wide(2, 40)))[3].endswith("1 to 1,951, median 976")


def test_heads_that_share_by_scores_are_not_told_apart() -> None:
    shared = spent(plan=replace(spent().plan, head_floor=0.2))
    record = budget_record(shared)
    assert record["groups"] == record["top_heads"] == []
    lines = list(budget_lines(shared))
    assert lines[-1] == "the heads of a layer share its tokens by their scores"
    assert lines[3] == "    0    920  117 KiB ████████████████"


def test_a_sliding_window_is_no_part_of_the_groups() -> None:
    spec = replace(SPEC, sliding_windows=(None, 64, None))
    plan = BudgetPlan(seq_len=1000, kept=((900, 20), (64, 64), (10, 90)))
    record = budget_record(spent(spec=spec, plan=plan))
    assert sum(group["heads"] for group in record["groups"]) == 4
    assert {head["layer"] for head in record["top_heads"]} == {0, 2}
    assert list(budget_lines(spent(spec=spec, plan=plan)))[4].endswith("64 each: its window")


def test_a_cache_that_holds_nothing_has_no_bars() -> None:
    empty = spent(plan=BudgetPlan(1000, ((0, 0),) * 3), layer_bytes=(0, 0, 0))
    assert not any("█" in line for line in budget_lines(empty))


TEXT = "The harbour was quiet and the lamps were lit. Nobody had seen the keeper since noon. " * 12


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def own_data(tmp_path: Path, tiny_model: Path) -> Path:
    """A data directory with the preset `mine`: a profile of the tiny model, and the losses of two budgets."""
    info = show_model(str(tiny_model))
    model = ModelFingerprint(info.name, "llama", 4, 4, 2, 16, info.sha256)
    save_calibrated(tmp_path / "data", "mine", model)
    return tmp_path / "data"


def save_calibrated(data: Path, name: str, model: ModelFingerprint) -> None:
    loss = torch.tensor([[[1.0, 0.0], [0.1, 0.1], [0.0, 0.2], [0.0, 0.0]]])
    profile = UncertaintyProfile(model, (SampleInfo("text", "0" * 64, 900, "needle"),), {"loss": loss}, {})
    quality = (QualityPoint("15%", 0.15, 0.004, -0.001, 0.009, 40), QualityPoint("40%", 0.4, 0.001, -0.002, 0.004, 40))
    preset = replace(
        load_preset("live"), name=name, policy="uncertain", budget="30%", floor_tokens=0, quality=quality, folder=None
    )
    save_preset(preset, data / "uncomp" / "presets", profile)


def ask(model: Path, notes: Path, *args: str, **variables: str) -> tuple[int, str, str]:
    shared = ("-m", str(model), "-f", str(notes), "--max-new-tokens", "4")
    return run_here("ask", *shared, *args, "Where is the keeper?", **variables)


def test_the_explanation_of_a_live_budget_follows_the_readout(tiny_model: Path, notes: Path) -> None:
    code, out, err = ask(tiny_model, notes, "-b", "20%", "--policy", "uncertain", "--why")
    assert code == 0, err
    lines = err.splitlines()
    at = next(index for index, line in enumerate(lines) if " tok in " in line)
    assert lines[at + 1].startswith("4 layers x 2 heads keep ")
    assert lines[at + 2] == "by entropy/q/r1/4, measured on this prompt"
    assert [line.split()[0] for line in lines[at + 4 : at + 8]] == ["0", "1", "2", "3"]
    assert "layer" not in out


def test_the_json_has_the_bytes_that_the_cache_holds(tiny_model: Path, notes: Path) -> None:
    code, out, err = ask(tiny_model, notes, "-b", "20%", "--policy", "uncertain", "--explain-budget", "--json")
    assert code == 0, err
    record = last_object(out)
    budget = record["budget"]
    assert (budget["measure"], budget["source"]) == ("entropy/q/r1/4", "live")
    assert sum(layer["bytes"] for layer in budget["layers"]) == budget["bytes"] == record["memory"]["kv_bytes"]
    assert sum(sum(layer["kept"]) for layer in budget["layers"]) == budget["entries"]
    assert budget["entries"] == pytest.approx(0.2 * budget["full_entries"], abs=1)
    assert "KV head" not in err


def test_without_the_flag_nothing_is_explained(tiny_model: Path, notes: Path) -> None:
    code, out, err = ask(tiny_model, notes, "-b", "20%", "--json")
    assert code == 0, err
    assert "budget" not in last_object(out)


def test_a_policy_that_measures_nothing_is_explained_too(tiny_model: Path, notes: Path) -> None:
    code, _, err = ask(tiny_model, notes, "-b", "20%", "--policy", "uniform", "--explain-budget", "-q")
    assert code == 0, err
    assert "nothing was measured: the policy alone decides" in err
    assert "prefill" not in err


def test_a_profile_decides_and_is_named(tiny_model: Path, notes: Path, own_data: Path) -> None:
    where = {"XDG_DATA_HOME": str(own_data)}
    code, out, err = ask(tiny_model, notes, "-p", "mine", "--explain-budget", "--json", **where)
    assert code == 0, err
    budget = last_object(out)["budget"]
    assert (budget["measure"], budget["source"]) == ("loss", "profile")
    assert (budget["top_heads"][0]["layer"], budget["top_heads"][0]["head"]) == (0, 0)


def test_what_the_profile_lacks_is_measured_live_whatever_is_saved(
    tiny_model: Path, notes: Path, own_data: Path, tmp_path: Path
) -> None:
    where = {"XDG_DATA_HOME": str(own_data), "UNCOMP_CACHE_DIR": str(tmp_path / "shelf")}
    for named in (("--save-cache", "x"), ("--reuse", "x")):
        shared = ("-p", "mine", "--policy", "uncomp:rank=2", "--scorer", "distinct", "--explain-budget", "--json")
        code, out, err = ask(tiny_model, notes, *shared, *named, **where)
        assert code == 0, err
        budget = last_object(out)["budget"]
        assert (budget["measure"], budget["source"]) == ("entropy/q/r2", "live")


@pytest.mark.parametrize(("loss", "budget"), [("1%", "15%"), ("0.5%", "40%")])
def test_a_bound_on_the_loss_chooses_the_budget(
    tiny_model: Path, notes: Path, own_data: Path, loss: str, budget: str
) -> None:
    for more in ((), ("--dry-run",)):
        args = ("-p", "mine", "--max-loss", loss, "--json", *more)
        code, out, err = ask(tiny_model, notes, *args, XDG_DATA_HOME=str(own_data))
        assert code == 0, err
        assert f"--max-loss {loss}: budget {budget}, measured loss 0." in err
        record = last_object(out)
        assert record.get("budget_requested", record.get("compression", {}).get("budget_requested")) == budget


def test_a_bound_that_no_budget_holds_is_refused_with_the_best(tiny_model: Path, notes: Path, own_data: Path) -> None:
    code, out, err = ask(tiny_model, notes, "-p", "mine", "--max-loss", "0.1%", XDG_DATA_HOME=str(own_data))
    message, hint = two_lines(err)
    assert (code, out) == (3, "")
    assert "0.4%" in message
    assert "--budget full" in hint


def test_a_preset_of_another_model_is_refused_before_the_prompt(tiny_model: Path, notes: Path, own_data: Path) -> None:
    save_calibrated(own_data, "other", ModelFingerprint("other-model", "llama", 4, 4, 2, 16, "ff" * 32))
    for command in ("ask", "compare"):
        shared = ("-m", str(tiny_model), "-f", str(notes), "-p", "other", "Where?")
        code, out, err = run_here(command, *shared, XDG_DATA_HOME=str(own_data))
        assert (code, out) == (2, "")
        assert "preset other is not for this model" in two_lines(err)[0]
        assert "other-model" in two_lines(err)[0]
    more = ("bench", "-m", str(tiny_model), "-p", "other", "--tokens", "256")
    assert run_here(*more, XDG_DATA_HOME=str(own_data))[0] == 2
    assert ask(tiny_model, notes, "-p", "other", "--dry-run", XDG_DATA_HOME=str(own_data))[0] == 2


def test_the_default_preset_gives_way_to_live_for_another_model(tiny_model: Path, notes: Path, tmp_path: Path) -> None:
    own_data = tmp_path / "others"
    save_calibrated(own_data, "balanced", ModelFingerprint("other-model", "llama", 4, 4, 2, 16, "ff" * 32))
    for more in ((), ("--dry-run",)):
        code, out, err = ask(tiny_model, notes, "--json", *more, XDG_DATA_HOME=str(own_data))
        assert code == 0, err
        assert "preset balanced was measured on other-model" in err
        if not more:
            assert last_object(out)["compression"]["preset"] == "live"
