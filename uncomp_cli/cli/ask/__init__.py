"""`uncomp ask`: questions about documents, answered from a compressed cache.

Documents are read before anything heavy is loaded; a run that cannot fit is refused before it starts.
"""

from pathlib import Path
from typing import Annotated

import typer

from uncomp_cli.cli.ask.ask_job import AskJob
from uncomp_cli.cli.ask.pins import parse_pin
from uncomp_cli.cli.ask.prepare import ModelChoice
from uncomp_cli.cli.ask.road import run_ask
from uncomp_cli.cli.declare.cache_options import DEFAULT_CACHE_SIZE, CacheSize, Reuse, SaveCache
from uncomp_cli.cli.declare.limits import limits_of
from uncomp_cli.cli.declare.options import (
    COMPRESSION_PANEL,
    OUTPUT_PANEL,
    Budget,
    Chunk,
    ConstantSize,
    Context,
    Device,
    Dtype,
    Force,
    Json,
    KvBits,
    KvMem,
    MatMul,
    MaxLoss,
    MaxNewTokens,
    MinP,
    Model,
    Offline,
    Policy,
    Preset,
    Quantize,
    Quiet,
    RepetitionPenalty,
    Rope,
    Scorer,
    Seed,
    System,
    Temperature,
    Thin,
    Tokenizer,
    TopK,
    TopP,
    Truncate,
    terminal_of,
)
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig

__all__ = ["ask"]

_SAMPLING = SamplingConfig()


def ask(
    ctx: typer.Context,
    question: Annotated[
        str | None, typer.Argument(help="The question.", metavar="QUESTION", show_default=False)
    ] = None,
    file: Annotated[
        list[str] | None,
        option(
            "--file",
            "-f",
            help="File, directory, glob, or - for standard input; repeatable.",
            metavar="PATH",
            show_default="standard input",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        option(
            "--include",
            help="In directories, only files like this, such as '*.md'; repeatable.",
            metavar="GLOB",
            show_default=False,
        ),
    ] = None,
    more: Annotated[
        list[str] | None,
        # No setting: a question may hold any character, so that none could separate two in a variable.
        typer.Option(
            "--question",
            "-Q",
            help="A further question over the same prefill; repeatable.",
            metavar="QUESTION",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        option("--questions", help="File with one question a line.", metavar="PATH", show_default=False),
    ] = None,
    each: Annotated[
        bool,
        option("--each", help="Ask every document by itself; answers are written file by file."),
    ] = False,
    pin: Annotated[
        list[str] | None,
        option(
            "--pin",
            help="Lines of a document that are never dropped from the cache, such as notes.md:10-40; repeatable.",
            metavar="FILE:LINES",
            panel=COMPRESSION_PANEL,
            show_default=False,
        ),
    ] = None,
    escalate: Annotated[
        bool,
        option(
            "--escalate",
            help="When the retrieval heads are unusually uncertain, ask again with twice the budget, up to full.",
            panel=COMPRESSION_PANEL,
        ),
    ] = False,
    fail_under: Annotated[
        float | None,
        option(
            "--fail-under",
            help="Exit with 5 when an answer's calibrated chance of being right is below this, such as 0.8.",
            metavar="CHANCE",
            panel=OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    evidence: Annotated[
        bool,
        option(
            "--evidence",
            help="Then show the passages that the answer looked at most, and how much of them was kept.",
            panel=OUTPUT_PANEL,
        ),
    ] = False,
    truncate: Truncate = None,
    dry_run: Annotated[
        bool, option("--dry-run", help="Only say what it would take: tokens, bytes, fits or not.")
    ] = False,
    explain_budget: Annotated[
        bool,
        option("--explain-budget", help="Then say where the bytes went: layers, head groups and what was measured."),
    ] = False,
    model: Model = DEFAULT_MODEL,
    tokenizer: Tokenizer = None,
    quantize: Quantize = "none",
    device: Device = "auto",
    dtype: Dtype = "auto",
    rope: Rope = None,
    context: Context = None,
    force: Force = False,
    matmul: MatMul = "float32",
    offline: Offline = False,
    preset: Preset = None,
    budget: Budget = None,
    max_loss: MaxLoss = None,
    policy: Policy = None,
    scorer: Scorer = None,
    kv_bits: KvBits = None,
    thin: Thin = None,
    chunk: Chunk = "auto",
    kv_mem: KvMem = "auto",
    constant_size: ConstantSize = False,
    save_cache: SaveCache = None,
    reuse: Reuse = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    system: System = None,
    max_new_tokens: MaxNewTokens = _SAMPLING.max_new_tokens,
    temperature: Temperature = _SAMPLING.temperature,
    top_p: TopP = _SAMPLING.top_p,
    top_k: TopK = _SAMPLING.top_k,
    min_p: MinP = _SAMPLING.min_p,
    repetition_penalty: RepetitionPenalty = _SAMPLING.repetition_penalty,
    seed: Seed = _SAMPLING.seed,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask questions about documents."""
    sampling = SamplingConfig(temperature, top_p, top_k, min_p, repetition_penalty, seed, max_new_tokens)
    job = AskJob(
        paths=tuple(file or ()),
        include=tuple(include or ()),
        questions=((question,) if question is not None else ()) + tuple(more or ()),
        questions_file=questions,
        truncate=truncate,
        dry_run=dry_run,
        model=ModelChoice(model, tokenizer, quantize, device, dtype, offline, rope, context=context, force=force),
        preset=preset,
        budget=budget,
        policy=policy,
        scorer=scorer,
        kv_bits=None if kv_bits is None else int(kv_bits),
        system=system,
        sampling=sampling,
        as_json=as_json,
        max_loss=max_loss,
        explain_budget=explain_budget,
        thinning=thin,
        limits=limits_of(chunk, kv_mem, constant_size=constant_size),
        matmul=matmul,
        each=each,
        evidence=evidence,
        pins=tuple(parse_pin(text) for text in pin or ()),
        save_cache=save_cache,
        reuse=reuse,
        cache_size=cache_size,
        escalate=escalate,
        fail_under=fail_under,
    )
    raise typer.Exit(run_ask(job, terminal_of(ctx, quiet=quiet)))
