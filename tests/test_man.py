"""Man pages: as written by the generator, the same on every machine, and good roff."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GENERATOR = ROOT / "man" / "generate.py"
PAGES = sorted((ROOT / "man").glob("*.1"))


def generate(*args: str, directory: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    script = GENERATOR if directory is None else directory / "generate.py"
    return subprocess.run(
        [sys.executable, str(script), *args], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "man", tmp_path / "man"))


def test_pages_are_up_to_date() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stderr


def test_pages_depend_on_no_machine(copied: Path) -> None:
    before = {page.name: page.read_bytes() for page in copied.glob("*.1")}
    for page in copied.glob("*.1"):
        page.unlink()
    settings = {"HOME": "/nowhere", "COLUMNS": "33", "UNCOMP_PLAIN": "1", "UNCOMP_MODEL": "x", "LC_ALL": "C", "TZ": "Z"}
    assert generate(directory=copied, **settings).returncode == 0
    assert {page.name: page.read_bytes() for page in copied.glob("*.1")} == before


def test_drift_is_reported_and_mended(copied: Path) -> None:
    (copied / "uncomp.1").write_text("edited")
    (copied / "uncomp-gone.1").write_text("left over")
    (copied / "uncomp-model.1").unlink()
    done = generate("--check", directory=copied)
    assert done.returncode == 1
    assert "uncomp-gone.1, uncomp-model.1, uncomp.1" in done.stderr
    generate(directory=copied)
    assert generate("--check", directory=copied).returncode == 0
    assert not (copied / "uncomp-gone.1").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_are_good_roff(page: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-z", page], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_wheel_installs_every_page_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {f"man/{page.name}": f"share/man/man1/{page.name}" for page in PAGES}


def test_hand_written_sections_are_there() -> None:
    text = (ROOT / "man" / "uncomp.1").read_text()
    for heading in ("EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"):
        assert f'.SH "{heading}"' in text
