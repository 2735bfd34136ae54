"""The default model says in a batch what it says one after another, whichever way the rows are held."""

from dataclasses import replace

import pytest

from support.town import CODE, OTHER, QUESTION, town
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Asked
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.tokens.prompt import chat_prompt
from uncomp_cli.engine.write.stores import RowStore, SharedRows, StackedRows
from uncomp_cli.models.runnable import LoadedModel

pytestmark = [pytest.mark.model, pytest.mark.slow]
QUESTIONS = [QUESTION, OTHER, "What stood by the river?"]


@pytest.fixture(scope="module")
def loaded(default_model: LoadedModel) -> LoadedModel:
    return default_model


def read_and_answer(
    engine: Engine, preset: Preset, document: str, questions: list[str]
) -> tuple[list[Asked], list[list[int]]]:
    """What was asked, and the answers one after another."""
    prompt = chat_prompt(engine.loaded.tokenizer, document, questions, system=None, sinks=4)
    asked = engine.asked(engine.read(prompt, preset).finish())
    return asked, [[step.token for step in engine.writer([each]).write()] for each in asked]


@pytest.mark.parametrize("store", [SharedRows, StackedRows])
def test_a_batch_says_what_its_rows_say_alone(loaded: LoadedModel, store: type[RowStore]) -> None:
    preset = replace(load_preset("balanced"), budget="40%", floor_tokens=0)
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=16))
    asked, expected = read_and_answer(engine, preset, town(), QUESTIONS)
    if store is StackedRows:
        more, answers = read_and_answer(engine, preset, town(12), QUESTIONS[:1])
        asked, expected = asked + more, expected + answers
    assert len({tuple(ids) for ids in expected[:3]}) == 3
    writer = engine.writer(asked)
    found: list[list[int]] = [[] for _ in asked]
    for taken in writer.write():
        found[taken.row].append(taken.token)
    assert isinstance(writer.store, store)
    assert found == expected
    assert CODE in loaded.tokenizer.decode(found[0])
