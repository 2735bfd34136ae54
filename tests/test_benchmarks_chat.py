"""benchmarks/chat_turns.py and reuse.py: medians, ratios within a session, what is said of the budget, the tables."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.programs import script
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.models.loading import load_model

chat_turns, reuse = script("chat_turns"), script("reuse")
SMALL = chat_turns.Arm("unseen 30%", replace(load_preset("unseen"), budget="30%", kv_bits=16, floor_tokens=0))
FULL = chat_turns.Arm("full", load_preset("full"))


def session(label: str, *ttft_s: float, within: bool = True) -> dict[str, Any]:
    turns = [
        {
            "turn": number,
            "ttft_s": seconds,
            "prompt_tokens": 100 * number,
            "cached_tokens": 90 * number,
            "kv_bytes": 2**20 * number,
            "most_kv_bytes": 2**20 * number,
            "budget_bytes": 2**21 * number,
            "within": within,
            "notes": [f"note {number}"],
        }
        for number, seconds in enumerate(ttft_s, start=1)
    ]
    return {"label": label, "turns": turns}


def test_a_ratio_is_that_of_one_session_and_figures_are_medians() -> None:
    runs = [session(SMALL.label, 9, 1, 2), session(SMALL.label, 8, 10, 10), session(SMALL.label, 7, 4, 2)]
    [arm] = chat_turns.summarise([SMALL], runs)
    assert arm["last_to_second"] == 1.0  # of 2, 1 and 0.5; the medians of the turns are 2 and 4
    assert [turn["ttft_s"] for turn in arm["turns"]] == [8, 4, 2]
    assert arm["within"]
    assert arm["turns"][2]["notes"] == ["note 3"]


def test_one_token_over_the_budget_is_said_and_the_full_cache_has_none() -> None:
    runs = [
        session(SMALL.label, 9, 2, 1),
        session(SMALL.label, 9, 2, 1, within=False),
        session(FULL.label, 9, 2, 1, within=False),
    ]
    arms = chat_turns.summarise([SMALL, FULL], runs)
    assert [arm["within"] for arm in arms] == [False, None]
    text = chat_turns.table({"arms": arms})
    assert "- unseen 30%: last turn to second 0.50, NOT within its budget at every token, 2 sessions" in text
    assert "- full: last turn to second 0.50, 1 sessions" in text
    assert "| 2 | 200 | 2.00 s | 2.0 MiB | 4.0 MiB | 2.00 s | 2.0 MiB | 4.0 MiB |" in text


def test_the_table_of_reuse_names_an_answer_that_changed() -> None:
    measured = dict.fromkeys(reuse.FIGURES, 2.0) | {"load_to_read": 0.01, "file_bytes": 2**20, "full_kv_bytes": 2**22}
    runs = [{"label": "full", "same_tokens": same, **measured} for same in (True, False)]
    [arm] = reuse.summarise([FULL], runs)
    row = reuse.table({"arms": [arm]}).splitlines()[-1]
    assert row == "| full | 2.00 s | 2.00 s | 2.00 s | 1.0 % | 2.00 s | 1.0 MiB | 2.0000 | 25.0 % | NO |"


@pytest.mark.slow
@pytest.mark.model
def test_both_run_on_a_short_document(default_model_dir: Path, tmp_path: Path) -> None:
    assert default_model_dir.is_dir()
    loaded = load_model(DEFAULT_MODEL)
    text = chat_turns.document(loaded, 800, seed=0)
    first, second = chat_turns.run_session(loaded, SMALL, text, turns=2, new_tokens=4)
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] > 800
    assert first["within"]
    assert second["within"]
    found = reuse.measure(loaded, SMALL, text, new_tokens=4, folder=tmp_path)
    assert found["same_tokens"]
    assert 1 < found["file_to_tensors"] < 1.5
    assert found["file_bytes"] < 0.5 * found["full_kv_bytes"]
