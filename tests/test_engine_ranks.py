"""One model over two processes (gloo): what is kept, the logits and the answers are one process's."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
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
from uncomp_cli.models.loading import load_model

TWO = """
import json, sys
import torch
from test_engine_ranks import CASES, told
from uncomp_cli.models.loading import load_model

torch.set_num_threads(1)
loaded = load_model(sys.argv[1], ranks=2)
found = {name: told(loaded, **case) for name, case in CASES.items()}
found["rank"], found["weights"] = loaded.ranks.number, loaded.weights_bytes
print(json.dumps(found))
torch.distributed.destroy_process_group()
"""
CASES: dict[str, dict[str, Any]] = {
    "full": {"budget": "full"},
    "uneven heads that agree": {"budget": "40%", "policy": "adaptive", "scorer": "agreement"},
    "in chunks": {"budget": "40%", "policy": "pyramid", "scorer": "agreement", "chunk_tokens": 128},
    "in 8 bits": {"budget": "50%", "policy": "uniform", "scorer": "window", "kv_bits": 8},
    "the random control": {"budget": "40%", "policy": "uniform", "scorer": "random"},
}


def told(loaded: Any, **case: Any) -> dict[str, Any]:
    """The answers to two questions, the logits that they begin with, and what each head of this process keeps."""
    chunk_tokens, scorer = case.pop("chunk_tokens", None), case.pop("scorer", "agreement")
    preset = replace(load_preset("live"), thinning="none", floor_tokens=0, scorer=ScorerConfig(scorer), **case)
    limits = Limits(chunk_tokens=chunk_tokens)
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=12), limits=limits)
    context = engine.read(make_prompt(300, [4, 6]), preset).finish()
    heads = range(2 // loaded.ranks.count)
    kept = [context.cache.layer(layer).head(head)[2].tolist() for layer in range(4) for head in heads]
    answers: list[list[int]] = [[], []]
    for step in engine.writer(engine.asked(context)).write():
        answers[step.row].append(step.token)
    return {"kept": kept, "logits": context.questions.logits.tolist(), "answers": answers}


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
    done = subprocess.run([*command, str(model)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sorted(found, key=lambda each: each["rank"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(name: str, model: Path, both: list[dict[str, Any]]) -> None:
    loaded = load_model(str(model))
    expected = told(loaded, **CASES[name])
    for found in both:
        torch.testing.assert_close(
            torch.tensor(found[name]["logits"]), torch.tensor(expected["logits"]), atol=1e-4, rtol=1e-4
        )
        assert found[name]["answers"] == expected["answers"]
    kept = [head for layer in range(4) for found in both for head in [found[name]["kept"][layer]]]
    assert kept == expected["kept"]
    assert both[0]["weights"] < loaded.weights_bytes


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
    monkeypatch.setattr(ranks.Ranks, "least", lambda ranks, own: own)
    for wanted in (replace(live, budget="20%"), replace(live, policy="uniform", thinning="gather:after=1,keep=0.2")):
        with pytest.raises(UsageError, match="need all heads in one process"):
            dealt.read(prompt, wanted).finish()
    for refused in (lambda: dealt.read(prompt, live, for_any=True), lambda: dealt.conversation(live)):
        with pytest.raises(UsageError, match="contexts for any question"):
            refused()
