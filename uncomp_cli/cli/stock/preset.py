"""`uncomp preset`: what a preset sets and what was measured for it, shipped and own.

A preset that was calibrated has a profile, the uncertainty of a model's layers and heads, and the loss of its budgets.
`plot` shows the profile, and what the preset's policy keeps by it, layer by head, of a prompt whose question competes
with the document, as in `uncomp ask`: its first tokens and the question's last are always kept; there is no template.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uncomp_cli.cli.declare.completion import preset_names
from uncomp_cli.cli.declare.options import Json, terminal_of
from uncomp_cli.cli.declare.tree import argument, command_of, group, option
from uncomp_cli.cli.judge.trial import check_plot
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.numerals import format_count
from uncomp_cli.table import Table, bound
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.heatmap import HeatMap, write_heat_map
from uncomp_cli.ui.meter import loading

if TYPE_CHECKING:
    from uncomp_cli.budget.loss_curve import QualityPoint
    from uncomp_cli.budget.plan import BudgetPlan
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.spec import ModelSpec
    from uncomp_cli.uncertainty.profile import ModelFingerprint, UncertaintyProfile


PLOT_TOKENS = 2000
_BAR = 40  # columns of the longest bar
_LOSES = (
    "loses: share of the likelihood of an answer's token against the full cache, and its 95 % interval, as measured on "
    "the preset's model and the tasks of its calibration: others lose more; `uncomp preset show NAME` has other budgets"
)

app = group("preset", "List, show, plot, check and remove presets.")

AnyName = Annotated[str, argument("Name or file.", "NAME|PATH", preset_names)]
OwnName = Annotated[str, argument("Name of one of your own presets.", "NAME", preset_names)]


@command_of(app, "list")
def list_all(ctx: typer.Context, as_json: Json = False) -> None:
    """List presets: the shipped ones and your own."""
    from uncomp_cli.budget.presets import read_presets

    terminal, (presets, broken) = terminal_of(ctx), read_presets()
    for error in broken:
        terminal.warn(f"left out: {error.message}; uncomp preset validate tells more")
    if as_json:
        terminal.write_json([preset.to_dict() for preset in presets])
        return
    rows = [(p.name, str(p.budget), _model_of(p), _loss_of(p), p.description) for p in presets]
    table = Table(("NAME", "BUDGET", "MODEL", "LOSES", "WHEN TO TAKE IT"), rows, notes=[_LOSES])
    terminal.write_tables([table])


def _model_of(preset: "Preset") -> str:
    try:
        return preset.model or "any"
    except UsageError:
        return "damaged profile"


def _loss_of(preset: "Preset") -> str:
    """The measured loss of its own budget, with its interval."""
    if preset.policy == "full":
        return "nothing"
    point = preset.measured_loss
    if point is None:
        return "not measured"
    low, high = (max(0.0, 100 * value) for value in (point.loss_low, point.loss_high))
    return f"{max(0.0, 100 * point.loss):.1f} % {bound(f'({low:.1f} to {high:.1f})')}"


@command_of(app, "show")
def show(ctx: typer.Context, name: AnyName, as_json: Json = False) -> None:
    """Show everything that a preset sets, and what was measured for it."""
    from uncomp_cli.budget.loss_curve import quality_table
    from uncomp_cli.budget.presets import load_preset

    terminal, preset = terminal_of(ctx), load_preset(name)
    record = preset.to_dict()
    profile = None if preset.profile_path is None else _load(preset.profile_path, terminal)
    if as_json:
        terminal.write_json(record if profile is None else {**record, "measured": _measured(profile)})
        return
    settings = {key: value for key, value in record.items() if key not in ("quality", "risk", "absent")}
    measured = () if profile is None else _measured_rows(profile)
    terminal.write_table(Table(("SETTING", "VALUE"), [*_flat(settings), *_risk_rows(preset), *measured]))
    if preset.quality:
        terminal.write_line()
        terminal.write_table(quality_table(preset.quality))


@command_of(app, "plot")
def plot(
    ctx: typer.Context,
    name: AnyName,
    measure: Annotated[
        str | None,
        option(
            "--measure",
            help="Which of the measures of the preset's profile to show: entropy/q/r1/4, lmba/sinkfree.",
            metavar="KEY",
            show_default="the one that its policy uses",
            setting=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        option(
            "--plot", help="Draw pictures into this directory too.", metavar="DIR", show_default=False, setting=False
        ),
    ] = None,
    tokens: Annotated[
        int,
        option(
            "--tokens", help="Length of the prompt that the budget is spread over.", metavar="N", min=64, setting=False
        ),
    ] = PLOT_TOKENS,
    as_json: Json = False,
) -> None:
    """Show the uncertainty and the tokens kept of every layer and head as heat maps, and the loss of every budget."""
    from uncomp_cli.budget.presets import load_preset

    terminal, preset = terminal_of(ctx), load_preset(name)
    check_plot(folder)
    profile = _profile_of(preset, terminal)
    key = _shown_measure(preset, profile, measure)
    plan = _plan(preset, profile, tokens, terminal)
    maps = (_uncertainty_map(preset, profile, key), _kept_map(preset, profile, plan))
    drawn = [] if folder is None else _draw(preset, maps, folder, terminal)
    if as_json:
        terminal.write_json(_plot_record(preset, profile, plan, key) | {"pictures": [str(path) for path in drawn]})
        return
    write_heat_map(maps[0], terminal)
    terminal.write_line()
    write_heat_map(maps[1], terminal)
    if preset.quality:
        terminal.write_line()
        terminal.write_line(f"{preset.name}: loss by budget")
        for line in loss_lines(preset.quality):
            terminal.write_line(line)


@command_of(app, "validate")
def validate(
    ctx: typer.Context, path: Annotated[str, argument("File to check.", "PATH")], as_json: Json = False
) -> None:
    """Check a preset file and its profile; an unknown key, a bad value or a damaged profile ends with exit code 2."""
    from uncomp_cli.budget.presets import load_preset

    terminal, preset = terminal_of(ctx), load_preset(path)
    if preset.profile_path is not None:
        _load(preset.profile_path, terminal)
    if as_json:
        terminal.write_json({"schema_version": 1, "path": path, "name": preset.name, "valid": True})
    else:
        terminal.write_line(f"{path}: valid preset '{preset.name}'")


@command_of(app, "remove")
def remove(ctx: typer.Context, name: OwnName) -> None:
    """Delete one of your own presets; shipped ones stay."""
    from uncomp_cli.budget.presets import remove_preset

    _, *profiles = remove_preset(name)
    also = "".join(f" and its profile {path.name}" for path in profiles)
    terminal_of(ctx).note(f"removed preset '{name}'{also}")


def _load(path: Path, terminal: Terminal) -> "UncertaintyProfile":
    with loading(terminal, "reading the profile"):
        from uncomp_cli.uncertainty.profile import load_profile

        return load_profile(path)


def _measured(profile: "UncertaintyProfile") -> dict[str, Any]:
    """What the profile holds, with the mean of every measure [L][X] in place of its samples."""
    from dataclasses import asdict

    return {
        "model": asdict(profile.fingerprint),
        "samples": len(profile.samples),
        "tokens": sum(sample.tokens for sample in profile.samples),
        "created": profile.parameters.get("created"),
        "parameters": dict(profile.parameters),
        "means": {key: [list(row) for row in profile.as_rows(key)] for key in profile.values},
    }


def _risk_rows(preset: "Preset") -> Iterator[tuple[str, str]]:
    """A row for each calibration of `--risk`: how the texts were read, how many, how long, and how well it tells."""
    for curve in preset.risk:
        told = f"AUROC of wrong answers {curve.auroc:.2f} ({curve.auroc_low:.2f} to {curve.auroc_high:.2f})"
        answers = f"{format_count(curve.samples)} answers of {_lengths(curve.tokens)}"
        yield f"risk.{curve.rope or 'any'}", f"{answers}, {told}"
    if preset.absent is not None:
        shares = (
            f"{100 * preset.absent.caught:.0f} % of such questions, {100 * preset.absent.alarms:.0f} % of the others"
        )
        asked = f"{format_count(preset.absent.samples)} questions; for texts of {_lengths(preset.absent.tokens)}"
        yield "absent", f"not in the document: said of {shares}, {asked}"


def _lengths(tokens: "Sequence[int]") -> str:
    return f"{format_count(min(tokens))} to {format_count(max(tokens))} tokens" if tokens else "any length"


def _measured_rows(profile: "UncertaintyProfile") -> Iterator[tuple[str, str]]:
    model, lengths = profile.fingerprint, [sample.tokens for sample in profile.samples]
    least, most = format_count(min(lengths)), format_count(max(lengths))
    each = f"{least} each" if least == most else f"{least} to {most} each"
    shape = f"{model.num_layers} layers, {model.num_heads} query and {model.num_kv_heads} KV heads"
    yield "measured.model", f"{model.name} ({shape})"
    yield "measured.weights", model.weights_sha256
    yield "measured.samples", format_count(len(profile.samples))
    yield "measured.tokens", f"{format_count(sum(lengths))} ({each})"
    yield "measured.created", str(profile.parameters.get("created") or "-")
    yield "measured.measures", ", ".join(profile.values)


def _flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`scorer: {window: 32}` as the row `scorer.window`, `32`."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "-" if value is None else str(value)


def _profile_of(preset: "Preset", terminal: Terminal) -> "UncertaintyProfile":
    """The profile of the preset; raises UsageError when it has none."""
    from uncomp_cli.budget.policies import make_policy

    if preset.profile_path is not None:
        return _load(preset.profile_path, terminal)
    live = bool(make_policy(preset.policy).measures)
    why = "it measures on your own prompt" if live else f"its policy, {preset.policy}, measures nothing"
    raise UsageError(
        f"preset {preset.name} has no profile to plot: {why}",
        hint="uncomp calibrate makes a preset with a profile; uncomp ask --why tells of your own prompt",
    )


def _shown_measure(preset: "Preset", profile: "UncertaintyProfile", wanted: str | None) -> str:
    """The measure that was asked for, else the policy's, else the profile's first."""
    from uncomp_cli.uncertainty.measures import canonical_keys

    if wanted is not None:
        profile.samples_of(wanted)
        return canonical_keys([wanted])[0]
    return _used_measure(preset, profile) or next(iter(profile.values))


def _used_measure(preset: "Preset", profile: "UncertaintyProfile") -> str | None:
    """The first of the policy's measures that the profile has; None when it needs none of them."""
    from uncomp_cli.budget.policies import make_policy

    return next((key for key in make_policy(preset.policy).measures if key in profile.values), None)


def _uncertainty_map(preset: "Preset", profile: "UncertaintyProfile", key: str) -> HeatMap:
    rows = profile.as_rows(key)
    return HeatMap(preset.name, key, _column(len(rows[0]), profile.fingerprint), rows)


def _kept_map(preset: "Preset", profile: "UncertaintyProfile", plan: "BudgetPlan") -> HeatMap:
    quantity = f"tokens kept of {format_count(plan.seq_len)}, budget {preset.budget}"
    return HeatMap(preset.name, quantity, _column(len(plan.kept[0]), profile.fingerprint), plan.kept)


def _plan(preset: "Preset", profile: "UncertaintyProfile", tokens: int, terminal: Terminal) -> "BudgetPlan":
    """What every head keeps of a prompt of `tokens`, of which its first and the question's last are always kept.

    Raises UsageError when the profile has nothing that the preset's policy can use.
    """
    from uncomp_cli.budget.policies import make_policy

    measures = make_policy(preset.policy).measures
    if measures and _used_measure(preset, profile) is None:
        message = f"the profile of preset {preset.name} has no {' and no '.join(measures)}, so it measures live"
        raise UsageError(message, hint="uncomp calibrate makes a preset with a profile of its own")
    spec = _spec_of(profile.fingerprint, terminal)
    with loading(terminal, "planning"):
        import torch

        from uncomp_cli.engine.spend.allocation import make_allocation
        from uncomp_cli.engine.spend.memory import free_bytes
        from uncomp_cli.engine.tokens.prompt import Prompt
        from uncomp_cli.engine.tokens.tokens import Tokens

        question = min(preset.scorer.recent, tokens - 1)
        protected = torch.arange(tokens - question) < preset.scorer.sinks
        prompt = Prompt(Tokens.of((0,) * (tokens - question), protected=protected), ((0,) * question,))
        available = free_bytes(torch.device("cpu"))
        return make_allocation(spec, preset, prompt, available=available).plan


def _spec_of(model: "ModelFingerprint", terminal: Terminal) -> "ModelSpec":
    """The shape of the measured model: its own where it is on this machine, else as far as the profile knows it."""
    spec = _local_spec(model)
    if spec is not None:
        return spec
    from uncomp_cli.spec import ModelSpec

    terminal.note(f"model {model.name} is not on this machine: taken as float32, with attention to all in every layer")
    hidden_size = model.num_heads * model.head_dim
    return ModelSpec(
        model_type=model.model_type,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        vocab_size=1,
        trained_length=1,
        dtype_bytes=4,
        sliding_windows=(None,) * model.num_layers,
    )


def _local_spec(model: "ModelFingerprint") -> "ModelSpec | None":
    """The shape of the model of this name, if there is one here and it is the one that was measured."""
    import torch

    from uncomp_cli.models.catalog import local_path, show_model
    from uncomp_cli.models.footprint import footprint
    from uncomp_cli.models.runnable import fingerprint_of

    try:
        path = local_path(model.name)
        if path is None:
            return None
        spec = footprint(path, dtype="auto", device=torch.device("cpu"), quantize="none").spec
        model.check(fingerprint_of(show_model(model.name), spec))
    except UncompError:
        return None
    return spec


def _column(width: int, model: "ModelFingerprint") -> str:
    """What one of `width` values in a layer belongs to."""
    if width == model.num_kv_heads:
        return "KV head"
    return "query head" if width == model.num_heads else "all heads"


def _plot_record(preset: "Preset", profile: "UncertaintyProfile", plan: "BudgetPlan", key: str) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "preset": preset.name,
        "model": profile.fingerprint.name,
        "policy": preset.policy,
        "policy_measure": _used_measure(preset, profile),
        "budget": str(preset.budget),
        "tokens": plan.seq_len,
        "entries": plan.entries,
        "measure": key,
        "uncertainty": [list(row) for row in profile.as_rows(key)],
        "kept": [list(row) for row in plan.kept],
    }


def loss_lines(points: "Sequence[QualityPoint]") -> Iterator[str]:
    """A bar a budget: what it loses, and in a lighter shade up to where its interval ends."""
    ordered = sorted(points, key=lambda point: point.kept_fraction)
    most = max(max(point.loss_high for point in ordered), 0.001)
    for point in ordered:
        sure, high = (round(_BAR * min(1.0, max(0.0, value) / most)) for value in (point.loss, point.loss_high))
        yield f"{point.budget:>8}  {100 * point.loss:6.2f} %  {'█' * sure}{'░' * (high - sure)}"


def _draw(preset: "Preset", maps: tuple[HeatMap, HeatMap], folder: Path, terminal: Terminal) -> list[Path]:
    """One picture a map, named by the preset and what it shows, and one of the loss by budget where it was measured."""
    with loading(terminal, "drawing"):
        from uncomp_cli.ui.figure import write
        from uncomp_cli.ui.plots import make_heat_map, make_quality

        figures = {maps[0].quantity.replace("/", "-"): make_heat_map(maps[0]), "kept": make_heat_map(maps[1])}
        if preset.quality:
            figures["quality"] = make_quality(preset.name, preset.quality)
        drawn = [write(figure, folder / f"{preset.name}-{name}.png") for name, figure in figures.items()]
    terminal.note(f"{format_count(len(drawn), 'picture')} in {folder}")
    return drawn
