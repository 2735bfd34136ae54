"""The Python face: what the commands do, by objects; the page that shows it runs."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import uncomp_cli as uncomp
from uncomp_cli.asking.assistant import Assistant
from uncomp_cli.asking.request import ModelChoice
from uncomp_cli.engine.engine import Engine
from uncomp_cli.models.runnable import LoadedModel

ROOT = Path(__file__).parent.parent
GREEDY = uncomp.SamplingConfig(max_new_tokens=12)
TEXT = "".join(f"Line {number} of the notes says little.\n" for number in range(40))


@pytest.fixture
def engine(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Assistant:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    return Assistant(Engine(loaded, sampling=GREEDY), ModelChoice(loaded.info.name))


@pytest.fixture
def notes(tmp_path: Path) -> str:
    path = tmp_path / "notes.txt"
    path.write_text(TEXT)
    return str(path)


def test_the_public_names_are_there_and_load_nothing_heavy() -> None:
    assert all(getattr(uncomp, name) is not None for name in uncomp.__all__)
    code = "import sys, uncomp_cli; uncomp_cli.preset; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = uncomp.nothing


def test_an_answer_is_that_of_the_command(engine: Assistant, notes: str) -> None:
    preset = uncomp.preset("live", budget="50%")
    documents = uncomp.collect(notes)
    answer = engine.read(documents, ["Which line?"], preset).answer("Which line?", evidence=True)
    events = list(engine.ask(documents, ["Which line?"], preset, evidence=True))
    (done,) = [event for event in events if isinstance(event, uncomp.Done)]
    assert len(answer.ids) == 12
    assert (answer.text, answer.ids, answer.evidence) == (done.text, done.ids, done.evidence)
    assert answer.stats.kv_bytes == done.stats.kv_bytes < done.stats.kv_full_bytes
    ignored = {"timing", "memory"}
    assert {k: v for k, v in answer.record().items() if k not in ignored} == {
        k: v for k, v in done.record().items() if k not in ignored
    }


def test_the_plan_is_what_is_read_and_says_all(engine: Assistant, notes: str) -> None:
    preset = uncomp.preset("live", budget="30%", floor_tokens=7, thinning="none")
    planned = engine.plan(uncomp.collect(notes), ["Which line?"], preset)
    read = engine.read(uncomp.collect(notes), ["Which line?"], preset)
    assert planned.allocation.plan.entries == read.context.account.plan.entries
    assert "at least 7 document tokens" in str(planned)
    assert "30" in read.notes[0]


def test_a_floor_that_keeps_more_than_the_budget_that_was_named_is_told(engine: Assistant, notes: str) -> None:
    documents, question = uncomp.collect(notes), ["Which line?"]
    floored = replace(uncomp.preset("balanced"), budget=uncomp.Budget.parse("5%"), profile=None)
    told = "budget 5% was named, and the floor of preset balanced keeps "
    assert told in str(engine.plan(documents, question, floored))
    answer = engine.read(documents, question, floored).answer()
    assert [warning for warning in answer.record()["warnings"] if warning.startswith(told)]
    for taken in (replace(floored, floor_tokens=0), replace(floored, budget=uncomp.preset("balanced").budget)):
        assert told not in str(engine.plan(documents, question, taken))
        assert "floor" not in str(engine.read(documents, question, taken).answer().record()["warnings"])


def test_predict_agrees_with_what_greedy_decoding_writes(engine: Assistant, notes: str) -> None:
    context = engine.read(uncomp.collect(notes), ["Which line?"], uncomp.preset("full"))
    ids = context.answer().ids
    assert context.predict(ids).argmax(dim=-1).tolist() == list(ids)


def test_what_was_read_for_its_questions_answers_no_other(engine: Assistant, notes: str) -> None:
    context = engine.read(uncomp.collect(notes), ["Which line?", "Why?"], uncomp.preset("full"))
    assert context.answer("Why?").turn.number == 1
    with pytest.raises(uncomp.UsageError, match="not read for the question 'Who\\?'"):
        context.answer("Who?")
    with pytest.raises(uncomp.UsageError, match="does not serve others"):
        context.save("mine")


def test_what_is_read_for_any_question_is_saved_and_opened(engine: Assistant, notes: str) -> None:
    preset = uncomp.preset("live", scorer="distinct", budget="50%")
    context = engine.read(uncomp.collect(notes), (), preset)
    first, second = (context.answer(question).text for question in ("Which line?", "Why?"))
    assert context.answer("Which line?").text == first
    context.save("mine")
    again = engine.open("mine")
    assert [again.answer(question).text for question in ("Why?", "Which line?")] == [second, first]
    with_text = engine.open("mine", uncomp.collect(notes))
    assert with_text.answer("Which line?", evidence=True).evidence
    with pytest.raises(uncomp.UsageError, match="no question"):
        again.answer(" ")


def test_pins_are_kept_whatever_the_budget(engine: Assistant, notes: str) -> None:
    documents, preset = uncomp.collect(notes), uncomp.preset("live", budget="25%", thinning="none")
    pinned = engine.read(documents, ["Which line?"], preset, pins=[f"{notes}:20-21"])
    tokens = pinned.subject.places.tokens_of(notes, "20-21")
    assert float(pinned.context.survival(max(tokens) + 1)[tokens].min()) == 1
    free = engine.read(documents, ["Which line?"], preset)
    assert float(free.context.survival(max(tokens) + 1)[tokens].min()) < 1


def test_a_text_is_no_list_of_questions(engine: Assistant, notes: str) -> None:
    with pytest.raises(uncomp.UsageError, match="questions is the text"):
        engine.read(uncomp.collect(notes), "Which line?")


@pytest.mark.parametrize("questions", [[], [" "], ["Which line?", ""]])
def test_no_question_is_asked_that_is_empty(engine: Assistant, notes: str, questions: list[str]) -> None:
    with pytest.raises(uncomp.UsageError, match=r"no question|is empty"):
        engine.ask(uncomp.collect(notes), questions)


def test_a_chance_is_one(engine: Assistant, notes: str) -> None:
    with pytest.raises(uncomp.UsageError, match="fail-under is 7, not a chance"):
        engine.ask(uncomp.collect(notes), ["Which line?"], fail_under=7)


def test_a_chat_reads_documents_and_answers(engine: Assistant, notes: str) -> None:
    chat = engine.chat(uncomp.preset("live", scorer="distinct"))
    said = [event.text for event in chat.add(uncomp.collect(notes).documents) if isinstance(event, uncomp.Noted)]
    assert len(said) == 1
    assert "tokens read" in said[0]
    (done,) = [event for event in chat.say("Which line?") if isinstance(event, uncomp.Done)]
    assert len(done.ids) == 12
    assert chat.dialogue.entries[-1].text == done.text


@pytest.mark.model
@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(
    default_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    monkeypatch.chdir(ROOT)
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "models").symlink_to(default_model_dir.parent)
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(cache))
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), names)  # our own page
    assert "4096217" in capsys.readouterr().out


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "arguments", "typed", "shown"),
    [
        ("ask", ["What is the combination of the stores safe?"], "", "4096217"),
        ("policies", ["What is the combination of the stores safe?", "4096217"], "", "uncertain"),
        ("chat", [], "What is the combination of the stores safe?\n\n", "4096217"),
    ],
)
def test_an_example_runs(default_model_dir: Path, program: str, arguments: list[str], typed: str, shown: str) -> None:
    assert len((ROOT / f"examples/{program}.py").read_text().splitlines()) <= 35
    assert default_model_dir.is_dir()
    command = [sys.executable, f"examples/{program}.py", "docs/demo/lighthouse-handbook.md", *arguments]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
