"""`uncomp chat` with the default model, typed at a real pseudo-terminal: a document, follow-ups, evidence, Ctrl-C."""

from pathlib import Path

import pytest

from support.desk import PROMPT
from support.typist import Typist, numbers, sit_down

pytestmark = pytest.mark.model

SUBJECTS = ("jetty", "boiler", "stairs", "lantern", "well", "signal mast", "ice house", "store", "boat", "garden")
FACT = "The combination of the stores safe is 4096217, and it is changed when a keeper retires."


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    """Forty lines of which one has the answer."""
    lines = [f"The {SUBJECTS[i % 10]} is looked after every {i + 2} days, and the log says so." for i in range(40)]
    lines[23] = FACT
    path = tmp_path / "manual.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_document_follow_ups_and_a_stopped_answer(
    default_model_dir: Path, typists: list[Typist], manual: Path, tmp_path: Path
) -> None:
    own = {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_STATE_HOME": str(tmp_path / "state")}
    chat = sit_down(typists, Path("smollm2-135m"), "--max-new-tokens", "300", "-b", "350", **own)
    chat.terminal.timeout = 90
    chat.says(f"/file {manual}", r"manual\.txt: ([\d,]+) tokens read in ")
    chat.says("What is the combination of the stores safe?", "4096217", r"cached ([\d,]+) · prefill (\d+) tok")
    chat.says("/evidence", r"manual\.txt:24  +\d+ % +\d+ %  \"The combination of the stores safe")
    chat.says("Tell me a long story about the keeper.", "prefill", r"(?:\w+,? ){8}")
    chat.presses("c")
    chat.sees(r"\[interrupted: what is above stays in the conversation\]")
    cached, prefilled = numbers(chat.sees(r"cached ([\d,]+) · prefill (\d+) tok"))
    assert cached > 700
    assert prefilled < 60
    chat.says("/stats", r"2 turns \(1 interrupted\) · context ([\d,]+)/8,192")
    chat.sees(PROMPT)
    chat.leaves("c")
    assert chat.exit_code() == 0
