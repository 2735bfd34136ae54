"""The options that several commands share, each declared once; a command's signature gives the default.

    def ask(ctx: typer.Context, model: Model = DEFAULT_MODEL, seed: Seed = SamplingConfig().seed) -> None: ...

Every one is also an environment variable and a key of the configuration file (see `tree.option`). Those of the model
are model_options.py's.
"""

from dataclasses import replace
from typing import Annotated, Literal

import typer

from uncomp_cli.budget.policies import POLICIES
from uncomp_cli.budget.presets import DEFAULT_PRESET
from uncomp_cli.budget.thinning import THINNINGS
from uncomp_cli.cli.declare.model_options import (
    Context,
    Device,
    Dtype,
    Force,
    MatMul,
    Model,
    Offline,
    Quantize,
    Rope,
    Tokenizer,
    model_names,
)
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.ui.console import Terminal

__all__ = [
    "Budget",
    "Chunk",
    "ConstantSize",
    "Context",
    "Device",
    "Dtype",
    "Force",
    "Json",
    "KvBits",
    "KvMem",
    "MatMul",
    "MaxLoss",
    "MaxNewTokens",
    "MinP",
    "Model",
    "Offline",
    "Policy",
    "Preset",
    "Quantize",
    "Quiet",
    "RepetitionPenalty",
    "Rope",
    "Scorer",
    "Seed",
    "System",
    "Temperature",
    "Thin",
    "Tokenizer",
    "TopK",
    "TopP",
    "Truncate",
    "model_names",
    "policy_names",
    "preset_names",
    "terminal_of",
]


def preset_names(incomplete: str) -> list[str]:
    """Completions of a preset's name."""
    from uncomp_cli.budget.presets import list_presets

    return [preset.name for preset in list_presets() if preset.name.startswith(incomplete)]


def policy_names(incomplete: str) -> list[str]:
    """Completions of a policy's name."""
    return [name for name in POLICIES if name.startswith(incomplete)]


def thinning_names(incomplete: str) -> list[str]:
    """Completions of a thinning's name."""
    return [name for name in THINNINGS if name.startswith(incomplete)]


COMPRESSION_PANEL = "Compression"
GENERATION_PANEL = "Generation"
OUTPUT_PANEL = "Output"

_OF_PRESET = "the preset's"

Preset = Annotated[
    str | None,
    option(
        "--preset",
        "-p",
        help="Policy, scorer and budget under one name, or a preset file.",
        metavar="NAME|PATH",
        panel=COMPRESSION_PANEL,
        autocompletion=preset_names,
        show_default=DEFAULT_PRESET,
    ),
]
Budget = Annotated[
    str | None,
    option(
        "--budget",
        "-b",
        help="KV cache to keep: 10% of full, 512 (tokens per KV head), 256MiB, auto (fits free memory) or full.",
        metavar="AMOUNT",
        panel=COMPRESSION_PANEL,
        show_default=_OF_PRESET,
    ),
]
Policy = Annotated[
    str | None,
    option(
        "--policy",
        help=f"How the budget is spread over layers and heads: {', '.join(POLICIES)}.",
        autocompletion=policy_names,
        metavar="NAME[:KEY=VALUE,…]",
        panel=COMPRESSION_PANEL,
        show_default=_OF_PRESET,
    ),
]
MaxLoss = Annotated[
    str | None,
    option(
        "--max-loss",
        help="Take the preset's smallest budget whose measured loss is at most this by its upper bound, such as 1%; "
        "refused when there is none. The loss is the share of its likelihood that a token of the answer loses.",
        metavar="PERCENT",
        panel=COMPRESSION_PANEL,
        show_default=False,
    ),
]
Scorer = Annotated[
    str | None,
    option(
        "--scorer",
        help="How tokens are ranked when some must go.",
        metavar="NAME",
        panel=COMPRESSION_PANEL,
        show_default=_OF_PRESET,
    ),
]
KvBits = Annotated[
    Literal["16", "8", "4"] | None,
    option(
        "--kv-bits",
        help="Bits in which the kept part of the document is held: 8, 4, or 16 for the model's own number format. "
        "A budget in per cent is one of the full cache in that format, so with fewer bits more tokens fit.",
        panel=COMPRESSION_PANEL,
        show_default=_OF_PRESET,
    ),
]
Thin = Annotated[
    str | None,
    option(
        "--thin",
        help="Which tokens of the document enter the later layers while it is read: none (all), "
        "gather:after=8,keep=0.2 (a part of them from one layer on), stages, uncertain.",
        metavar="NAME[:KEY=VALUE,…]",
        panel=COMPRESSION_PANEL,
        autocompletion=thinning_names,
        show_default=_OF_PRESET,
    ),
]
Chunk = Annotated[
    str,
    option(
        "--chunk",
        help="Tokens of the document that are read at a time; auto is all of it when that fits the memory.",
        metavar="auto|N",
        panel=COMPRESSION_PANEL,
    ),
]
KvMem = Annotated[
    str,
    option(
        "--kv-mem",
        help="Most memory that the KV cache may take at any moment, while reading too, such as 256MiB; "
        "auto is what is free.",
        metavar="auto|AMOUNT",
        panel=COMPRESSION_PANEL,
    ),
]
ConstantSize = Annotated[
    bool,
    option(
        "--constant-size/--no-constant-size",
        help="Whether the cache stays as large as it is after the prompt while the answer grows.",
        panel=COMPRESSION_PANEL,
    ),
]
Truncate = Annotated[
    Literal["head", "middle", "tail"] | None,
    option(
        "--truncate",
        help="When the document is too long, leave out its head, middle or tail, and say so.",
        panel=GENERATION_PANEL,
        show_default="refuse",
    ),
]

System = Annotated[
    str | None,
    option(
        "--system", "-s", help="System prompt.", metavar="TEXT", panel=GENERATION_PANEL, show_default="the model's own"
    ),
]
MaxNewTokens = Annotated[
    int, option("--max-new-tokens", help="Longest answer, in tokens.", metavar="N", min=1, panel=GENERATION_PANEL)
]
Temperature = Annotated[
    float, option("--temperature", help="Randomness; 0 is greedy.", metavar="T", min=0.0, panel=GENERATION_PANEL)
]
TopP = Annotated[
    float,
    option(
        "--top-p",
        help="Sample from the likeliest tokens that make up this probability.",
        metavar="P",
        min=0.0,
        max=1.0,
        panel=GENERATION_PANEL,
    ),
]
TopK = Annotated[
    int,
    option("--top-k", help="Sample from the K likeliest tokens; 0 is off.", metavar="K", min=0, panel=GENERATION_PANEL),
]
MinP = Annotated[
    float,
    option(
        "--min-p",
        help="Drop tokens less likely than this share of the likeliest.",
        metavar="P",
        min=0.0,
        max=1.0,
        panel=GENERATION_PANEL,
    ),
]
RepetitionPenalty = Annotated[
    float,
    option(
        "--repetition-penalty",
        help="Above 1: avoid tokens that were used before.",
        metavar="X",
        min=0.0,
        panel=GENERATION_PANEL,
    ),
]
Seed = Annotated[int, option("--seed", help="Seed of everything random.", metavar="N", panel=GENERATION_PANEL)]

Json = Annotated[bool, option("--json", help="Write one JSON object, the last line of output.", panel=OUTPUT_PANEL)]
Quiet = Annotated[
    bool, option("--quiet", "-q", help="No progress, notes or readout; warnings stay.", panel=OUTPUT_PANEL)
]


def terminal_of(ctx: typer.Context, *, quiet: bool = False) -> Terminal:
    """The terminal that the root command decided on, made quiet when asked for."""
    terminal = ctx.find_object(Terminal) or Terminal.detect()
    return replace(terminal, quiet=terminal.quiet or quiet)
