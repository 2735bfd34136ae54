"""The live flag of `uncomp ask`: the readout's entropy, warnings, JSON, and exit code 5 under --fail-under."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from support.commands import Ask, records, two_lines
from support.curves import HIGH, LOW, absent_below, curve_up_to, risky, seen
from uncomp_cli.asking.doubts import Risk, check_fail_under, fall_short, held_back, risk_record, risk_warnings
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import load_preset, save_preset
from uncomp_cli.errors import UsageError

ASKED = ("-f", "town.txt", "--max-new-tokens", "6")


@pytest.fixture(autouse=True)
def texts(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    Path("town.txt").write_text("The harbour was quiet and the lamps were lit. " * 12)


def test_an_answer_inside_the_band_is_not_doubted(ask: Ask) -> None:
    code, out, err = ask("-p", risky(Path(), 5.0), "--json", "Where?")
    assert code == 0, err
    (record,) = records(out)
    told = record["uncertainty"]
    assert 0 < told["attention_entropy"] < 1
    assert err.rstrip().endswith(" · sure")
    assert (told["calibrated"], told["flagged"], told["error_rate"]) == (True, False, LOW)
    assert told["error_rate_interval"] == [0.05, 0.25]
    assert record["warnings"] == []
    assert "unusually uncertain" not in err
    assert "escalation" not in record


def test_an_answer_outside_the_band_is_doubted_with_the_measured_rate(ask: Ask) -> None:
    code, out, err = ask("-p", risky(Path(), 0.01), "-q", "--json", "Where?")
    assert code == 0, err
    (record,) = records(out)
    assert (record["uncertainty"]["flagged"], record["uncertainty"]["error_rate"]) == (True, HIGH)
    assert record["warnings"] == [
        "the answer is unusually uncertain: wrong in 62.5 % of calibrated cases like this, 40 to 80 %"
    ]
    assert f"warning: {record['warnings'][0]}" in err.splitlines()


def test_what_the_text_does_not_name_is_probably_not_in_it(ask: Ask) -> None:
    preset = risky(Path(), 5.0, absent=0.9)
    code, out, err = ask("-p", preset, "--fail-under", "0.9", "Where were the lamps?")
    assert code == 5, err  # 0.125 of such answers were wrong
    assert err.splitlines()[-3].endswith(" · sure")
    code, out, err = ask("-p", preset, "--json", "Who was the bishop of Bergen?")
    assert code == 0, err
    (record,) = records(out)
    told = record["uncertainty"]
    assert (told["word"], told["flagged"], told["signs"]["together"]) == ("probably not in the document", True, 0)
    assert record["warnings"] == [
        "what was asked for is probably not in the document (so said of 75 % of such questions, and of 12.5 % of "
        "others): wrong in 12.5 % of calibrated cases like this, 5 to 25 %"
    ]
    _, _, err = ask("-p", preset, "--escalate", "Who was the bishop of Bergen?")
    assert "warning: what was asked for" in err
    assert "try 2" not in err  # more of the text has no more of the question


@pytest.fixture
def textual() -> str:
    """A preset that has nothing to watch, and knows what tells that a text lacks an answer."""
    return str(save_preset(replace(load_preset("full"), name="textual", absent=absent_below(0.9)), Path()))


def test_a_preset_that_watches_nothing_says_what_is_not_in_the_document(ask: Ask, textual: str) -> None:
    code, out, err = ask("-p", textual, "-v", "--json", "Who was the bishop of Bergen?", "-Q", "Where were the lamps?")
    assert code == 0, err
    missing, there = (record["uncertainty"] for record in records(out))
    assert (missing["word"], missing["flagged"], missing["calibrated"]) == ("probably not in the document", True, False)
    assert (missing["signs"], missing["attention_entropy"]) == ({"together": 0}, None)
    assert (there["word"], there["flagged"], there["signs"]) == (None, None, {"together": 1})
    assert (
        err.count("is probably not in the document (so said of 75 % of such questions, and of 12.5 % of others)") == 1
    )
    assert "how often such answers are wrong was not measured" in err
    for flags in (("--escalate",), ("--fail-under", "0.9")):
        code, _, err = ask("-p", textual, *flags, "Who was the bishop of Bergen?")
        assert code == 2
        assert f"{flags[0]} needs measured error rates, preset textual has none" in err


def test_a_system_prompt_is_no_part_of_the_document(ask: Ask) -> None:
    question, preset = "Who was the bishop of Bergen?", risky(Path(), 5.0, absent=0.9)
    _, out, err = ask("-p", preset, "--json", "-s", f"You are asked: {question}", question)
    (record,) = records(out)
    assert record["uncertainty"]["word"] == "probably not in the document", err


def test_a_text_of_another_length_gets_no_word(ask: Ask) -> None:
    long = replace(absent_below(0.9), tokens=(9000, 9001))
    preset = str(save_preset(replace(load_preset("full"), name="long", absent=long), Path()))
    _, out, _ = ask("-p", preset, "--json", "Who was the bishop of Bergen?")
    assert records(out)[0]["uncertainty"]["word"] is None


def test_no_word_is_said_of_a_summary_or_a_list(ask: Ask) -> None:
    preset = risky(Path(), 0.01, absent=0.9)
    code, out, err = ask("-p", preset, "--json", "Summarise the document.", "-Q", "List all the lamps.")
    assert code == 0, err
    for record in records(out):
        told = record["uncertainty"]
        assert (told["word"], told["flagged"], told["calibrated"], told["signal"]) == (None, None, False, None)
        assert 0 < told["attention_entropy"] < 1
        assert record["warnings"] == []
    assert "uncertain" not in err
    code, _, err = ask("-p", preset, "--fail-under", "0.5", "Summarise the document.")
    assert code == 5, err
    assert "nothing in particular was asked for, so not known to reach --fail-under 0.5" in err


def test_without_a_curve_there_is_no_flag_and_no_rate(ask: Ask) -> None:
    code, out, err = ask("--json", "Where?")
    assert code == 0, err
    told = records(out)[0]["uncertainty"]
    assert told["prompt_in_trained_length"] is True
    assert (told["calibrated"], told["flagged"], told["error_rate"], told["error_rate_interval"]) == (
        False, None, None, None,
    )  # fmt: skip
    assert "calibrated cases" not in out + err


def test_every_question_has_its_own(ask: Ask) -> None:
    code, out, err = ask("-p", risky(Path(), 0.01), "--json", "Where?", "-Q", "When was the lantern lit?")
    assert code == 0, err
    first, second = (record["uncertainty"]["attention_entropy"] for record in records(out))
    assert first != second
    assert err.count("unusually uncertain") == 2


def test_below_the_threshold_the_answer_is_written_and_the_exit_code_is_5(ask: Ask) -> None:
    calm, doubted = risky(Path(), 5.0), risky(Path(), 0.01)
    assert ask("-p", calm, "--fail-under", "0.875", "Where?")[0] == 0
    code, out, err = ask("-p", doubted, "--fail-under", "0.8", "Where?")
    assert code == 5
    assert len(out) == 7
    assert (
        "error: the answer is right in 37.5 % of calibrated cases like this (20 to 60 %), below --fail-under 0.8"
        in err.splitlines()
    )
    assert ask("-p", doubted, "--fail-under", "0.375", "Where?")[0] == 0
    code, out, err = ask("-p", doubted, "--fail-under", "0.8", "Where?", "-Q", "When?")
    assert code == 5
    assert [line for line in err.splitlines() if line.startswith("error: question ")] == [
        f"error: question {number} of 2: the answer is right in 37.5 % of calibrated cases like this (20 to 60 %), "
        "below --fail-under 0.8"
        for number in (1, 2)
    ]


def test_a_saved_document_is_watched_too(ask: Ask) -> None:
    calm, doubted = risky(Path(), 5.0), risky(Path(), 0.01)
    code, out, err = ask("-p", doubted, "--save-cache", "town", "--fail-under", "0.8", "--json", "Where?")
    assert code == 5
    (first,) = records(out)
    assert first["uncertainty"]["flagged"] is True
    assert len(first["warnings"]) == 1
    assert " · unsure\n" in err
    assert "hint: a larger --budget" in err
    code, out, err = ask("-p", doubted, "--reuse", "town", "--fail-under", "0.3", "--json", "Where?")
    assert code == 0, err
    assert records(out)[0]["uncertainty"] == first["uncertainty"]
    code, out, err = ask("-p", calm, "--reuse", "auto", "Where?")
    assert code == 0
    assert "unusually uncertain" not in err


def test_an_answer_that_nothing_was_seen_of_is_not_known_to_be_right(ask: Ask) -> None:
    code, out, err = ask("-p", risky(Path(), 5.0), "--fail-under", "0.1", "--max-new-tokens", "1", "Where?")
    assert code == 5
    assert len(out) == 2
    assert "error: the answer is too short to be judged, so not known to reach --fail-under 0.1" in err.splitlines()


@pytest.mark.parametrize("flag", [["--escalate"], ["--fail-under", "0.5"]])
def test_no_rate_was_measured(ask: Ask, flag: list[str]) -> None:
    code, out, err = ask("-m", "no-such-model", "-p", "live", *flag, "Where?")
    assert (code, out) == (2, "")
    message, hint = two_lines(err)
    assert message == f"{flag[0]} needs measured error rates, preset live has none"
    assert "uncomp calibrate --risk" in hint


@pytest.mark.parametrize("value", ["0", "1.5", "-0.1", "nan"])
def test_a_chance_that_is_none(ask: Ask, value: str) -> None:
    code, out, err = ask("-m", "no-such-model", "-p", risky(Path(), 0.5), "--fail-under", value, "Where?")
    assert (code, out) == (2, "")
    assert two_lines(err)[0].startswith("fail-under is ")


def test_why_a_rate_may_not_hold() -> None:
    curve = curve_up_to(0.3, tokens=(4000, 12000), rope="repack")
    inside = Risk(seen(0.4), curve, prompt_tokens=9000, rope="repack")
    assert len(risk_warnings(inside)) == 1
    assert risk_warnings(replace(inside, signs=seen(0.3))) == []
    assert inside.bin is not None
    assert replace(inside, rope="trained").bin == inside.bin  # what fits is calibrated as trained
    outside = replace(
        inside, rope="yarn:2", prompt_tokens=16000, curve=replace(curve, budget="20%"), budget=Budget.parse("10%")
    )
    (warning,) = risk_warnings(outside)
    assert warning.endswith(
        "how often such answers are wrong was not measured: calibrated with --rope repack, read with yarn:2; "
        "calibrated on 4,000 to 12,000 tokens, this prompt has 16,000; calibrated with --budget 20%, kept with 10%"
    )
    assert (outside.bin, risk_record(outside, trained_length=8192)["calibrated"]) == (None, False)
    short = fall_short(outside, 0.1)
    assert short is not None
    assert "calibrated on 4,000 to 12,000 tokens" in short.message


def test_a_band_of_long_texts_says_nothing_of_short_ones() -> None:
    curve = curve_up_to(0.3, tokens=(4000, 12000))
    assert Risk(seen(0.4), curve, 4000).flagged is True
    short = Risk(seen(0.4), curve, 3999)
    assert (short.flagged, risk_warnings(short), short.bin) == (None, [], None)


def test_inside_the_band_too_an_answer_like_mostly_wrong_ones_is_unsure() -> None:
    curve = replace(curve_up_to(0.3), band=(0.0, 9.0))
    assert [Risk(seen(entropy), curve).word for entropy in (0.2, 0.4)] == ["sure", "unsure"]
    assert len(risk_warnings(Risk(seen(0.4), curve))) == 1


def test_another_scorer_was_not_calibrated() -> None:
    curve = replace(curve_up_to(0.3), scorer="agreement")
    assert Risk(seen(0.4), curve, 100, scorer="agreement").bin is not None
    (warning,) = risk_warnings(Risk(seen(0.4), curve, 100, scorer="distinct"))
    assert warning.endswith("was not measured: calibrated with scorer agreement, kept by distinct")


@pytest.mark.parametrize(
    ("budget", "known"), [("20%", True), ("40%", True), ("full", True), ("10%", False), ("512", False), ("auto", False)]
)
def test_more_may_be_kept_than_was_calibrated_but_not_less(budget: str, known: bool) -> None:
    curve = replace(curve_up_to(0.3), budget="20%")
    assert (Risk(seen(0.4), curve, 100, "trained", Budget.parse(budget)).bin is not None) == known


def test_the_record_and_the_threshold() -> None:
    nothing = risk_record(Risk(seen(0.4)), trained_length=4096)
    assert nothing == {
        "attention_entropy": 0.4, "signs": {"attention": 0.4}, "signal": None, "prompt_in_trained_length": True,
        "calibrated": False, "flagged": None, "word": None, "error_rate": None, "error_rate_interval": None,
    }  # fmt: skip
    assert risk_record(Risk(seen(0.4), None, 4097), trained_length=4096)["prompt_in_trained_length"] is False
    assert fall_short(Risk(seen(0.1), curve_up_to(0.3)), 0.875) is None
    assert fall_short(Risk(seen(0.1), curve_up_to(0.3)), 0.876) is not None
    check_fail_under(None)
    check_fail_under(1.0)
    with pytest.raises(UsageError, match="fail-under is 2"):
        check_fail_under(2.0)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--escalate",), "--escalate goes by error rates that do not speak of this: calibrated on 5,000 to 9,000 "),
        (("--fail-under", "0.8"), "--fail-under 0.8 goes by error rates that do not speak of this: calibrated on 5,0"),
    ],
)
def test_what_no_error_rates_speak_of_is_refused_before_the_weights(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr("uncomp_cli.models.loading.load_model", None)
    code, out, err = ask("-p", risky(Path(), 0.5, tokens=(5000, 9000)), *option, "Where?")
    message, hint = two_lines(err)
    assert (code, out) == (2, "")
    assert message.startswith(said)
    assert re.fullmatch(r"leave it out, or measure it there: uncomp calibrate --risk --risk-tokens \d+", hint)


def test_a_chat_says_from_which_length_on_it_escalates() -> None:
    preset = replace(load_preset("live"), risk=(curve_up_to(0.3, tokens=(5000, 9000)),))
    assert held_back(preset)[1].startswith("error rates were measured from 5,000 tokens on")
    assert len(held_back(replace(preset, risk=(curve_up_to(0.3),)))) == 1
