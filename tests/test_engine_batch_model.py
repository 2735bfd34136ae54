"""The default model says in a batch what it says one after another, whichever way the rows are held."""

from dataclasses import replace

import pytest

from support.town import CODE, OTHER, QUESTION, town
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.tokens.prompt import chat_prompt
from uncomp_cli.engine.write.batch import Batch, BatchSession
from uncomp_cli.engine.write.branches import SharedRows
from uncomp_cli.engine.write.rows import Asked, RowStore, StackedRows
from uncomp_cli.models.loading import LoadedModel

pytestmark = [pytest.mark.model, pytest.mark.slow]
QUESTIONS = [QUESTION, OTHER, "What stood by the river?"]


@pytest.fixture(scope="module")
def loaded(default_model: LoadedModel) -> LoadedModel:
    return default_model


def read_and_answer(session: BatchSession, document: str, questions: list[str]) -> tuple[list[Asked], list[list[int]]]:
    """What was asked, and the answers one after another."""
    prompt = chat_prompt(session.loaded.tokenizer, document, questions, system=None, sinks=4)
    for _ in session.read(prompt):
        pass
    asked = session.asked()
    return asked, [[step.token_ids[0] for step in session.answer(number)] for number in range(len(questions))]


@pytest.mark.parametrize("store", [SharedRows, StackedRows])
def test_a_batch_says_what_its_rows_say_alone(loaded: LoadedModel, store: type[RowStore]) -> None:
    preset = replace(load_preset("balanced"), budget="40%", floor_tokens=0)
    session = BatchSession(loaded, preset, SamplingConfig(max_new_tokens=16))
    asked, expected = read_and_answer(session, town(), QUESTIONS)
    if store is StackedRows:
        more, answers = read_and_answer(session, town(12), QUESTIONS[:1])
        asked, expected = asked + more, expected + answers
    assert len({tuple(ids) for ids in expected[:3]}) == 3
    batch = Batch(loaded, session.decoder, session.sampling)
    found: list[list[int]] = [[] for _ in asked]
    for taken in batch.answer(asked):
        found[taken.row].append(taken.step.token_ids[0])
    assert isinstance(batch.store, store)
    assert found == expected
    assert CODE in loaded.tokenizer.decode(found[0])
