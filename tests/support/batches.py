"""Tiny models whose answers differ in length, and batches over them."""

from dataclasses import replace
from typing import Any, cast

from support.families import tiny
from support.tiny import byte_tokenizer
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import SamplingConfig, ScorerConfig
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.write.batch import BatchSession
from uncomp_cli.engine.write.rows import Asked
from uncomp_cli.models.loading import LoadedModel

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
    return LoadedModel(stock, byte_tokenizer(), spec, info, 0.0, 0, None)


def session_of(loaded: LoadedModel, preset: Preset, sampling: SamplingConfig = GREEDY) -> BatchSession:
    return BatchSession(loaded, preset, sampling)


def ask(session: BatchSession, prompt: Prompt) -> list[Asked]:
    for _ in session.read(prompt):
        pass
    return session.asked()
