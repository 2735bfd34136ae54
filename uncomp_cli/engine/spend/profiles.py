"""The profile that a preset names, read once."""

from functools import lru_cache
from pathlib import Path

from uncomp_cli.budget.presets import Preset
from uncomp_cli.uncertainty.profile import UncertaintyProfile, load_profile

__all__ = ["profile_of"]


def profile_of(preset: Preset) -> UncertaintyProfile | None:
    """The profile of `preset`, or None when it has none. Raises UsageError when its file cannot be used."""
    path = preset.profile_path
    return None if path is None else _read(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=8)
def _read(path: Path, modified_ns: int) -> UncertaintyProfile:
    return load_profile(path)
