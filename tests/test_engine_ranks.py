"""One model over two processes (gloo): what is kept, the logits and the answers are one process's."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.families import make_prompt
from support.tiny import make_tiny_model
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.config import Limits, SamplingConfig, ScorerConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.errors import ModelError, UncompError, UsageError
from uncomp_cli.models import ranks
from uncomp_cli.models.extension import parse_rope
from uncomp_cli.models.loading import load_model, weights_bytes
from uncomp_cli.models.rotary import resolve_rope
from uncomp_cli.uncertainty.error_rates import RiskBin, RiskCurve

TWO = """
import json, sys
from pathlib import Path
import torch
from test_engine_ranks import CASES, told
from uncomp_cli.models.loading import load_model

torch.set_num_threads(1)
loaded = load_model(sys.argv[1], ranks=2)
found = {name: told(loaded, **case) for name, case in CASES.items()}
found["weights"] = loaded.weights_bytes
Path(f"{sys.argv[2]}.{loaded.ranks.number}").write_text(json.dumps(found))
torch.distributed.destroy_process_group()
"""


def curve_of(*heads: tuple[int, int]) -> RiskCurve:
    """A risk curve that has these heads watched."""
    return RiskCurve(
        {"attention": 1.0}, heads, (0.0, 0.5), (RiskBin(0, 1, 0.5, 0.2, 0.8, 9),), 0.5, 0.3, 0.7, 9, (100,)
    )


WATCHED = {"budget": "20%", "policy": "uniform", "open_below": 1e-6}
CASES: dict[str, dict[str, Any]] = {
    "full": {"budget": "full"},
    "uneven heads that agree": {"budget": "40%", "policy": "adaptive", "scorer": "agreement"},
    "in chunks": {"budget": "40%", "policy": "pyramid", "scorer": "agreement", "chunk_tokens": 128},
    "in 8 bits": {"budget": "50%", "policy": "uniform", "scorer": "window", "kv_bits": 8},
    "the random control": {"budget": "40%", "policy": "uniform", "scorer": "random"},
    "thinned, all of it kept": {"budget": "full", "thinning": "gather:after=1,keep=0.2"},
    "thinned by certainty": {"budget": "40%", "policy": "uniform", "thinning": "uncertain:least=0.5,most=0.7"},
    "thinned in chunks": {
        "budget": "40%",
        "policy": "uniform",
        "thinning": "gather:after=1,keep=0.2",
        "chunk_tokens": 400,
    },
    "entropy of queries": {"budget": "40%", "policy": "uncomp"},
    "attention's mass": {"budget": "40%", "policy": "zigzag"},
    "attention's mass, in chunks": {"budget": "40%", "policy": "zigzag", "chunk_tokens": 200},
    "as shipped": {"budget": "20%", "thinning": load_preset("live").thinning, "policy": "uncertain"},
    "of a constant size": {"budget": "40%", "policy": "uniform", "constant_size": True},
    "heads of both watched": {**WATCHED, "risk": (curve_of((0, 1), (2, 0)),)},
    "heads of one watched": {**WATCHED, "risk": (curve_of((1, 1), (3, 1)),)},
    "an open question": {**WATCHED, "open_below": 0.999, "floor_tokens": 8, "risk": (curve_of((0, 1), (2, 0)),)},
    "read again": {"budget": "40%", "policy": "uniform", "rope": "reread"},
}


def told(loaded: Any, **case: Any) -> dict[str, Any]:
    """The answers to two questions, the logits that they begin with, and what each head of this process keeps.

    What all processes must say alike is in `alike`: how much entered each layer, and what was seen of the answers.
    """
    chunk_tokens, scorer = case.pop("chunk_tokens", None), case.pop("scorer", "agreement")
    constant_size, rope = case.pop("constant_size", False), case.pop("rope", None)
    preset = replace(
        load_preset("live"), **{"thinning": "none", "floor_tokens": 0, "scorer": ScorerConfig(scorer), **case}
    )
    limits = Limits(chunk_tokens=chunk_tokens, constant_size=constant_size)
    if rope is not None:
        loaded, _ = resolve_rope(
            replace(loaded, info=replace(loaded.info, trained_length=400)), parse_rope(rope), tokens=700
        )
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=12), limits=limits)
    context = engine.read(make_prompt(600, [4, 6]), preset).finish()
    heads = range(2 // loaded.ranks.count)
    kept = [context.cache.layer(layer).head(head)[2].tolist() for layer in range(4) for head in heads]
    writer, answers = engine.writer(engine.asked(context)), [[], []]
    for step in writer.write():
        answers[step.row].append(step.token)
    stats = [writer.stats(row) for row in (0, 1)]
    seen = [value for each in stats if each is not None for value in each.signs.values()]
    sizes = [size for each in stats if each is not None for size in (each.kv_bytes, each.kv_full_bytes)]
    held = [*map(float, sizes), *map(float, context.layer_bytes())]
    alike = [*context.hidden_kept, *context.standing, *seen]
    looked = [*context.survival(600).tolist(), *context.attended(answers[0][:-1], 0).tolist()]
    logits = context.questions.logits.tolist()
    return {"kept": kept, "logits": logits, "answers": answers, "alike": alike, "looked": looked, "held": held}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("ranks") / "tiny")


@pytest.fixture(scope="module")
def both(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes told, by rank."""
    script = tmp_path_factory.mktemp("script") / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(model), str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(script.with_name(f"{script.name}.{rank}").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name: str, model: Path, both: list[dict[str, Any]]) -> None:
    loaded = load_model(str(model))
    expected = told(loaded, **CASES[name])
    for found in both:
        for numbers in ("logits", "alike", "looked"):
            given, wanted = (torch.tensor(each[numbers]) for each in (found[name], expected))
            torch.testing.assert_close(
                given, wanted, atol=1e-4, rtol=1e-4, msg=lambda text, what=numbers: f"{what}: {text}"
            )
        assert found[name]["answers"] == expected["answers"]
        assert found[name]["held"] == pytest.approx(expected["held"], rel=0.01)  # each has some numbers of its own
    kept = [head for layer in range(4) for found in both for head in [found[name]["kept"][layer]]]
    assert kept == expected["kept"]
    assert both[0][name]["alike"] == both[1][name]["alike"]
    assert loaded.weights_bytes < both[0]["weights"] < 1.1 * loaded.weights_bytes  # norms are in both


def test_of_a_dealt_matrix_this_ranks_part_is_counted() -> None:
    matrix = SimpleNamespace(is_meta=False, device="cpu", to_local=lambda: torch.zeros(6, 2)[:2])
    assert weights_bytes(SimpleNamespace(parameters=lambda: [matrix], buffers=list)) == 4 * 2 * 2


def test_what_cannot_be_dealt_out_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="2 ranks are asked for, and torchrun began 1") as caught:
        load_model(str(model), ranks=2)
    assert "torchrun --nproc-per-node 2" in str(caught.value.hint)
    for count, why in ((3, "the 2 KV heads of .* cannot be dealt out to 3 ranks"), (2, "only weights in Hugging Face")):
        monkeypatch.setattr("uncomp_cli.models.loading.join", lambda *given, count=count: ranks.Ranks(0, count))
        error: type[UncompError] = ModelError if count == 3 else UsageError
        with pytest.raises(error, match=why):
            load_model(str(model), ranks=count, weights="auto" if count == 3 else "q8")
    monkeypatch.undo()
    dealt = Engine(replace(load_model(str(model)), ranks=ranks.Ranks(0, 2)))
    prompt, live = make_prompt(200, [4]), load_preset("live")
    for refused in (lambda: dealt.read(prompt, live, for_any=True), lambda: dealt.conversation(live)):
        with pytest.raises(UsageError, match="contexts for any question"):
            refused()
