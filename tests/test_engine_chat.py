"""A conversation's cache is what a fresh session would have computed, whatever happened before; and in its budget."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from support.native import OF_GLIBC
from support.tiny import TRAINED_LENGTH
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.engine.context.growth import Growth
from uncomp_cli.engine.context.session import BLOCK_TOKENS, Conversation
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.engine.tokens import prompt
from uncomp_cli.engine.tokens.messages import Message
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.models.runnable import LoadedModel

GREEDY = SamplingConfig(max_new_tokens=24)
SYSTEM, OTHER_SYSTEM = Message("system", "You are brief."), Message("system", "You are long-winded.")
FACT = "The lamp of Heron Point was lit by Ada Quill in 1871. "
DOCUMENT = "".join(
    FACT if number == 9 else f"Entry {number}: the weather was {word}, and nothing of note was seen. "
    for number, word in enumerate(["fair", "foul", "mild", "grey", "calm"] * 5)
)
SMALL = replace(load_preset("unseen"), budget="30%", kv_bits=16, policy="uniform", profile=None, floor_tokens=0)


class Recorded(Conversation):
    """Keeps the logits of every forward."""

    def __init__(self, loaded: LoadedModel, preset: Preset | None = None, sampling: SamplingConfig = GREEDY) -> None:
        decoder, one_by_one = Decoder(loaded.model, loaded.spec), replace(sampling, lookup=False)
        super().__init__(loaded, decoder, preset or load_preset("full"), one_by_one, Limits())
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


def asked(question: str, document: str = DOCUMENT) -> Message:
    return Message("user", f"{document}\n\n{question}", parts=(document, "\n\n", question))


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
        session.growth.cache.append(layer, entries, entries, torch.tensor([[session.cached_tokens]]))
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


def test_a_document_that_was_read_ahead(loaded: LoadedModel) -> None:
    """What `/file` reads is what the question's own turn would have read: only the question is left."""
    session = Recorded(loaded)
    for _ in session.read_ahead([SYSTEM, asked("")]):
        pass
    ahead = session.cached_tokens
    assert_like_from_scratch(loaded, session, [SYSTEM, asked("Who lit it?")])
    assert session.stats.cached_tokens == ahead > len(DOCUMENT)


def test_a_full_context_is_refused_with_numbers(loaded: LoadedModel) -> None:
    session = Recorded(loaded)
    with pytest.raises(DoesNotFitError, match=rf"would have [\d,]+ tokens, the context holds {TRAINED_LENGTH:,}"):
        session.turn([Message("user", "x" * TRAINED_LENGTH)])
    assert_like_from_scratch(loaded, session, [SYSTEM, Message("user", "Hello")])


@OF_GLIBC
def test_what_a_turn_has_freed_goes_back_to_the_system(loaded: LoadedModel) -> None:
    """Also from under what is held, where the heap cannot shrink; a turn that is stopped gives back as well."""
    session, process = Recorded(loaded), psutil.Process()
    for stop_after in (None, 1):
        freed = [torch.ones(2**14) for _ in range(1024)]  # 64 KiB each: none is mapped by itself
        on_top = torch.ones(2**14)
        held = process.memory_info().rss
        freed.clear()
        session.say([SYSTEM, Message("user", "Hello there, who are you?")], stop_after=stop_after)
        assert held - process.memory_info().rss > 48 * 2**20
        assert on_top.all()


def test_the_cache_is_in_its_budget_at_every_token(loaded: LoadedModel) -> None:
    session = Engine(loaded, sampling=SamplingConfig(max_new_tokens=3 * BLOCK_TOKENS)).conversation(SMALL)
    messages = [SYSTEM, asked("Who lit it?")]
    for question in ("And when?", "What was the weather like after the ninth entry?", "Why?"):
        for step in session.turn(messages):
            if isinstance(step, DecodeStep):
                assert step.kv_bytes <= session.budget_bytes
        assert session.kv_bytes < 0.31 * session.kv_full_bytes
        messages += [Message("assistant", "", tuple(session.answer_ids)), Message("user", question)]


def test_a_document_is_made_tokens_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    session, made = Engine(loaded, sampling=GREEDY).conversation(SMALL), list[str]()
    make = prompt._made

    def counted(tokenizer: Any, text: str) -> Tokens:
        made.append(text)
        return make(tokenizer, text)

    monkeypatch.setattr(prompt, "_made", counted)
    messages = [SYSTEM, asked("Who lit it?")]
    for question in ("And when?", "Why?"):
        for _ in session.turn(messages):
            pass
        messages += [Message("assistant", "", tuple(session.answer_ids)), Message("user", question)]
    assert sum(DOCUMENT in text for text in made) == 1


def test_a_passage_that_the_question_names_is_read_again(loaded: LoadedModel) -> None:
    """Also within the budget; and with nothing evicted there is nothing to read again."""
    for preset, recalls, expected in ((SMALL, True, 1), (SMALL, False, 0), (load_preset("full"), True, 0)):
        session = Engine(loaded, sampling=GREEDY).conversation(preset)
        session.recalls = recalls
        for _ in session.read_ahead([SYSTEM, asked("")]):
            pass
        fact = DOCUMENT.index("Ada Quill")
        before = share_of(session, fact)
        for _ in session.turn([SYSTEM, asked("Who is Ada Quill?")]):
            assert session.kv_bytes <= session.budget_bytes or not session.answer_ids or preset is not SMALL
        assert len([note for note in session.notes if "read again" in note]) == expected
        assert (share_of(session, fact) > before) == bool(expected)
        assert share_of(session, fact) == 1 or not expected


def test_a_passage_that_the_first_question_names_is_not_evicted(loaded: LoadedModel) -> None:
    """Read together with its document, the question says what must stay: nothing has to be read twice."""
    session = Engine(loaded, sampling=GREEDY).conversation(SMALL)
    for _ in session.turn([SYSTEM, asked("Who is Ada Quill?")]):
        pass
    assert session.notes == []
    assert share_of(session, DOCUMENT.index("Ada Quill") + len(SYSTEM.text)) == 1


def test_pins_stay_and_come_back(loaded: LoadedModel) -> None:
    session = Engine(loaded, sampling=GREEDY).conversation(SMALL)
    at = len(SYSTEM.text) + 40
    session.recalls = False
    for _ in session.turn([SYSTEM, asked("Who lit it?")]):
        pass
    assert share_of(session, at) < 1
    session.pinned = ((at, at + 100),)
    answer = Message("assistant", "", tuple(session.answer_ids))
    for _ in session.turn([SYSTEM, asked("Who lit it?"), answer, Message("user", "And then?")]):
        pass
    assert session.stats is not None
    assert session.stats.cached_tokens > len(DOCUMENT)
    assert all(share_of(session, at + offset) == 1 for offset in range(0, 100, 9))
    assert session.kv_bytes <= session.budget_bytes


def test_pins_of_a_cache_that_cannot_be_mended(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where entries cannot be put back all is read again, which is said and counted."""
    monkeypatch.setattr(Growth, "can_recall", False)
    session = Engine(loaded, sampling=GREEDY).conversation(SMALL)
    at = len(SYSTEM.text) + 40
    for _ in session.turn([SYSTEM, asked("Who lit it?")]):
        pass
    session.pinned = ((at, at + 100),)
    answer = Message("assistant", "", tuple(session.answer_ids))
    for _ in session.turn([SYSTEM, asked("Who lit it?"), answer, Message("user", "And then?")]):
        pass
    assert session.stats is not None
    assert session.stats.cached_tokens == 0
    assert any("read again" in note for note in session.notes)
    assert share_of(session, at + 50) == 1


def test_pins_that_the_budget_cannot_hold(loaded: LoadedModel) -> None:
    session = Engine(loaded, sampling=GREEDY).conversation(SMALL)
    for _ in session.read_ahead([SYSTEM, asked("")]):
        pass
    for _ in session.turn([SYSTEM, asked("Who?")]):
        pass
    session.pinned = ((0, len(DOCUMENT) // 5),)
    session.check_pins()
    session.pinned = ((0, len(DOCUMENT)),)
    with pytest.raises(DoesNotFitError, match="always kept"):
        session.check_pins()


def share_of(session: Conversation, char: int) -> float:
    """How much survives of a character among those of all messages (in this model, a token)."""
    (token,) = (session.tokens.offsets[:, 0] == char).nonzero().flatten().tolist()
    return float(session.survival()[token])


def held_of_three_turns(loaded: LoadedModel, bits: int) -> Conversation:
    session = Engine(loaded, sampling=replace(GREEDY, max_new_tokens=70)).conversation(replace(SMALL, kv_bits=bits))
    messages = [SYSTEM, asked("What was the weather like?")]
    for question in ("What was the weather like?", "Who lit the lamp of Heron Point?", "And when?"):
        messages = [*messages[:-1], messages[-1] if len(messages) == 2 else Message("user", question)]
        for step in session.turn(messages):
            if isinstance(step, DecodeStep):
                assert session.kv_bytes <= session.budget_bytes
        messages += [Message("assistant", "", tuple(session.answer_ids)), Message("user", "")]
    return session


def test_a_chat_in_fewer_bits_holds_more_in_its_budget(loaded: LoadedModel) -> None:
    plain, eight, four = (held_of_three_turns(loaded, bits) for bits in (16, 8, 4))
    assert 0.9 * plain.budget_bytes < eight.budget_bytes < 1.05 * plain.budget_bytes
    held = [float(session.survival().mean()) for session in (plain, eight, four)]
    assert held[0] < 0.35 < 0.6 < held[1] < held[2]
    tails = [max(eight.growth.cache.layer(index).lengths) for index in range(loaded.spec.num_layers)]
    assert max(tails) <= BLOCK_TOKENS
    assert any("read again" in note for note in plain.notes)


def test_passages_are_put_back_among_codes(loaded: LoadedModel) -> None:
    """What a chat of 8 bits reads again is what one of 16 does, and what it held keeps its codes."""
    told = []
    for bits in (16, 8):
        session = Engine(loaded, sampling=GREEDY).conversation(replace(SMALL, kv_bits=bits, budget="20%"))
        session.recalls = False
        for _ in session.turn([SYSTEM, asked("What was the weather like?")]):
            pass
        cache, at = session.growth.cache, DOCUMENT.index(FACT)
        before = [cache.layer(0).head(head) for head in range(loaded.spec.num_kv_heads)]
        session.growth.recall([range(at + 40, at + 60)])
        for head, (keys, values, positions) in enumerate(before):
            now = cache.layer(0).head(head)
            stay = torch.isin(now[2], positions)
            assert cache.layer(0).num_quantized(head) == (len(now[2]) if bits == 8 else 0)
            assert now[2].tolist() == sorted(now[2].tolist())
            assert set(range(at + 40, at + 60)) <= set(now[2].tolist())
            torch.testing.assert_close(now[0][stay], keys, atol=0.05 if bits == 8 else 1e-6, rtol=0.02)
            torch.testing.assert_close(now[1][stay], values, atol=0.05 if bits == 8 else 1e-6, rtol=0.02)
        told.append(float(session.survival()[at + 40 : at + 60].mean()))
    assert told == [1, 1]


def test_what_is_taken_back_gives_its_memory_back(loaded: LoadedModel) -> None:
    session = Engine(loaded, sampling=GREEDY).conversation(load_preset("full"))
    for _ in session.turn([SYSTEM, asked("Who lit it?")]):
        pass
    for _ in session.turn([SYSTEM, Message("user", "hello")]):
        pass
    assert session.kv_bytes < 2.5 * session.kv_full_bytes


def test_another_preset_reads_the_kept_text_again(loaded: LoadedModel) -> None:
    session = Engine(loaded, sampling=GREEDY).conversation(SMALL)
    messages = [SYSTEM, asked("Who lit it?")]
    for _ in session.turn(messages):
        pass
    small = session.kv_bytes
    session.use(replace(SMALL, budget="60%"))
    for _ in session.reread([*messages, Message("assistant", "", tuple(session.answer_ids))]):
        pass
    assert 1.8 * small < session.kv_bytes < 2.2 * small
    assert session.cached_tokens > len(DOCUMENT)


def test_a_preset_that_asks_the_question_is_told_to_give_way(loaded: LoadedModel) -> None:
    session = Engine(loaded, sampling=GREEDY).conversation(load_preset("live-small"))
    assert session.preset.scorer.name == "distinct"
    assert session.preset.thinning == "none"
    assert any("later questions" in note for note in session.notes)
    with pytest.raises(UsageError, match="ranks by the question"):
        Engine(loaded, sampling=GREEDY).conversation(replace(SMALL, policy="reversed"))


def test_a_policy_that_measures_live_measures_again_what_has_outgrown_it(loaded: LoadedModel) -> None:
    preset = replace(SMALL, policy="uncertain:by=entropy", floor_tokens=64)
    session = Engine(loaded, sampling=GREEDY).conversation(preset)
    for _ in session.turn([Message("user", "hello")]):
        pass
    first = session.growth.uncertainty
    messages = [Message("user", "hello"), Message("assistant", "", tuple(session.answer_ids)), asked("Who lit it?")]
    for _ in session.turn(messages):
        pass
    assert first is not None
    assert session.growth.uncertainty != first
    assert session.kv_bytes <= session.budget_bytes


def test_attention_of_an_answer_and_what_is_left(loaded: LoadedModel) -> None:
    session = Engine(loaded, sampling=GREEDY).conversation(SMALL)
    for _ in session.turn([SYSTEM, asked("Who lit it?")]):
        pass
    mass, share = session.attended(), session.survival()
    assert len(mass) == len(share) == len(session.tokens)
    assert float(mass.sum()) > 0
    assert float(share.min()) < 1 == float(share.max())
    assert not mass[share == 0].any()


def test_pieces_give_what_one_pass_gives(loaded: LoadedModel) -> None:
    """With everything kept, a long message behind a short one is read in pieces without a difference."""
    short = [Message("user", "hello"), Message("assistant", "hm", (40, 41)), asked("Who lit it?")]
    logits = []
    for chunk in (None, 128):
        session = Engine(loaded, sampling=GREEDY, limits=Limits(chunk_tokens=chunk)).conversation(load_preset("full"))
        for _ in session.read_ahead(short[:2]):
            pass
        steps = [step for step in session.turn(short) if not isinstance(step, DecodeStep)]
        logits.append(session.answer_ids)
        assert steps[-1].layers_done == steps[-1].num_layers == len(steps)
    assert logits[0] == logits[1]
