"""Timed runs of the peers, each in a process of its own and in the peer's own environment; for ../speed.py."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import PEERS, Peer, interpreter, missing_message
from records import say

HERE = Path(__file__).resolve().parent
PRESS = "SnapKV (default)"
LLAMACPP = {
    ", flash attention": {"flash_attention": True, "cache": "f16"},
    ", flash attention, 8-bit cache": {"flash_attention": True, "cache": "q8_0"},
    "": {"flash_attention": False, "cache": "f16"},
}
"""What llama.cpp may be set to; which is its best depends on the length and the machine."""
SCRIPTS = {"kvpress": "time_kvpress.py", "llama.cpp": "time_llamacpp.py"}
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PeerArm:
    """A peer's settings in the comparison: whose it is, what is shown, and what its process is given."""

    peer: str
    label: str
    python: Path
    job: Line = field(repr=False)


def peer_arms(
    directory: Path, ids: Sequence[int], *, new_tokens: int, model: Path, ggufs: Sequence[Path], keep: float
) -> list[PeerArm]:
    """The arms of the peers that have an environment in `directory`; one that has none is named and left out.

    kvpress gets the model's directory and keeps the fraction `keep` of the entries, llama.cpp has an arm for each of
    its settings and each of the GGUF files.
    """
    settings: dict[str, list[tuple[str, Line]]] = {
        "kvpress": [(f"kvpress {PRESS}, {100 * keep:g} %", {"model": str(model), "press": PRESS, "keep": keep})],
        "llama.cpp": [
            (f"llama.cpp {_type_of(gguf)}{name}", {"model": str(gguf), **how})
            for gguf in ggufs
            for name, how in LLAMACPP.items()
        ],
    }
    arms = []
    for peer in (one for one in PEERS if one.name in SCRIPTS):
        python = _interpreter(directory, peer)
        if python is not None:
            for label, own in settings[peer.name]:
                arms.append(PeerArm(peer.name, label, python, {**own, "ids": list(ids), "new_tokens": new_tokens}))
    return arms


def _interpreter(directory: Path, peer: Peer) -> Path | None:
    python = interpreter(directory, peer)
    if python is None:
        say(missing_message(directory, peer))
    return python


def _type_of(gguf: Path) -> str:
    """The weights' type in a file's name, as in Model.Q4_1.gguf."""
    return gguf.stem.rpartition(".")[2]


def run_peer(arm: PeerArm) -> Line:
    """What one run took. Raises RuntimeError with the last line of the child's log when it fails."""
    command = [str(arm.python), str(HERE / SCRIPTS[arm.peer])]
    done = subprocess.run(command, input=json.dumps(arm.job) + "\n", capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{arm.label} ended with code {done.returncode}: {last}")
    measured: Line = json.loads(lines[-1])
    return measured
