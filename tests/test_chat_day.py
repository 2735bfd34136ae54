"""A day of sixty turns at a real pseudo-terminal: neither the memory beside the cache nor the time of a turn grows."""

import time
from pathlib import Path
from statistics import median

import psutil
import pytest

from support.typist import Typist, sit_down

TURNS = 60
WORDS = "The keeper wrote that the harbour was quiet and that nobody came. " * 3
END = r"KV ([\d.]+) ?(?:[\w., ]*?)([KM])iB.* context "
MIB = {"M": 1, "K": 2**-10}


def a_day(chat: Typist, words: str = "") -> tuple[float, list[float]]:
    """MiB that came in between morning and evening and are not the cache's, and the seconds of every turn."""
    process, beside, took = psutil.Process(chat.process.pid), [0.0], [0.0]
    for turn in range(1, TURNS + 1):
        begun = time.perf_counter()
        (end,) = chat.says(f"And {turn}? {words}", END)
        took.append(time.perf_counter() - begun)
        beside.append(process.memory_info().rss / 2**20 - float(end[1]) * MIB[end[2]])
        if turn % 10 == 0:
            assert process.num_fds() < 24
            assert process.num_threads() < 16
    return median(beside[51:]) - median(beside[6:16]), took


@pytest.mark.slow
def test_sixty_turns_take_no_more_memory_and_time_than_the_first(tiny_model: Path, typists: list[Typist]) -> None:
    grown, took = a_day(sit_down(typists, tiny_model, "--max-new-tokens", "16", "--no-history"))
    assert grown < 12
    assert median(took[51:]) < 3 * median(took[11:21]) + 0.2, took


@pytest.mark.slow
@pytest.mark.model
def test_sixty_turns_of_the_default_model(default_model_dir: Path, typists: list[Typist], tmp_path: Path) -> None:
    """Its layers are laid out anew in another size every turn: up to 74 MiB of holes, so they are given back."""
    own = {"XDG_DATA_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    chat = sit_down(typists, Path("smollm2-135m"), "--max-new-tokens", "24", "--no-history", **own)
    chat.terminal.timeout = 90
    grown, took = a_day(chat, WORDS)
    assert grown < 12
    assert median(took[51:]) < 2 * median(took[11:21]) + 1, took
