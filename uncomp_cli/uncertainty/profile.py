"""What was measured, how, on which model and on which texts: every sample's values, kept apart.

    values[key]  [N, L, X] float32    N samples, L layers, X = Measure.width: H, G or 1

Mean, spread, merging and stability (stability.py) all follow from the samples, so nothing else is stored. On disk a
profile is NAME.safetensors: one tensor a measure, and a JSON record with a checksum over all of it in the file's own
metadata. The preset beside it, NAME.json, is not this module's.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.files import write_whole
from uncomp_cli.schema import inside, parse_object, read, take_version
from uncomp_cli.uncertainty.measures import canonical_keys, parse_measure

SCHEMA_VERSION = 1
_METADATA = "uncomp_profile"
# Says nothing about how the values were measured: profiles that differ in it alone can be merged.
_DATE = "created"
_AGAIN = "measure it again: uncomp calibrate -m MODEL"


@dataclass(frozen=True, slots=True)
class ModelFingerprint:
    """The model that was measured. `weights_sha256` is LoadedModel.info.sha256, the hash of its safetensors.

    The same model may have another name or path on another machine: its shape and its weights decide, not its name.
    """

    name: str
    model_type: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    weights_sha256: str

    def __post_init__(self) -> None:
        counts = (self.num_layers, self.num_heads, self.num_kv_heads, self.head_dim)
        if min(counts) < 1 or self.num_heads % self.num_kv_heads:
            shape = "{} layers, {} query heads, {} KV heads of dimension {}".format(*counts)
            raise UsageError(f"model {self.name} has an impossible shape: {shape}", hint=_AGAIN)

    def check(self, other: Self) -> None:
        """Raise UsageError, with both values, when `other` is not the model that was measured."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name != "name" and mine != theirs:
                raise UsageError(
                    f"the profile was measured on {self.name}, {field.name} {mine}; {other.name} has {theirs}",
                    hint=f"uncomp calibrate -m {shlex.quote(other.name)}",
                )


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """A text that was read: where it came from, the hash of what was read, its length and the task it was put into."""

    source: str
    sha256: str
    tokens: int
    task: str

    @property
    def key(self) -> tuple[str, str, int]:
        """Samples with the same key are the same sample, wherever the text came from."""
        return self.sha256, self.task, self.tokens


@dataclass(frozen=True, slots=True, eq=False)
class UncertaintyProfile:
    """Every sample's values of every measure, as float32 on the CPU; `parameters` is JSON data: how they were measured.

    Raises UsageError for no samples, values that do not fit the samples and the model, values that are no numbers, and
    parameters that JSON cannot hold.
    """

    fingerprint: ModelFingerprint
    samples: tuple[SampleInfo, ...]
    values: Mapping[str, Tensor]
    parameters: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.samples or not self.values:
            missing = "measures" if self.samples else "samples"
            raise UsageError(f"an uncertainty profile of {self.fingerprint.name} without {missing}", hint=_AGAIN)
        values = {key: value.detach().to("cpu", torch.float32).contiguous() for key, value in self.values.items()}
        for key, value in values.items():
            self._check_values(key, value)
        try:
            parameters = json.loads(json.dumps(dict(self.parameters), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UsageError(f"its parameters are no JSON data: {error}", hint=_AGAIN) from error
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "parameters", parameters)

    def _check_values(self, key: str, value: Tensor) -> None:
        measure = parse_measure(key)
        if str(measure) != key:
            raise UsageError(f"measure '{key}' is not in its usual form", hint=f"write {measure}")
        fitting = (len(self.samples), self.fingerprint.num_layers, measure.width(self.fingerprint))
        if value.shape != fitting:
            found = f"the shape {list(value.shape)}, not {list(fitting)} (samples, layers, heads)"
            raise UsageError(f"measure '{key}' of model {self.fingerprint.name} has {found}", hint=_AGAIN)
        wrong = (~value.isfinite()).nonzero()
        if len(wrong):
            sample, layer, head = wrong[0].tolist()
            where = f"sample {sample} ({self.samples[sample].source}), layer {layer}, head {head}"
            message = f"measure '{key}' is {value[sample, layer, head].item()} at {where}"
            raise UsageError(message, hint=f"{_AGAIN} --dtype float32")

    def samples_of(self, key: str) -> Tensor:
        """All samples' values [N, L, X]; raises UsageError for a measure that is not there."""
        (canonical,) = canonical_keys([key])
        if canonical not in self.values:
            message = f"the profile of {self.fingerprint.name} has no measure '{canonical}'"
            raise UsageError(message, hint=f"it has {', '.join(self.values)}; or {_AGAIN}")
        return self.values[canonical]

    def mean(self, key: str) -> Tensor:
        """Mean over samples [L, X]."""
        return self.samples_of(key).double().mean(0).float()

    def spread(self, key: str) -> Tensor:
        """Standard deviation over samples [L, X] (of a sample: divided by N − 1); 0 for a single sample."""
        values = self.samples_of(key)
        return torch.zeros_like(values[0]) if len(values) < 2 else values.double().std(0).float()

    def as_rows(self, key: str) -> tuple[tuple[float, ...], ...]:
        """The mean as plain numbers [L][X], which is what policies take."""
        return tuple(tuple(row) for row in self.mean(key).tolist())

    def merge(self, other: "UncertaintyProfile") -> "UncertaintyProfile":
        """The samples of both, each once (of two measurements of one sample, the first); the later date.

        Raises UsageError, with both values, for another model, other parameters or other measures.
        """
        self.fingerprint.check(other.fingerprint)
        self._check_mergeable(other)
        first: dict[tuple[str, str, int], int] = {}
        samples = (*self.samples, *other.samples)
        for index, sample in enumerate(samples):
            first.setdefault(sample.key, index)
        kept = list(first.values())
        values = {key: torch.cat((value, other.values[key]))[kept] for key, value in self.values.items()}
        latest = max(self.parameters, other.parameters, key=lambda parameters: str(parameters.get(_DATE, "")))
        return UncertaintyProfile(self.fingerprint, tuple(samples[index] for index in kept), values, latest)

    def _check_mergeable(self, other: "UncertaintyProfile") -> None:
        hint = "measure both with the same settings: uncomp calibrate"
        for key in (*self.parameters, *other.parameters):
            mine, theirs = (_shown(profile.parameters, key) for profile in (self, other))
            if mine != theirs and key != _DATE:
                raise UsageError(f"the profiles were measured with {key} {mine} and {key} {theirs}", hint=hint)
        for key in sorted(set(self.values) ^ set(other.values)):
            which = "first" if key in self.values else "second"
            raise UsageError(f"only the {which} of the profiles has the measure '{key}'", hint=hint)


def profile_path(path: Path) -> Path:
    """NAME.safetensors, for NAME, NAME.json or NAME.safetensors; other dots belong to the name."""
    if not path.name:
        raise UsageError(f"'{path}' is not a file name", hint="name a file with -o")
    known = path.suffix in (".json", ".safetensors")
    return path.with_suffix(".safetensors") if known else path.with_name(f"{path.name}.safetensors")


def save_profile(profile: UncertaintyProfile, path: Path) -> Path:
    """Write NAME.safetensors as a whole or not at all, and return its path; folders are made.

    Raises UncompError when it cannot be written; an older file of this name is then as it was.
    """
    target = profile_path(path)
    record = {**_described(profile), "sha256": _checksum(profile)}
    data = save(dict(profile.values), metadata={_METADATA: json.dumps(record)})
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, data)
    except OSError as error:
        message = f"{target} cannot be written: {error.strerror or error}"
        raise UncompError(message, hint="name another place with -o") from error
    return target


def load_profile(path: Path) -> UncertaintyProfile:
    """The profile in NAME.safetensors; raises UsageError for anything but a whole profile that this version knows."""
    target = profile_path(path)
    if not target.is_file():
        raise UsageError(f"profile {target} does not exist", hint="make it: uncomp calibrate -m MODEL -o NAME")
    metadata, values = _read(target)
    with inside(f"profile {target}"):
        record = _parse_record(metadata)
        profile = UncertaintyProfile(record.fingerprint, record.samples, values, record.parameters)
    if record.sha256 != _checksum(profile):
        raise UsageError(f"profile {target} is damaged: its checksum is not that of its contents", hint=_AGAIN)
    return profile


@dataclass(frozen=True, slots=True)
class _Record:
    """What the file says beside its tensors."""

    fingerprint: ModelFingerprint
    samples: tuple[SampleInfo, ...]
    parameters: dict[str, Any]
    sha256: str


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors; no tensor is read of a file that is no profile, because it may be a model's weights."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            keys = file.keys() if _METADATA in metadata else ()
            return metadata, {key: file.get_tensor(key).clone() for key in keys}
    except (OSError, SafetensorError) as error:
        message = f"profile {path} is damaged or no safetensors file: {error}"
        raise UsageError(message, hint=f"take it from a backup, or {_AGAIN}") from error


def _described(profile: UncertaintyProfile) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": asdict(profile.fingerprint),
        "samples": [asdict(sample) for sample in profile.samples],
        "parameters": profile.parameters,
    }


def _checksum(profile: UncertaintyProfile) -> str:
    """The sha256 over the description and all values, whatever the order of the keys."""
    digest = hashlib.sha256(json.dumps(_described(profile), sort_keys=True).encode())
    for key, value in sorted(profile.values.items()):
        digest.update(f"{key}{list(value.shape)}".encode() + value.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def _parse_record(metadata: Mapping[str, str]) -> _Record:
    """The JSON record; its version decides before anything else is looked at."""
    with inside("this is no uncertainty profile", hint="name a file of uncomp calibrate"):
        data = parse_object(metadata.get(_METADATA, ""))
    take_version(data, SCHEMA_VERSION, again=_AGAIN)
    with inside("its record", hint=_AGAIN):
        return read(_Record, data)


def _shown(parameters: Mapping[str, Any], key: str) -> str:
    return json.dumps(parameters[key], sort_keys=True) if key in parameters else "not set"
