"""`uncomp chat` past the trained length: --rope, --context and --force, and what is said on the way past it."""

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from support.chats import GREEDY, Stopping, hold
from support.commands import two_lines
from support.documents import at, make_pdf
from support.tiny import TRAINED_LENGTH
from uncomp_cli.asking.request import CHAT_CHOICE, ModelChoice
from uncomp_cli.cli.app import run
from uncomp_cli.cli.chat.history import read_files
from uncomp_cli.cli.chat.loop import ChatJob, open_talk
from uncomp_cli.cli.chat.talk import Talk
from uncomp_cli.config import Limits
from uncomp_cli.errors import UsageError
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.ui.console import Terminal

PAST = TRAINED_LENGTH + 300

pytestmark = pytest.mark.usefixtures("alone")


def open_chat(model: Path, rope: str | None = None, *, context: str | None = None, force: bool = False) -> Talk:
    """A chat as its options begin it, without a terminal."""
    choice = ModelChoice(str(model), rope=rope, context=context, force=force)
    job = ChatJob((), None, False, choice, CHAT_CHOICE, Limits(), None, GREEDY)
    terminal = Terminal(Stopping(), io.StringIO(), False, False, False, False)
    return open_talk(job, load_model(str(model), rope=choice.rope_choice), terminal)


@pytest.mark.parametrize(
    ("rope", "context", "turned", "length"),
    [
        (None, None, "trained", TRAINED_LENGTH),
        ("yarn:3", None, "yarn:3", 3 * TRAINED_LENGTH),
        ("auto", None, "yarn:2", 2 * TRAINED_LENGTH),
        (None, "16k", "yarn:4", 4 * TRAINED_LENGTH),
        ("auto", "2k", "trained", TRAINED_LENGTH),
        ("dynamic:2", None, "dynamic:2", 2 * TRAINED_LENGTH),
    ],
)
def test_how_long_a_chat_may_get(
    tiny_model: Path, rope: str | None, context: str | None, turned: str, length: int
) -> None:
    talk = open_chat(tiny_model, rope, context=context)
    assert str(talk.chat.loaded.rope) == turned
    assert talk.chat.loaded.spec.trained_length == talk.chat.session.loaded.spec.trained_length == length
    if rope == "auto" or context is not None:
        assert isinstance(talk.terminal.stderr, io.StringIO)
        assert talk.terminal.stderr.getvalue().startswith("rope auto: ")


def test_a_conversation_past_the_trained_length_is_said_once(tiny_model: Path) -> None:
    talk = open_chat(tiny_model, "auto")
    assert not [line for line in hold(talk, "hello") if line.startswith("warning")]
    (warning,) = [line for line in hold(talk, "y" * PAST) if line.startswith("warning")]
    said = r"warning: the prompt has [\d,]+ tokens, the model was trained for 4,096: answers from a context "
    assert re.fullmatch(said + r"extended by --rope yarn:2 are less reliable", warning)
    assert not [line for line in hold(talk, "and now?") if line.startswith("warning")]


@pytest.mark.parametrize("rope", ["dynamic:2", "plain"])
def test_a_chat_reads_on_past_the_trained_length(tiny_model: Path, rope: str) -> None:
    talk = open_chat(tiny_model, rope)
    hold(talk, "hello", "y" * PAST, "and now?")
    grown = [entry.text for entry in talk.chat.dialogue.entries]
    assert len(grown) == 6
    assert talk.chat.session.stats is not None
    assert talk.chat.session.stats.prompt_tokens > PAST


def test_a_conversation_is_not_re_packed(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", "-m", "no-such-model", "--rope", "repack"]) == 2
    message, hint = two_lines(capsys.readouterr().err)
    assert message == "a conversation cannot be re-packed: what is kept of it has to stay where it is"
    assert "--rope yarn:2" in hint
    assert run(["chat", "-m", "no-such-model", "--rope", "yarn:2", "--force"]) == 2
    assert two_lines(capsys.readouterr().err)[0].startswith("--force reads on")


def test_when_it_is_full_a_longer_context_is_named(tiny_model: Path) -> None:
    error, hint = hold(open_chat(tiny_model), "y" * TRAINED_LENGTH)[-2:]
    assert error.endswith("tokens, the context holds 4,096")
    assert hint == "hint: use something shorter, or leave and come back with a larger --context"


def test_force_reads_on_as_trained(tiny_model: Path) -> None:
    talk = open_chat(tiny_model, force=True)
    (warning,) = [line for line in hold(talk, "y" * PAST) if line.startswith("warning")]
    assert warning.endswith("answers from a context read on as trained (--rope plain) are less reliable")
    assert str(talk.chat.loaded.rope) == "plain"


def test_a_chat_begins_behind_a_saved_document(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    text = "".join(f"Line {number} of the log is quiet.\n" for number in range(30))
    (tmp_path / "log.txt").write_text(text)
    asked = ["ask", "-m", str(tiny_model), "-f", str(tmp_path / "log.txt"), "--max-new-tokens", "4"]
    assert run([*asked, "-p", "live", "--cache", "log", "Which line?"]) == 0
    job = ChatJob((), None, False, ModelChoice(str(tiny_model)), CHAT_CHOICE, Limits(), None, GREEDY, cache="log")
    terminal = Terminal(Stopping(), io.StringIO(), False, False, False, False, verbose=True)
    talk = open_talk(job, load_model(str(tiny_model)), terminal)
    kept = talk.chat.session.cached_tokens
    assert f"opened log: {kept} tokens" in cast("io.StringIO", terminal.stderr).getvalue()
    assert kept > len(text) // 2
    (page,) = talk.chat.dialogue.pages()
    assert page.text == text.strip()
    assert hold(talk, "Which line is quiet?")[-1].startswith(f"cached {kept} · prefill ")
    assert [line.split(" · ")[0] for line in hold(talk, "/files")] == [str(tmp_path / "log.txt")]
    assert {each.path for each in talk.chat.evidence()} == {str(tmp_path / "log.txt")}
    with pytest.raises(UsageError, match="saved with the system prompt None, not 'Be brief"):
        open_talk(replace(job, system="Be brief."), load_model(str(tiny_model)), terminal)


def test_a_chat_behind_saved_documents_cites_their_pages(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("report.pdf").write_bytes(make_pdf(at(72, 700, "The lamp is lit."), at(72, 700, "The log is signed.")))
    Path("notes.txt").write_text("The oar is lost.")
    asked = ["ask", "-m", str(tiny_model), "-f", "report.pdf", "-f", "notes.txt", "--max-new-tokens", "4"]
    assert run([*asked, "-p", "live", "--cache", "both", "Who?"]) == 0
    job = ChatJob((), None, False, ModelChoice(str(tiny_model)), CHAT_CHOICE, Limits(), None, GREEDY, cache="both")
    terminal = Terminal(Stopping(), io.StringIO(), False, False, False, False, verbose=True)
    talk = open_talk(job, load_model(str(tiny_model)), terminal)
    kept = talk.chat.session.cached_tokens
    assert hold(talk, "Who signed?")[-1].startswith(f"cached {kept} · prefill ")
    cited = {(each.path, each.place) for each in talk.chat.evidence()}
    assert cited <= {("report.pdf", "p1"), ("report.pdf", "p2"), ("report.pdf", "p1-2"), ("notes.txt", None)}
    assert talk.chat.pin("report.pdf:p2").label == "report.pdf:p2"


@pytest.mark.parametrize("name", ["auto", "mine"])
def test_a_chat_keeps_what_it_reads_and_opens_it_the_next_time(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "log.txt"
    path.write_text("".join(f"Line {number} of the log is quiet.\n" for number in range(30)))
    model = ModelChoice(loaded.info.name)
    job = ChatJob((str(path),), None, False, model, CHAT_CHOICE, Limits(), None, GREEDY, cache=name)
    said = []
    for what in ("saved ", "reused "):
        terminal = Terminal(Stopping(), io.StringIO(), False, False, False, False, verbose=True)
        talk = open_talk(job, loaded, terminal, read_files(job.paths, terminal, job.wishes))
        assert what in cast("io.StringIO", terminal.stderr).getvalue()
        kept = talk.chat.session.cached_tokens
        said.append(hold(talk, "Which line is quiet?"))
        assert said[-1][-1].startswith(f"cached {kept} · prefill ")
        assert cast("Stopping", terminal.stdout).getvalue()
    assert said[0][0].split()[:2] == said[1][0].split()[:2]


def test_a_slip_in_the_cache_of_a_chat_is_found_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    assert run(["chat", "-m", "no-such-model", "--cache", "auto"]) == 2
    assert "hint: uncomp chat -f report.pdf --cache auto" in capsys.readouterr().err
    assert run(["chat", "-m", "no-such-model", "--cache", "none"]) == 2
    assert "error: there is no saved cache 'none'" in capsys.readouterr().err
