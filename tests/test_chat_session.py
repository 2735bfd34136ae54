"""A conversation's cache is what a fresh session would have computed, whatever happened before."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from test_ask_support import TRAINED_LENGTH, tiny_model
from torch import Tensor

from uncomp_cli.cli.conversation import Conversation
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine import chat as engine_chat
from uncomp_cli.engine.chat import ChatSession
from uncomp_cli.engine.prompt import Message
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.load import LoadedModel, load_model
from uncomp_cli.ui.console import Terminal

__all__ = ["tiny_model"]

GREEDY = SamplingConfig(max_new_tokens=24)
SYSTEM, OTHER_SYSTEM = Message("system", "You are brief."), Message("system", "You are long-winded.")


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


class Recorded(ChatSession):
    """Keeps the logits of every forward."""

    def __init__(self, loaded: LoadedModel, sampling: SamplingConfig = GREEDY) -> None:
        super().__init__(loaded, sampling)
        self.logits: list[Tensor] = []
        forward = self.decoder.forward

        def recording(*args: object) -> Tensor:
            self.logits.append(forward(*args)[0, -1])
            return self.logits[-1][None, None]

        self.decoder.forward = recording

    def say(self, messages: Sequence[Message], *, stop_after: int | None = None) -> Message:
        """One whole turn, or its first tokens; the answer as a message."""
        self.logits.clear()
        steps = self.turn(messages)
        seen = 0
        for step in steps:
            seen += isinstance(step, DecodeStep)
            if seen == stop_after:
                break
        steps.close()
        return Message("assistant", "", tuple(self.answer_ids))


def assert_like_from_scratch(loaded: LoadedModel, session: Recorded, messages: Sequence[Message]) -> None:
    """The next turn gives the tokens and the logits of a session that has seen nothing before."""
    answer = session.say(messages)
    fresh = Recorded(loaded)
    assert fresh.say(messages).ids == answer.ids
    assert fresh.stats is not None
    assert session.stats is not None
    assert fresh.stats.cached_tokens == 0
    assert fresh.stats.prompt_tokens == session.stats.prompt_tokens
    assert fresh.stats.completion_tokens == session.stats.completion_tokens == GREEDY.max_new_tokens
    torch.testing.assert_close(torch.stack(session.logits), torch.stack(fresh.logits), rtol=1e-3, atol=1e-3)


def test_the_second_turn(loaded: LoadedModel) -> None:
    session = Recorded(loaded)
    first = [SYSTEM, Message("user", "Hello there, who are you?")]
    answer = session.say(first)
    assert session.stats is not None
    held = session.stats.prompt_tokens + session.stats.completion_tokens - 1  # the last token chosen is in no cache
    assert session.cached_tokens == held
    assert_like_from_scratch(loaded, session, [*first, answer, Message("user", "And what can you do?")])
    assert session.stats.cached_tokens == held


@pytest.mark.parametrize("stop_after", [1, 2, 7])
def test_the_turn_after_an_interrupted_one(loaded: LoadedModel, stop_after: int) -> None:
    session = Recorded(loaded)
    first = [SYSTEM, Message("user", "Hello there, who are you?")]
    answer = session.say(first, stop_after=stop_after)
    assert answer.ids is not None
    assert len(answer.ids) == stop_after
    assert_like_from_scratch(loaded, session, [*first, answer, Message("user", "And what can you do?")])
    assert session.stats is not None
    assert session.stats.cached_tokens > 40


def test_a_forward_that_was_cut_in_the_middle_of_the_layers(loaded: LoadedModel) -> None:
    """Ctrl-C may fall anywhere: half the layers then hold a token that the others lack."""
    session = Recorded(loaded)
    first = [SYSTEM, Message("user", "Hello there, who are you?")]
    answer = session.say(first, stop_after=5)
    for layer in (0, 1):
        entries = torch.zeros(1, loaded.spec.num_kv_heads, 1, loaded.spec.head_dim)
        session._cache.append(layer, entries, entries, torch.tensor([[session.cached_tokens]]))
    assert_like_from_scratch(loaded, session, [*first, answer, Message("user", "And what can you do?")])


def test_the_turn_after_an_interrupted_prefill(loaded: LoadedModel) -> None:
    session = Recorded(loaded)
    first = [SYSTEM, Message("user", "Hello there, who are you?")]
    answer = session.say(first)
    dropped = session.turn([*first, answer, Message("user", "This one is stopped before it begins. " * 20)])
    next(iter(dropped))
    dropped.close()
    assert session.stats is None
    assert_like_from_scratch(loaded, session, [*first, answer, Message("user", "And what can you do?")])
    assert session.stats.cached_tokens > 40


def test_a_changed_system_prompt_and_a_shorter_conversation(loaded: LoadedModel) -> None:
    session = Recorded(loaded)
    question = Message("user", "Hello there, who are you?")
    answer = session.say([SYSTEM, question])
    assert_like_from_scratch(loaded, session, [OTHER_SYSTEM, question, answer, Message("user", "And now?")])
    assert_like_from_scratch(loaded, session, [question])
    session.clear()
    assert session.kv_bytes == session.cached_tokens == 0
    assert_like_from_scratch(loaded, session, [SYSTEM, question])


def test_a_full_context_is_refused_with_numbers(loaded: LoadedModel) -> None:
    session = Recorded(loaded)
    with pytest.raises(DoesNotFitError, match=rf"would have [\d,]+ tokens, the context holds {TRAINED_LENGTH:,}"):
        session.turn([Message("user", "x" * TRAINED_LENGTH)])
    assert_like_from_scratch(loaded, session, [SYSTEM, Message("user", "Hello")])


class Stopping(io.StringIO):
    """A stream at which Ctrl-C is pressed when the n-th piece is written."""

    presses_at: int | None = None

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.presses_at is not None and text.strip():
            self.presses_at -= 1
            if self.presses_at == 0:
                self.presses_at = None
                raise KeyboardInterrupt
        return written


@pytest.fixture
def conversation(loaded: LoadedModel) -> Conversation:
    terminal = Terminal(Stopping(), io.StringIO(), False, False, False, False)
    return Conversation(loaded, GREEDY, terminal, system=None)


def hold(conversation: Conversation, *lines: str) -> list[str]:
    """Type lines; what standard error says to them."""
    remaining: Iterator[str] = iter(lines)

    def read_line() -> str:
        line = next(remaining, None)
        if line is None:
            raise EOFError
        return line

    stderr = conversation.terminal.stderr
    assert isinstance(stderr, io.StringIO)
    before = len(stderr.getvalue())
    conversation.run(read_line)
    return stderr.getvalue()[before:].splitlines()


def test_when_the_context_is_full_the_conversation_goes_on(conversation: Conversation) -> None:
    said = hold(conversation, "hello", "y" * TRAINED_LENGTH, "hello again")
    assert [line.partition(":")[0] for line in said if line.startswith(("error", "hint"))] == ["error", "hint"]
    assert len(conversation.messages) == 4
    assert said[-1].startswith("cached ")
    assert len(conversation.terminal.stdout.getvalue().splitlines()) == 2


def test_an_answer_that_runs_into_the_end_of_the_context_says_so(conversation: Conversation) -> None:
    prompt_tokens = len(engine_chat.render_chat(conversation.loaded.tokenizer, [Message("user", "")]))
    said = hold(conversation, "y" * (TRAINED_LENGTH - prompt_tokens - 5))
    assert said[0] == "[the answer ended because the context is full; /clear starts again]"
    assert conversation.session.stats is not None
    assert conversation.session.stats.completion_tokens == 5


def test_no_memory_is_refused_with_numbers(conversation: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_chat, "free_bytes", lambda device: 1000)
    error, hint = hold(conversation, "hello")
    assert error.startswith("error: the turn needs about ")
    assert error.endswith(" MiB more, 0 are free")
    assert hint == "hint: /clear starts again"
    assert conversation.messages == []


def test_a_stopped_answer_stays_with_the_very_tokens_it_had(conversation: Conversation) -> None:
    stdout = conversation.terminal.stdout
    assert isinstance(stdout, Stopping)
    stdout.presses_at = 7
    said = hold(conversation, "hello")
    assert said[0] == "[interrupted: what is above stays in the conversation]"
    assert conversation.session.stats is not None
    assert conversation.session.stats.finish_reason == "interrupted"
    answer = conversation.messages[1]
    assert stdout.getvalue() == answer.text + "\n"
    assert answer.ids is not None
    assert len(answer.ids) == len(answer.text) == 7
    hold(conversation, "go on")
    assert len(conversation.messages) == 4
    fresh = ChatSession(conversation.loaded, GREEDY)
    list(fresh.turn(conversation.messages[:3]))
    assert tuple(fresh.answer_ids) == conversation.messages[3].ids


def test_ctrl_c_before_the_answer_drops_the_message(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(conversation, "hello")
    written = conversation.terminal.stdout.getvalue()

    def pressed(*_: object) -> list[int]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(engine_chat, "render_chat", pressed)
        assert hold(conversation, "never mind") == ["stopped before the answer began; the message was not kept"]
    assert len(conversation.messages) == 2
    assert conversation.terminal.stdout.getvalue() == written
    assert hold(conversation, "hello again")[-1].startswith("cached ")
