"""Presets: a policy, a scorer and a budget under one name, as JSON.

Shipped ones lie in the package (in a checkout: `presets/`), the user's own in the user's data directory and win over
shipped ones of the same name. A key that is not known is an error: a typing mistake must not change a result.
"""

import difflib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.units import parse_budget
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError

__all__ = [
    "DEFAULT_PRESET",
    "Preset",
    "list_presets",
    "load_preset",
    "read_presets",
    "remove_preset",
    "user_preset_dir",
]

DEFAULT_PRESET = "balanced"
SCHEMA_VERSION = 1
KV_BITS = (16, 8, 4)


@dataclass(frozen=True, slots=True)
class Preset:
    """What a preset sets. `budget` is in the user's own unit; it and `policy` are checked when made.

    A preset is written once for all lengths, so short documents get at least `floor_tokens` document tokens per head;
    a budget that the user names is taken at its word, with no floor. What is kept of the prompt's context is held in
    `kv_bits` bits; 16 stands for the model's own dtype.
    """

    name: str
    description: str
    budget: str
    policy: str
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    floor_tokens: int = 0
    kv_bits: int = 16

    def __post_init__(self) -> None:
        if self.floor_tokens < 0:
            raise UsageError(f"floor_tokens is {self.floor_tokens}", hint="use 0 (no floor) or more tokens")
        if self.kv_bits not in KV_BITS:
            raise UsageError(f"kv_bits is {self.kv_bits}", hint="use 16 (the model's own dtype), 8 or 4")
        parse_budget(self.budget)
        make_policy(self.policy)

    def to_dict(self) -> dict[str, Any]:
        """Plain data as in the file."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def user_preset_dir() -> Path:
    """Where the user's own presets lie."""
    return user_data_path("uncomp") / "presets"


def shipped_preset_dir() -> Path:
    """Where the shipped presets lie: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "presets"


def list_presets() -> list[Preset]:
    """All presets by name, the user's own over shipped ones; those that cannot be read are left out."""
    return read_presets()[0]


def read_presets() -> tuple[list[Preset], list[UsageError]]:
    """All presets by name, and what is wrong with the files that are none."""
    presets: list[Preset] = []
    broken: list[UsageError] = []
    for _, path in sorted(_preset_files().items()):
        try:
            presets.append(_read(path))
        except UsageError as error:
            broken.append(error)
    return presets, broken


def load_preset(name_or_path: str) -> Preset:
    """The preset with this name, or in this file; raises UsageError for an unknown name, key or value."""
    path = Path(name_or_path)
    if path.suffix == ".json" or len(path.parts) > 1:
        return _read(path)
    known = _preset_files()
    if name_or_path not in known:
        near = difflib.get_close_matches(name_or_path, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "uncomp preset list"
        raise UsageError(f"unknown preset '{name_or_path}'", hint=hint)
    return _read(known[name_or_path])


def remove_preset(name: str) -> None:
    """Delete one of the user's own presets; raises UsageError for any other."""
    path = user_preset_dir() / f"{name}.json"
    if Path(name).name != name or not path.is_file():
        raise UsageError(f"'{name}' is not one of your own presets", hint="uncomp preset list")
    path.unlink()


def _preset_files() -> dict[str, Path]:
    return {path.stem: path for folder in (shipped_preset_dir(), user_preset_dir()) for path in folder.glob("*.json")}


def _read(path: Path) -> Preset:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"preset file {path} cannot be read: {error}", hint="uncomp preset list") from error
    if not isinstance(data, dict):
        raise UsageError(f"preset file {path} is not a JSON object", hint="uncomp preset show balanced --json")
    version = data.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"preset file {path} has schema version {version}, this uncomp reads {SCHEMA_VERSION}",
            hint="update uncomp, or write the preset again",
        )
    scorer = _checked(data.get("scorer", {}), ScorerConfig, path)
    settings = _checked(data, Preset, path, optional=("scorer", "floor_tokens", "kv_bits"))
    if settings["name"] != path.stem:
        raise UsageError(
            f"preset file {path} is named '{path.stem}', the preset in it '{settings['name']}'",
            hint=f'rename the file to {settings["name"]}.json, or write "name": "{path.stem}" in it',
        )
    return Preset(**{**settings, "scorer": ScorerConfig(**scorer)})


def _checked(data: Any, target: type, path: Path, optional: tuple[str, ...] | None = None) -> dict[str, Any]:
    """`data` when its keys and types are those of the dataclass `target`; all are needed but `optional` (None: all)."""
    if not isinstance(data, dict):
        raise UsageError(f"preset file {path}: '{target.__name__}' must be an object", hint="uncomp preset list")
    known = {item.name: str(item.type) for item in fields(target)}
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise UsageError(f"preset file {path} has the unknown key '{key}'", hint=hint)
        if not isinstance(value, _TYPES.get(_type_name(known[key]), object)) or _is_wrong_bool(value, known[key]):
            raise UsageError(f"preset file {path}: '{key}' is {value!r}", hint=f"it must be {_type_name(known[key])}")
    missing = [] if optional is None else [key for key in known if key not in data and key not in optional]
    if missing:
        raise UsageError(f"preset file {path} lacks '{missing[0]}'", hint="uncomp preset show balanced --json")
    return data


_TYPES: dict[str, type] = {"str": str, "int": int, "bool": bool, "Pooling": str}


def _type_name(annotation: str) -> str:
    return annotation.removeprefix("<class '").removesuffix("'>")


def _is_wrong_bool(value: object, annotation: str) -> bool:
    return isinstance(value, bool) and _type_name(annotation) == "int"
