"""`uncomp chat` typed into through a real pseudo-terminal, and piped into."""

import json
import os
import re
import signal
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from support.commands import ENDLESS, PATIENCE_S, start
from support.desk import PROMPT
from support.typist import READOUT, Typist, numbers, sit_down
from uncomp_cli.ui.line_editor import GRACE_S

ENDED = r"\[the answer ended at its longest length"


def until(done: Callable[[], bool]) -> None:
    """Wait for it."""
    last_s = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < last_s
        time.sleep(0.02)


def test_three_turns_with_a_ctrl_c_in_the_second(tiny_model: Path, typists: list[Typist]) -> None:
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "300")
    first, _, readout = chat.says("hello there", "[a-z]{40}", ENDED, READOUT)
    assert first.group()
    prompt, context = numbers(readout)
    assert context == prompt + 300

    chat.says("and again", "[a-z]{12}")
    chat.presses("c")
    chat.sees(r"\[interrupted: what is above stays in the conversation\]")
    (cached,) = numbers(chat.sees(r"cached ([\d,]+) · "))
    prefilled, interrupted_context = numbers(chat.sees(READOUT))
    assert cached == context - 1  # the last token chosen is in no cache yet
    assert prefilled < 70
    assert interrupted_context < cached + prefilled + 300

    stats = chat.says("/stats", r"(\d+) turns? \((\d+) interrupted\) · context ([\d,]+)/4,096")[0]
    turns, stopped, held = numbers(stats)
    assert (turns, stopped) == (2, 1)
    assert interrupted_context - held in (0, 1)  # stopped before or behind the pass that puts the last token there
    chat.sees(READOUT)

    (cached_then,) = numbers(chat.says("third", "[a-z]{40}", r"cached ([\d,]+) · ")[1])
    assert cached_then == held
    assert numbers(chat.sees(READOUT))[0] < 70
    chat.sees(PROMPT)
    chat.leaves()
    assert chat.exit_code() == 0


def test_commands(tiny_model: Path, typists: list[Typist]) -> None:
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "16")
    chat.says("/help", "/help ", "/system ", "/stats ", "/clear ", "/exit ", "Ctrl-C ")
    chat.says("/system", "the model's own system prompt is used")
    chat.says("hello", READOUT)
    chat.says("/system You are brief.", "system prompt set")
    chat.says("/system", "\n.*You are brief\\.")
    changed = chat.says("hello again", READOUT)[0]
    assert numbers(changed)[0] > 60  # read again from the start
    chat.says("/clera", "unknown command /clera", r"did you mean /clear\?")
    chat.says("/whatever", "unknown command /whatever", "/help lists them")
    chat.says("/clear", "the conversation is forgotten")
    assert numbers(chat.says("/stats", r"(\d+) turns? \((\d+) interrupted\) · context (\d+)/")[0]) == [0, 0, 0]
    chat.types("")
    chat.sees(PROMPT)
    chat.terminal.send("/ex\t")
    chat.sees("/ex.*it")  # Tab completes
    chat.terminal.send("\r")
    assert chat.exit_code() == 0


def test_ctrl_c_at_the_prompt_clears_what_was_typed_and_then_leaves(tiny_model: Path, typists: list[Typist]) -> None:
    chat = sit_down(typists, tiny_model)
    chat.sees(PROMPT)
    chat.terminal.send("/unkn")
    chat.sees("/unkn")
    chat.presses("c")
    chat.terminal.send("/stats\r")  # not /unkn/stats
    chat.sees(r"0 turns \(0 interrupted\)")
    chat.sees(PROMPT)
    time.sleep(GRACE_S + 0.1)
    chat.presses("c")
    assert chat.exit_code() == 0


def test_ctrl_c_pressed_twice_stops_an_answer_and_does_not_leave(tiny_model: Path, typists: list[Typist]) -> None:
    """Wherever the second falls; nor is what is unsaved lost by two at the prompt."""
    chat = sit_down(typists, tiny_model, *ENDLESS, "--max-new-tokens", "1000")
    for seconds in (0, 0.03, 0.2):
        chat.says("hello there", "[a-z]{20}")
        chat.presses("c")
        time.sleep(seconds)
        chat.presses("c")
        chat.sees(r"\[interrupted")
    chat.says("/stats", r"3 turns \(3 interrupted\)")
    chat.sees(PROMPT)
    time.sleep(GRACE_S + 0.1)
    chat.presses("c")
    chat.presses("c")  # at once: seen behind the first's words it may come too late on a busy machine
    chat.sees("leave again to lose it")
    chat.says("/stats", r"3 turns \(3 interrupted\)")


def test_ctrl_c_behind_enter_stops_the_answer_whenever_it_comes(tiny_model: Path, typists: list[Typist]) -> None:
    """While the prompt ends it is a key, then a signal that nobody awaits; a long text takes the prompt a while."""
    chat = sit_down(typists, tiny_model, *ENDLESS, "--max-new-tokens", "3000")
    for seconds, times in ((0.02, 1), (0.1, 1), (0, 30), (0.02, 30), (0.05, 30), (0.1, 30), (0.3, 30)):
        chat.types("The keeper wrote that the harbour was quiet. " * times)
        time.sleep(seconds)
        chat.presses("c")
        chat.sees(r"\[stopped\]|stopped before the answer began|\[interrupted")
        chat.says("/clear", "forgotten")  # what a slow machine had begun to answer stays, and would fill the context
    chat.types("hello again" * 200)
    chat.presses("c")
    chat.sees(r"(?s)\[stopped\].*the message was not kept; /edit has it")
    chat.types("/stats")
    chat.presses("c")
    chat.sees(r"\d turns? \(|\[stopped\]")


def test_what_is_saved_is_left_without_a_word(tiny_model: Path, typists: list[Typist], tmp_path: Path) -> None:
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "16")
    chat.says("hello", READOUT)
    chat.says(f"/save {tmp_path}/talk.json", "1 exchange written")
    chat.sees(PROMPT)
    chat.presses("d")
    assert chat.exit_code() == 0


def test_keys_pressed_while_an_answer_streams_wait_for_the_prompt(tiny_model: Path, typists: list[Typist]) -> None:
    chat = sit_down(typists, tiny_model, *ENDLESS, "--max-new-tokens", "300")
    chat.says("hello there", "[a-z]{20}")
    chat.terminal.send("/STATS\r")
    answer = chat.sees(rf"(?s)(.*?){ENDED}").group(1)
    assert re.fullmatch(r"[a-z]*\r\n(\x1b\[[0-9;]*[A-Za-z])*", answer)
    chat.sees(r"1 turn \(0 interrupted\)")
    chat.says("and again", "[a-z]{20}")
    chat.terminal.send("/STATS\r")
    chat.presses("c")  # at which a terminal drops what was typed, and of the answer what it has not shown
    chat.sees(r"\[interrupted")
    chat.sees(r"2 turns \(1 interrupted\)")


def test_a_shell_has_its_echo_while_ctrl_z_has_stopped_an_answer(tiny_model: Path, typists: list[Typist]) -> None:
    chat = sit_down(typists, tiny_model, *ENDLESS, "--max-new-tokens", "2000")
    process = psutil.Process(chat.process.pid)

    def echoes() -> bool:
        return bool(termios.tcgetattr(chat.terminal.child_fd)[3] & termios.ECHO)

    chat.says("hello there", "[a-z]{20}")
    assert not echoes()
    os.kill(process.pid, signal.SIGTSTP)
    until(lambda: process.status() == psutil.STATUS_STOPPED)
    assert echoes()
    os.kill(process.pid, signal.SIGCONT)
    chat.sees("[a-z]{20}")
    until(lambda: not echoes())
    chat.presses("c")
    chat.sees(r"\[interrupted: what is above stays in the conversation\]")


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_answer_and_then_the_chat(
    tiny_model: Path, typists: list[Typist], tmp_path: Path, signal_number: int, code: int
) -> None:
    own = {"XDG_DATA_HOME": str(tmp_path)}
    chat = sit_down(typists, tiny_model, *ENDLESS, "--max-new-tokens", "2000", "--session", "work", **own)
    chat.says("hello there", "[a-z]{20}")
    os.kill(chat.process.pid, signal_number)
    chat.sees(r"\[interrupted: what is above stays in the conversation\]")
    assert chat.exit_code() == code
    saved = json.loads((tmp_path / "uncomp" / "sessions" / "work.json").read_text())
    assert [entry["role"] for entry in saved["entries"]] == ["user", "assistant"]


def test_a_terminal_that_is_closed_loses_no_conversation(
    tiny_model: Path, typists: list[Typist], tmp_path: Path
) -> None:
    own = {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_STATE_HOME": str(tmp_path / "state")}
    sessions = tmp_path / "data" / "uncomp" / "sessions"
    for options, count in ((["--no-history"], 0), ([], 1)):
        chat = sit_down(typists, tiny_model, *ENDLESS, *options, "--max-new-tokens", "2000", **own)
        chat.says("hello there", "[a-z]{20}")
        chat.terminal.close()
        chat.process.join(PATIENCE_S)
        assert chat.process.exitcode == 129
        assert len([*sessions.glob("unsaved-*.json")]) == count
    (kept,) = sessions.glob("unsaved-*.json")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert [entry["role"] for entry in json.loads(kept.read_text())["entries"]] == ["user", "assistant"]
    told = f"a conversation that was cut off is in {kept}; uncomp chat --session {kept.stem} goes on with it"
    chat = sit_down(typists, tiny_model, "--plain", **own)
    chat.sees(PROMPT)
    assert told.split() == chat.terminal.before.split()[-len(told.split()) :]
    chat.presses("d")
    assert chat.exit_code() == 0
    chat = sit_down(typists, tiny_model, "--session", kept.stem, "--plain", **own)
    chat.sees("> hello there")
    assert "cut off" not in chat.terminal.before


def test_a_plain_terminal_sees_no_escapes(tiny_model: Path, typists: list[Typist]) -> None:
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "16", "--plain")
    chat.sees(PROMPT)
    chat.terminal.send("hello\n")
    shown = chat.sees(r"(?s).*\n([a-z]{16})\r\n.*context.*?> ")
    assert "\x1b" not in shown.group()
    chat.leaves()
    assert chat.exit_code() == 0


def test_piped_lines_are_answered_on_a_clean_stdout(tiny_model: Path) -> None:
    args = ["chat", "-v", "-m", str(tiny_model), "--max-new-tokens", "16"]
    code, out, err = start(*args, stdin=b"hello\n\n/nonsense\nagain\n").finish()
    assert code == 0
    assert re.fullmatch(r"[a-z]{16}\n[a-z]{16}\n", out)
    assert "\x1b" not in err
    assert "> " not in err
    assert "error: unknown command /nonsense\nhint: /help lists them\n" in err
    assert "cached " in err
    code, quiet_out, quiet_err = start(*args, "-q", stdin=b"hello\n/exit\nagain\n").finish()
    assert (code, quiet_out, quiet_err) == (0, out[:17], "")


def test_piped_lines_are_answered_though_nobody_reads_standard_error(tiny_model: Path) -> None:
    running = start("chat", "-m", str(tiny_model), "--max-new-tokens", "16", stdin=b"hello\nagain\n")
    os.close(running.readers.pop("stderr"))
    code, out, _ = running.finish()
    assert code == 0
    assert re.fullmatch(r"[a-z]{16}\n[a-z]{16}\n", out)


def test_a_line_that_is_no_text_is_refused_and_the_next_one_heard(tiny_model: Path) -> None:
    args = ["chat", "-m", str(tiny_model), "--max-new-tokens", "16", "-q"]
    code, out, err = start(*args, stdin=b"h\xe9llo\nhello").finish()
    assert code == 0
    assert re.fullmatch(r"[a-z]{16}\n", out)
    assert err.splitlines()[0] == "error: the line is not UTF-8 text"
    assert len(err.splitlines()) == 2


def test_the_line_below_the_prompt(tiny_model: Path, typists: list[Typist], tmp_path: Path) -> None:
    (tmp_path / "harbour.txt").write_text("The harbour was quiet.\n")
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "16", PROMPT_TOOLKIT_NO_CPR="0")
    chat.sees_below(r"context 0/4,096 \(0\.0 %\) · KV 0 B · unseen full")
    chat.terminal.send(f"/file {tmp_path}/harbour.txt\r")
    chat.sees_below(r"1 document for the next question")
    chat.terminal.send("Who came?\r")
    chat.sees_below(r"context [\d,]+/4,096 \([\d.]+ %\) · KV [\d.]+ KiB · [\d.,]+ tok/s · unseen full")


def test_documents_and_completion(tiny_model: Path, typists: list[Typist], tmp_path: Path) -> None:
    (tmp_path / "harbour.txt").write_text("The harbour was quiet.\nNobody came.\n")
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "16")
    chat.sees(PROMPT)
    chat.terminal.send(f"/file\t {tmp_path}/har\t")
    chat.sees("harbour.txt")
    chat.terminal.send("\r")
    chat.sees(r"harbour\.txt: \d+ tokens read in .* the next question may be about it")
    chat.says("Who came?", READOUT)
    chat.says("/evidence", r"harbour\.txt:\d(-\d)?  +\d+ % +\d+ %  \"")
    chat.says("/why", "4 layers x 2 heads keep")
    chat.says("/budget 40%", r"budget 40%.* read \d+ tokens in [\d.]+ s · KV [\d.]+ KiB → [\d.]+ KiB")
    chat.says("/exit", "leave again to lose it")
    chat.types("/exit")
    assert chat.exit_code() == 0


def test_the_editor_writes_a_message_of_several_lines(tiny_model: Path, typists: list[Typist], tmp_path: Path) -> None:
    script = tmp_path / "editor.py"
    script.write_text("import sys; open(sys.argv[1], 'a').write('second line')")
    editor = f"{sys.executable} {script}"
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "16", EDITOR=editor, VISUAL="")
    chat.says("/edit first line", "> first line", "second line", READOUT)
    chat.says(f"/save {tmp_path}/talk.md", "1 exchanges? written")
    assert "first line\nsecond line" in (tmp_path / "talk.md").read_text()


def test_ctrl_c_while_a_document_is_read(tiny_model: Path, typists: list[Typist], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 780)
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "16", "--chunk", "128")
    chat.types(f"/file {tmp_path}/long.txt")
    chat.sees("prefill")
    chat.presses("c")
    chat.sees(r"stopped: .*long\.txt was not added")
    chat.says("/files", "no document is part of the conversation")
    chat.says("hello", READOUT)
    chat.sees(PROMPT)
    chat.leaves("c")
    assert chat.exit_code() == 0


def test_a_dumb_terminal_takes_blocks_and_shows_no_escapes(tiny_model: Path, typists: list[Typist]) -> None:
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "16", TERM="dumb")
    chat.sees(PROMPT)
    chat.terminal.send('"""one\ntwo"""\n')
    shown = chat.sees(r"(?s).*context.*?> ")
    assert "\x1b" not in shown.group()
    chat.terminal.send("/retry\n")
    chat.sees("temperature is 0")
    chat.sees(PROMPT)
    chat.leaves()
    assert chat.exit_code() == 0


def test_questions_from_a_pipe_about_a_file(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_text("tab\there \x1b[31mred\x1b[0m \u202eright to left\u202c \U0001f600\n")
    args = ["chat", "-m", str(tiny_model), "--max-new-tokens", "16", "-f", str(path)]
    code, out, err = start(*args, stdin=b'/evidence\nhello\n/evidence\n"""two\nlines"""\n').finish()
    assert code == 0
    assert len(out.splitlines()) == 2
    assert f"{path}: " in err
    assert f"{path}:1  " in err
    code, out, err = start(*args[:-1], str(tmp_path / "none.txt"), stdin=b"hello\n").finish()
    assert (code, out) == (2, "")
    assert err.startswith("error: no file or directory")


@pytest.mark.parametrize("flag", ["--budget", "--preset", "--policy", "--scorer"])
def test_a_slip_is_found_before_the_model_is_loaded(tiny_model: Path, flag: str) -> None:
    code, out, err = start("chat", "-m", "no-such-model", flag, "nonsense", stdin=b"hello\n").finish()
    assert (code, out) == (2, "")
    assert "nonsense" in err
    assert "loading" not in err


def test_what_was_said_and_odd_names_are_shown_as_text(tiny_model: Path, typists: list[Typist], tmp_path: Path) -> None:
    odd = tmp_path / "a\x1b]52;c;eA==\x07b.txt"
    odd.write_text("The bell rings.")
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "8")
    chat.says(f"/file {tmp_path}", r"a\S*b\.txt: \d+ tokens read")
    assert "\x1b]52" not in chat.terminal.before + chat.terminal.after
    chat.says("hello there", READOUT)
    chat.says("/history", "1 hello there → ")
    chat.says("/files", r"a\S*b\.txt")
    assert "\x1b]52" not in chat.terminal.before + chat.terminal.after
