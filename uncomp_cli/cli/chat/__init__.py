"""`uncomp chat`: a conversation in which only what is new is prefilled, over a cache that stays in its budget."""

from typing import Annotated, Any

import typer

from uncomp_cli.cli.ask.prepare import ModelChoice, check_text
from uncomp_cli.cli.chat.chat_preset import CHAT_PRESET, PresetChoice
from uncomp_cli.cli.declare.limits import limits_of
from uncomp_cli.cli.declare.options import (
    COMPRESSION_PANEL,
    Budget,
    Chunk,
    Context,
    Device,
    Dtype,
    Force,
    KvMem,
    MatMul,
    MaxNewTokens,
    MinP,
    Model,
    Offline,
    Policy,
    Quantize,
    Quiet,
    RepetitionPenalty,
    Rope,
    Scorer,
    Seed,
    System,
    Temperature,
    Tokenizer,
    TopK,
    TopP,
    preset_names,
    terminal_of,
)
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig

__all__ = ["chat"]

_SAMPLING = SamplingConfig()
_OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "max_new_tokens")


def saved_sessions(incomplete: str) -> list[str]:
    """Completions of a session's name."""
    from uncomp_cli.sessions.session_folder import session_names

    return [name for name in session_names() if name.startswith(incomplete)]


def chat(
    ctx: typer.Context,
    file: Annotated[
        list[str] | None,
        option(
            "--file",
            "-f",
            help="File, directory or glob to talk about from the start; repeatable.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    session: Annotated[
        str | None,
        option(
            "--session",
            help="Go on with the session of this name, or begin it; saved after every turn.",
            metavar="NAME",
            show_default=False,
            autocompletion=saved_sessions,
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
    no_history: Annotated[
        bool, option("--no-history", help="Neither read nor write the file of what was typed before.")
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
    preset: Annotated[
        str | None,
        option(
            "--preset",
            "-p",
            help="Policy, scorer and budget under one name, or a preset file.",
            metavar="NAME|PATH",
            panel=COMPRESSION_PANEL,
            autocompletion=preset_names,
            show_default=CHAT_PRESET,
        ),
    ] = None,
    budget: Budget = None,
    policy: Policy = None,
    scorer: Scorer = None,
    chunk: Chunk = "auto",
    kv_mem: KvMem = "auto",
    system: System = None,
    max_new_tokens: MaxNewTokens = _SAMPLING.max_new_tokens,
    temperature: Temperature = _SAMPLING.temperature,
    top_p: TopP = _SAMPLING.top_p,
    top_k: TopK = _SAMPLING.top_k,
    min_p: MinP = _SAMPLING.min_p,
    repetition_penalty: RepetitionPenalty = _SAMPLING.repetition_penalty,
    seed: Seed = _SAMPLING.seed,
    quiet: Quiet = False,
) -> None:
    """Talk with a model about documents or anything; /help lists what can be done on the way."""
    from uncomp_cli.cli.chat.chatting import ChatJob, run_chat

    check_text(system or "", "the system prompt")
    job = ChatJob(
        paths=tuple(file or ()),
        session=session,
        keeps_history=not no_history,
        model=ModelChoice(model, tokenizer, quantize, device, dtype, offline, rope, context=context, force=force),
        choice=PresetChoice(preset, budget, policy, scorer, seed),
        limits=limits_of(chunk, kv_mem, constant_size=False),
        matmul=matmul,
        system=system,
        sampling=SamplingConfig(temperature, top_p, top_k, min_p, repetition_penalty, seed, max_new_tokens),
        escalates=escalate,
        named=frozenset(name for name in ("model", *_OF_SAMPLING) if _is_named(ctx, name)),
    )
    run_chat(job, terminal_of(ctx, quiet=quiet))


def _is_named(ctx: Any, name: str) -> bool:
    """Whether the user gave the option, on the command line or as a setting."""
    return str(ctx.get_parameter_source(name).name) != "DEFAULT"
