"""A day of sixty turns at a real pseudo-terminal: neither memory nor the time of a turn grows."""

import time
from pathlib import Path
from statistics import median

import psutil
import pytest

from support.typist import READOUT, Typist, sit_down

TURNS = 60


@pytest.mark.slow
def test_sixty_turns_take_no_more_memory_and_time_than_the_first(tiny_model: Path, typists: list[Typist]) -> None:
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "16", "--no-history")
    process, held, took = psutil.Process(chat.process.pid), [0.0], [0.0]
    for turn in range(1, TURNS + 1):
        begun = time.perf_counter()
        chat.says(f"and {turn}?", READOUT)
        took.append(time.perf_counter() - begun)
        held.append(process.memory_info().rss / 2**20)
        if turn % 10 == 0:
            assert process.num_fds() < 24
            assert process.num_threads() < 16
    assert held[60] - held[20] < 24, held
    assert median(took[51:]) < 3 * median(took[11:21]) + 0.2, took
