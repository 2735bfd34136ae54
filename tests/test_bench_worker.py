"""Both arms on a tiny random Llama: the same greedy tokens at full budget, cache bytes as measured, refusals."""

import json
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.tiny import make_character_model
from uncomp_cli.bench.contenders import _as_known, run_job, run_stock, run_uncomp, storage_bytes
from uncomp_cli.bench.rounds import Round, measure_in_child
from uncomp_cli.bench.workload import BenchRequest, Job, Measurement, Setup, make_jobs
from uncomp_cli.budget.presets import Preset
from uncomp_cli.cli.app import run
from uncomp_cli.config import Limits, ScorerConfig
from uncomp_cli.documents.prose import write_prose
from uncomp_cli.errors import DoesNotFitError, OutOfMemoryError, UsageError
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.steps import Progress

LAYERS, HEADS, HEAD_DIM, TOKENS, NEW = 3, 2, 8, 400, 6
TOKEN_BYTES = LAYERS * HEADS * HEAD_DIM * 2 * 4
FULL = Preset("full", "", "full", "full", ScorerConfig())
SMALL = Preset("small", "", "40%", "uniform", ScorerConfig())


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_character_model(tmp_path_factory.mktemp("models") / "tiny", layers=LAYERS, trained=512, spread=0.5)


@pytest.fixture(scope="module")
def jobs(model_dir: Path) -> list[Job]:
    document = write_prose(20, seed=0)
    setup = Setup(str(model_dir), NEW, device="cpu")
    return make_jobs(BenchRequest(setup, model_dir, document, (FULL, SMALL), tokens=TOKENS, runs=1))


@pytest.fixture(scope="module")
def loaded(model_dir: Path) -> LoadedModel:
    return load_model(str(model_dir), device="cpu")


def test_the_prompt_has_exactly_the_wanted_tokens(jobs: list[Job]) -> None:
    assert [job.preset for job in jobs] == [None, FULL, SMALL]
    assert {len(job.context) + len(job.question) for job in jobs} == {TOKENS}
    assert len({(job.context, job.question) for job in jobs}) == 1


def test_full_budget_says_what_stock_says(jobs: list[Job], model_dir: Path) -> None:
    stock, full, small = (run_job(job) for job in jobs)
    assert len(stock.token_ids) == NEW
    assert stock.token_ids == full.token_ids
    assert len(small.token_ids) == NEW
    for measured in (stock, full, small):
        assert measured.ttft_s > 0
        assert measured.decode_tok_s > 0
        assert measured.full_kv_bytes == (TOKENS + NEW - 1) * TOKEN_BYTES
    assert stock.kv_prefill_bytes == TOKENS * TOKEN_BYTES
    assert stock.kv_bytes == stock.full_kv_bytes
    assert full.full_kv_bytes < full.kv_bytes < 1.25 * full.full_kv_bytes
    assert small.kv_bytes < 0.6 * stock.kv_bytes


def test_stock_is_what_generate_gives(jobs: list[Job], model_dir: Path) -> None:
    own = load_model(str(model_dir), device="cpu")
    ids = torch.tensor([[*jobs[0].context, *jobs[0].question]])
    expected = own.model.generate(ids, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)
    assert run_stock(own, jobs[0].prompt, new_tokens=NEW).token_ids == tuple(expected[0, TOKENS:].tolist())


def test_no_token_ends_a_run(jobs: list[Job], loaded: LoadedModel) -> None:
    first = run_uncomp(loaded, jobs[1].prompt, preset=FULL, new_tokens=NEW)
    loaded.model.config.eos_token_id = first.token_ids[0]
    assert run_uncomp(loaded, jobs[1].prompt, preset=FULL, new_tokens=NEW).token_ids == first.token_ids


def test_shared_storage_counts_once() -> None:
    whole = torch.zeros(10, 4)
    assert storage_bytes([whole, whole[2:], torch.zeros(3)]) == 160 + 12


def test_a_child_measures_with_a_peak_of_its_own(jobs: list[Job]) -> None:
    def run_one() -> Iterator[None]:
        results.append((yield from measure_in_child(jobs[1])))

    results: list[Measurement] = []
    for _ in run_one():
        pass
    (measured,) = results
    assert len(measured.token_ids) == NEW
    assert measured.resident_bytes > 0
    assert measured.peak_bytes is None or 0 <= measured.peak_bytes < measured.resident_bytes


def test_too_long_and_too_small_are_refused_before_the_first_run(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["bench", "-q", "-m", str(model_dir), "--device", "cpu"]
    assert run([*args, "--tokens", "510"]) == DoesNotFitError.exit_code
    assert "542" in capsys.readouterr().err
    assert run([*args, "--tokens", "300", "-b", "3"]) == DoesNotFitError.exit_code
    assert "always kept" in capsys.readouterr().err


def test_the_command_writes_one_json_object(
    model_dir: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = run_job(jobs[1])

    def bench_nothing(jobs: list[Job], runs: int) -> Generator[Progress, None, list[Round]]:
        yield from ()
        return [(measured, measured, measured)] * 2

    monkeypatch.setattr("uncomp_cli.bench.rounds.run_bench", bench_nothing)
    args = ["bench", "-m", str(model_dir), "--tokens", "400", "-b", "full", "-b", "40%", "--device", "cpu"]
    assert run([*args, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record["tokens"] == 400
    assert [s["budget_requested"] for s in record["settings"]] == ["full", "40%"]
    assert [s["same_tokens"] for s in record["settings"]] == [True, True]
    assert run(args) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:2] == ["SETTING", "FIRST"]
    assert [row.split()[0] for row in table[1:4]] == ["stock", "full", "40%"]
    assert table[2].count("(1x)") >= 3


def test_every_thinning_is_measured_at_every_budget_behind_stock(
    model_dir: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each technique alone and both together; the child is given thinning and limits."""
    measured, given = run_job(jobs[1]), []

    def bench_nothing(jobs: list[Job], runs: int) -> Generator[Progress, None, list[Round]]:
        given.extend(Job.from_json(job.to_json()) for job in jobs)
        yield from ()
        return [(measured,) * 5]

    monkeypatch.setattr("uncomp_cli.bench.rounds.run_bench", bench_nothing)
    args = ["bench", "-m", str(model_dir), "--tokens", "400", "--device", "cpu", "--policy", "uniform", "-b", "40%"]
    thin = ["--thin", "none", "--thin", "gather:after=1,keep=0.3"]
    assert run([*args, "-b", "60%", *thin, "--chunk", "200", "--kv-mem", "1MiB"]) == 0
    labels = ["40% uniform", "40% uniform, thin gather:after=1,keep=0.3"]
    labels += [label.replace("40%", "60%") for label in labels]
    assert [job.label for job in given] == ["stock transformers", *labels]
    assert [job.preset.thinning for job in given[1:] if job.preset] == ["none", "gather:after=1,keep=0.3"] * 2
    assert {job.setup.limits for job in given} == {Limits(chunk_tokens=200, kv_bytes=2**20)}
    table = capsys.readouterr().out.splitlines()
    assert table[3].startswith("40% uniform, thin gather:after=1,keep=0.3")


def test_a_run_is_thinned_and_read_in_chunks_as_its_job_says(jobs: list[Job], loaded: LoadedModel) -> None:
    full = run_uncomp(loaded, jobs[1].prompt, preset=FULL, new_tokens=NEW)
    chunked = run_uncomp(loaded, jobs[1].prompt, preset=FULL, new_tokens=NEW, limits=Limits(chunk_tokens=150))
    assert chunked.token_ids == full.token_ids
    thinned = replace(jobs[1], preset=replace(FULL, thinning="gather:after=1,keep=0.3"))
    measured = run_job(thinned)
    assert measured.kv_bytes < 0.9 * full.kv_bytes
    with pytest.raises(DoesNotFitError):
        run_job(replace(thinned, setup=replace(thinned.setup, limits=Limits(kv_bytes=1000))))


def test_what_a_model_cannot_do_is_not_measured_under_that_label(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uncomp_cli.engine.spend.compression.can_thin", lambda spec: False)
    thinned = replace(FULL, thinning="gather")
    request = BenchRequest(Setup(str(model_dir), NEW, device="cpu"), model_dir, "text", (thinned,), TOKENS, runs=1)
    with pytest.raises(UsageError, match=r"full, thin gather on .* without thinning"):
        make_jobs(request)


def test_memory_that_runs_out_has_its_own_error() -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")):
        assert isinstance(_as_known(error), OutOfMemoryError)
    assert not isinstance(_as_known(RuntimeError("shape")), OutOfMemoryError)
