"""Presets: a policy, a scorer and a budget under one name, as JSON.

Shipped ones lie in the package (in a checkout: `presets/`), the user's own in the user's data directory and win over
shipped ones of the same name. A preset that was calibrated names its profile, PROFILE.safetensors in the same folder,
and has the measured loss of several budgets (loss_curve.py) and the error rates that signs of uncertainty stood for in
texts of some lengths (uncertainty/error_rates.py). A key that is not known is an error: a typing mistake must not
change a result. Keys that were added later may be missing, so older files are still of this schema version.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from platformdirs import user_data_path

from uncomp_cli.budget.amount import FULL_BUDGET, Budget
from uncomp_cli.budget.loss_curve import QualityPoint, parse_loss, smallest_budget
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.thinning import make_thinning
from uncomp_cli.config import AGNOSTIC_PRESET, DEFAULT_PRESET, ScorerConfig
from uncomp_cli.errors import DoesNotFitError, UncompError, UsageError, did_you_mean, require
from uncomp_cli.files import replace_file
from uncomp_cli.schema import inside, load_object, read, take_version, text, value_of
from uncomp_cli.uncertainty.error_rates import Absence, RiskCurve

if TYPE_CHECKING:
    from uncomp_cli.uncertainty.profile import UncertaintyProfile


FAMILY = {"": DEFAULT_PRESET, "-small": "small", "-tiny": "tiny", "-unseen": AGNOSTIC_PRESET}
"""What a calibration writes for its model: what is added to NAME, and the shipped preset that it is made like."""
SCHEMA_VERSION = 1
KV_BITS = (16, 8, 4)
_ALIKE = "measure both again: uncomp calibrate --risk"


def _curves(data: Any, place: str) -> tuple[RiskCurve, ...]:
    """Risk curves; null is none. Older ones may have an `absent`, which stands beside them now."""
    older = [one for one in data if isinstance(one, dict) and "absent" in one] if isinstance(data, list) else []
    if any(one["absent"] is not None for one in older):
        hint = "move it beside the curves, or measure it again: uncomp calibrate --risk"
        raise UsageError(f"{place}[].absent is of an older uncomp, and stands beside {place} now", hint=hint)
    if older:
        data = [{key: value for key, value in one.items() if key != "absent"} for one in data]
    found: tuple[RiskCurve, ...] = () if data is None else value_of(tuple[RiskCurve, ...], data, place)
    return found


@dataclass(frozen=True, slots=True)
class Preset:
    """What a preset sets. `budget` is in the user's own unit; it, `policy` and `thinning` are checked when made.

    A preset is written once for all lengths, so short documents get at least `floor_tokens` document tokens per head;
    a budget that the user names is taken at its word, with no floor. What is kept of the prompt's context is held in
    `kv_bits` bits; 16 stands for the model's own dtype. `thinning` says which tokens enter the later layers
    (thinning.py). `profile` names PROFILE.safetensors in `folder`: where the preset was read from, not a key of it, and
    text, so that a preset can go to another process as JSON.
    """

    name: str
    description: str
    budget: Budget = field(metadata={"read": text})
    policy: str
    scorer: ScorerConfig = field(default_factory=ScorerConfig)
    floor_tokens: int = 0
    kv_bits: int = 16
    thinning: str = "none"
    open_below: float = 0.0
    profile: str | None = None
    quality: tuple[QualityPoint, ...] = ()
    risk: tuple[RiskCurve, ...] = field(default=(), metadata={"read": _curves})
    absent: Absence | None = None
    folder: str | None = field(default=None, compare=False, metadata={"in_file": False})

    def __post_init__(self) -> None:
        if self.floor_tokens < 0:
            raise UsageError(f"floor_tokens is {self.floor_tokens}", hint="use 0 (no floor) or more tokens")
        is_share = 0 <= self.open_below < 1
        require(is_share, f"open_below is {self.open_below}", hint="use a share of attention, below 1; 0 is none")
        if self.kv_bits not in KV_BITS:
            raise UsageError(f"kv_bits is {self.kv_bits}", hint="use 16 (the model's own dtype), 8 or 4")
        if self.profile is not None and not _is_stem(self.profile):
            hint = "name a file in the preset's own folder, without .safetensors"
            raise UsageError(f"profile is {self.profile!r}", hint=hint)
        require(len({curve.heads for curve in self.risk}) < 2, "risk curves of other heads", hint=_ALIKE)
        object.__setattr__(self, "budget", Budget.of(self.budget))  # text is as welcome
        make_policy(self.policy)
        make_thinning(self.thinning)

    def __str__(self) -> str:
        """All that bears on what is kept: `balanced: budget 5%, no floor · policy uncertain · …`."""
        policy = make_policy(self.policy)
        floor = f"at least {self.floor_tokens:,} document tokens a head" if self.floor_tokens else "no floor"
        measured = "measured live" if self.profile is None else f"profile {self.profile}"
        return " · ".join(
            (
                f"{self.name}: budget {self.budget}, {floor}",
                f"policy {self.policy} ({measured})" if policy.measures else f"policy {self.policy}",
                f"scorer {policy.fixed_scorer or self.scorer.name}",
                f"thinning {self.thinning}",
                "held in the model's own dtype" if self.kv_bits == 16 else f"held in {self.kv_bits} bits",
            )
        )

    def is_open(self, standing: Sequence[float]) -> bool:
        """Whether no passage stands out for one of the questions; `standing` is how far one did, for each."""
        return any(share < self.open_below for share in standing)

    def keeping_all(self, *, kv_bits: int | None = None) -> Self:
        """The preset with everything kept and nothing thinned, in no more than `kv_bits` bits."""
        bits, whole = min(self.kv_bits, kv_bits or self.kv_bits), FULL_BUDGET
        return replace(self, budget=whole, policy="full", floor_tokens=0, thinning="none", kv_bits=bits)

    @property
    def profile_path(self) -> Path | None:
        """The file of the profile, or None without one. Raises UsageError when the preset lies in no folder."""
        if self.profile is None:
            return None
        if self.folder is None:
            message = f"preset {self.name} names the profile {self.profile}, and was read from no folder"
            raise UsageError(message, hint=f"save the preset, and load it: uncomp preset show {self.name}")
        return Path(self.folder) / f"{self.profile}.safetensors"

    @property
    def model(self) -> str | None:
        """The model that the profile was measured on, by the head of its file; None for a preset that is for any."""
        path = self.profile_path
        if path is None:
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                described = json.loads((file.metadata() or {})["uncomp_profile"])
            return str(described["fingerprint"]["name"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"profile {path} is damaged", hint="measure it again: uncomp calibrate -m MODEL"
            ) from error

    @property
    def measured_loss(self) -> QualityPoint | None:
        """What was measured of its own budget."""
        return next((point for point in self.quality if Budget.parse(point.budget) == self.budget), None)

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON; `from_plain` makes an equal preset of it."""
        return {**asdict(self), "budget": str(self.budget), "quality": [*map(asdict, self.quality)]}

    def to_dict(self) -> dict[str, Any]:
        """Plain data as in the file."""
        data = self.to_plain()
        del data["folder"]
        return {"schema_version": SCHEMA_VERSION, **data}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_plain`, also after JSON; raises UsageError for keys and values of another kind."""
        folder = {"folder": data["folder"]} if "folder" in data else {}
        return replace(read(cls, {key: value for key, value in data.items() if key != "folder"}), **folder)


def preset(
    name: str | None = None,
    *,
    budget: Budget | str | None = None,
    policy: str | None = None,
    scorer: str | None = None,
    thinning: str | None = None,
    floor_tokens: int | None = None,
    kv_bits: int | None = None,
    seed: int = 0,
    max_loss: str | None = None,
) -> Preset:
    """The named preset (or the default one) with what is given, and the seed, in place of its own.

    A budget that is named is taken at its word: no floor, unless `floor_tokens` names one too. A policy without a named
    preset is measured live, so no profile goes with it; one that measures nothing has the plain scorer, since agreement
    needs to know whom to trust. A profile stays as well when `thinning` goes by it. `max_loss` takes the smallest
    budget that was measured to lose no more; DoesNotFitError when there is none.
    """
    if max_loss is not None and budget is not None:
        message = f"--max-loss {max_loss} and --budget {budget} both choose the budget"
        raise UsageError(message, hint="leave one of the two out")
    stored, alone = load_preset(name or DEFAULT_PRESET), name is None and policy is not None
    chosen = _with_budget(stored, budget=budget, policy=policy)
    if floor_tokens is not None and chosen.policy != "full":
        chosen = replace(chosen, floor_tokens=floor_tokens)
    if thinning is None and (chosen.policy == "full" or alone):
        thinning = "none"  # full keeps everything; a policy that was named alone is judged alone
    if thinning is not None:
        chosen = replace(chosen, thinning=make_thinning(thinning).text)
    measures = make_policy(chosen.policy).measures
    # A loss holds on the profile's model alone.
    if alone or not (measures or make_thinning(chosen.thinning).measures or max_loss is not None):
        chosen = replace(chosen, profile=None)
    if alone and not measures:
        chosen = replace(chosen, scorer=ScorerConfig())
    chosen = _with_scorer(chosen, scorer)
    if policy is not None or kv_bits is not None:
        chosen = replace(chosen, risk=())  # what was measured under the preset's own
    bits = chosen.kv_bits if kv_bits is None else kv_bits
    chosen = replace(chosen, scorer=replace(chosen.scorer, seed=seed), kv_bits=bits)
    return chosen if max_loss is None else _with_loss(chosen, stored, max_loss)


def _with_budget(preset: Preset, *, budget: Budget | str | None, policy: str | None) -> Preset:
    """The preset with another budget and policy; what keeps everything and what does not must agree."""
    policy_name = policy or preset.policy
    wanted = preset.budget if budget is None else Budget.of(budget)
    if policy_name == "full" and budget is not None and wanted.kind != "full":
        source = "policy full" if policy == "full" else f"preset {preset.name}"
        raise UsageError(f"{source} keeps everything, budget {budget} does not", hint="leave one of the two out")
    if policy not in (None, "full") and wanted.kind == "full":
        source = f"preset {preset.name}" if budget is None else "budget full"
        raise UsageError(f"{source} keeps everything, policy {policy} has nothing to spread", hint="add --budget 20%")
    if policy_name == "full" or wanted.kind == "full":
        return replace(preset, budget=FULL_BUDGET, policy="full", floor_tokens=0)
    floor = preset.floor_tokens if budget is None else 0  # a budget that was named is taken at its word
    return replace(preset, budget=wanted, policy=policy_name, floor_tokens=floor)


def _with_scorer(preset: Preset, scorer: str | None) -> Preset:
    """The preset with another scorer; raises UsageError when its policy has one of its own."""
    if scorer is None:
        return preset
    fixed = make_policy(preset.policy).fixed_scorer
    if fixed not in (None, scorer):
        raise UsageError(
            f"policy {preset.policy} has its own scorer, {fixed}, and cannot use {scorer}",
            hint=f"--policy uniform --scorer {scorer}",
        )
    return replace(preset, scorer=replace(preset.scorer, name=scorer))


def _with_loss(preset: Preset, stored: Preset, max_loss: str) -> Preset:
    """`preset` with the smallest budget that holds `max_loss`, as long as it is what `stored` was measured with."""
    loss = parse_loss(max_loss)
    if not stored.quality or stored.profile is None:
        raise DoesNotFitError(
            f"preset {stored.name} has no quality that was measured on a known model, so --max-loss {max_loss} is open",
            hint="measure it: uncomp calibrate --quality; or name a --budget",
        )
    for flag, measured, given in (
        ("--policy", (stored.policy, stored.profile), (preset.policy, preset.profile)),
        ("--scorer", stored.scorer.name, preset.scorer.name),
        ("--kv-bits", stored.kv_bits, preset.kv_bits),
        ("--thin", stored.thinning, preset.thinning),
    ):
        if measured != given:
            message = f"--max-loss {max_loss} holds for preset {stored.name} as measured, not with another {flag}"
            raise UsageError(message, hint=f"leave {flag} out, or name a --budget in place of --max-loss")
    point = smallest_budget(stored.quality, loss)
    return _with_budget(replace(preset, budget=Budget.parse(point.budget)), budget=None, policy=None)


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


def read_presets() -> tuple[list[Preset], list[UncompError]]:
    """All presets by name, and what is wrong with the files that are none."""
    presets: list[Preset] = []
    broken: list[UncompError] = []
    for _, path in sorted(_preset_files().items()):
        try:
            presets.append(_read(path))
        except UncompError as error:
            broken.append(error)
    return presets, broken


def load_preset(name_or_path: str) -> Preset:
    """The preset with this name, or in this file.

    Raises UsageError for an unknown name, key or value, and when the profile that it names is not there.
    """
    if is_preset_file(name_or_path):
        return _read(Path(name_or_path))
    known = _preset_files()
    if name_or_path not in known:
        hint = did_you_mean(name_or_path, known, "uncomp preset list")
        raise UsageError(f"unknown preset '{name_or_path}'", hint=hint)
    return _read(known[name_or_path])


def is_preset_file(name_or_path: str) -> bool:
    """Whether it is a path, and no name."""
    path = Path(name_or_path)
    return path.suffix == ".json" or len(path.parts) > 1


def save_preset(preset: Preset, folder: Path, profile: "UncertaintyProfile | None" = None) -> Path:
    """Write NAME.json into `folder`, which is made, and return its path; an older file of the name is replaced.

    `profile` is written before it as PROFILE.safetensors (NAME when the preset names none); without it, one that the
    preset names must be there. A file is written as a whole or not at all. Raises UsageError for a name that is no
    file's, UncompError when the folder cannot be written.
    """
    if not _is_stem(preset.name):
        raise UsageError(f"preset name {preset.name!r} is no name of a file", hint="use letters, digits, - and _")
    if profile is not None:
        preset = replace(preset, profile=preset.profile or preset.name)
    preset = replace(preset, folder=str(folder.absolute()))
    target = folder / f"{preset.name}.json"
    data = (json.dumps(preset.to_dict(), indent=2, allow_nan=False) + "\n").encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(target, lambda stream: stream.write(data), renaming=_profile_first(preset, profile))
    except OSError as error:
        message = f"preset {target} cannot be written: {error.strerror or error}"
        raise UncompError(message, hint="name another place with -o") from error
    return target


def remove_preset(name: str) -> tuple[Path, ...]:
    """Delete one of the user's own presets, and its profile unless another preset in the folder may name it.

    Returns the files that were deleted; raises UsageError for any other preset.
    """
    folder = user_preset_dir()
    path = folder / f"{name}.json"
    if Path(name).name != name or not path.is_file():
        raise UsageError(f"'{name}' is not one of your own presets", hint="uncomp preset list")
    own = _named_profiles(path) or set()
    for other in folder.glob("*.json"):
        if other != path:
            named = _named_profiles(other)
            own = set() if named is None else own - named
    path.unlink()
    profiles = [file for profile in own if (file := folder / f"{profile}.safetensors").is_file()]
    for file in profiles:
        file.unlink()
    return (path, *profiles)


def _preset_files() -> dict[str, Path]:
    return {path.stem: path for folder in (shipped_preset_dir(), user_preset_dir()) for path in folder.glob("*.json")}


def _is_stem(text: str) -> bool:
    """Whether `text` can name a file in a folder on any system; its suffix is added."""
    edges = text != text.strip() or text.startswith(".") or text.endswith((".json", ".safetensors", "."))
    return bool(text) and text.isprintable() and not edges and not set('/\\:*?"<>|') & set(text)


def _named_profiles(path: Path) -> set[str] | None:
    """The profile that a preset file names, whatever else is in it; None when that cannot be read."""
    try:
        profile = load_object(path).get("profile")
    except UsageError:
        return None
    return {profile} if isinstance(profile, str) and _is_stem(profile) else set()


@contextmanager
def _profile_first(preset: Preset, profile: "UncertaintyProfile | None") -> Iterator[None]:
    """Write the profile where the preset names it, or make sure that it is there, before the preset says so."""
    path = preset.profile_path
    if profile is not None and path is not None:
        from uncomp_cli.uncertainty.profile import save_profile  # imports torch

        save_profile(profile, path)
    _check_profile(preset)
    yield


def _check_profile(preset: Preset) -> None:
    path = preset.profile_path
    if path is not None and not path.is_file():
        raise UsageError(
            f"preset {preset.name} names the profile {preset.profile}, and {path} does not exist",
            hint="put the file back, or make both again: uncomp calibrate",
        )


def _read(path: Path) -> Preset:
    with inside(f"preset file {path}"):
        data = load_object(path)
        take_version(data, SCHEMA_VERSION, again=f'write the preset again, with "schema_version": {SCHEMA_VERSION}')
        preset = replace(read(Preset, data), folder=str(path.absolute().parent))
        if preset.name != path.stem:
            raise UsageError(
                f"it is named '{path.stem}', the preset in it '{preset.name}'",
                hint=f'rename the file to {preset.name}.json, or write "name": "{path.stem}" in it',
            )
        _check_profile(preset)
    return preset
