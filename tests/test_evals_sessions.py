"""Evidence and conversations: what their judges count, on figures by hand and on the default model."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from support.town import count_tokens as letters
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import SamplingConfig
from uncomp_cli.documents.places import Evidence
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.engine.tokens.messages import Message
from uncomp_cli.engine.tokens.prompt import count_tokens, encode
from uncomp_cli.engine.write.writer import stop_tokens
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.evals.journal import Journal
from uncomp_cli.evals.judges.answers import evidence_lines, hits, judge_evidence
from uncomp_cli.evals.judges.case import evidence_tokens, read_case
from uncomp_cli.evals.judges.contestants import FULL, Setting, make_settings
from uncomp_cli.evals.judges.evaluation import EvalRequest, check_lengths, run_eval
from uncomp_cli.evals.judges.turns import TURNS_TOKENS, converse, judge_conversation
from uncomp_cli.evals.tables.outcome import OUTCOMES
from uncomp_cli.evals.tasks import choose_subtasks
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.task import Request, Sample
from uncomp_cli.models.runnable import LoadedModel

PROSE = Haystack.generated(seed=1, tokens=4000)
TOKENS = 320
NO_SETTINGS: tuple[Setting, ...] = ()


def make(subtask: str, index: int = 0, *, loaded: LoadedModel | None = None, tokens: int = TOKENS) -> Sample:
    [(task, _)] = choose_subtasks([subtask])
    count = letters if loaded is None else partial(count_tokens, loaded.tokenizer)
    return task.sample(Request(subtask, index, tokens, PROSE, count, seed=0))


def cited(*lines: tuple[int, int]) -> list[Evidence]:
    return [Evidence("a.md", first, last, "text", 0.3, 0.9) for first, last in lines]


@pytest.mark.parametrize(
    ("found", "top_1", "top_3"),
    [
        (cited((7, 7), (1, 1), (2, 2)), 1, 1),
        (cited((1, 1), (2, 2), (6, 8)), 0, 1),
        (cited((1, 1), (2, 2), (3, 3), (7, 7)), 0, 0),
        (cited((1, 6), (8, 9)), 0, 0),
        ([], 0, 0),
    ],
)
def test_a_line_is_cited_when_it_is_in_one_of_the_first_three(found: list[Evidence], top_1: int, top_3: int) -> None:
    assert hits(found, {7}) == {"top_1": top_1, "top_3": top_3}


def test_the_line_of_a_fact_is_counted_as_in_a_file() -> None:
    sample = make("evidence/digits7", 2)
    begin, end = sample.queries[0].evidence[0]
    (line,) = evidence_lines(sample)
    assert sample.context.split("\n")[line - 1] == sample.context[begin:end]


def test_tokens_that_touch_a_span_are_its_evidence() -> None:
    offsets = torch.tensor([[-1, -1], [0, 3], [3, 7], [7, 8], [8, 12], [-1, -1]])
    assert evidence_tokens(offsets, [(4, 8)]).tolist() == [2, 3]
    assert evidence_tokens(offsets, [(0, 1), (11, 12)]).tolist() == [1, 4]
    assert evidence_tokens(offsets, []).tolist() == []


def test_both_conversations_are_one_with_five_questions_out_of_order() -> None:
    orders = set()
    for index in range(6):
        facts, unaided = make("conversation/facts", index), make("conversation/unaided", index)
        assert (facts.context, facts.queries) == (unaided.context, unaided.queries)
        assert facts.system == ""
        assert len({query.question for query in facts.queries}) == 5
        begins = [query.evidence[0][0] for query in facts.queries]
        orders.add(tuple(sorted(begins).index(begin) for begin in begins))
    assert len(orders) > 3


def test_a_conversation_needs_room_for_all_its_turns() -> None:
    subtasks = tuple(choose_subtasks(["conversation/facts"]))
    request = EvalRequest(subtasks, NO_SETTINGS, ("agnostic",), (8192 - TURNS_TOKENS,), 1, 0, PROSE)
    check_lengths(request, 8192)
    with pytest.raises(DoesNotFitError):
        check_lengths(request, 8191)


def answers_alone(loaded: LoadedModel, sample: Sample, setting: Setting) -> list[str]:
    """What the session answers when nobody measures."""
    sampling = SamplingConfig(max_new_tokens=sample.queries[0].max_new_tokens)
    session = Engine(loaded, sampling=sampling).conversation(setting.preset)
    messages: list[Message] = []
    for query in sample.queries:
        parts = (query.question,) if messages else (sample.context, "\n\n", query.question)
        messages.append(Message("user", "".join(parts), parts=parts))
        text = "".join(step.text for step in session.turn(messages) if isinstance(step, DecodeStep))
        messages.append(Message("assistant", text, ids=tuple(session.answer_ids)))
    return [message.text for message in messages if message.role == "assistant"]


def short(sample: Sample) -> Sample:
    """Its first three turns, with short answers."""
    return replace(sample, queries=tuple(replace(query, max_new_tokens=16) for query in sample.queries[:3]))


def nll_in_one_pass(loaded: LoadedModel, before: tuple[int, ...], answer: str) -> float:
    """Of the answer's tokens from the second on, all read at once with what comes before them."""
    ids = torch.tensor([[*before, *encode(loaded.tokenizer, answer, special=False)]])
    spec = loaded.spec
    cache = RaggedKVCache(num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads)
    state = AppendState(cache, torch.arange(ids.shape[1])[None])
    logits = Decoder(loaded.model, spec).forward(ids, torch.arange(ids.shape[1])[None], state, ids.shape[1])
    return float(torch.nn.functional.cross_entropy(logits[0, len(before) : -1], ids[0, len(before) + 1 :]))


@pytest.mark.model
def test_a_conversation_is_judged_as_it_is_held(small_model: LoadedModel) -> None:
    sample = short(make("conversation/facts", loaded=small_model))
    [full] = make_settings([FULL], [], seed=0)
    session = Engine(small_model).conversation(full.preset)
    turns = converse(session, sample)
    assert [turn.text for turn in turns] == answers_alone(small_model, sample, full)
    assert [turn.match for turn in turns] == [
        q.accepted[0] in t.text for t, q in zip(turns, sample.queries, strict=True)
    ]
    assert [turn.coverage for turn in turns] == [1.0] * 3
    assert not any(turn.reread for turn in turns)
    expected = nll_in_one_pass(small_model, session.tokens.ids, sample.queries[-1].answer)
    assert turns[-1].nll == pytest.approx(expected, abs=1e-3)


@pytest.mark.model
def test_a_conversation_within_its_budget_forgets_and_reads_again(small_model: LoadedModel) -> None:
    settings = make_settings(["adaptive"], ["30%"], seed=0)[1:]
    [aided], [unaided] = (
        judge_conversation(Engine(small_model), short(make(subtask, loaded=small_model, tokens=900)), settings)
        for subtask in ("conversation/facts", "conversation/unaided")
    )
    assert aided.metrics["within"] == unaided.metrics["within"] == 1
    assert aided.metrics["reread"] > 0 == unaided.metrics["reread"]
    assert unaided.metrics["coverage"] < aided.metrics["coverage"] < 1
    assert 0.2 < unaided.kept_fraction < 0.5
    assert len((aided.answer or "").split("\n")) == 3


@pytest.mark.model
def test_a_budget_that_is_too_small_is_refused_and_not_averaged(small_model: LoadedModel) -> None:
    sample = short(make("conversation/facts", loaded=small_model))
    [outcome] = judge_conversation(Engine(small_model), sample, make_settings(["adaptive"], ["4"], seed=0)[1:])
    assert "always kept" in (outcome.refused or "")
    assert outcome.metrics == {}


@pytest.mark.slow
@pytest.mark.model
def test_a_right_answer_cites_the_line_of_its_fact(default_model: LoadedModel) -> None:
    model, tokenizer = default_model.model, default_model.tokenizer
    decoder, stop_ids = Decoder(model, default_model.spec), stop_tokens(model, tokenizer)
    settings = make_settings(["preset:balanced", "preset:unseen"], ["30%"], seed=0)
    judged = []
    for subtask in ("evidence/digits7", "evidence/chat"):
        case = read_case(decoder, tokenizer, make(subtask, 1, loaded=default_model))
        for regime in ("aware", "agnostic"):
            judged += judge_evidence(case, settings, regime, stop_ids)
    right = [outcome for outcome in judged if outcome.metrics["match"] == 1]
    assert len(right) > len(judged) / 2
    assert all(outcome.metrics["top_3"] == 1 for outcome in right)
    assert all("top_3" not in outcome.metrics for outcome in judged if outcome not in right)


@pytest.mark.model
def test_the_runner_holds_conversations_and_continues_where_it_was(small_model: LoadedModel, tmp_path: Path) -> None:
    def run(names: Sequence[str]) -> int:
        settings = tuple(make_settings(["uniform"], ["30%"], seed=0))
        request = EvalRequest(
            tuple(choose_subtasks(names)), settings[:1], ("aware", "agnostic"), (TOKENS,), 1, 0, PROSE
        )
        with Journal.open(tmp_path / "results.jsonl", OUTCOMES, {}) as results:
            steps = list(run_eval(request, small_model, results))
            assert [o.regime for o in results.records if o.subtask == "conversation/unaided"] == ["agnostic"]
        return len(steps)

    assert run(["conversation/unaided"]) == 2
    assert run(["conversation/unaided"]) == 1
