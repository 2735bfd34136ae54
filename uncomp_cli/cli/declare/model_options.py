"""The options of the model panel: which model, how it is held, how far it reads; options.py has the others."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from uncomp_cli.cli.declare.tree import option

__all__ = [
    "Context",
    "Device",
    "Dtype",
    "Force",
    "MatMul",
    "Model",
    "Offline",
    "Quantize",
    "Rope",
    "Tokenizer",
    "model_names",
    "rope_names",
]

MODEL_PANEL = "Model"


def model_names(incomplete: str) -> list[str]:
    """Completions of a model's name."""
    from uncomp_cli.models.catalog import known_names

    return [name for name in known_names() if name.startswith(incomplete)]


def rope_names(incomplete: str) -> list[str]:
    """Completions of a way to read past the trained length."""
    from uncomp_cli.models.extension import ROPE_KINDS

    names = ["auto", "reread", "repack", "plain", *(f"{kind}:2" for kind in ROPE_KINDS)]
    return [name for name in names if name.startswith(incomplete)]


Model = Annotated[
    str,
    option(
        "--model",
        "-m",
        help="Built-in name, directory, .gguf file or hub id.",
        metavar="NAME",
        panel=MODEL_PANEL,
        autocompletion=model_names,
    ),
]
Tokenizer = Annotated[
    Path | None,
    option(
        "--tokenizer",
        help="Directory with the tokenizer to use instead of the model's own.",
        metavar="DIR",
        panel=MODEL_PANEL,
        show_default="the model's own",
    ),
]
Quantize = Annotated[
    Literal["none", "int8", "nf4", "fp4"],
    option("--quantize", help="Hold the weights in fewer bits (bitsandbytes).", panel=MODEL_PANEL),
]
Device = Annotated[
    str, option("--device", help="Where to run: auto, cpu, cuda, cuda:1.", metavar="NAME", panel=MODEL_PANEL)
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    option("--dtype", help="Number format of weights and cache; auto is float32 on a CPU.", panel=MODEL_PANEL),
]
Rope = Annotated[
    str | None,
    option(
        "--rope",
        help="How a text longer than trained is read: auto, repack (what is kept moves inside the trained length), "
        "reread (then the passages that matter are read again), plain (as trained), or with other RoPE frequencies: "
        "linear, ntk, dynamic, yarn, llama3 or longrope, with a factor (yarn:2) or --context.",
        metavar="KIND[:FACTOR]",
        panel=MODEL_PANEL,
        autocompletion=rope_names,
        show_default="as trained",
    ),
]
Context = Annotated[
    str | None,
    option(
        "--context",
        help="Tokens that prompt and answer may have, such as 32k; past the trained length --rope, or auto, says how.",
        metavar="TOKENS",
        panel=MODEL_PANEL,
        show_default="the trained length",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Read on past the trained length as trained (--rope plain).", rich_help_panel=MODEL_PANEL
    ),
]
Offline = Annotated[bool, option("--offline", help="Never use the network.", panel=MODEL_PANEL)]
MatMul = Annotated[
    Literal["float32", "bfloat16", "int8"],
    option(
        "--matmul",
        help="How float32 weights are multiplied on a CPU: exactly, rounded to bfloat16, or as bytes.",
        panel=MODEL_PANEL,
    ),
]
