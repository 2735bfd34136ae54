"""`uncomp ask` about documents as people have them: bad ones beside good ones, and what was left out of them."""

import json
from pathlib import Path

import fpdf
import pytest
import torch
from safetensors.torch import load_file, save_file

import uncomp_cli as uncomp
from support.chats import hold, make_talk
from support.commands import Ask, last_object, records, two_lines
from uncomp_cli.asking.assistant import Assistant
from uncomp_cli.asking.request import ModelChoice
from uncomp_cli.cache.shelf import Shelf
from uncomp_cli.cli.app import run
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.tokens import prompt
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.sessions.transcript import Transcript

ASKED = ("--max-new-tokens", "6")
LOST = "scan.pdf: left out 1 page without text (page 2)"


def make_pdf(*pages: str) -> bytes:
    pdf = fpdf.FPDF()
    pdf.set_font("helvetica", size=12)
    for text in pages:
        pdf.add_page()
        pdf.multi_cell(0, text=text)
    return bytes(pdf.output())


@pytest.fixture(autouse=True)
def texts(alone: None) -> None:
    Path("a.txt").write_text("the harbour is old. " * 8)
    Path("z.txt").write_text("the lantern is lit. " * 8)
    Path("bad.pdf").write_bytes(b"%PDF-1.4 broken")
    Path("scan.pdf").write_bytes(make_pdf("the bridge is long", "", "the mill stands", "no more"))


def test_with_each_a_bad_file_is_told_and_the_others_are_asked(ask: Ask) -> None:
    files = ["-f", "a.txt", "-f", "bad.pdf", "-f", "z.txt", "--each"]
    code, out, err = ask(*files, "Where?")
    assert code == 1
    assert len(out.split("\n\n")) == 2
    assert [line for line in err.splitlines() if line.startswith("error: cannot read 'bad.pdf': it is no PDF")]
    code, out, _ = ask(*files, "Where?", "-Q", "When?", "--json")
    assert code == 1
    found = records(out)
    assert [(r["files"][0]["path"], r["question"], "error" in r) for r in found] == [
        ("bad.pdf", "Where?", True), ("bad.pdf", "When?", True),
        ("a.txt", "Where?", False), ("a.txt", "When?", False), ("z.txt", "Where?", False), ("z.txt", "When?", False),
    ]  # fmt: skip
    assert found[0]["error"]["exit_code"] == 1


def test_with_each_and_bad_files_alone_no_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "-m", "no-such-model", "-f", "bad.pdf", "-f", "gone.txt", "--each", "Where?"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("error: ") == 2
    assert run(["ask", "-m", "no-such-model", "-f", "bad.pdf", "-f", "a.txt", "Where?"]) == 1
    assert two_lines(capsys.readouterr().err)[0].startswith("cannot read 'bad.pdf'")


def test_what_a_document_lost_is_said_and_recorded(ask: Ask) -> None:
    code, out, err = ask("-f", "scan.pdf", "-f", "a.txt", "Where?", "-Q", "When?", "--json")
    assert code == 0
    assert err.count(f"warning: {LOST}\n") == 1
    for record in records(out):
        assert LOST in record["warnings"]
        assert [file["losses"] for file in record["files"]] == [["1 page without text (page 2)"], []]
    code, out, _ = ask("-f", "scan.pdf", "-f", "a.txt", "--each", "Where?", "--json")
    assert [LOST in record["warnings"] for record in records(out)] == [True, False]
    code, out, _ = ask("-f", "scan.pdf", "Where?", "--dry-run", "--json")
    assert last_object(out)["warnings"] == [LOST]


def test_a_saved_document_knows_what_it_lost(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    keep = ["-b", "50%", "--policy", "uniform", "--scorer", "distinct", "--json"]
    assert ask("-f", "scan.pdf", "--cache", "mine", *keep, "Where?")[0] == 0
    Path("scan.pdf").unlink()
    code, out, err = ask("--cache", "mine", *keep, "When?")
    assert code == 0
    assert f"warning: {LOST}\n" in err
    assert LOST in last_object(out)["warnings"]


@pytest.mark.parametrize("cut", [(), ("--truncate", "middle")])
def test_a_saved_document_is_cited_as_it_was_when_it_was_read(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: tuple[str, ...]
) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    Path("long.pdf").write_bytes(make_pdf(*(f"page {number} is about the harbour\n" * 50 for number in range(4))))
    keep = ["-b", "50%", "--policy", "uniform", "--scorer", "distinct", "--json", "--evidence", "Where?"]
    Path("a.txt").write_text("\n \nthe harbour is old. ")
    files = ["-f", "a.txt", *(["-f", "long.pdf"] if cut else []), "-f", "scan.pdf"]
    fresh = last_object(ask(*files, "--cache", "mine", *keep, *cut)[1])
    opened = last_object(ask("--cache", "mine", *keep)[1])
    assert opened["evidence"] == fresh["evidence"]
    assert {each.get("place") for each in fresh["evidence"]} - {None}
    assert opened["files"] == fresh["files"]
    shelf = Shelf(tmp_path / "cache" / "documents")
    cache, tensors, record = shelf.load(shelf.find("mine"))
    del tensors["texts"]
    shelf.save("torn", cache, tensors=tensors, record=record)
    assert "its texts are not those of its documents" in ask("--cache", "torn", *keep)[2]


def test_a_second_question_makes_no_tokens_of_the_documents(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("uncomp_cli.engine.tokens.prompt.KEPT_CHARS", 100)
    long = ["-f", "a.txt", "-f", "z.txt", "--evidence", "--pin", "z.txt:1", "--rope", "auto", "--json"]
    without = ask(*long, "Where?", "--text-cache", "0")[1]
    ask(*long, "When?", "--password", "lamp")
    assert not (tmp_path / "cache" / "texts").exists()
    ask(*long, "When?")
    assert len([*(tmp_path / "cache" / "texts").iterdir()]) == 3  # of both, and what each has by itself
    made = prompt._made
    monkeypatch.setattr(prompt, "_made", lambda how, text: made(how, text) if len(text) < 100 else pytest.fail(text))
    found = last_object(ask(*long, "Where?")[1])
    expected = last_object(without)
    assert [found[key] for key in ("answer", "usage", "files", "evidence")] == [
        expected[key] for key in ("answer", "usage", "files", "evidence")
    ]


def test_what_was_skipped_is_one_line_and_all_of_it_with_v(ask: Ask) -> None:
    for number in range(20):
        Path(f"d/{number}.png").parent.mkdir(exist_ok=True)
        Path(f"d/{number}.png").write_bytes(b"")
    Path("d/a.txt").write_text("the harbour is old. " * 8)
    line = "skipped 20 files and folders: 20 × suffix '.png' is that of a PNG image; -v lists them"
    code, out, err = ask("-f", "d", "Where?", "--json")
    assert code == 0
    assert [each for each in err.splitlines() if "skipped" in each] == [f"warning: {line}"]
    assert line in last_object(out)["warnings"]
    err = ask("-f", "d", "Where?", "-v")[2]
    assert len([each for each in err.splitlines() if "skipped d/" in each]) == 20


def test_a_program_hears_of_losses(loaded: LoadedModel) -> None:
    engine = Assistant(Engine(loaded, sampling=uncomp.SamplingConfig(max_new_tokens=4)), ModelChoice(loaded.info.name))
    documents = uncomp.collect("scan.pdf")
    assert [str(loss) for loss in documents.documents[0].losses] == ["1 page without text (page 2)"]
    assert LOST in engine.read(documents, ["Where?"], uncomp.preset("full")).notes
    events = list(engine.ask(documents, ["Where?"], uncomp.preset("full")))
    assert uncomp.Warned(LOST) in events


def test_evidence_is_shown_by_page_and_recorded_with_its_lines(ask: Ask) -> None:
    options = ["-f", "scan.pdf", "Where?", "--evidence"]
    code, _, err = ask(*options)
    assert code == 0
    cited = [line.split()[0] for line in err.splitlines() if line.startswith("  ")][1:]
    assert set(cited) <= {"scan.pdf:p1", "scan.pdf:p3", "scan.pdf:p4"}
    evidence = last_object(ask(*options, "--json")[1])["evidence"]
    assert [f"scan.pdf:{each['place']}" for each in evidence] == cited
    lines = {"p1": 1, "p3": 3, "p4": 5}
    assert [each["line_start"] for each in evidence] == [lines[each["place"]] for each in evidence]


def test_pages_are_pinned(ask: Ask) -> None:
    code, _, err = ask("-f", "scan.pdf", "-f", "a.txt", "Where?", "--pin", "scan.pdf:p3-4", "-b", "70%")
    assert code == 0
    tokens = len("the mill stands\n\nno more")
    assert f"pinned scan.pdf:p3-4: {tokens} tokens in every head" in err


def test_a_page_that_is_not_there_is_refused_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "-m", "no-such-model", "-f", "scan.pdf", "Where?", "--pin", "scan.pdf:p2"]) == 2
    *_, error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: scan.pdf has p1, p3, p4 and lines 1 to 5, not p2"
    assert hint == "hint: write scan.pdf:p4"


def test_pages_survive_a_session(loaded: LoadedModel) -> None:
    talk = make_talk(loaded)
    said = hold(talk, "/file scan.pdf", "Where?", "/pin scan.pdf:p3", "/files", "/evidence")
    assert any(line.endswith(" · left out 1 page without text (page 2)") for line in said if " turn 1 " in line)
    assert any("scan.pdf:p" in line for line in said)
    again = make_talk(loaded)
    again.chat.restore(Transcript.from_json(talk.chat.transcript().to_json()))
    (page,) = again.chat.dialogue.pages()
    assert [(place.line, place.name) for place in page.places] == [(1, "p1"), (3, "p3"), (5, "p4")]
    assert [str(loss) for loss in page.losses] == ["1 page without text (page 2)"]
    assert hold(again, "/pin") == ["scan.pdf:p3"]
    assert hold(again, "/pin scan.pdf:p2")[0] == "error: scan.pdf has p1, p3, p4 and lines 1 to 5, not p2"


def test_files_beside_the_question_are_documents(ask: Ask) -> None:
    code, out, _ = ask("-f", "a.txt", "z.txt", "scan.pdf", "Where?", "--json")
    assert code == 0
    assert [file["path"] for file in last_object(out)["files"]] == ["a.txt", "z.txt", "scan.pdf"]
    assert last_object(out)["question"] == "Where?"
    code, out, _ = ask("a.txt", "-Q", "Where?", "--json")
    assert (code, [file["path"] for file in last_object(out)["files"]]) == (0, ["a.txt"])


def test_what_is_never_calibrated_is_refused_before_a_document_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--fail-under", "7"], ["--fail-under", "0.5", "-p", "live"], ["--escalate", "-p", "live"]):
        assert run(["ask", "-m", "no-such-model", "-f", "bad.pdf", "Where?", *options]) == 2
        assert "bad.pdf" not in capsys.readouterr().err


@pytest.fixture
def silent_model(copied_model: Path) -> Path:
    """A model that would rather end than say a word, whatever it reads: one of two opposite numbers is the largest."""
    weights = load_file(copied_model / "model.safetensors")
    weights["lm_head.weight"][1] = 1000 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    weights["lm_head.weight"][2] = -weights["lm_head.weight"][1]
    save_file(weights, copied_model / "model.safetensors", metadata={"format": "pt"})
    (copied_model / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    return copied_model


def test_a_model_without_a_template_is_asked_in_plain_text_and_speaks(
    silent_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (silent_model / "chat_template.jinja").unlink()
    code = run(["ask", "-m", str(silent_model), "-f", "a.txt", "Where?", "-Q", "When?", "--json"])
    out, err = capsys.readouterr()
    assert code == 0
    assert [len(record["answer"]) for record in records(out)] == [1, 1]
    assert err.count("warning: this model has no chat template: it is asked in plain text") == 1
    assert run(["chat", "-m", str(silent_model)]) == 1  # before anybody has typed anything
    assert "error: this model has no chat template\nhint: use `uncomp ask`" in capsys.readouterr().err


def test_an_answer_without_a_word_is_said(silent_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "-m", str(silent_model), "-f", "a.txt", "Where?"]) == 0
    out, err = capsys.readouterr()
    assert out == "\n"
    assert "warning: the model ended its answer without a word" in err


def test_a_model_file_that_may_not_be_read_is_not_called_damaged(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so permission is taken away in os."""
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "model.safetensors")
    assert run(["ask", "-m", str(tiny_model), "-f", "a.txt", "Where?"]) == 1
    *_, error, hint = capsys.readouterr().err.splitlines()
    assert error.endswith("/model.safetensors may not be read by this user")
    assert hint.startswith("hint: its owner lets others read it with: chmod a+r ")
