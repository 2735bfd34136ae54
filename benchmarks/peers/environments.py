"""The peers' own environments: what is pinned, how one is built, and what is said when one is missing.

kvpress needs a transformers older than ours; llama-cpp-python compiles llama.cpp (a C++ compiler, some minutes).
"""

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from records import say


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer: its folder below the environments' directory, its pins, and the script that runs it."""

    name: str
    folder: str
    requirements: tuple[str, ...]
    script: str
    results: str


PEERS = (
    Peer(
        name="kvpress",
        folder="kvpress",
        requirements=("torch==2.13.0", "transformers==5.2.0", "kvpress==0.5.5"),
        script="run_kvpress.py",
        results="kvpress.jsonl",
    ),
    Peer(
        name="llama.cpp",
        folder="llamacpp",
        requirements=("llama-cpp-python==0.3.36",),
        script="run_llamacpp.py",
        results="llamacpp.jsonl",
    ),
    Peer(
        name="OpenVINO GenAI",
        folder="openvino",
        requirements=("openvino-genai==2026.4.1.0", "gguf==0.19.0"),
        script="run_openvino.py",
        results="openvino.jsonl",
    ),
)


def interpreter(directory: Path, peer: Peer) -> Path | None:
    """The environment's Python, or None when there is none."""
    folder = "Scripts" if os.name == "nt" else "bin"
    python = directory / peer.folder / folder / ("python.exe" if os.name == "nt" else "python")
    return python if python.exists() else None


def missing_message(directory: Path, peer: Peer) -> str:
    """What is missing, and how it is built."""
    return (
        f"{peer.name}: no environment in {directory / peer.folder}; it is left out\n"
        f"hint: python benchmarks/peers/peers.py --build {directory}"
    )


def build(directory: Path, peer: Peer) -> bool:
    """Make or complete the environment; whether pip succeeded."""
    say(f"{peer.name}: {' '.join(peer.requirements)} into {directory / peer.folder}")
    if interpreter(directory, peer) is None:
        venv.create(directory / peer.folder, with_pip=True, symlinks=os.name != "nt")
    python = interpreter(directory, peer)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    built = subprocess.run([*pip, *peer.requirements], stdout=sys.stderr).returncode == 0
    if not built:
        say(f"{peer.name}: pip failed (above); the others are built all the same")
    return built
