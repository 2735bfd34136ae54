"""Models whose layers attend or carry a state: asked as any other; nothing that is asked changes what was read."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from census import Case, tiny_config, tiny_model
from support.chats import hold, make_talk
from support.commands import Asker
from support.families import Rows, assert_same, decode, full_plan, make_prompt, read, tokens
from support.tiny import TRAINED_LENGTH, VOCAB_SIZE, make_tiny_model
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.cache.states import Place, States
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.engine.context.recall import can_recall
from uncomp_cli.engine.context.saved import misfit
from uncomp_cli.engine.context.session import Conversation
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.look.replay import Replay
from uncomp_cli.engine.tokens.messages import Message
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

TEXT = "".join(f"line {number}: the keeper wrote {number * 37 % 101} in the book.\n" for number in range(40))
SIZES = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": TRAINED_LENGTH, "tie_word_embeddings": False}


@pytest.fixture(scope="module", params=["qwen3_5_text", "lfm2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose first layer is none that attends."""
    config = tiny_config(request.param, **SIZES)
    config.initializer_range = 0.2
    return make_tiny_model(tmp_path_factory.mktemp(request.param), config=config)


@pytest.fixture(scope="module")
def hybrid(model: Path) -> LoadedModel:
    return load_model(str(model))


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def ask(model: Path, tmp_path: Path) -> Asker:
    return Asker(model, tmp_path / "cache", ("--max-new-tokens", "8", "--seed", "0"))


@pytest.fixture(scope="module")
def engine(hybrid: LoadedModel) -> Engine:
    return Engine(hybrid, sampling=SamplingConfig(max_new_tokens=12))


def stock_answer(loaded: LoadedModel, ids: list[int], count: int) -> list[int]:
    """Greedy tokens of the model itself, its own cache beside it, without the engine."""
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(loaded.info.path).eval()
    with torch.no_grad():
        made = stock.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return made[0, len(ids) :].tolist()


def test_one_question_by_the_default_preset(ask: Asker, document: Path) -> None:
    """States count in the bytes, which no budget can make less."""
    (record,) = ask.records("-f", str(document), "--evidence", "who wrote?")
    states = load_model(str(ask.model)).spec.state_bytes
    assert len(record["answer"]) == 8
    assert record["memory"]["kv_bytes"] > states > 0
    assert record["memory"]["kv_full_bytes"] > states
    assert record["evidence"]


def test_several_questions_are_answered_as_each_alone(ask: Asker, document: Path) -> None:
    both = ask.records("-f", str(document), "-b", "full", "-Q", "who wrote?", "-Q", "what is line 7?")
    alone = [
        ask.records("-f", str(document), "-b", "full", question)[0] for question in ("who wrote?", "what is line 7?")
    ]
    assert [record["answer"] for record in both] == [record["answer"] for record in alone]


def test_each_document_by_itself(ask: Asker, document: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("keeper", "warden"))
    code, out, said = ask("-f", str(document), "-f", str(other), "--each", "who wrote?")
    assert code == 0, said
    assert len({answer for answer in out.split("\n\n") if answer.strip()}) == 2


def test_a_saved_document_answers_as_when_it_was_read(ask: Asker, document: Path) -> None:
    first = ask.records("-f", str(document), "--cache", "book", "who wrote?")
    again = ask.records("--cache", "book", "who wrote?")
    assert again[0]["answer"] == first[0]["answer"]
    several = ask.records("--cache", "book", "-Q", "who wrote?", "-Q", "what is line 7?", "-Q", "who wrote?")
    assert several[0]["answer"] == several[2]["answer"] == first[0]["answer"]


def test_a_dry_run_counts_the_states(ask: Asker, document: Path) -> None:
    code, out, said = ask("-f", str(document), "--dry-run", "--json", "-b", "20", "-p", "live", "who wrote?")
    assert code == 0, said
    assert json.loads(out.splitlines()[-1])["kv_planned_bytes"] > load_model(str(ask.model)).spec.state_bytes


def test_a_chat_goes_on_and_back(hybrid: LoadedModel) -> None:
    said = hold(make_talk(hybrid), "who wrote the book?", "and what is in it?", "/undo", "/retry", "/stats")
    assert any("1 turn" in line for line in said), said


def test_a_turn_is_the_stock_models_wherever_it_goes_on(hybrid: LoadedModel, engine: Engine) -> None:
    """Behind an answer, behind an answer that was rewritten, and behind a turn that was taken back."""
    talk = Conversation(hybrid, engine.decoder, load_preset("full"), SamplingConfig(max_new_tokens=6), Limits())
    first, second = Message("user", "who wrote the book?"), Message("user", "and what is in it?")
    histories = (
        [first],
        [first, Message("assistant", "the keeper"), second],
        [first, Message("assistant", "a warden"), second],
        [first],
    )
    read = []
    for messages in histories:
        steps = list(talk.turn(messages))
        assert talk.answer_ids[:6] == stock_answer(hybrid, list(talk.tokens.ids), 6)
        read.append(talk.stats.cached_tokens if talk.stats else None)
        assert steps
    assert read[0] == 0
    assert all(cached > 0 for cached in read[1:3]), read


def test_what_an_answer_looks_at_is_replayed_behind_the_same_states(engine: Engine) -> None:
    prompt = make_prompt(30, [4, 3])
    decoder, spec = engine.decoder, engine.spec
    done = read(decoder, prompt, full_plan(spec, prompt))[1]
    answer = tokens(5, 7)
    for question in (1, 0):
        ids = (*prompt.context, *prompt.questions[question])
        decode(decoder, done, torch.tensor([answer]), question)
        waiting = done.questions.states_behind(done, question)
        behind = [layer[question] for layer in done.questions.entries]
        at, replayed = torch.arange(len(ids) - 1, len(ids) + 4)[None], (ids[-1], *answer[:-1])
        state = Replay(done.cache, spec, len(ids) - 1, behind=behind, states=waiting.before)
        logits = decoder.forward(torch.tensor([replayed]), at, state, 5)[0]
        with torch.no_grad():
            whole = fresh(decoder, (*ids, *answer[:-1]))
        assert_same(logits, whole[len(ids) - 1 :])


def fresh(decoder: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Logits of a text read in one pass, without any question."""
    prompt = make_prompt(1, [len(ids) - 1])
    prompt = type(prompt)(prompt.context.of([ids[0]]), (ids[1:],))
    done = read(decoder, prompt, full_plan(decoder.spec, prompt))[1]
    done.cache.clear()
    return done.feed(ids, 0, last=len(ids))


def test_copies_of_states_go_their_own_way() -> None:
    held = States({Place("recurrent", 0): torch.zeros(1, 2), Place("conv", 0): torch.zeros(1, 2, 3)})
    copied = held.copy()
    held.get_recurrent_state(0).add_(1)
    copied.update_conv_state(torch.ones(1, 2, 1), 0, conv_kernel_size=3)
    assert copied.named()["recurrent.0.0"].tolist() == [[0, 0]]
    assert held.named()["recurrent.0.0"].tolist() == [[1, 1]]
    assert held.named()["conv.0.0"].sum() == 0
    assert copied.named()["conv.0.0"].tolist() == [[[0, 0, 1], [0, 0, 1]]]


def test_states_of_another_shape_are_no_context_of_the_model(engine: Engine, document: Path) -> None:
    prompt = make_prompt(30, [4])
    done = read(engine.decoder, prompt, full_plan(engine.spec, prompt))[1]
    like = engine.decoder.new_states()
    place, tensor = next(iter(done.cache.states.named().items()))
    for wrong in (States(), States({Place.parse(place): tensor[..., :1]})):
        done.cache.states = wrong
        stored = type("Stored", (), {})
        assert "states are not those" in str(misfit((done.cache, {}, stored), engine.spec, like))


def test_nothing_is_thinned_and_that_is_said(engine: Engine) -> None:
    """A state needs every token in order."""
    thinning = replace(load_preset("full"), thinning="gather:after=1,keep=0.3")
    notes = engine.plan(make_prompt(3000, [4]), thinning).notes
    assert notes == (f"models of the family {engine.spec.model_type} are read without thinning",)


def test_what_was_evicted_is_not_read_again_where_it_stood(engine: Engine) -> None:
    """The states that it was read with are gone."""
    assert not can_recall(engine.decoder)


def test_rows_of_a_delta_rule_differ_by_what_a_last_bit_of_its_weights_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """qwen3_next over weights of 16 bits, as rows of a batch: 1.5e-4 from what it says in float64.

    So are the stock model's logits, 1.4e-5 to 4.1e-4, when its weights are changed by a unit of their last place:
    the order of sums is all that differs.
    """
    short = tiny_model(tiny_config("qwen3_next"))
    for weight in short.parameters():
        weight.copy_(weight.bfloat16().float())
    monkeypatch.setattr("census.tiny_model", lambda config: short)
    case, exact = Case(short.config), copy.deepcopy(short).double()
    exact.set_experts_implementation("eager")  # the usual one is for float32 alone
    contexts = [case.read(context, 3, seed=seed) for seed, context in enumerate((20, 4, 11), 1)]
    forced = torch.tensor([tokens(6, 20 + row) for row in range(3)])
    decoded = decode(case.decoder, Rows([done for _, done in contexts]), forced)
    ours, moved = [], []
    for row, (prompt, _) in enumerate(contexts):
        ids = torch.tensor([[*prompt.context, *prompt.questions[0], *forced[row].tolist()]])
        true = exact(ids, use_cache=False).logits[0, -6:]
        ours.append(float((decoded[row] - true).abs().max()))
        moved += [
            float((_stirred(short, seed)(ids, use_cache=False).logits[0, -6:] - true).abs().max()) for seed in (0, 1)
        ]
    assert max(ours) < max(moved) < 1e-3


def _stirred(model: Any, seed: int) -> Any:
    """The model with every weight changed by a unit of its last place at most."""
    chance, other = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    for weight in other.parameters():
        weight.mul_(1 + (torch.rand(weight.shape, generator=chance) - 0.5) * 2**-22)
    return other
