"""The readout line of an answer, short and long, and why an answer ended, to the letter."""

from dataclasses import replace
from typing import Any

import pytest

from support.curves import absent_below, curve_up_to, seen
from uncomp_cli.asking.doubts import Risk, fall_short, risk_warnings
from uncomp_cli.asking.events import Done, Turn
from uncomp_cli.asking.readout import ending
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.engine.records import RunStats

MIB = 2**20
UNWATCHED = Risk({})
STATS = RunStats(
    prompt_tokens=7512, cached_tokens=0, completion_tokens=88, prefill_s=17.3, ttft_s=17.4, decode_s=87 / 14.2,
    kv_bytes=int(8.1 * MIB), kv_full_bytes=165 * MIB, peak_bytes=int(1.1 * 2**30), finish_reason="stop",
)  # fmt: skip


def done(risk: Risk = UNWATCHED, *, all_kept: bool = False, **took: Any) -> Done:
    stats = replace(STATS, **took)
    return Done(Turn("Who?"), "Ada", (), stats, load_preset("live"), risk, 8192, all_kept=all_kept)


def short(answer: Done) -> str:
    return answer.readout()


def long(answer: Done) -> str:
    return answer.readout(verbose=True)


def test_the_long_line() -> None:
    assert long(done()) == (
        "prefill 7,512 tok 17.3 s (434 tok/s) · first token 17.4 s · decode 14.2 tok/s"
        " · KV 8.1 of 165 MiB (4.9 %) · peak 1.1 GiB · context 7,600/8,192"
    )
    assert " · entropy 0.31 · context 7,600/8,192" in long(done(signs=seen(0.3149)))
    assert long(done(cached_tokens=7500)).startswith("cached 7,500 · prefill 12 tok 17.3 s")


def test_one_token_has_no_pace_and_no_time_no_rate() -> None:
    line = long(done(prefill_s=0.0, completion_tokens=1, decode_s=0.0))
    assert line.startswith("prefill 7,512 tok 0.0 s · first token 17.4 s · KV ")


def test_the_short_line_says_a_word_only_where_it_was_calibrated() -> None:
    known = Risk(seen(0.2), curve_up_to(0.3), 7512)
    line = "7,512 tok in 17.3 s · 14.2 tok/s · KV 8.1 of 165 MiB (4.9 %)"
    assert short(done()) == short(done(Risk(seen(0.2)))) == line
    assert short(done(Risk(seen(0.2), curve_up_to(0.3), 20_000))) == line
    assert short(done(known)) == f"{line} · sure"
    assert short(done(replace(known, signs=seen(0.4)))) == f"{line} · unsure"


def test_shares_are_of_16_bits_and_the_long_line_has_those_of_the_run_too() -> None:
    wide = done(Risk(seen(0.2), curve_up_to(0.3), 7512), dtype_bytes=4)
    assert short(wide) == "7,512 tok in 17.3 s · 14.2 tok/s · KV 8.1 of 82.5 MiB in 16 bits (9.8 %) · sure"
    assert len(short(wide)) <= 80
    assert " · KV 8.1 of 82.5 MiB in 16 bits (9.8 %, 4.9 % of float32) · peak" in long(wide)


def test_it_fits_80_columns_with_the_longest_word() -> None:
    curve, told = curve_up_to(0.3), absent_below(0.5)
    absent = short(done(Risk({**seen(0.2), "together": 0.4}, curve, 7512, absent=told)))
    assert absent == "7,512 tok in 17.3 s · KV 8.1 of 165 MiB (4.9 %) · probably not in the document"
    assert len(absent) <= 80
    assert short(done(Risk({**seen(0.2), "together": 0.6}, curve, 7512, absent=told))).endswith(" · sure")


def test_what_the_text_has_is_told_whatever_is_kept_of_it() -> None:
    """The budget and the scorer say what an answer is like, not what stands in the text."""
    less = replace(curve_up_to(0.3), budget="20%", scorer="agreement")
    told = replace(absent_below(0.5), tokens=(1000, 8000))
    risk = Risk({**seen(0.2), "together": 0.4}, less, 7512, budget=Budget.parse("5%"), scorer="window", absent=told)
    assert (risk.word, risk.bin) == ("probably not in the document", None)
    (line,) = risk_warnings(risk)
    assert line.startswith("what was asked for is probably not in the document (so said of 75 % of such questions, ")
    assert line.endswith(
        "was not measured: calibrated with --budget 20%, kept with 5%; calibrated with scorer agreement, kept by window"
    )
    for other in ({"together": 0.6}, {}):
        assert replace(risk, signs={**seen(0.2), **other}).word is None
    without = replace(risk, curve=None)
    assert (without.word, without.flagged) == ("probably not in the document", True)
    assert risk_warnings(without)[0].endswith("% of others); how often such answers are wrong was not measured")
    short_of = fall_short(risk, 0.1)
    assert short_of is not None
    assert short_of.message.startswith("what was asked for is probably not in the document, so not known to reach")
    assert replace(risk, prompt_tokens=900).word is None
    assert replace(risk, whole=True).word is None


def test_it_fits_80_columns_however_much_there_was() -> None:
    much = {"prompt_tokens": 1_234_567, "prefill_s": 40_000.0, "decode_s": 0.0871, "kv_full_bytes": 1023 * 2**30}
    line = short(done(Risk(seen(0.2), curve_up_to(0.3), 100), **much, kv_bytes=1000 * 2**30))
    assert (len(line) <= 80, line.endswith("sure")) == (True, True), line


def test_what_is_kept_whole_is_said_so_and_is_no_more_than_all() -> None:
    whole = done(all_kept=True, kv_bytes=int(13.7 * MIB), kv_full_bytes=int(12.9 * MIB))
    assert short(whole).endswith(" · KV 13.7 MiB, all kept")
    assert " · KV 13.7 MiB, all kept · peak" in long(whole)
    assert whole.stats.kept_fraction == 1.0


@pytest.mark.parametrize(
    ("took", "said"),
    [
        ({}, None),
        ({"finish_reason": "interrupted"}, None),
        ({"finish_reason": "length"}, "the answer ended at its longest length, 88 tokens: --max-new-tokens 176 "),
        ({"finish_reason": "length", "completion_tokens": 680}, "the answer ended because the context is full"),
        ({"finish_reason": "loop"}, "the answer repeated itself and was stopped; --repetition-penalty 1.1 or"),
    ],
)
def test_why_an_answer_ended(took: dict[str, Any], said: str | None) -> None:
    line = ending(replace(STATS, **took), 8192)
    assert line is None if said is None else line is not None and line.startswith(said)
