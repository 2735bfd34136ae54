"""The programs of benchmarks/ and benchmarks/peers/, which are folders and not packages."""

import importlib
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PEERS = BENCHMARKS / "peers"


def script(name: str) -> Any:
    """One of them as a module."""
    folders = [str(BENCHMARKS), str(PEERS)]
    sys.path[:0] = folders
    try:
        return importlib.import_module(name)
    finally:
        for folder in folders:
            sys.path.remove(folder)
