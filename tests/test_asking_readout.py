"""The readout line of an answer, to the letter."""

from dataclasses import replace

from uncomp_cli.asking.readout import readout
from uncomp_cli.engine.records import RunStats

MIB = 2**20
STATS = RunStats(
    prompt_tokens=7512, cached_tokens=0, completion_tokens=88, prefill_s=17.3, ttft_s=17.4, decode_s=87 / 14.2,
    kv_bytes=int(8.1 * MIB), kv_full_bytes=165 * MIB, peak_bytes=int(1.1 * 2**30), finish_reason="stop",
)  # fmt: skip


def test_as_in_the_contract() -> None:
    assert readout(STATS, 8192) == (
        "prefill 7,512 tok 17.3 s (434 tok/s) · first token 17.4 s · decode 14.2 tok/s"
        " · KV 8.1 of 165 MiB (4.9 %) · peak 1.1 GiB · context 7,600/8,192"
    )


def test_the_entropy_of_watched_heads_is_a_field() -> None:
    assert " · entropy 0.31 · context 7,600/8,192" in readout(replace(STATS, attention_entropy=0.3149), 8192)


def test_one_token_has_no_pace_and_no_time_no_rate() -> None:
    line = readout(replace(STATS, prefill_s=0.0, completion_tokens=1, decode_s=0.0), 8192)
    assert line.startswith("prefill 7,512 tok 0.0 s · first token 17.4 s · KV ")
