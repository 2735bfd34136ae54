"""benchmarks/peers: samples as peers get them, results that continue, the join, and peers that are not there."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.programs import PEERS, script
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.task import Query, Sample
from uncomp_cli.models.checkpoint import load_tokenizer

MADE_WITH = {"model": "smollm2-135m", "seed": 0, "haystack": "prose", "haystack_sha256": "ab"}
RUN = {
    "command": "python benchmarks/peers/run_kvpress.py --samples samples.jsonl",
    "samples_command": "python benchmarks/peers/export.py --task ruler",
    "cpu": "Some CPU",
    "cores": 2,
    "threads": "1",
    "versions": {"kvpress": "0.5.5"},
}

records, join = script("records"), script("join")
environments, peers, export = script("environments"), script("peers"), script("export")


def line(index: int, setting: str, nll: float, exact: float = 1.0, **more: Any) -> dict[str, Any]:
    """A line of a peer's results."""
    budget = setting.rpartition(" ")[2]
    return {
        "subtask": "ruler/niah_multikey_1",
        "index": index,
        "query": 0,
        "tokens": 1800,
        "regime": "aware",
        "setting": setting,
        "contestant": setting.removesuffix(f" {budget}"),
        "budget": budget,
        "ids_sha256": f"ids of {index}",
        "kept_claimed": 0.2,
        "kept_fraction": 0.2,
        "kv_bytes": 100,
        "metrics": {"nll": nll, "nll_all": nll, "exact": exact},
        "refused": None,
        **more,
    }


def source(name: str, lines: list[dict[str, Any]], **made_with: Any) -> Any:
    return join.Source(name, {**MADE_WITH, **made_with}, RUN, lines)


def write_ours(path: Path, outcomes: list[Outcome], **settings: Any) -> Path:
    """A results file of `uncomp eval`."""
    header = {"schema_version": 1, "kind": "uncomp eval", "settings": {**MADE_WITH, **settings}}
    path.write_text("".join(json.dumps(one) + "\n" for one in [header, *map(asdict, outcomes)]))
    return path


def outcome(index: int, regime: Any, nll: float) -> Outcome:
    metrics = {"nll": nll, "exact": 1.0, "match": 1.0, "coverage": 0.5}
    return Outcome(
        "ruler/niah_multikey_1", index, regime, "uniform 20%", "uniform", "20%", 1800, None, 0.21, 100, metrics
    )


def write_peer(path: Path, lines: list[dict[str, Any]]) -> None:
    settings = {"peer": "kvpress", "samples": MADE_WITH, "run": RUN}
    records.write_lines(path, kind=records.RESULTS, settings=settings, lines=lines)


def test_settings_are_compared_on_the_samples_that_all_sources_ran():
    ours = source("uncomp", [line(0, "uniform 20%", 0.1), line(1, "uniform 20%", 0.3)])
    theirs = source("kvpress", [line(i, "SnapKV 20%", nll) for i, nll in enumerate((1.0, 2.0, 90.0))])
    ours_row, their_row = join.rows([ours, theirs], "aware")
    assert ours_row.nll.mean == pytest.approx(0.2)
    assert their_row.nll.mean == pytest.approx(1.5)
    assert ours_row.samples == their_row.samples == 2


def test_a_row_shows_means_with_intervals_and_both_kept_fractions():
    lines = [line(index, "AdaKV 20%", 0.2, exact=1.0 - index, kept_fraction=1.0) for index in (0, 1)]
    [row] = join.rows([source("kvpress", lines)], "aware")
    cells = join.table([row]).splitlines()[-1].split(" | ")
    assert cells[:5] == ["| 20%", "kvpress", "AdaKV", "20.0 %", "100.0 %"]
    # Values that do not differ have no spread; Wilson's interval of 1 in 2 is 0.5 ± 0.405.
    assert cells[5:] == ["0.200 (0.200–0.200)", "50 % (9–91)", "2 |"]


def test_an_interval_of_a_likelihood_holds_its_mean_and_does_not_go_below_zero():
    [row] = join.rows([source("kvpress", [line(0, "TOVA 20%", 0.1), line(1, "TOVA 20%", 0.7)])], "aware")
    mean, spread = join.table([row]).splitlines()[-1].split(" | ")[5].split()
    low, high = map(float, spread.strip("()").split("–"))
    assert 0.0 == low < float(mean) < high


def test_queries_of_one_sample_are_one_observation():
    lines = [line(0, "TOVA 20%", 0.1), line(0, "TOVA 20%", 0.5, exact=0.0, query=1), line(1, "TOVA 20%", 0.9)]
    [row] = join.rows([source("kvpress", lines)], "aware")
    assert row.samples == 2
    assert row.nll.mean == pytest.approx((0.3 + 0.9) / 2)
    assert row.exact.mean == 0.5


def test_subtasks_weigh_the_same():
    other = {"subtask": "needle/uuid"}
    lines = [line(0, "TOVA 20%", 1.0), line(1, "TOVA 20%", 1.0), line(0, "TOVA 20%", 4.0, **other)]
    [row] = join.rows([source("kvpress", lines)], "aware")
    assert row.nll.mean == pytest.approx(2.5)


def test_refused_samples_are_counted_and_left_out():
    refusal = {"refused": "the window is longer than the prompt", "metrics": {}, "kept_fraction": 0.0}
    lines = [line(0, "SnapKV 20%", 0.4), line(1, "SnapKV 20%", 0.0, **refusal), line(0, "TOVA 5%", 0.0, **refusal)]
    some, every = join.rows([source("kvpress", lines)], "aware")
    assert some.nll.mean == 0.4
    assert some.kept_fraction == 0.2
    assert "1 (1 refused)" in join.table([some])
    assert "refused: the window is longer than the prompt" in join.table([every])


def test_budgets_fall_and_the_full_cache_is_first():
    lines = [line(0, setting, 0.1) for setting in ("TOVA 5%", "TOVA 50%", "full", "TOVA 10%")]
    assert [row.budget for row in join.rows([source("kvpress", lines)], "aware")] == ["full", "50%", "10%", "5%"]


def test_samples_of_another_seed_are_refused_with_both_named():
    with pytest.raises(SystemExit, match=r"uncomp ran samples with seed 0, kvpress with 1"):
        join.check_same_samples([source("uncomp", []), source("kvpress", [], seed=1)])


def test_the_same_name_on_other_token_ids_is_refused():
    theirs = source("llama.cpp", [line(0, "f16", 0.1, ids_sha256="others")])
    with pytest.raises(SystemExit, match=r"kvpress and llama\.cpp ran other token ids as .* sample 0"):
        join.check_same_samples([source("kvpress", [line(0, "full", 0.1)]), theirs])


def test_the_page_has_a_table_for_each_regime_and_says_how_it_was_made(tmp_path, capsys):
    ours = write_ours(tmp_path / "ours.jsonl", [outcome(0, "aware", 0.125), outcome(0, "agnostic", 0.625)])
    write_peer(tmp_path / "kvpress.jsonl", [line(0, "SnapKV 20%", 1.5), line(0, "SnapKV 20%", 2.5, regime="agnostic")])
    assert peers.join_all(tmp_path, ours, tmp_path / "results" / "peers.md") == 0
    page = (tmp_path / "results" / "peers.md").read_text()
    aware, agnostic = page.split("## Query-aware")[1].split("## Query-agnostic")
    for value, where in (("0.125", aware), ("1.500", aware), ("0.625", agnostic), ("2.500", agnostic)):
        assert page.count(value) == 1
        assert value in where
    assert RUN["command"] in page
    assert RUN["samples_command"] in page
    assert "kvpress 0.5.5" in page
    assert "Some CPU, 2 cores" in page
    assert str(tmp_path) not in page
    assert "llama.cpp: no llamacpp.jsonl" in capsys.readouterr().err


def test_a_command_is_shown_without_the_folders_of_this_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/ada/peers.py", "--join", "/home/ada/out", "--report", "docs/peers.md"])
    assert records.command_line() == "python benchmarks/peers/peers.py --join out --report docs/peers.md"


def test_nothing_to_join_writes_nothing(tmp_path, capsys):
    assert peers.join_all(tmp_path, None, tmp_path / "peers.md") == 1
    assert not (tmp_path / "peers.md").exists()
    assert "nothing to join" in capsys.readouterr().err


def test_missing_environments_are_named_with_how_to_build_them(tmp_path, capsys):
    assert peers.run_all(tmp_path / "none", tmp_path / "samples.jsonl", tmp_path / "out", limit=None) == 0
    said = capsys.readouterr().err
    for folder in ("kvpress", "llamacpp"):
        assert f"no environment in {tmp_path / 'none' / folder}; it is left out" in said
    assert f"python benchmarks/peers/peers.py --build {tmp_path / 'none'}" in said


def fake_environment(directory: Path, peer: Any, body: str) -> None:
    python = directory / peer.folder / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)


@pytest.mark.model
@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for an interpreter is a shell script")
def test_an_environment_runs_although_the_other_is_missing(tmp_path, capsys, default_model_dir):
    kvpress = environments.PEERS[0]
    for code, expected in ((0, 0), (3, 1)):  # the model's numbers are written as floats once
        fake_environment(tmp_path, kvpress, f'echo "$@" > {tmp_path}/called; exit {code}')
        assert peers.run_all(tmp_path, tmp_path / "samples.jsonl", tmp_path / "out", limit=2) == expected
        called = (tmp_path / "called").read_text().split()
        assert called[0] == str(PEERS / "run_kvpress.py")
        assert called[called.index("--model") + 1] == str(tmp_path / default_model_dir.name)
        assert called[-2:] == ["--limit", "2"]
        said = capsys.readouterr().err
        assert "llama.cpp: no environment" in said
        assert ("kvpress: ended with 3" in said) == (code == 3)


def test_results_continue_after_a_torn_line(tmp_path):
    path = tmp_path / "out.jsonl"
    first = records.Results(path, peer="kvpress", settings={"samples": MADE_WITH}, run={"cpu": "one"})
    first.append(line(0, "full", 0.5))
    with path.open("a") as file:
        file.write('{"subtask": "ruler/ni')
    again = records.Results(path, peer="kvpress", settings={"samples": MADE_WITH}, run={"cpu": "another"})
    wanted = [line(0, "full", 0.5), line(1, "full", 0.7)]
    assert list(again.missing(wanted)) == wanted[1:]
    again.append(wanted[1])
    assert records.read_lines(path)[1] == wanted


def test_results_of_other_samples_are_refused_and_stay(tmp_path):
    path = tmp_path / "out.jsonl"
    records.Results(path, peer="kvpress", settings={"samples": MADE_WITH}, run={}).append(line(0, "full", 0.5))
    before = path.read_bytes()
    with pytest.raises(SystemExit, match=r"(?s)'seed': 0.*not of .*'seed': 9.*give another --out"):
        records.Results(path, peer="kvpress", settings={"samples": {**MADE_WITH, "seed": 9}}, run={})
    assert path.read_bytes() == before


def test_a_file_of_another_kind_is_no_samples(tmp_path):
    write_peer(tmp_path / "kvpress.jsonl", [])
    with pytest.raises(SystemExit, match=r"make one with export\.py"):
        records.read_samples(tmp_path / "kvpress.jsonl")


def exported(path: Path, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The lines that export.py writes for one subtask."""
    options = {"task": ["ruler/niah_multikey_1"], "tokens": [400], "samples": 2, "seed": 3, "file": None}
    export.export(SimpleNamespace(**{**options, "model": "smollm2-135m", "regime": "both", "out": path, **more}))
    return records.read_samples(path)


@pytest.mark.model
def test_exported_ids_are_those_of_the_texts(tmp_path, default_model_dir):
    made, lines = exported(tmp_path / "samples.jsonl")
    tokenizer = load_tokenizer(default_model_dir)
    assert made["made_with"]["seed"] == 3
    assert made["made_with"]["haystack_sha256"] == Haystack.generated(seed=3, tokens=60_000).sha256
    assert [one["index"] for one in lines] == [0, 1]
    for one in lines:
        for part in ("context", "question", "answer"):
            assert tokenizer.decode(one[f"{part}_ids"]) == one[part]
        assert one["regimes"] == ["aware", "agnostic"]
        assert one["answer"].startswith(" ")
        assert one["accepted"] == [one["answer"].strip()]
        assert one["accepted"][0] in one["context"]
        assert 350 < len(one["context_ids"]) + len(one["question_ids"]) <= 400
    assert exported(tmp_path / "again.jsonl")[1] == lines
    assert exported(tmp_path / "other.jsonl", seed=4)[1] != lines


@pytest.mark.model
def test_a_sample_in_chat_format_is_exported_with_its_template(default_model_dir):
    queries = (Query("Who?", " Ada", ("Ada",)), Query("When?", " 1843", ("1843",)))
    sample = Sample("multiquestion/chat", 0, 400, "A document.", queries, system="Be brief.")
    tokenizer = load_tokenizer(default_model_dir)
    first, second = export.sample_lines(tokenizer, sample, regimes=["agnostic"], seed=0, haystack="prose")
    assert (first["query"], second["query"]) == (0, 1)
    assert first["context_ids"] == second["context_ids"]
    whole = tokenizer.decode(second["context_ids"] + second["question_ids"])
    assert "system\nBe brief." in whole
    assert whole.endswith("A document.\n\nWhen?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.model
def test_a_task_without_right_answers_is_refused(tmp_path, default_model_dir):
    with pytest.raises(export.UsageError, match=r"perplexity.* has no right answer"):
        exported(tmp_path / "samples.jsonl", task=["perplexity"])


def test_results_of_ours_that_are_missing_or_of_another_kind(tmp_path):
    with pytest.raises(SystemExit, match=r"there is no .*absent\.jsonl"):
        join.load_ours(tmp_path / "absent.jsonl")
    write_peer(tmp_path / "kvpress.jsonl", [])
    with pytest.raises(SystemExit, match="is no results file of uncomp eval"):
        join.load_ours(tmp_path / "kvpress.jsonl")
