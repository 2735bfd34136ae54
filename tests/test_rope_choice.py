"""`--rope`, `--context` and `--force`: what they say together, and what is refused of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uncomp_cli.errors import UsageError
from uncomp_cli.models.extension import ROPE_KINDS, RopeChoice, parse_rope


@given(kind=st.sampled_from(ROPE_KINDS), hundredths=st.integers(101, 102_400))
def test_kind_and_factor_are_read(kind: str, hundredths: int) -> None:
    factor = hundredths / 100
    assert parse_rope(f" {kind.upper()} : {factor} ") == RopeChoice(kind, factor)


@given(text=st.text() | st.from_regex(r"(linear|ntk|yarn|auto|plain):?.{0,6}", fullmatch=True), context=st.text())
def test_any_text_is_a_choice_or_a_usage_error_with_a_hint(text: str, context: str) -> None:
    for given_context in (None, context):
        choice, hint = None, None
        try:
            choice = parse_rope(text, context=given_context)
        except UsageError as error:
            hint = error.hint
        assert hint if choice is None else choice.kind in (*ROPE_KINDS, "plain", "repack", "auto")


@pytest.mark.parametrize(
    ("options", "choice"),
    [
        ({"rope": None}, None),
        ({"rope": None, "context": "32k"}, RopeChoice("auto", None, 32 * 1024)),
        ({"rope": None, "context": "32000"}, RopeChoice("auto", None, 32_000)),
        ({"rope": None, "context": " 1.5K "}, RopeChoice("auto", None, 1536)),
        ({"rope": None, "force": True}, RopeChoice("plain")),
        ({"rope": "plain", "force": True, "context": "64k"}, RopeChoice("plain", None, 64 * 1024)),
        ({"rope": "Repack"}, RopeChoice("repack")),
        ({"rope": "repack:1"}, RopeChoice("repack", 1.0)),
        ({"rope": "auto"}, RopeChoice("auto")),
        ({"rope": "yarn", "context": "16k"}, RopeChoice("yarn", None, 16 * 1024)),
        ({"rope": "yarn:4", "context": "16k"}, RopeChoice("yarn", 4.0, 16 * 1024)),
    ],
)
def test_three_options_are_one_choice(options: dict[str, object], choice: RopeChoice | None) -> None:
    assert parse_rope(**options) == choice


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("yran:4", "'yran'", "did you mean 'yarn:4'?"),
        ("liner:1.5", "'liner'", "did you mean 'linear:1.5'?"),
        ("yarn", "'yarn' needs a factor", "write yarn:2, or add --context"),
        ("yarn4", "'yarn4'", "did you mean 'yarn:2'?"),
        ("re-pack", "'re-pack'", "did you mean 'repack'?"),
        ("su:2", "'su'", "or plain, repack, reread, auto"),
        ("", "''", "linear:2, ntk:4 or yarn:4"),
        ("plain:2", "'plain' takes no factor", "write plain"),
        ("plain:x", "'plain' takes no factor", "write plain"),
        ("foo:x", "unknown rope extension 'foo'", "or plain, repack, reread, auto"),
        ("liner:x", "unknown rope extension 'liner'", "did you mean 'linear:2'?"),
        ("repack:x", "'repack:x' needs a factor of 1 or more", "write repack, or repack:2"),
        ("auto:2", "'auto' takes no factor", "write auto"),
        ("repack:0.5", r"factor 0\.5 is not between 1 and 1024", "write repack"),
        ("ntk:1", "factor 1 ", "linear:2, ntk:4 or yarn:4"),
        ("ntk:0.5", r"factor 0\.5", "linear:2, ntk:4 or yarn:4"),
        ("dynamic:0", "factor 0 ", "linear:2, ntk:4 or yarn:4"),
        ("ntk:1025", r"factor 1025", "linear:2, ntk:4 or yarn:4"),
        ("ntk:nan", "'ntk:nan'", "did you mean 'ntk:2'?"),
        ("ntk:inf", "'ntk:inf'", "did you mean 'ntk:2'?"),
        ("ntk:-2", "'ntk:-2'", "did you mean 'ntk:2'?"),
        ("ntk:" + "9" * 400, "factor inf", "linear:2, ntk:4 or yarn:4"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_rope(text)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("context", ["", "0", "-1", "k", "1e9", "32 MiB", "0.5", "0.0001k", "٣"])
def test_a_context_is_a_length_in_tokens(context: str) -> None:
    with pytest.raises(UsageError, match=f"context '{context}' is not a length") as caught:
        parse_rope(None, context=context)
    assert "--context 32k" in str(caught.value.hint)


def test_force_is_plain_and_nothing_else() -> None:
    with pytest.raises(UsageError, match="--rope yarn:2 does not") as caught:
        parse_rope("yarn:2", force=True)
    assert "leave one" in str(caught.value.hint)


@pytest.mark.parametrize("context", ["4k", "17k"])
def test_a_factor_and_a_context_that_contradict_are_refused_with_both(context: str) -> None:
    choice = parse_rope("yarn:2", context=context)
    assert choice is not None
    with pytest.raises(UsageError, match=rf"--rope yarn:2 makes 8,192 tokens 16,384, not the {context[:-1]}"[:-1]):
        choice.extension(8192)


def test_a_context_gives_the_factor() -> None:
    choice = RopeChoice("ntk", None, 12_000)
    assert choice.extension(8192) == RopeChoice("ntk", 12_000 / 8192)
    assert RopeChoice("ntk", 12_000 / 8192).length(8192) == 12_000
    assert choice.extension(12_000) is None  # it fits as trained


def test_a_context_that_no_factor_reaches_is_named_with_the_largest() -> None:
    with pytest.raises(UsageError, match="--context 921,600,000 is more than 1,024 times the 4,096 tokens") as caught:
        RopeChoice("yarn", None, 900_000 * 1024).extension(4096)
    assert caught.value.hint == "use --context 4194304 or less"
    assert RopeChoice("yarn", None, 4_194_304).extension(4096) == RopeChoice("yarn", 1024)
