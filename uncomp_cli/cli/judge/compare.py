"""`uncomp compare`: one prompt under two settings side by side, by default the full cache and the chosen preset."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from uncomp_cli.cli.declare.options import (
    DOCUMENTS,
    File,
    ModelOptions,
    PresetOptions,
    Question,
    ReadingOptions,
    SamplingOptions,
    System,
    Truncate,
)
from uncomp_cli.cli.declare.tree import only, option
from uncomp_cli.cli.judge.trial import TableOptions
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_bytes, format_decimal, format_seconds
from uncomp_cli.table import Table
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import loading, show

if TYPE_CHECKING:
    from uncomp_cli.asking.request import Request
    from uncomp_cli.budget import presets
    from uncomp_cli.evals.judges.predictions import Comparison, Side


_MARKS = {"same": "{}", "first": "[-{}-]", "second": "{{+{}+}}"}


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What is read, and the other side."""

    file: File = ()
    against: Annotated[
        str,
        option(
            "--against",
            help="The other side: full, or POLICY[/SCORER][/8bit|/4bit][/published][/thin=THINNING]@BUDGET: "
            "uniform/keydiff@20%.",
            metavar="SETTING",
            panel="Compression",
        ),
    ] = "full"
    truncate: Truncate = None


def compare(
    ctx: typer.Context,
    words: Question = None,
    *,
    compared: CompareOptions,
    model: Annotated[
        ModelOptions,
        only("name", "tokenizer", "quantize", "weights", "device", "dtype", "rope", "context", "force", "offline"),
    ],
    preset: Annotated[PresetOptions, only("name", "budget", "policy", "scorer", "kv_bits", "thinning")],
    reading: Annotated[ReadingOptions, DOCUMENTS],
    system: System = None,
    sampling: Annotated[SamplingOptions, only("max_new_tokens", "seed")],
    output: TableOptions,
) -> None:
    """Answer one prompt under two settings. Shown are difference, divergence, bytes and times."""
    from uncomp_cli.asking.pipeline import tell_apart
    from uncomp_cli.asking.request import Request

    terminal = output.terminal(ctx)
    beside, question = tell_apart(words or (), asked=False)
    job = Request(
        paths=(*compared.file, *beside),
        questions=question,
        truncate=compared.truncate,
        model=model.choice(),
        preset=preset.choice(sampling.seed),
        system=system,
        sampling=sampling.config(),
        as_json=output.as_json,
        include=reading.include,
        wishes=reading.wishes(),
    )
    run_compare(job, compared.against, output, terminal)


def run_compare(job: "Request", against: str, output: TableOptions, terminal: Terminal) -> None:
    """Run one `uncomp compare`. What one side keeps is compared with all of it, so that neither is re-packed."""
    from uncomp_cli.asking.forecast import too_long_ahead
    from uncomp_cli.asking.material import build_prompt, describe_files
    from uncomp_cli.asking.pipeline import gather_documents, gather_questions
    from uncomp_cli.asking.readout import SCHEMA_VERSION, About, answer_record
    from uncomp_cli.asking.startup import check_context_fits, check_grows, length_warnings, lengthen, load

    check_grows(job.model, "a comparison")
    (question,) = show(gather_questions(job), terminal)
    documents = show(gather_documents(job), terminal)
    with loading(terminal, "preparing"):
        chosen, other = job.preset.stored(), parse_side(against, seed=job.sampling.seed)
    for refusal in show(too_long_ahead(job, documents, [question], chosen), terminal):
        raise refusal
    loaded = show(load(job.model), terminal)
    from uncomp_cli.models.runnable import fingerprint

    chosen, notes = job.preset.settled(fingerprint(loaded))
    for note in notes:
        terminal.note(note)
    check_context_fits(job.model, loaded, chosen)
    prompt, cut = build_prompt(job, documents, [question], loaded.tokenizer, loaded.spec, chosen)
    tokens = prompt.seq_len + job.sampling.max_new_tokens
    loaded = show(lengthen(loaded, job.model.rope_choice, tokens, grows=True), terminal)
    unsure = list(length_warnings(loaded, prompt.seq_len))
    for warning in unsure:
        terminal.warn(warning)
    from uncomp_cli.evals.judges import predictions as comparison

    done = show(comparison.compare(loaded, prompt, (other, chosen), job.sampling), terminal)
    if output.csv:
        terminal.write_csv(*csv_rows(done))
        return
    if not output.as_json:
        _write(done, terminal, wide=output.wide)
        return
    files = describe_files(documents, loaded.tokenizer, cut)
    sides = [
        answer_record(
            About(loaded, lambda: files, [*documents.warnings, *unsure], job.sampling.seed),
            side.preset,
            side.stats,
            question=question,
            answer=side.answer,
        )
        for side in done.sides
    ]
    terminal.write_json(
        {
            "schema_version": SCHEMA_VERSION,
            "sides": sides,
            "fidelity": done.metrics,
            "first_divergence": done.first_divergence,
        }
    )


def parse_side(text: str, *, seed: int) -> "presets.Preset":
    """The setting in `CONTESTANT[@BUDGET]`; raises UsageError when a budget is missing or contradicts."""
    from uncomp_cli.budget.amount import Budget
    from uncomp_cli.evals.judges.contestants import FULL, parse_contestant

    contestant, _, budget = text.partition("@")
    preset = parse_contestant(contestant, seed=seed)
    if preset.policy == FULL and budget not in ("", FULL):
        raise UsageError(f"setting '{text}': policy full keeps everything", hint="write full, or uniform@20%")
    if preset.policy != FULL and not budget:
        raise UsageError(f"setting '{text}' has no budget", hint=f"write {text}@20%")
    return replace(preset, budget=Budget.parse(budget or FULL))


def _write(done: "Comparison", terminal: Terminal, *, wide: bool) -> None:
    from uncomp_cli.evals.judges.predictions import word_diff

    for side in done.sides:
        terminal.write_line(f"{_label(side)}:")
        terminal.write_answer(f"{side.answer}\n\n")
    if done.first_divergence is None:
        terminal.write_line("the answers are the same")
        terminal.write_line()
    else:
        words = (_MARKS[kind].format(text) for kind, text in word_diff(*(side.answer for side in done.sides)))
        terminal.write_line("[-only the first-] {+only the second+}:")
        terminal.write_answer(f"{' '.join(words)}\n\n")
    terminal.write_table(compared_table(done), wide=wide)
    if done.metrics is not None:
        terminal.write_line()
        terminal.write_line(
            f"along the first answer: KL {done.metrics['kl']:.3g} nats a token (99th percentile "
            f"{done.metrics['kl_p99']:.3g}), same most likely token in {100 * done.metrics['agreement']:.0f} %"
        )
    if done.first_divergence is not None:
        terminal.write_line(f"the answers part at token {done.first_divergence + 1}")


def _label(side: "Side") -> str:
    """`small: uniform/window 20%`, with its bits when they are few, and its thinning; the full cache is `full`."""
    preset = side.preset
    more = "" if preset.kv_bits == 16 else f", {preset.kv_bits} bits"
    more += "" if preset.thinning == "none" else f", thin {preset.thinning}"
    if preset.policy == str(preset.budget):
        return f"{preset.policy}{more}"
    from uncomp_cli.engine.spend.allocation import scorer_config

    return f"{preset.name}: {preset.policy}/{scorer_config(preset).name} {preset.budget}{more}"


def compared_table(done: "Comparison") -> Table:
    """A row a side, and the second's figures over the first's."""
    sides = [side.stats for side in done.sides]
    rows = [
        (
            _label(side),
            format_bytes(stats.kv_bytes),
            f"{100 * stats.kv_share.of_16_bit:.1f} %",
            format_seconds(stats.ttft_s),
            "-" if stats.decode_tok_s is None else format_decimal(stats.decode_tok_s),
        )
        for side, stats in zip(done.sides, sides, strict=True)
    ]
    kv, ttft, speed = ([getattr(s, name) for s in sides] for name in ("kv_bytes", "ttft_s", "decode_tok_s"))
    ratios = ("second / first", _ratio(*kv), "", _ratio(*ttft), _ratio(*speed))
    return Table(("SETTING", "KV", "OF 16 BITS", "FIRST TOKEN", "DECODE TOK/S"), [*rows, ratios])


def csv_rows(done: "Comparison") -> tuple[list[str], list[list[object]]]:
    """Columns and rows for a spreadsheet: a row a side; how far the second is from the first stands in its row."""
    names = ["kv_bytes", "kept_fraction", "ttft_s", "decode_tok_s"]
    apart = {"first_divergence": done.first_divergence, **(done.metrics or {})}
    rows: list[list[object]] = [
        [_label(side), *(getattr(side.stats, name) for name in names), *(apart.values() if at else [None] * len(apart))]
        for at, side in enumerate(done.sides)
    ]
    return ["setting", *names, *apart], rows


def _ratio(first: float | None, second: float | None) -> str:
    return f"{second / first:.3g}x" if first and second else "-"
