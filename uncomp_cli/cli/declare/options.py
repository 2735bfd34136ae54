"""The options that several commands share, each written once: flag, help, panel and default, in groups.

    def ask(ctx: typer.Context, *, model: ModelOptions, sampling: SamplingOptions, output: OutputOptions) -> None: ...

Every one is also an environment variable and a key of the configuration file (tree.py), but for what a command is to do
once, such as which file it reads: left over in a variable it would change every later command. What is in no group, or
in one and also alone, is an alias. Defaults are those of config.py.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.policies import POLICIES
from uncomp_cli.cli.declare.completion import (
    completing,
    model_names,
    policy_names,
    preset_names,
    rope_kinds,
    saved_documents,
    thinning_names,
)
from uncomp_cli.cli.declare.shorthand import fields_of, spelled_out, tokens_of
from uncomp_cli.cli.declare.tree import argument, only, option, sources_of
from uncomp_cli.config import (
    DEFAULT_CACHE_SIZE,
    DEFAULT_MODEL,
    DEFAULT_PRESET,
    DEFAULT_TEXT_CACHE,
    Limits,
    Matmul,
    SamplingConfig,
    Side,
    Weights,
)
from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from uncomp_cli.asking.request import ModelChoice, PresetChoice
    from uncomp_cli.documents.text import Wishes


DEFAULT_SEED = SamplingConfig().seed
_model, _compression, _generation, output_option, trust_option = (
    partial(option, panel=panel) for panel in ("Model", "Compression", "Generation", "Output", "Trust")
)
_SAMPLING = SamplingConfig()
_AUTO = "auto"
_RENAMED = {"force": "--rope plain", "save-cache": "--cache NAME", "reuse": "--cache", "explain-budget": "--why"}
_OF_PRESET = "the preset's"


File = Annotated[
    tuple[str, ...],
    option(
        "--file",
        "-f",
        help="File, directory, glob, or - for standard input; repeatable.",
        metavar="PATH",
        show_default="standard input",
        setting=False,
    ),
]
Beside = Annotated[list[str] | None, argument("Further files, as with -f: what an unquoted glob gives.", "FILE")]
Question = Annotated[
    list[str] | None,
    typer.Argument(help="The question; files beside it are documents, as with -f.", metavar="QUESTION"),
]
Truncate = Annotated[
    Side | None,
    _generation(
        "--truncate",
        help="When the document is too long, leave out its head, middle or tail, and say so.",
        show_default="refuse",
    ),
]
System = Annotated[
    str | None, _generation("--system", "-s", help="System prompt.", metavar="TEXT", show_default="the model's own")
]
Escalate = Annotated[
    bool,
    trust_option(
        "--escalate", help="When the answer is unusually uncertain, ask again with twice the budget, up to full."
    ),
]
Seed = Annotated[int, _generation("--seed", help="Seed of everything random.", metavar="N")]
Json = Annotated[bool, output_option("--json", help="Write one JSON object, the last line of output.")]
Quiet = Annotated[bool, output_option("--quiet", "-q", help="No progress, notes or readout; warnings stay.")]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, how it is held, and how far it reads."""

    name: Annotated[
        str,
        _model(
            "--model",
            "-m",
            help="Built-in name, directory, .gguf file or hub id.",
            metavar="NAME",
            autocompletion=model_names,
        ),
    ] = DEFAULT_MODEL
    tokenizer: Annotated[
        Path | None,
        _model(
            "--tokenizer",
            help="Directory with the tokenizer to use instead of the model's own.",
            metavar="DIR",
            show_default="the model's own",
        ),
    ] = None
    quantize: Annotated[
        Literal["none", "int8", "nf4", "fp4"],
        _model("--quantize", help="Hold the weights in fewer bits (bitsandbytes)."),
    ] = "none"
    weights: Annotated[
        Weights,
        _model(
            "--weights",
            help="How a CPU holds weights that are numbers: float32, bfloat16, or blocks of 32 in 8 or 4 bits; auto is "
            "float32, or the most that fits the memory; disk leaves a model in Hugging Face format there, and reads it "
            "again for every token. Those that a GGUF has in blocks stay; float32 expands them.",
        ),
    ] = "auto"
    device: Annotated[str, _model("--device", help="Where to run: auto, cpu, cuda, cuda:1.", metavar="NAME")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        _model("--dtype", help="Number format of weights and cache; auto is float32 on a CPU."),
    ] = "auto"
    rope: Annotated[
        str | None,
        _model(
            "--rope",
            help="How a text longer than trained is read: auto, repack (what is kept moves inside the trained length), "
            "reread (then the passages that matter are read again), plain (as trained), or with other RoPE "
            "frequencies: linear, ntk, dynamic, yarn, llama3 or longrope, with a factor (yarn:2) or --context.",
            metavar="KIND[:FACTOR]",
            autocompletion=completing(rope_kinds),
            show_default="as trained",
        ),
    ] = None
    context: Annotated[
        str | None,
        _model(
            "--context",
            help="Tokens that prompt and answer may have, such as 32k; past the trained length --rope, or auto, says "
            "how.",
            metavar="TOKENS",
            show_default="the trained length",
        ),
    ] = None
    force: Annotated[bool, _model("--force", help="Now --rope plain.", setting=False, hidden=True)] = False
    matmul: Annotated[
        Matmul,
        _model(
            "--matmul",
            help="How float32 weights are multiplied on a CPU: exactly, rounded to bfloat16, or as bytes; auto rounds "
            "a text's many rows where this CPU is faster then.",
        ),
    ] = "auto"
    offline: Annotated[bool, _model("--offline", help="Never use the network.")] = False

    def choice(self) -> "ModelChoice":
        """Which model to load, and how."""
        from uncomp_cli.asking.request import ModelChoice

        return ModelChoice(**fields_of(self))


MEASURED_MODEL = only("name", "tokenizer", "quantize", "weights", "device", "dtype", "offline")
"""What a command takes of ModelOptions that measures a model as it was trained."""
JUDGED_MODEL = only(
    "name", "tokenizer", "quantize", "weights", "device", "dtype", "matmul", "offline", typed=("rope", "context")
)
"""The same, for one that judges what `ask` does; a context that is set for `ask` must not choose how it reads."""


@dataclass(frozen=True, slots=True)
class PresetOptions:
    """A preset, and what replaces its own; None leaves it."""

    name: Annotated[
        str | None,
        _compression(
            "--preset",
            "-p",
            help="Policy, scorer and budget under one name, or a preset file.",
            metavar="NAME|PATH",
            autocompletion=preset_names,
            show_default=DEFAULT_PRESET,
        ),
    ] = None
    budget: Annotated[
        Budget | None,
        _compression(
            "--budget",
            "-b",
            help="KV cache to keep: 10% of full, 512 (tokens per KV head), 256MiB, auto (fits free memory) or full.",
            metavar="AMOUNT",
            parser=Budget.parse,
            show_default=_OF_PRESET,
        ),
    ] = None
    max_loss: Annotated[
        str | None,
        _compression(
            "--max-loss",
            help="Take the preset's smallest budget whose measured loss is at most this by its upper bound, such as "
            "1%; refused when there is none. The loss is the share of its likelihood that a token of the answer loses.",
            metavar="PERCENT",
        ),
    ] = None
    policy: Annotated[
        str | None,
        _compression(
            "--policy",
            help=f"How the budget is spread over layers and heads: {', '.join(POLICIES)}; scorer, bits and thinning "
            "may stand behind it, as in uncomp eval: uncertain/agreement/8bit/thin=none.",
            autocompletion=policy_names,
            metavar="NAME[:KEY=VALUE,…][/…]",
            show_default=_OF_PRESET,
        ),
    ] = None
    scorer: Annotated[
        str | None,
        _compression(
            "--scorer", help="How tokens are ranked when some must go.", metavar="NAME", show_default=_OF_PRESET
        ),
    ] = None
    kv_bits: Annotated[
        Literal[16, 8, 4] | None,
        _compression(
            "--kv-bits",
            help="Bits in which what is kept is held: 8, 4 (keys 5), or 16 for the model's own number format. "
            "A budget in per cent is one of the full cache in that format, so with fewer bits more tokens fit.",
            show_default=_OF_PRESET,
        ),
    ] = None
    thinning: Annotated[
        str | None,
        _compression(
            "--thin",
            help="Which tokens of the document enter the later layers while it is read: none (all), "
            "gather:after=8,keep=0.2 (a part of them from one layer on), stages, uncertain.",
            metavar="NAME[:KEY=VALUE,…]",
            autocompletion=thinning_names,
            show_default=_OF_PRESET,
        ),
    ] = None

    def choice(self, seed: int) -> "PresetChoice":
        """The same as the asking layer takes it; a policy may name scorer, bits and thinning too, as in eval."""
        from uncomp_cli.asking.request import PresetChoice

        return PresetChoice(seed=seed, **spelled_out(self.policy, fields_of(self)))


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """How documents are read, and what bounds the memory of it."""

    include: Annotated[
        tuple[str, ...],
        option(
            "--include",
            help="In directories, only files like '*.md'; with 'build/**' also what git ignores; repeatable.",
            metavar="GLOB",
            setting=False,
        ),
    ] = ()

    chunk: Annotated[
        str,
        _compression(
            "--chunk",
            help="Tokens of the document that are read at a time; auto is all of it when that fits the memory.",
            metavar="auto|N",
        ),
    ] = _AUTO
    kv_mem: Annotated[
        str,
        _compression(
            "--kv-mem",
            help="Most memory that the KV cache may take at any moment, while reading too, such as 256MiB; "
            "auto is what is free.",
            metavar="auto|AMOUNT",
        ),
    ] = _AUTO
    constant_size: Annotated[
        bool,
        _compression(
            "--constant-size/--no-constant-size",
            help="Whether the cache stays as large as it is after the prompt while the answer grows.",
        ),
    ] = False

    encoding: Annotated[
        str | None,
        option(
            "--encoding",
            help="In what text files are encoded, such as windows-1252 or koi8-r.",
            metavar="NAME",
            show_default="found out",
        ),
    ] = None
    password: Annotated[
        str | None,
        option(
            "--password",
            help="What opens encrypted documents; asked for at a terminal where it is needed.",
            metavar="PASSWORD",
            setting=False,
        ),
    ] = None

    text_cache: Annotated[
        str,
        option(
            "--text-cache",
            help="Most that texts and tokens of documents that were slow to make may take on the disk; 0 keeps none.",
            metavar="AMOUNT",
        ),
    ] = DEFAULT_TEXT_CACHE

    def wishes(self) -> "Wishes":
        """The same for readers. Raises UsageError for an encoding that there is not."""
        from uncomp_cli.asking.request import cabinet_of
        from uncomp_cli.documents.encoding import check_encoding
        from uncomp_cli.documents.text import Wishes

        encoding = "" if self.encoding is None else check_encoding(self.encoding)
        cabinet = cabinet_of(self.text_cache)
        kept = cabinet if cabinet.limit_bytes else None
        return Wishes(password=self.password or "", encoding=encoding, cabinet=kept)

    def limits(self) -> Limits:
        """The same as `Limits`. Raises UsageError for a value that is neither auto nor fits."""
        from uncomp_cli.asking.request import bytes_of

        chunk, kv_mem = (None if text.strip().lower() == _AUTO else text for text in (self.chunk, self.kv_mem))
        hint = "use --kv-mem 256MiB, or --kv-mem auto"
        return Limits(
            chunk_tokens=None if chunk is None else tokens_of(chunk),
            kv_bytes=None if kv_mem is None else bytes_of(kv_mem, "kv-mem", "memory", hint=hint),
            constant_size=self.constant_size,
        )


DOCUMENTS = only("include", "encoding", "password", "text_cache")
"""What a command takes of ReadingOptions that reads documents, and bounds no memory of a model's."""


@dataclass(frozen=True, slots=True)
class SavingOptions:
    """A document that was read and is kept on the disk, for any question about it."""

    cache: Annotated[
        str | None,
        option(
            "--cache",
            help="Keep what is read, and answer from it without reading it again: by name (then -f is not needed any "
            "more), or auto: by what it is read from. Kept by preset unseen, unless another is named.",
            metavar="NAME|auto",
            autocompletion=completing(lambda: [_AUTO, *saved_documents()]),
            setting=False,
        ),
    ] = None
    save_cache: Annotated[str | None, option("--save-cache", help="Now --cache.", setting=False, hidden=True)] = None
    reuse: Annotated[str | None, option("--reuse", help="Now --cache.", setting=False, hidden=True)] = None
    cache_size: Annotated[
        str,
        _compression(
            "--cache-size",
            help="Most that all saved documents may take on the disk; those not used for longest go.",
            metavar="AMOUNT",
        ),
    ] = DEFAULT_CACHE_SIZE


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How an answer is made."""

    max_new_tokens: Annotated[
        int, _generation("--max-new-tokens", help="Longest answer, in tokens.", metavar="N", min=1)
    ] = _SAMPLING.max_new_tokens
    temperature: Annotated[
        float, _generation("--temperature", help="Randomness; 0 is greedy.", metavar="T", min=0.0)
    ] = _SAMPLING.temperature
    top_p: Annotated[
        float,
        _generation(
            "--top-p",
            help="Sample from the likeliest tokens that make up this probability.",
            metavar="P",
            min=0.0,
            max=1.0,
        ),
    ] = _SAMPLING.top_p
    top_k: Annotated[
        int, _generation("--top-k", help="Sample from the K likeliest tokens; 0 is off.", metavar="K", min=0)
    ] = _SAMPLING.top_k
    min_p: Annotated[
        float,
        _generation(
            "--min-p", help="Drop tokens less likely than this share of the likeliest.", metavar="P", min=0.0, max=1.0
        ),
    ] = _SAMPLING.min_p
    repetition_penalty: Annotated[
        float,
        _generation("--repetition-penalty", help="Above 1: avoid tokens that were used before.", metavar="X", min=0.0),
    ] = _SAMPLING.repetition_penalty
    lookup: Annotated[
        bool, _generation("--lookup/--no-lookup", help="Whether words of the document are guesses at what comes next.")
    ] = _SAMPLING.lookup
    seed: Seed = DEFAULT_SEED

    def config(self) -> SamplingConfig:
        """The same as the engine takes it. Raises UsageError for a value that it does not know."""
        return SamplingConfig(**fields_of(self))


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What is written, and how much of it."""

    as_json: Json = False
    quiet: Quiet = False

    def terminal(self, ctx: typer.Context) -> Terminal:
        """The terminal that the root command decided on, made quiet when asked for."""
        return terminal_of(ctx, quiet=self.quiet)


Verbose = Annotated[
    bool, output_option("--verbose", "-v", help="Say all of what an answer took, not only the main of it.")
]
Thinking = Annotated[
    bool,
    output_option("--show-thinking", help="Show what a reasoning model thinks before it answers, on standard error."),
]


def terminal_of(ctx: typer.Context, *, quiet: bool = False, verbose: bool = False, thinking: bool = False) -> Terminal:
    """The terminal that the root command decided on, made quiet or verbose when asked for."""
    terminal = ctx.find_object(Terminal) or Terminal.detect()
    terminal = replace(terminal, quiet=terminal.quiet or quiet, verbose=verbose, thinking=thinking)
    sources = sources_of(ctx)
    for old, new in _RENAMED.items():
        if sources.get(old) == "COMMANDLINE":
            terminal.note(f"--{old} is called {new} now; the old name will go")
    return terminal
