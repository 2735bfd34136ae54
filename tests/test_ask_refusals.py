"""What `uncomp ask` refuses: an exit code and two lines, nothing on standard output, nothing half-written."""

import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import fpdf
import pytest

from support.commands import two_lines
from support.tiny import TRAINED_LENGTH
from uncomp_cli.asking import forecast
from uncomp_cli.asking.forecast import remember_pace, takes
from uncomp_cli.cli.app import run
from uncomp_cli.engine import engine
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.spend import memory

Refused = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def texts(alone: None) -> None:
    Path("notes.txt").write_text("The harbour was quiet and the lamps were lit. " * 8)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run `uncomp ask` with arguments that must be refused: exit code, message, hint."""

    def ask(*args: str) -> tuple[int, str, str]:
        before = sorted(Path().rglob("*"))
        capsys.readouterr()
        code = run(["ask", *args])
        out, err = capsys.readouterr()
        assert out == ""
        assert sorted(Path().rglob("*")) == before
        return code, *two_lines(err)

    return ask


def about(*args: str, model: object = "no-such-model") -> list[str]:
    """Arguments that ask about notes.txt; a model that is not there shows that the refusal comes before its turn."""
    return ["-f", "notes.txt", "-m", str(model), *args, "Where?"]


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("absent.txt", None, 2, "'absent.txt'"),
        ("empty.txt", b"", 1, "cannot read 'empty.txt'"),
        ("blank.txt", b" \n\t\n", 1, "cannot read 'blank.txt'"),
        ("tool.bin", bytes(range(256)) * 8, 1, "cannot read 'tool.bin'"),
        ("broken.pdf", b"%PDF-1.7\n garbage", 1, "cannot read 'broken.pdf'"),
    ],
)
def test_documents(refused: Refused, name: str, content: bytes | None, code: int, message: str) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    found, said, _ = refused("-f", "notes.txt", "-f", name, "-m", "no-such-model", "Where?")
    assert found == code
    assert message in said


def test_an_unreadable_document(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, most_bytes: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("uncomp_cli.documents.collection.take_file", denied)
    assert refused(*about()) == (1, "cannot read 'notes.txt': Permission denied", "ls -l notes.txt")


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["-b", "10 parsecs"], "budget '10 parsecs' has the unknown unit 'parsecs'", "write 10%"),
        (["-b", "lots"], "budget 'lots' is not a budget", "write 10%"),
        (["-b", "0%"], "budget '0%' keeps nothing", "write 10%"),
        (["-b", "120%"], "budget '120%' is more than the full cache", "use at most 100%"),
        (["-p", "balnced"], "unknown preset 'balnced'", "did you mean 'balanced'?"),
        (["--policy", "unifrom"], "unknown policy 'unifrom'", "did you mean 'uniform'?"),
        (["--scorer", "windwo"], "unknown scorer 'windwo'", "did you mean 'window'?"),
        (["--policy", "full", "-b", "10%"], "policy full keeps everything, budget 10% does not", "leave one"),
        (["--policy", "sinks", "--scorer", "window"], "policy sinks has its own scorer, recent", "--policy uniform"),
        (["--truncate", "midle"], "invalid value for '--truncate': 'midle'", "did you mean 'middle'?"),
        (["--rope", "yarm:2"], "unknown rope extension 'yarm'", "did you mean 'yarn:2'?"),
        (["--rope", "yarn"], "rope extension 'yarn' needs a factor", "write yarn:2"),
        (["--temperature", "-1"], "invalid value '-1' for '--temperature'", ""),
        (["--top-p", "0"], "top-p is 0", "use a value above 0"),
        (["-Q", " "], "question 2 of 2 is empty", "leave it out"),
        (["-s", "caf\udce9"], "the system prompt is not UTF-8 text", ""),
        (["--thin", "gahter"], "unknown thinning 'gahter'", "did you mean 'gather'?"),
        (["--chunk", "many"], "chunk 'many' is not a number of tokens", "use --chunk 2048"),
        (["--chunk", "0.5"], "chunk '0.5' is not a number of tokens", "use --chunk 2048"),
        (["--chunk", "7"], "chunk is 7 tokens", "use --chunk 128 or more"),
        (["--kv-mem", "10%"], "kv-mem '10%' is no amount of memory", "use --kv-mem 256MiB"),
        (["--kv-mem", "lots"], "kv-mem 'lots' is not an amount of memory", "use --kv-mem 256MiB"),
        (["--kv-mem", "0MiB"], "kv-mem '0MiB' is not an amount of memory", "use --kv-mem 256MiB"),
        (["--questions", "absent"], "questions file absent cannot be read", "give a text file"),
    ],
)
def test_values(refused: Refused, args: list[str], message: str, hint: str) -> None:
    code, said, hinted = refused(*about(*args))
    assert code == 2
    assert said.startswith(message)
    assert hinted.startswith(hint)


def test_models(refused: Refused, tiny_model: Path) -> None:
    code, said, hint = refused(*about(model="smollm2-153m"))
    assert code == 2
    assert "'smollm2-153m'" in said
    assert "did you mean smollm2-135m?" in said + hint
    code, said, _ = refused(*about("--tokenizer", "absent", model=tiny_model))
    assert code == 1
    assert "absent" in said
    code, said, _ = refused(*about("--device", "toaster", model=tiny_model))
    assert (code, said) == (2, "device 'toaster' is unknown")


def test_damaged_models(refused: Refused, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.gguf").write_bytes(b"GGUF\x03\0\0\0 and then nothing that it should hold")
    code, said, _ = refused(*about(model="bad.gguf"))
    assert code == 1
    assert "bad.gguf" in said
    Path("cut").mkdir()
    for file in tiny_model.iterdir():
        data = file.read_bytes()
        (Path("cut") / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    code, said, _ = refused(*about(model="cut"))
    assert code == 1
    assert "cut" in said
    assert refused(*about("--dry-run", model="cut"))[0] == 1


def test_no_question(refused: Refused) -> None:
    for args in ([], [""]):
        code, said, hint = refused("-f", "notes.txt", *args)
        assert (code, said) == (2, "no question was given")
        assert hint.startswith("uncomp ask -f")
    Path("blank").write_text("\n \n")
    code, said, hint = refused("-f", "notes.txt", "--questions", "blank")
    assert (code, said) == (2, "no question was given: blank has none")
    assert hint == "give a text file with one question a line"


def test_no_document(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    code, said, _ = refused("Where?")
    assert (code, said) == (2, "no document was given, and standard input is closed")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, said, _ = refused("Where?")
    assert code == 1
    assert said.startswith("cannot read standard input")


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_a_document_over_the_trained_length(
    refused: Refused, tiny_model: Path, capsys: pytest.CaptureFixture[str], mode: list[str]
) -> None:
    Path("notes.txt").write_text("x" * TRAINED_LENGTH)
    if mode:
        assert run(["ask", *about(*mode, model=tiny_model)]) == 3
        out, err = capsys.readouterr()
        assert "fits" in out
        code, (said, hint) = 3, two_lines(err)
    else:
        code, said, hint = refused(*about(model=tiny_model))
    assert code == 3
    assert said.startswith("the prompt has 4,1")
    assert said.endswith("tokens, the model was trained for 4,096")
    assert "--truncate head, middle or tail" in hint
    assert "--rope auto" in hint
    assert "--rope plain" in hint
    short = ["-b", "full", "--max-new-tokens", "2", "--json"]
    assert run(["ask", *about("--rope", "yarn:2", *mode, *short, model=tiny_model)]) == 0
    record = json.loads(capsys.readouterr().out)
    if mode:
        assert (record["trained_length"], record["context_length"]) == (TRAINED_LENGTH, 2 * TRAINED_LENGTH)
    else:
        assert record["uncertainty"]["prompt_in_trained_length"] is False
    assert run(["ask", *about("--truncate", "tail", *mode, *short, model=tiny_model)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["files"][0]["truncated"] is True


@pytest.mark.parametrize("more", [(), ("--rope", "linear:2")])
def test_a_text_that_is_too_long_is_refused_before_the_weights_are_loaded(
    refused: Refused, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr("uncomp_cli.models.loading.load_weights", lambda *_, **__: pytest.fail("weights are loaded"))
    Path("notes.txt").write_text("x" * 2 * TRAINED_LENGTH)
    code, said, hint = refused(*about(*more, model=tiny_model))
    assert code == 3
    assert said.startswith("the prompt has 8,2")
    assert "--truncate" in hint


def test_several_texts_and_questions_too_are_refused_before_the_weights_are_loaded(
    refused: Refused, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uncomp_cli.models.loading.load_weights", lambda *_, **__: pytest.fail("weights are loaded"))
    Path("notes.txt").write_text("x" * 3000)
    Path("more.txt").write_text("y" * 3000)
    code, said, hint = refused(*about("-f", "more.txt", "-Q", "When?", model=tiny_model))
    tokens = int(said.removeprefix("the prompt has ").partition(" ")[0].replace(",", ""))
    assert (code, tokens > 6000) == (3, True)
    assert "(its KV cache is " in hint
    assert "ask the 2 documents by themselves with --each (about 3," in hint
    assert "--pin FILE:LINES what must stay" in hint
    assert f"leave out {tokens - TRAINED_LENGTH:,} tokens" in hint


def test_what_the_ways_take_is_told_by_the_pace_of_the_last_reading(
    refused: Refused, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Path("notes.txt").write_text("x" * 3000)
    Path("more.txt").write_text("y" * 3000)
    asked = about("-f", "more.txt", "-Q", "When?", model=tiny_model)
    assert "at the pace" not in refused(*asked)[2]
    usage = {"prompt_tokens": 900, "cached_tokens": 0}
    remember_pace(str(tiny_model), {"usage": usage, "timing": {"prefill_tok_s": 10.0}})
    remember_pace(str(tiny_model), {"usage": usage | {"cached_tokens": 890}, "timing": {"prefill_tok_s": 9999.0}})
    hint = refused(*asked)[2]
    times = re.findall(r"about (\d+:\d\d) at the pace of the last reading", hint)
    assert len(times) == 2, hint
    assert times[0] == times[1]


@pytest.mark.parametrize("kept", ["", "fast", "0", "nan", "inf", "-3", "1e-320"])
def test_a_pace_that_is_none_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: str) -> None:
    monkeypatch.setattr(forecast, "_path", lambda model: tmp_path / "pace")
    (tmp_path / "pace").write_text(kept)
    assert takes("tiny", 10_000) == ""


def test_an_answer_leaves_its_pace(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Path("notes.txt").write_text("x " * 400)
    assert run(["ask", *about(model=tiny_model), "--max-new-tokens", "2"]) == 0
    assert takes(str(tiny_model), 10**6).startswith("about ")
    assert takes("another", 10**6) == ""


def test_with_each_too_long_texts_are_told_one_by_one_before_the_weights_are_loaded(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uncomp_cli.models.loading.load_weights", lambda *_, **__: pytest.fail("weights are loaded"))
    Path("notes.txt").write_text("x" * (TRAINED_LENGTH + 100))
    Path("more.txt").write_text("y" * 2 * TRAINED_LENGTH)
    assert run(["ask", *about("-f", "more.txt", "--each", "--json", "-Q", "When?", model=tiny_model)]) == 3
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["files"][0]["path"], row["question"]) for row in rows] == [
        (name, question) for name in ("notes.txt", "more.txt") for question in ("Where?", "When?")
    ]
    said = [line for line in err.splitlines() if line.startswith("error:")]
    begins = ["error: notes.txt: the prompt has 4,2", "error: more.txt: the prompt has 8,2"]
    assert [line[: len(begin)] for line, begin in zip(said, begins, strict=True)] == begins


def test_a_huge_text_is_refused_without_making_tokens_of_it(
    refused: Refused, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uncomp_cli.asking.forecast.build_prompt", lambda *_, **__: pytest.fail("all tokens are made"))
    Path("notes.txt").write_text("word " * 1_000_000)
    code, said, _ = refused(*about(model=tiny_model))
    assert (code, said) == (3, "the prompt has about 5,000,000 tokens, the model was trained for 4,096")


def test_a_document_over_the_extended_length(refused: Refused, tiny_model: Path) -> None:
    Path("notes.txt").write_text("x" * 2 * TRAINED_LENGTH)
    code, said, hint = refused(*about("--rope", "linear:2", model=tiny_model))
    assert code == 3
    assert said.endswith("tokens, the model was trained for 4,096, extended to 8,192")
    assert "--rope auto" in hint


def test_a_question_that_leaves_no_room(refused: Refused, tiny_model: Path) -> None:
    long = ["-f", "notes.txt", "-m", str(tiny_model), "--truncate", "head", "y" * TRAINED_LENGTH]
    code, said, hint = refused(*long)
    assert code == 3
    assert said.startswith("template and question alone have 4,1")
    assert "--max-new-tokens" in hint


def test_a_budget_below_template_and_question(
    refused: Refused, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes are a limit of memory; tokens are a wish, of which more is kept where it must be."""
    code, said, hint = refused(*about("-b", "1KiB", model=tiny_model))
    assert code == 3
    assert said.startswith("the budget keeps 0 tokens per head, but ")
    assert "use a larger --budget or --kv-mem (" in hint
    assert run(["ask", *about("-b", "10", "--max-new-tokens", "4", "--json", model=tiny_model)]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["compression"]["budget_requested"] == "10"
    (note,) = [each for each in record["warnings"] if "always kept" in each]
    assert note.endswith(f"{record['compression']['budget_kept']} is kept; did you mean 10%?")
    assert err.count("always kept") == 1


def test_no_memory(
    refused: Refused, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(engine, "free_on", lambda *_, **__: 2**19)
        code, said, hint = refused(*about("-b", "full", model=tiny_model))
    assert code == 3
    assert said.startswith("needs about 1 MiB beside the weights (")
    assert said.endswith("of it KV cache), 0 MiB are free")
    assert "--budget" in hint
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    assert run(["ask", *about("--dry-run", "--json", "-b", "full", model=tiny_model)]) == 3
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["fits"] is False
    assert record["refusal"] == two_lines(err)[0]


def test_ctrl_c_while_reading(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attend = Reader.attend

    def pressed(reader: Reader, layer: int, *args: object, **keywords: object) -> object:
        if layer == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return attend(reader, layer, *args, **keywords)

    monkeypatch.setattr(Reader, "attend", pressed)
    for args in ([], ["--json"]):
        assert run(["ask", *about("--thin", "none", *args, model=tiny_model)]) == 130
        out, err = capsys.readouterr()
        assert out == ""
        assert err.splitlines()[-1].startswith("budget ")  # who pressed Ctrl-C knows why it ended


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("/dev/zero", 1, "questions file /dev/zero: it is a device, socket or directory, not a file"),
        ("large", 3, "questions file large: it has more than 4 MiB, and no more are read"),
        ("binary", 1, "questions file binary: it is a binary file (it has NUL bytes)"),
    ],
)
def test_questions_that_are_no_text(refused: Refused, name: str, code: int, message: str) -> None:
    with Path("large").open("wb") as file:
        file.truncate(2**32)
    Path("binary").write_bytes(bytes(range(64)) * 9)
    assert refused(*about("--questions", name))[:2] == (code, message)


def test_an_encoding_that_there_is_not(refused: Refused) -> None:
    assert refused(*about("--encoding", "koi-8r")) == (2, "encoding 'koi-8r' is not known", "did you mean 'koi8-r'?")


def test_a_configuration_that_does_not_end(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCOMP_CONFIG", "/dev/zero")
    assert refused(*about())[:2] == (2, "configuration file /dev/zero has more than 262,144 bytes")


@pytest.mark.parametrize("given", [(), ("--password", "dark")])
def test_a_locked_document(refused: Refused, given: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("locked") / "a.pdf"
    pdf = fpdf.FPDF()
    pdf.set_font("helvetica", size=12)
    pdf.add_page()
    pdf.cell(text="secret")
    pdf.set_encryption(owner_password="keeper", user_password="lamp")
    path.write_bytes(pdf.output())
    code, message, hint = refused("-f", str(path), "-m", "no-such-model", *given, "Where?")
    assert (code, "is an encrypted PDF" in message, "--password" in hint) == (1, True, True)
    assert "dark" not in message
    code, message, _ = refused("-f", str(path), "-m", "no-such-model", "--password", "lamp", "Where?")
    assert (code, "no-such-model" in message) == (2, True)
