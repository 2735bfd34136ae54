"""A rendered conversation says where each of its tokens comes from."""

from uncomp_cli.engine.tokens.messages import Message, render_messages
from uncomp_cli.engine.tokens.prompt import chat_prompt
from uncomp_cli.models.runnable import LoadedModel

DOCUMENT, QUESTION = "Ein Bär — 12,5 kg.\nZweite Zeile: 東京 🗼", "Wie schwer ist er?"


def conversation() -> list[Message]:
    parts = (DOCUMENT, "\n\n", QUESTION)
    return [
        Message("system", "Kurz."),
        Message("user", "".join(parts), parts=parts),
        Message("assistant", "12,5 kg", (70, 71)),
        Message("user", "Danke"),
    ]


def test_every_token_knows_its_characters(loaded: LoadedModel) -> None:
    messages = conversation()
    rendered = render_messages(loaded.tokenizer, messages)
    text = "".join(message.text for message in messages)
    assert (
        len(rendered.tokens.ids)
        == len(rendered.tokens.protected)
        == len(rendered.tokens.words)
        == len(rendered.tokens.offsets)
    )
    covered = set()
    for first, last in rendered.tokens.offsets.tolist():
        assert (first == last == -1) or 0 <= first < last <= len(text)
        covered.update(range(first, last))
    answer = range(rendered.first_chars[2], rendered.first_chars[3])  # its tokens are not those of its text
    assert covered - {-1} == set(range(len(text))) - set(answer)
    assert rendered.tokens.words.tolist() == sorted(rendered.tokens.words.tolist())
    for message, first in zip(messages, rendered.first_tokens, strict=True):
        begin = int(rendered.tokens.offsets[first, 0])
        assert message.ids is not None or text[begin:].startswith(message.text[:1])


def test_template_and_system_prompt_are_protected(loaded: LoadedModel) -> None:
    rendered = render_messages(loaded.tokenizer, conversation())
    of_system = (rendered.tokens.offsets[:, 0] >= 0) & (rendered.tokens.offsets[:, 0] < len("Kurz."))
    frame = rendered.tokens.offsets[:, 0] < 0
    answer = rendered.first_tokens[2]
    assert rendered.tokens.ids[answer : answer + 2] == (70, 71)
    frame[answer : answer + 2] = False
    assert rendered.tokens.protected.tolist() == (of_system | frame).tolist()


def test_an_answer_that_is_its_text_has_characters(loaded: LoadedModel) -> None:
    text = "12,5 kg"
    ids = tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
    rendered = render_messages(loaded.tokenizer, [Message("user", "Was?"), Message("assistant", text, ids)])
    assert int(rendered.tokens.offsets[:, 1].max()) == len("Was?" + text)


def test_a_document_has_the_tokens_that_ask_gives_it(loaded: LoadedModel) -> None:
    """So that what chat and ask have read of a document is the same."""
    messages = [Message("user", f"{DOCUMENT}\n\n{QUESTION}", parts=(DOCUMENT, "\n\n", QUESTION))]
    prompt = chat_prompt(loaded.tokenizer, DOCUMENT, [QUESTION], system=None, sinks=4)
    assert render_messages(loaded.tokenizer, messages).tokens.ids == (*prompt.context, *prompt.questions[0])
    shown = [DOCUMENT[first:last] for first, last in prompt.context.offsets.tolist() if first >= 0]
    assert shown[0] == DOCUMENT[0]
    assert len(shown) == int((prompt.context.offsets[:, 0] >= 0).sum())


def test_a_cut_keeps_what_comes_before(loaded: LoadedModel) -> None:
    rendered = render_messages(loaded.tokenizer, conversation()).tokens
    short = rendered[:30]
    assert len(short) == len(short.words) == len(short.offsets) == len(short.protected) == 30
    assert short.ids == rendered.ids[:30]
