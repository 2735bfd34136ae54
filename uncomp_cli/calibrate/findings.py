"""The files of a calibration, and what the profile in them says.

NAME.safetensors when it is done, NAME.partial.safetensors until then. Every sample that was measured is in the partial
file at once, whole. A later run goes on from it, or from the finished profile when more samples are asked for; what was
measured otherwise is refused, and `set_aside` renames what is there.

Said are each measure's size and spread, and how stable its order of heads and layers is. Agreement is the share of
pairs that two measurements put in the same order (uncertainty/stability.py): 1 is always, 0.5 chance; first of heads
within their layers, then of layers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uncomp_cli.budget.presets import FAMILY
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.files import set_aside
from uncomp_cli.schema import load_object
from uncomp_cli.table import Table
from uncomp_cli.uncertainty.profile import ModelFingerprint, UncertaintyProfile, load_profile, save_profile
from uncomp_cli.uncertainty.stability import Agreement, stability

LOSS = "loss"
"""The measure that the others are compared with: what an answer loses to eviction."""


@dataclass(frozen=True, slots=True)
class ProfileFiles:
    """The files of the preset NAME in `folder`."""

    folder: Path
    name: str

    @property
    def preset(self) -> Path:
        """NAME.json, which is not written here."""
        return self.folder / f"{self.name}.json"

    @property
    def presets(self) -> list[Path]:
        """The files of NAME's whole family, NAME.json first."""
        return [self.folder / f"{self.name}{suffix}.json" for suffix in FAMILY]

    @property
    def profile(self) -> Path:
        """The finished profile."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def partial(self) -> Path:
        """The samples of a run that is under way, or was stopped."""
        return self.folder / f"{self.name}.partial.safetensors"

    @property
    def found(self) -> Path | None:
        """What a run goes on from: the unfinished profile, or the finished one."""
        return next((path for path in (self.partial, self.profile) if path.exists()), None)

    def check(self) -> None:
        """Raise UsageError when a preset's name is taken by one that does not go by this profile: somebody wrote it."""
        hint = "choose another --name; --fresh sets it aside"
        for path in (path for path in self.presets if path.exists()):
            if not self.profile.exists():
                raise UsageError(f"{path} exists already, and has no profile beside it", hint=hint)
            if path != self.preset and load_object(path).get("profile") != self.name:
                raise UsageError(f"{path} exists already, and goes by another profile", hint=hint)

    def read(
        self, model: ModelFingerprint, parameters: dict[str, Any], measures: Sequence[str]
    ) -> UncertaintyProfile | None:
        """What has been measured so far, or None.

        Raises UsageError, with both values, when it was another model, or measured otherwise.
        """
        path = self.found
        if path is None:
            return None
        found = load_profile(path)
        hint = "choose another --name; --fresh sets it aside"
        try:
            found.fingerprint.check(model)
        except UsageError as error:
            raise UsageError(f"{path}: {error.message}", hint=hint) from error
        for key in sorted((found.parameters.keys() | parameters.keys()) - {"created"}):
            before, now = found.parameters.get(key, "not set"), parameters.get(key, "not set")
            if before != now:
                raise UsageError(f"{path} was measured with {key} {before}, not {now}", hint=hint)
        if set(found.values) != set(measures):
            different = ", ".join(sorted(set(found.values) ^ set(measures)))
            raise UsageError(f"{path} was measured with other measures: {different}", hint=hint)
        return found

    def keep(self, profile: UncertaintyProfile) -> None:
        """Put an unfinished profile in the place of the one before."""
        save_profile(profile, self.partial)

    def finish(self) -> None:
        """The profile is in its place: the unfinished one can go."""
        self.partial.unlink(missing_ok=True)

    def set_aside(self) -> list[Path]:
        """Rename every file that is there to NAME.suffix.1, or the next number that is free; returns the new paths."""
        old = [path for path in (*self.presets, self.profile, self.partial) if path.exists()]
        try:
            return set_aside(*old)
        except OSError as error:
            raise UncompError(f"{error.filename} cannot be renamed: {error.strerror}", hint="use another -o") from error


def choose_files(model: str, *, name: str | None, out: Path | None, folder: Path) -> ProfileFiles:
    """The files of preset `name`, of one named after the model, or of `out`: a directory or a file, not in `folder`."""
    if out is None or out.is_dir():
        return ProfileFiles(out or folder, name if name is not None else _name_after(model))
    stem = out.stem if out.suffix in (".json", ".safetensors") else out.name
    if name not in (None, stem):
        raise UsageError(f"--name {name} and --out {out} name the preset differently", hint="leave one of the two out")
    return ProfileFiles(out.parent, stem)


def _name_after(model: str) -> str:
    """The last part of a model's name or path, as far as it can name a file."""
    last = Path(model).resolve().name if Path(model).exists() else model.rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "-", last.removesuffix(".gguf")).strip("-.") or "calibrated"


_SPREAD = (
    "spread: over samples, of the mean; then the share of pairs in the same order, heads / layers (0.50 is "
    "chance): from text to text, from length to length, and as the last column's measure orders them"
)


def profile_table(profile: UncertaintyProfile) -> Table:
    """A row a measure."""
    reference = LOSS if LOSS in profile.values else next(iter(profile.values))
    columns = ["MEASURE", "MEAN", "SPREAD", "TEXTS", "LENGTHS", f"LIKE {reference}"]
    rows = [
        [row.measure, *_size(profile, row.measure), *map(_shown, (row.texts, row.lengths, row.reference))]
        for row in stability(profile).rows(reference)
    ]
    return Table(columns, rows, notes=[_SPREAD])


def profile_record(profile: UncertaintyProfile) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
        "parameters": dict(profile.parameters),
        "samples": [
            {"source": sample.source, "sha256": sample.sha256, "tokens": sample.tokens, "task": sample.task}
            for sample in profile.samples
        ],
        "measures": {key: _figures(profile, key) for key in profile.values},
        "stability": stability(profile).to_dict(),
    }


def _figures(profile: UncertaintyProfile, key: str) -> dict[str, Any]:
    """Means over all layers and heads, the largest and least of the mean, and every layer's mean."""
    mean, spread = profile.mean(key).double(), profile.spread(key).double()
    return {
        "mean": mean.mean().item(),
        "spread": spread.mean().item(),
        "least": mean.min().item(),
        "largest": mean.max().item(),
        "layers": mean.mean(dim=1).tolist(),
    }


def _size(profile: UncertaintyProfile, key: str) -> Sequence[str]:
    """The mean over layers and heads, and the mean spread over samples as a share of it."""
    mean, spread = profile.mean(key).mean().item(), profile.spread(key).mean().item()
    return f"{mean:.3g}", f"{spread / mean:.0%}".replace("%", " %") if mean else "–"


def _shown(agreement: Agreement) -> str:
    return " / ".join("–" if share is None else f"{share:.2f}" for share in (agreement.heads, agreement.layers))
