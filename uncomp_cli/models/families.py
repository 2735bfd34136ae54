"""Which families of models are supported, by transformers' `model_type`: what a census found (tests/census.py).

It holds a tiny model of every family against the stock one, and writes families.toml: who passes is supported; of those
some may be thinned too; all others are refused by name, with the reason. A model that needs what the engine does not
honour would run and be wrong, so that one that is not in the table is refused as well.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from uncomp_cli.errors import ModelError

TABLE = Path(__file__).with_name("families.toml")
_WELL_KNOWN = ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma3_text", "granite", "smollm3")


@dataclass(frozen=True, slots=True)
class Families:
    """The table: families that are `supported`, those whose tokens may leave between layers, and why others are not.

    Those of `stepped` are written by the C library's step (engine/forward/program.py), those of `recurrent` have layers
    with a state of their own. Of `parts`, which take pictures as well, the text part
    is read when it is of a family that is supported. All was found with this version of `transformers`.
    """

    transformers: str
    supported: tuple[str, ...]
    thinned: tuple[str, ...]
    stepped: tuple[str, ...]
    recurrent: tuple[str, ...]
    parts: tuple[str, ...]
    refused: Mapping[str, str]


@cache
def load_families(path: Path = TABLE) -> Families:
    """The table in a file."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    lists = {key: tuple(data[key]) for key in ("supported", "thinned", "stepped", "recurrent", "parts")}
    return Families(data["transformers"], **lists, refused=data["refused"])


def check_family(model_type: str) -> None:
    """Raise ModelError, with the reason, when the engine has not been proven on `model_type`."""
    known = load_families()
    if model_type in known.supported:
        return
    reason = known.refused.get(model_type, f"it has not been tried, as transformers {known.transformers} lacks it")
    others = len(known.supported) - len(_WELL_KNOWN)
    raise ModelError(
        f"models of the family '{model_type}' are not supported: {reason}",
        hint=f"use a model of one of: {', '.join(_WELL_KNOWN)}, or of {others} more families (docs/families.md)",
    )
