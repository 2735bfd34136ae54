"""Samples past the trained length are judged as `ask` reads them, and results say how they were read."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from support.commands import run_here, two_lines
from support.tiny import make_character_model
from uncomp_cli.config import SamplingConfig
from uncomp_cli.documents.prose import write_prose
from uncomp_cli.engine.engine import Engine
from uncomp_cli.evals.journal import read_journal
from uncomp_cli.evals.judges.answers import judge_answers
from uncomp_cli.evals.judges.case import Case, read_case
from uncomp_cli.evals.judges.contestants import make_settings
from uncomp_cli.evals.judges.evaluation import results_settings
from uncomp_cli.evals.judges.forced_rows import token_nll
from uncomp_cli.evals.tables.outcome import OUTCOMES
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.task import Query, Sample
from uncomp_cli.models.extension import RopeChoice, parse_rope
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.rotary import resolve_rope, use_rope
from uncomp_cli.models.runnable import LoadedModel

TRAINED, CONTEXT, ANSWER_TOKENS = 1024, 1300, 6
THINNED = "thin=gather:after=2,keep=0.5"
PAST = RopeChoice("reread", only_past=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_character_model(tmp_path_factory.mktemp("models") / "tiny", layers=3, trained=TRAINED, spread=0.3)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(str(folder), device="cpu")


def turned(loaded: LoadedModel, rope: RopeChoice | str | None) -> Engine:
    choice = parse_rope(rope) if isinstance(rope, str) else rope
    sampling = SamplingConfig(max_new_tokens=ANSWER_TOKENS)
    return Engine(use_rope(loaded, choice), sampling=sampling)


def case_of(engine: Engine, length: int = CONTEXT) -> Case:
    context = write_prose(900, seed=1).replace("\n", " ")[:length]
    assert len(context) == length
    query = Query(" Whose is it?", " the", accepted=("the",), max_new_tokens=ANSWER_TOKENS, evidence=((90, 130),))
    sample = Sample("needle/words", 0, length, context, (query,))
    return read_case(engine.decoder, engine.loaded.tokenizer, sample, reach=engine.reach)


def assert_as_asked(engine: Engine, case: Case, contestants: Sequence[str]) -> None:
    """Every setting's bytes, likelihood and text are those of a reading of its own."""
    settings = make_settings(contestants, ["20%"], seed=0)
    outcomes = {outcome.setting: outcome for outcome in judge_answers(case, settings, "aware", stop_ids=())}
    for setting in settings:
        context = engine.read(case.prompt, setting.preset).finish()
        assert outcomes[setting.label].kv_bytes == pytest.approx(context.cache.nbytes, rel=0.02)  # room differs
        reference = case.answers[0]
        expected = float(token_nll(context.predict(reference)[None], reference)[0, 1:].mean())
        assert outcomes[setting.label].metrics["nll"] == pytest.approx(expected, abs=2e-4)
        text = "".join(step.text for step in engine.writer(engine.asked(context), stop_ids=()).write())
        assert outcomes[setting.label].answer == text


@pytest.mark.parametrize("rope", ["plain", "yarn:2", "dynamic:4", "repack", "reread"])
def test_every_way_of_reading_gives_what_ask_does(loaded: LoadedModel, rope: str) -> None:
    engine = turned(loaded, rope)
    case = case_of(engine)
    assert (case.reading.reach is not None) == engine.loaded.rope.repacks
    assert_as_asked(engine, case, ["uniform/8bit", f"uniform/{THINNED}", f"adaptive/{THINNED}"])


def test_what_fits_is_read_as_trained(loaded: LoadedModel) -> None:
    short = case_of(turned(loaded, PAST), 700)
    assert short.reading.reach is None
    torch.testing.assert_close(short.reading.logits, case_of(turned(loaded, None), 700).reading.logits)
    assert case_of(turned(loaded, "reread"), 700).reading.reach is not None


def test_what_is_not_read_again_is_no_result_of_reading_again(loaded: LoadedModel) -> None:
    settings = make_settings(["uniform/keydiff"], ["20%"], seed=0)[1:]
    (outcome,) = judge_answers(case_of(turned(loaded, "reread")), settings, "aware", stop_ids=())
    assert "does not look at the question" in (outcome.refused or "")
    (outcome,) = judge_answers(case_of(turned(loaded, "repack")), settings, "aware", stop_ids=())
    assert outcome.refused is None


def test_results_say_how_was_read(loaded: LoadedModel) -> None:
    haystack = Haystack.of_texts("none", [])
    said = {}
    for rope in ("plain", "yarn:2", "yarn:4", "repack", "repack:2", "reread", PAST, None):
        said[str(rope), rope is PAST] = results_settings(turned(loaded, rope).loaded, haystack, seed=0).get("rope")
    assert len(set(said.values())) == len(said)
    assert said["None", False] is None
    resolved, _ = resolve_rope(use_rope(loaded, parse_rope("auto")), parse_rope("auto"), tokens=CONTEXT)
    assert results_settings(resolved, haystack, seed=0)["rope"] == said["reread", True]


SHAPE = ("--samples", "1", "--tokens", "1500", "-t", "needle/digits7", "--policy", "uniform", "-b", "20%")


@pytest.mark.usefixtures("short_prose")
def test_a_command_reads_past_the_trained_length(folder: Path, tmp_path: Path) -> None:
    given = ("eval", "-m", str(folder), "--out", str(tmp_path / "results.jsonl"), *SHAPE)
    code, _, err = run_here(*given, "--regime", "aware", "--rope", "auto")
    assert code == 0, err
    assert "read with --rope reread" in err
    assert "the model was trained for 1,024" in err
    assert read_journal(tmp_path / "results.jsonl", OUTCOMES)[0]["rope"] == "reread past the trained length"
    code, _, err = run_here(*given, "--regime", "aware", "--rope", "repack")
    assert (code, 'rope "reread past the trained length" there, "repack" now' in err) == (2, True)
    code, _, err = run_here(*given, "--rope", "auto", "--fresh")
    assert code == 0, err
    assert "read with --rope yarn:2" in err
    assert read_journal(tmp_path / "results.jsonl", OUTCOMES)[0]["rope"] == "yarn:2"


def test_what_is_refused_before_anything_is_loaded(folder: Path) -> None:
    code, out, err = run_here("eval", "-m", str(folder), *SHAPE, "--rope", "reread")
    message, hint = two_lines(err)
    assert (code, out) == (2, "")
    assert "question unseen" in message
    assert "--regime aware" in hint
    code, _, err = run_here("eval", "-m", str(folder), *SHAPE)
    assert code == 3
    assert "--rope auto" in two_lines(err)[1]
