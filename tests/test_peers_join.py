"""benchmarks/peers: samples as peers get them, results that continue, the join, and peers that are not there."""

import gzip
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from support.gguf_files import tiny_llama, write_gguf
from support.programs import PEERS, script
from uncomp_cli.evals.judges.answers import match_score
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
weights = script("weights")


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
        "metrics": {"nll": nll, "nll_all": nll, "exact": exact, "match": exact},
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


def outcome(index: int, regime: Any, nll: float, setting: str = "uniform 20%") -> Outcome:
    metrics = {"nll": nll, "exact": 1.0, "match": 1.0, "coverage": 0.5}
    return Outcome("ruler/niah_multikey_1", index, regime, setting, "uniform", "20%", 1800, None, 0.21, 100, metrics)


def write_peer(path: Path, lines: list[dict[str, Any]]) -> None:
    settings = {"peer": "kvpress", "samples": MADE_WITH, "run": RUN}
    records.write_lines(path, kind=records.RESULTS, settings=settings, lines=lines)


def ours(*lines: dict[str, Any], **made_with: Any) -> Any:
    """Our results: nothing is claimed beside what is kept."""
    kept = [{name: value for name, value in one.items() if name != "kept_claimed"} for one in lines]
    return source("uncomp", kept, **made_with)


def cells(found: list[Any], row: int = -1) -> list[str]:
    return [cell.strip() for cell in join.table(found).splitlines()[row].strip("|").split("|")]


def test_settings_are_compared_on_the_samples_that_all_sources_ran():
    our = source("uncomp", [line(0, "uniform 20%", 0.1), line(1, "uniform 20%", 0.3)])
    theirs = source("kvpress", [line(i, "SnapKV 20%", nll) for i, nll in enumerate((1.0, 2.0, 90.0))])
    our_row, their_row = join.rows([our, theirs], "aware")
    assert [*our_row.nll.values()] == [0.1, 0.3]
    assert [*their_row.nll.values()] == [1.0, 2.0]


def test_a_row_has_differences_to_full_and_to_ours_at_no_more_bytes():
    our = [line(i, "full", nll, kept_fraction=1.0) for i, nll in enumerate((0.5, 1.5))]
    our += [line(i, "tiny 5%", nll, kept_fraction=0.1) for i, nll in enumerate((1.0, 3.0))]
    our += [line(i, "small 10%", 0.0, kept_fraction=0.3) for i in (0, 1)]
    theirs = [
        line(i, "SnapKV 27%", nll, exact=0.0, kept_claimed=0.27, kept_fraction=0.27) for i, nll in enumerate((1.5, 2.5))
    ]
    found = join.rows([ours(*our, dtype="float32"), source("kvpress", theirs)], "aware")
    # Shares of float32 count twice: 200, 60, 20 % of a 16-bit cache, and what keeps 27 % is held against 20 %.
    assert [round(row.kept, 2) for row in found] == [2.0, 0.6, 0.27, 0.2]
    assert cells(found, 0) == [
        "kept",
        "of",
        "setting",
        "niah_multikey_1",
        "less full",
        "found",
        "ours",
        "less ours",
        "found",
    ]
    shown = cells(found, 4)
    assert shown[:4] == ["27 %", "kvpress", "SnapKV 27%", "2.00"]
    assert shown[4] == "+1.00\\* (+1.00…+1.00)"
    assert shown[5].startswith("-100")
    assert shown[6] == "tiny 5%"
    assert shown[7].startswith("+0.00 (-")  # +0.5 and -0.5
    assert cells(found, 2)[:4] == ["200 %", "uncomp", "**full**", "1.00"]
    assert cells(found, 2)[5] == "100 %"


def test_what_is_masked_and_what_is_quantised_count_as_what_is_less():
    lines = [line(0, "KVzip 36%", 0.1, kept_claimed=0.36, kept_fraction=1.99)]
    lines += [line(0, "q8_0 KV", 0.1, kept_claimed=1.0, kept_fraction=0.53)]
    assert [row.kept for row in join.rows([source("kvpress", lines)], "aware")] == [0.53, 0.36]


def test_a_peer_is_held_against_the_one_that_is_named_first_among_equals():
    our = ours(line(0, "uniform 5%", 0.1), line(0, "tiny#ab12 5%", 0.2))
    theirs = source("kvpress", [line(0, "SnapKV 20%", 1.0)])
    for shown in (["tiny 5%", "uniform 5%"], ["uniform 5%", "tiny 5%"]):
        found = join.rows([our, theirs], "aware", shown=shown)
        assert join.rival(next(row for row in found if row.source == "kvpress"), found).setting == shown[0]
    assert [row.setting for row in join.rows([our], "aware", shown=["tiny 5%"])] == ["tiny 5%"]


def test_nothing_of_ours_that_keeps_more_is_held_against_a_peer():
    found = join.rows(
        [ours(line(0, "tiny 5%", 0.1, kept_fraction=0.4)), source("kvpress", [line(0, "TOVA 5%", 1.0)])], "aware"
    )
    assert join.rival(found[-1], found) is None
    assert cells(found)[-3:] == ["", "", ""]


def test_subtasks_weigh_the_same_in_a_difference():
    other = {"subtask": "needle/uuid"}
    lines = [line(0, "TOVA 20%", 1.0), line(1, "TOVA 20%", 1.0), line(0, "TOVA 20%", 4.0, **other)]
    full = [line(0, "full", 0.0), line(1, "full", 0.0), line(0, "full", 0.0, **other)]
    assert cells(join.rows([ours(*full), source("kvpress", lines)], "aware"))[5].startswith("+2.50")


def test_queries_of_one_sample_are_one_observation():
    lines = [line(0, "TOVA 20%", 0.1), line(0, "TOVA 20%", 0.5, exact=0.0, query=1), line(1, "TOVA 20%", 0.9)]
    [row] = join.rows([source("kvpress", lines)], "aware")
    assert [*row.nll.values()] == pytest.approx([0.3, 0.9])
    assert [*row.found.values()] == [0.5, 1.0]


def test_an_answer_that_ours_gives_no_likelihood_of_counts_only_as_found():
    without = line(1, "full", 0.0)
    del without["metrics"]["nll"]
    found = join.rows(
        [ours(line(0, "full", 0.4), without), source("kvpress", [line(0, "TOVA 20%", 1.0), line(1, "TOVA 20%", 9.0)])],
        "aware",
    )
    theirs = next(row for row in found if row.source == "kvpress")
    assert [*theirs.nll.values()] == [1.0]
    assert len(theirs.found) == 2


def test_a_peer_without_likelihoods_is_compared_by_what_it_finds():
    theirs = [line(i, "u8 KV", 0.0, metrics={"match": share}) for i, share in enumerate((0.0, 1.0))]
    our = [line(i, setting, 0.5, kept_fraction=0.1) for i in (0, 1) for setting in ("full", "tiny 5%")]
    found = join.rows([ours(*our), source("OpenVINO GenAI", theirs)], "aware")
    shown = cells(found, 2)
    assert shown[1:4] == ["OpenVINO GenAI", "u8 KV", "–"]
    assert (shown[4], shown[7]) == ("–", "–")
    assert all(cell.startswith("-50 ") for cell in (shown[5], shown[8]))


def test_a_slow_peer_takes_no_samples_from_another():
    our = ours(*(line(i, "full", 0.5) for i in range(4)), dtype="float32")
    slow, fast = source("kvpress", [line(0, "TOVA 5%", 1.0)]), source("b", [line(i, "q8 KV", 1.0) for i in range(4)])
    page = join.page([our, slow, fast], command="join")
    assert "kvpress, 1 samples of" in page
    assert "b, 4 samples of" in page
    assert "q8 KV |" in page


def test_a_page_names_every_processor_of_a_file():
    continued = [line(0, "TOVA 5%", 1.0), line(1, "TOVA 5%", 1.0, cpu="another")]
    assert "; Some CPU and another, 2 cores" in join.page([source("b", continued)], command="join")


def test_refused_samples_are_counted_and_left_out():
    refusal = {"refused": "the window is longer than the prompt", "metrics": {}, "kept_fraction": 0.0}
    lines = [line(0, "SnapKV 20%", 0.4), line(1, "SnapKV 20%", 0.0, **refusal), line(1, "KeyDiff 20%", 0.5)]
    lines += [line(0, "KeyDiff 20%", 0.5), line(0, "TOVA 5%", 0.0, **refusal)]
    found = {row.setting: row for row in join.rows([source("kvpress", lines)], "aware")}
    assert [*found["SnapKV 20%"].nll.values()] == [0.4]
    assert found["SnapKV 20%"].kept == 0.2
    page = join.table([*found.values()])
    assert "SnapKV 20% (1)" in page
    assert "KeyDiff 20% |" in page
    assert "refused: the window is longer than the prompt" in page


def test_a_full_cache_that_is_not_ours_is_refused():
    our, near, far = (
        source(name, [line(0, "full", nll)]) for name, nll in (("uncomp", 0.1), ("a", 0.1001), ("b", 0.2))
    )
    assert "within 1e-04 nats of ours, found alike in 1 of 1" in join.check_full(join.rows([our, near], "aware"))
    with pytest.raises(SystemExit, match=r"full caches of uncomp and b are 0\.100 nats apart"):
        join.check_full(join.rows([our, far], "aware"))


def test_several_files_of_ours_are_one():
    first, second = ours(line(0, "full", 0.1)), ours(line(0, "full", 0.9), line(1, "full", 0.2))
    assert [one["metrics"]["nll"] for one in join.merged([first, second]).lines] == [0.1, 0.2]
    with pytest.raises(SystemExit, match="samples with seed"):
        join.merged([first, ours(seed=9)])


def test_samples_of_another_seed_are_refused_with_both_named():
    with pytest.raises(SystemExit, match=r"uncomp ran samples with seed 0, kvpress with 1"):
        join.check_same_samples([source("uncomp", []), source("kvpress", [], seed=1)])


def test_the_same_name_on_other_token_ids_is_refused():
    theirs = source("llama.cpp", [line(0, "f16", 0.1, ids_sha256="others")])
    with pytest.raises(SystemExit, match=r"kvpress and llama\.cpp ran other token ids as .* sample 0"):
        join.check_same_samples([source("kvpress", [line(0, "full", 0.1)]), theirs])


def test_the_page_has_a_table_for_each_regime_and_says_how_it_was_made(tmp_path, capsys):
    our = write_ours(tmp_path / "ours.jsonl", [outcome(0, "aware", 0.125)])
    more = write_ours(tmp_path / "more.jsonl", [outcome(0, "agnostic", 0.625)])
    seen, unseen = tmp_path / "seen", tmp_path / "unseen"
    write_peer(seen / "kvpress.jsonl", [line(0, "SnapKV 20%", 1.5)])
    write_peer(unseen / "kvpress.jsonl", [line(0, "SnapKV 20%", 2.5, regime="agnostic")])
    packed = unseen / "kvpress.jsonl.gz"
    packed.write_bytes(gzip.compress((unseen / "kvpress.jsonl").read_bytes()))
    (unseen / "kvpress.jsonl").unlink()
    assert peers.join_all([seen, unseen], [our, more], tmp_path / "results" / "peers.md") == 0
    page = (tmp_path / "results" / "peers.md").read_text()
    aware, agnostic = page.split("## Question seen")[1].split("## Question unseen")
    for value, where in (("0.12", aware), ("1.50", aware), ("0.62", agnostic), ("2.50", agnostic)):
        assert page.count(f"| {value} |") == 1
        assert f"| {value} |" in where
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
    assert peers.join_all([tmp_path], [], tmp_path / "peers.md") == 1
    assert not (tmp_path / "peers.md").exists()
    assert "nothing to join" in capsys.readouterr().err


def test_missing_environments_are_named_with_how_to_build_them(tmp_path, capsys):
    assert peers.run_all(tmp_path / "none", tmp_path / "samples.jsonl", tmp_path / "out", limit=None) == 0
    said = capsys.readouterr().err
    for folder in ("kvpress", "llamacpp", "openvino"):
        assert f"no environment in {tmp_path / 'none' / folder}; it is left out" in said
    assert f"python benchmarks/peers/peers.py --build {tmp_path / 'none'}" in said


def test_matrices_are_written_again_in_16_bits(tmp_path):
    narrow = write_gguf(tmp_path / "narrow.gguf", tiny_llama(), kind=lambda name: "Q4_1", file_type=3)
    wide = tmp_path / "wide.gguf"
    weights.widen(narrow, wide)
    before, after = gguf.GGUFReader(narrow), gguf.GGUFReader(wide)
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        numbers = gguf.dequantize(old.data, old.tensor_type)
        assert new.tensor_type.name == ("F16" if numbers.ndim > 1 else "F32")
        assert np.array_equal(new.data, numbers.astype(new.data.dtype))
    said = {name: field.contents() for name, field in before.fields.items() if not name.startswith("GGUF.")}
    told = {name: field.contents() for name, field in after.fields.items() if not name.startswith("GGUF.")}
    assert told == {**said, "general.file_type": gguf.LlamaFileType.MOSTLY_F16}


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


@pytest.mark.parametrize("need", ["any", "all"])
@pytest.mark.parametrize("text", ["", "in 1843, ADA", "ada", "Emil in 1843"])
def test_peers_find_an_answer_as_our_evaluation_does(text, need):
    query = Query("Who?", " Ada", ("Ada", "1843"), need=need)
    sample = {"accepted": list(query.accepted), "need": need}
    assert records.found_share(text, sample) == match_score(text, query)


SAMPLE = {"accepted": ["b c"], "need": "any", "answer": "b c", "max_new_tokens": 4}


@pytest.mark.parametrize(
    ("tokens", "text", "share"), [("abcx", "a b c", 1.0), ("a_bc", "a", 0.0), ("aaaab", "a a a a", 0.0)]
)
def test_writing_ends_where_all_is_found_the_model_ends_or_there_is_no_room(tokens, text, share):
    writing = records.Writing(SAMPLE, " ".join, exact=False)
    for token in tokens:
        writing.push(token, ["_"])
    assert (writing.done, writing.text, writing.share) == (True, text, share)


def test_an_exact_answer_needs_no_writing():
    assert records.Writing(SAMPLE, " ".join, exact=True).share == 1
    other = records.Writing({**SAMPLE, "accepted": ["d"]}, " ".join, exact=True)
    assert (other.done, other.text) == (False, "")


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
    assert records.read_lines(path)[1] == [{**wanted[0], "cpu": "one"}, {**wanted[1], "cpu": "another"}]


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
    options = {"task": ["ruler/niah_multikey_1"], "data": None, "tokens": [400], "samples": 2, "seed": 3, "file": None}
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
def test_records_of_others_are_exported_as_many_as_there_are(tmp_path, default_model_dir):
    asked = [("Who keeps bees?", "Ada"), ("Who keeps goats?", "Emil")]
    records_of = [{"question": question, "answers": [name], "document": f"{name} does."} for question, name in asked]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records_of))
    made, lines = exported(tmp_path / "samples.jsonl", task=["qa"], data=[path], samples=5)
    assert [(one["question"], one["accepted"], one["need"]) for one in lines] == [(q, [a], "any") for q, a in asked]
    assert list(made["made_with"]["data"]) == ["mine.jsonl"]
    assert "data" not in exported(tmp_path / "others.jsonl")[0]["made_with"]
    assert all(one["max_new_tokens"] == 48 for one in lines)


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
