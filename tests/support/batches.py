"""Tiny models whose answers differ in length, and batches over them."""

from dataclasses import replace
from typing import Any, cast

from support.families import tiny
from support.tiny import TEMPLATE, byte_tokenizer
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import SamplingConfig, ScorerConfig
from uncomp_cli.engine.context.context import Asked, Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.look.watch import Watched
from uncomp_cli.engine.records import RunStats
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.write.stores import RowStore
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.models.runnable import LoadedModel

GREEDY = SamplingConfig(max_new_tokens=30)
FULL = replace(load_preset("full"), scorer=ScorerConfig(width=5))
HALF = replace(load_preset("live"), budget="50%", policy="uniform", floor_tokens=0, scorer=ScorerConfig(width=5))
UNEVEN = replace(HALF, policy="pyramid")
QUESTIONS = (4, 9, 1, 6, 3, 5, 2)
STOPS = [2, 7, 19, 33, 45]


def load_tiny(family: str) -> LoadedModel:
    """A tiny model with random weights that stops at any of a few tokens, so that answers differ in length."""
    stock, _, spec = tiny(family)
    stock.generation_config.eos_token_id = STOPS
    info = cast("Any", type("Info", (), {"trained_length": spec.trained_length}))
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE  # without one no answer stops at its first token
    return LoadedModel(stock, tokenizer, spec, info, 0.0, 0, None)


def engine_of(loaded: LoadedModel, sampling: SamplingConfig = GREEDY) -> Engine:
    return Engine(loaded, sampling=sampling)


def ask(engine: Engine, preset: Preset, prompt: Prompt) -> list[Asked]:
    """Every question of a prompt that has been read."""
    return engine.asked(engine.read(prompt, preset).finish())


def writer_behind(
    context: Context, steps: int, *, sampling: SamplingConfig | None = None, store: RowStore | None = None
) -> Writer:
    """What writes `steps` tokens, none of which stops it, behind a context's first question."""
    asked = [Asked(context, 0, steps)]
    return Writer(context.decoder, byte_tokenizer(), sampling or SamplingConfig(), asked, store=store, stop_ids=())


def alone(engine: Engine, asked: Asked, *, watch: Watched | bool = True) -> tuple[tuple[int, ...], RunStats]:
    """One question's answer and figures, written where it was read."""
    writer = engine.writer([asked], watch=watch)
    ids = tuple(step.token for step in writer.write())
    stats = writer.stats()
    assert stats is not None
    return ids, stats
