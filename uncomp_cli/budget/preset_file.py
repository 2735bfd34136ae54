"""A preset's file, as JSON: every key must be known, and its value of the right kind.

A typing mistake must not change a result, so that both are errors which name the key. Keys with a default may lack.
"""

import difflib
import json
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any

from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.loss_curve import QualityPoint
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.uncertainty.risk import RiskCurve

# What JSON may have for a field's type; a literal's values are checked by its own dataclass.
_JSON_TYPES: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (float, int),
    bool: (bool,),
    str | None: (str, NoneType),
    Budget: (str,),
    ScorerConfig: (dict,),
    tuple[QualityPoint, ...]: (list,),
    RiskCurve | None: (dict, NoneType),
}
_TYPE_WORDS = {NoneType: "null", dict: "an object", list: "a list"}


def parse_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises UsageError for anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"preset file {path} cannot be read: {error}", hint="uncomp preset list") from error
    if not isinstance(data, dict):
        raise UsageError(f"preset file {path} is not a JSON object", hint="uncomp preset show live --json")
    return data


def check_keys(data: Any, target: type, path: Path) -> None:
    """Raise UsageError unless `data` has the keys and types of the dataclass `target`; what has a default may lack."""
    if not isinstance(data, dict):
        raise UsageError(f"preset file {path} has {data!r} for a {target.__name__}", hint="it must be an object")
    known = file_keys(target)
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise UsageError(f"preset file {path} has the unknown key '{key}'", hint=hint)
        kinds = _JSON_TYPES.get(known[key])
        if kinds is not None and type(value) not in kinds:
            words = " or ".join(_TYPE_WORDS.get(kind, kind.__name__) for kind in kinds)
            raise UsageError(f"preset file {path}: '{key}' is {value!r}", hint=f"it must be {words}")
    for item in fields(target):
        if item.name not in data and item.default is MISSING and item.default_factory is MISSING:
            raise UsageError(f"preset file {path} lacks '{item.name}'", hint="uncomp preset show live --json")


def file_keys(target: type) -> dict[str, Any]:
    """The keys that a file may have, and the types of their fields."""
    return {item.name: item.type for item in fields(target) if item.metadata.get("in_file", True)}
