"""What one arm scores, held against the stock model configured alike: losses, patterns, answers; and RoPE put back."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from support.tiny import SAYABLE, make_tiny_model
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.engine.look.watch import all_heads
from uncomp_cli.evals.journal import Journal
from uncomp_cli.evals.judges.case import tokenise
from uncomp_cli.evals.rope.arms import ANSWER_ROOM, RopeArm, parse_arms
from uncomp_cli.evals.rope.cells import CELLS, NeedleCell, TextCell
from uncomp_cli.evals.rope.passage import BIN_TOKENS, NeedlePlace, judge_needle, judge_text, make_needle, text_ids
from uncomp_cli.evals.rope.sweep import ReadingCost, RopeRequest, probe, run_rope
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.rotary import use_rope
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.uncertainty.distance_pattern import distance_edges

FULL = load_preset("full")
PLAIN, YARN = RopeArm("plain", None, Budget.parse("full")), RopeArm("yarn", 2.0, Budget.parse("full"))
TEXT = 1500
TRAINED = 1024
COST = ReadingCost(1e-4, 1e-8, 0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, which claims a shorter trained length, and says digits too: a needle has nothing else."""
    path = make_tiny_model(tmp_path_factory.mktemp("rope") / "tiny", sayable=SAYABLE + "0123456789")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": TRAINED}))
    return path


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    return load_model(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def haystack() -> Haystack:
    return Haystack.generated_for(2 * TRAINED, seed=5)


def stock(folder: Path, arm: RopeArm) -> torch.nn.Module:
    """The model as transformers runs it, with the arm's RoPE, as the library configures it."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    if arm.kind == "yarn":
        config = model.config
        config.rope_parameters = {
            **config.rope_parameters, "rope_type": "yarn", "factor": arm.factor,
            "original_max_position_embeddings": TRAINED,
        }  # fmt: skip
        config.max_position_embeddings = 2 * TRAINED
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def stock_losses(model: torch.nn.Module, ids: tuple[int, ...]) -> Tensor:
    logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


@pytest.mark.parametrize("arm", [PLAIN, YARN], ids=lambda arm: arm.label)
def test_losses_by_position_are_those_of_the_stock_model(
    arm: RopeArm, folder: Path, loaded: LoadedModel, haystack: Haystack
) -> None:
    ids = text_ids(loaded.tokenizer, haystack, TEXT)
    cell = judge_text(use_rope(loaded, arm.choice), arm, FULL, ids, [])
    expected = stock_losses(stock(folder, arm), ids)
    assert cell.tokens == TEXT
    ends = [end for end, _ in cell.losses]
    assert ends[:2] == [BIN_TOKENS + 1, 2 * BIN_TOKENS + 1]
    for begin, (end, loss) in zip([1, *ends], cell.losses, strict=False):
        assert loss == pytest.approx(float(expected[begin - 1 : end - 1].mean()), abs=1e-4)


def test_a_pattern_is_the_attention_of_the_last_queries_by_distance(
    folder: Path, loaded: LoadedModel, haystack: Haystack
) -> None:
    ids = text_ids(loaded.tokenizer, haystack, 600)
    cell = judge_text(use_rope(loaded, PLAIN.choice), PLAIN, FULL, ids, [600])
    length = 600 - load_preset("full").scorer.recent  # the last tokens stand for the end of a question
    with torch.no_grad():
        attentions = stock(folder, PLAIN)(torch.tensor([ids[:length]]), output_attentions=True).attentions
    edges = distance_edges(1 << 20)
    rows = attentions[1][0, 2:4, -32:].clone()  # layer 1, the two query heads of KV head 1
    rows[..., :4] = 0
    rows /= rows.sum(dim=-1, keepdim=True)
    expected = torch.zeros(len(edges) - 1)
    for row, query in enumerate(range(length - 32, length)):
        for key in range(query + 1):
            bin_at = int(torch.searchsorted(edges, query - key, right=True)) - 1
            expected[bin_at] += rows[:, row, key].mean() / 32
    assert cell.patterns.keys() == {"600"}
    assert torch.tensor(cell.patterns["600"][1][1]) == pytest.approx(expected, abs=1e-5)


def test_a_needle_is_judged_as_the_stock_model_would(folder: Path, loaded: LoadedModel, haystack: Haystack) -> None:
    place = NeedlePlace(1400, 0.5, 0)
    sample = make_needle(place, loaded.tokenizer, haystack, seed=1)
    cell = judge_needle(use_rope(loaded, YARN.choice), YARN, FULL, place, sample, all_heads(loaded.spec)[:2])
    prompt, (answer,) = tokenise(loaded.tokenizer, sample)
    ids = (*prompt.context, *prompt.questions[0], *answer)
    losses = stock_losses(stock(folder, YARN), ids)
    assert cell.nll == pytest.approx(float(losses[-len(answer) + 1 :].mean()), abs=1e-4)
    assert cell.match == 0
    assert len(cell.answer) > 1
    assert len(ids) - len(answer) <= 1400 - ANSWER_ROOM
    assert cell.retrieval_entropy == pytest.approx(sum(cell.entropy_by_head[0]) / 2, abs=1e-4)
    assert 0 < cell.entropy < 1 < cell.raw_entropy


def test_every_place_has_a_needle_of_its_own_at_its_depth(loaded: LoadedModel, haystack: Haystack) -> None:
    samples = [
        make_needle(NeedlePlace(900, depth, index), loaded.tokenizer, haystack, seed=1)
        for depth in (0.0, 1 / 3, 1.0)
        for index in (0, 1)
    ]
    assert len({sample.queries[0].answer for sample in samples}) == len(samples)
    assert [sample.depth for sample in samples] == [0.0, 0.0, 1 / 3, 1 / 3, 1.0, 1.0]
    (begin, _), context = samples[2].queries[0].evidence[0], samples[2].context
    assert begin / len(context) == pytest.approx(1 / 3, abs=0.1)


def request(haystack: Haystack, kinds: str, *, depths: tuple[float, ...] = (0.0, 1.0)) -> RopeRequest:
    arms = parse_arms(kinds, longest=1500, unscaled_length=TRAINED, budget=Budget.parse("30%"))
    return RopeRequest(arms, (700, 1500), depths, 1, 1, haystack, load_preset("live"))


def test_a_sweep_measures_every_cell_and_puts_the_rope_back(
    loaded: LoadedModel, haystack: Haystack, tmp_path: Path
) -> None:
    before = loaded.model.model.rotary_emb.inv_freq.clone()
    with Journal.open(tmp_path / "r.jsonl", CELLS, {"seed": 1}) as results:
        wanted = request(haystack, "yarn:2,repack:2,reread:2,dynamic:2", depths=(0.0,))
        steps = list(run_rope(wanted, loaded, results, cost=COST))
        cells = list(results.records)
    assert torch.equal(loaded.model.model.rotary_emb.inv_freq, before)
    assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)
    assert (steps[0].fraction, steps[-1].fraction) == (0, 1)
    assert {cell.key for cell in cells if isinstance(cell, TextCell)} == {
        ("text", "plain", TRAINED, 0.0, 0),  # what the others are compared with
        *(("text", arm, 1500, 0.0, 0) for arm in ("yarn:2", "repack:2@30%", "dynamic:2")),
    }
    needles = [cell for cell in cells if isinstance(cell, NeedleCell)]
    assert len(needles) == 4 * 2 * 1
    kept = {cell.arm: cell.kept_fraction for cell in needles if cell.tokens == 1500}
    assert kept["yarn:2"] >= 1
    assert kept["repack:2@30%"] < 0.4
    assert kept["reread:2@30%"] < kept["repack:2@30%"]  # what is read again is 128 tokens and the question


def test_a_sweep_that_was_stopped_goes_on_and_has_put_the_rope_back(
    loaded: LoadedModel, haystack: Haystack, tmp_path: Path
) -> None:
    wanted, path = request(haystack, "plain,ntk:2"), tmp_path / "r.jsonl"
    before = loaded.model.model.rotary_emb.inv_freq.clone()
    with Journal.open(path, CELLS, {"seed": 1}) as results:
        steps = run_rope(wanted, loaded, results, cost=COST)
        labels = [next(steps).label for _ in range(5)]
        steps.close()
        assert torch.equal(loaded.model.model.rotary_emb.inv_freq, before)
        done = [cell.key for cell in results.records]
    assert labels[1] == "ntk:2 1,500 tokens, text"
    assert len(done) == 4
    assert done[-1][1] == "ntk:2"  # the model was turned when it was stopped
    with Journal.open(path, CELLS, {"seed": 1}) as results:
        (first, *_, last) = run_rope(wanted, loaded, results, cost=COST)
        assert (first.rate, last.rate) == ("0 of 6", "6 of 6")
        assert [cell.key for cell in results.records[:4]] == done
        assert len({cell.key for cell in results.records}) == len(results.records) == 10


def test_a_cost_is_what_two_times_say() -> None:
    cost = ReadingCost.fitted((0.6, 4.8), (100, 400), logits_share=0.5)
    assert cost.seconds(100) == pytest.approx(0.6)
    assert cost.seconds(400) == pytest.approx(4.8)
    assert cost.seconds(400, reach=50) == pytest.approx(400 * (cost.token_s + 50 * cost.pair_s))
    assert cost.seconds(400, logits=True) == pytest.approx(4.8 + 200 * cost.token_s)
    assert ReadingCost.fitted((1.0, 3.0), (100, 400), logits_share=0).pair_s == 0


def test_a_probe_says_something(loaded: LoadedModel) -> None:
    cost = probe(loaded)
    assert cost.seconds(1000) > 0
    assert cost.seconds(2000) > cost.seconds(1000)
