"""`uncomp chat`: a conversation in which only what is new is prefilled."""

import typer

from uncomp_cli.cli.options import (
    Device,
    Dtype,
    MaxNewTokens,
    MinP,
    Model,
    Offline,
    Quantize,
    Quiet,
    RepetitionPenalty,
    Rope,
    Seed,
    System,
    Temperature,
    Tokenizer,
    TopK,
    TopP,
    terminal_of,
)
from uncomp_cli.cli.prepare import ModelChoice, check_text, load
from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig

__all__ = ["chat"]

_SAMPLING = SamplingConfig()


def chat(
    ctx: typer.Context,
    model: Model = DEFAULT_MODEL,
    tokenizer: Tokenizer = None,
    quantize: Quantize = "none",
    device: Device = "auto",
    dtype: Dtype = "auto",
    rope: Rope = None,
    offline: Offline = False,
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
    """Talk with a model; /help lists what can be done on the way."""
    from uncomp_cli.cli.conversation import Conversation
    from uncomp_cli.ui.prompt import line_reader

    terminal = terminal_of(ctx, quiet=quiet)
    sampling = SamplingConfig(temperature, top_p, top_k, min_p, repetition_penalty, seed, max_new_tokens)
    check_text(system or "", "the system prompt")
    loaded = load(ModelChoice(model, tokenizer, quantize, device, dtype, offline, rope), terminal)
    conversation = Conversation(loaded, sampling, terminal, system=system)
    terminal.note(f"{loaded.info.name} · /help shows the commands, Ctrl-D leaves")
    conversation.run(line_reader(terminal, completions=conversation.commands))
