"""The last part of `uncomp calibrate --risk`: what attention entropy says of wrong answers, for the preset just saved.

The preset is usable before this begins. Answers are kept in NAME.risk.jsonl until all are there, so that a command that
was stopped goes on; then the curve is in the preset, and the file goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from uncomp_cli.cli.calibrate.quality import HeldOut, open_journal
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.errors import UsageError
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import loading, show

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.calibrate.risk_fit import RiskFit
    from uncomp_cli.evals.rope.risk_samples import RiskRun
    from uncomp_cli.evals.tasks.task import Sample
    from uncomp_cli.models.extension import RopeChoice
    from uncomp_cli.models.loading import LoadedModel

__all__ = [
    "RiskChoice",
    "RiskOptions",
    "run_risk",
]

DEFAULT_SAMPLES = 20
DEFAULT_SHARES = (0.75, 1.5, 2.0)
"""Lengths of the texts, as shares of the length that the model was trained for."""
_PANEL = "Risk"


@dataclass(frozen=True, slots=True)
class RiskOptions:
    """Whether wrong answers are foreseen too, and how that is measured."""

    wanted: Annotated[
        bool,
        option(
            "--risk",
            help="Then measure what attention entropy says of wrong answers, past the trained length too.",
            panel=_PANEL,
            setting=False,
        ),
    ] = False
    samples: Annotated[
        int | None,
        option(
            "--risk-samples",
            help="Answers of each length to measure that on.",
            metavar="N",
            min=1,
            max=10_000,
            show_default=str(DEFAULT_SAMPLES),
            panel=_PANEL,
            setting=False,
        ),
    ] = None
    tokens: Annotated[
        tuple[int, ...],
        option(
            "--risk-tokens",
            help="Length of such a text; repeatable.",
            metavar="N",
            min=200,
            show_default="0.75, 1.5 and 2 times the trained length",
            panel=_PANEL,
            setting=False,
        ),
    ] = ()
    # No setting: how `uncomp ask` reads must not choose what a new preset holds.
    rope: Annotated[
        str | None,
        option(
            "--rope",
            help="How those texts are read past the trained length, as in `uncomp ask`.",
            metavar="CHOICE",
            show_default="auto",
            panel=_PANEL,
            setting=False,
        ),
    ] = None

    def choice(self) -> "RiskChoice | None":
        """What to measure, or None. Raises UsageError for a choice without --risk, and for a RoPE that is none."""
        from uncomp_cli.models.extension import parse_rope

        for flag, given in (("--risk-samples", self.samples), ("--risk-tokens", self.tokens), ("--rope", self.rope)):
            if given and not self.wanted:
                raise UsageError(f"{flag} chooses how risk is measured, and it is not", hint="add --risk")
        rope = parse_rope(self.rope or "auto")
        if not self.wanted or rope is None:
            return None
        return RiskChoice(self.samples or DEFAULT_SAMPLES, tuple(dict.fromkeys(self.tokens)), rope)


@dataclass(frozen=True, slots=True)
class RiskChoice:
    """Answers of each length, the lengths (none: by the trained length), and how what is longer is read."""

    samples: int
    tokens: tuple[int, ...]
    rope: "RopeChoice"

    def lengths(self, trained_length: int) -> tuple[int, ...]:
        """The lengths of the texts."""
        return self.tokens or tuple(round(share * trained_length) for share in DEFAULT_SHARES)


def run_risk(
    choice: RiskChoice, path: Path, *, loaded: "LoadedModel", source: HeldOut, terminal: Terminal
) -> "RiskFit":
    """Measure the preset in `path`, and write the curve into it.

    Raises UsageError when too few answers were right or wrong; the preset is then as it was, and the answers stay.
    """
    from uncomp_cli.budget.presets import load_preset, save_preset
    from uncomp_cli.calibrate.risk_fit import fit_risk
    from uncomp_cli.engine.look.watch import watched_heads
    from uncomp_cli.evals.rope.risk_samples import risk_samples

    preset = replace(load_preset(str(path.absolute())), risk=None)
    lengths = choice.lengths(loaded.info.trained_length)
    with loading(terminal, "preparing samples"):
        samples = risk_samples(source.maker, lengths, choice.samples, generated=source.generated)
    run, rope, kept = _measure(choice, preset, samples, path=path, loaded=loaded, source=source, terminal=terminal)
    if run.unwatched:
        terminal.note(f"{run.unwatched:,} answers were a single token: there is nothing to watch, they are left out")
    fit = fit_risk(
        run.answers,
        run.heads,
        costly=watched_heads(preset, loaded.spec),
        rope=rope,
        budget=str(preset.budget),
        scorer=preset.scorer.name,
    )
    save_preset(replace(preset, risk=fit.curve), path.parent)
    kept.unlink()
    return fit


def _measure(
    choice: RiskChoice,
    preset: "Preset",
    samples: "Sequence[Sample]",
    *,
    path: Path,
    loaded: "LoadedModel",
    source: HeldOut,
    terminal: Terminal,
) -> "tuple[RiskRun, str, Path]":
    """The answers, how their texts were read, and the file they are in; the model is turned back afterwards."""
    from uncomp_cli.evals.rope.risk_file import ANSWERS
    from uncomp_cli.evals.rope.risk_samples import measure_risk, risk_file_settings
    from uncomp_cli.models.rotary import resolve_rope, use_rope

    longest = max(sample.tokens + sample.queries[0].max_new_tokens for sample in samples)
    try:
        turned, note = resolve_rope(use_rope(loaded, choice.rope), choice.rope, tokens=longest)
        if note is not None:
            terminal.note(note)
        settings = risk_file_settings(turned, preset)
        with open_journal(path.with_suffix(".risk.jsonl"), ANSWERS, settings, source.fresh, terminal) as results:
            run = show(measure_risk(turned, preset, samples, results=results), terminal, kept=results.path)
        return run, str(turned.rope), results.path
    finally:
        use_rope(loaded, None)
