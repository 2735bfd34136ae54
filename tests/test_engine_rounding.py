"""Steps in one call over a GGUF's blocks against float32 arithmetic on the numbers of the same blocks.

A step rounds activations to 16 bits; the reference is transformers' own model, widened, which reads the text at once.
The default model is in Q4_1 and Q8_0; UNCOMP_TEST_GGUF names one more file.
"""

import os
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import Tensor

from support.families import full_plan, read
from support.native import fresh_library
from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.program import StepProgram
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.models.catalog import ensure_local
from uncomp_cli.models.loading import load_model

MORE = os.environ.get("UNCOMP_TEST_GGUF", "")
ROOT = Path(__file__).parents[1]
BEFORE, PLACES, QUESTION = 40, 2000, 8


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(
    "name", [DEFAULT_MODEL, pytest.param(MORE, marks=pytest.mark.skipif(not MORE, reason="no file is named"))]
)
@torch.no_grad()
def test_a_step_chooses_what_float32_chooses(name: str, default_model_dir: Path) -> None:
    """At 2,000 places of a text, which steps of 1, 2, 4 and 8 rows in turn read; KL at each step's last."""
    fresh_library()
    list(ensure_local(name))
    loaded = load_model(name, device="cpu")
    text = (ROOT / "LICENSE").read_text()[:6000] + (ROOT / "docs/performance.md").read_text()
    ids = torch.tensor([loaded.tokenizer(text).input_ids[: BEFORE + PLACES]])
    decoder, (hidden, head) = Decoder(loaded.model, loaded.spec), by_float32(name, ids)
    same, divergences, place = 0, [], BEFORE
    for ours in by_steps(decoder, ids):
        theirs = head(hidden[place : place + len(ours)])
        same, place = same + int((ours.argmax(-1) == theirs.argmax(-1)).sum()), place + len(ours)
        divergences.append(divergence(theirs[-1], ours[-1]))
    assert place == BEFORE + PLACES
    assert same >= 0.99 * PLACES
    assert 0 < mean(divergences) <= 1e-4


def divergence(theirs: Tensor, ours: Tensor) -> float:
    """KL of logits [vocab]."""
    wanted, found = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum())


def by_float32(name: str, ids: Tensor) -> tuple[Tensor, torch.nn.Module]:
    """What transformers makes of all tokens in front of its logits [N, hidden_size], and what makes logits of it."""
    wide = load_model(name, dtype="float32", device="cpu", widened=True).model
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    return wide.model(ids, use_cache=False).last_hidden_state[0], wide.lm_head


def by_steps(decoder: Decoder, ids: Tensor) -> Iterator[Tensor]:
    """Logits [1 to 8, vocab] of the tokens behind BEFORE, a step at a time."""
    assert isinstance(decoder._program, StepProgram)
    first = ids[0, :BEFORE].tolist()
    prompt = Prompt(Tokens.of(first[:-QUESTION]), (tuple(first[-QUESTION:]),))
    _, done = read(decoder, prompt, full_plan(decoder.spec, prompt))
    done.begin()
    rows, place = cycle((1, 2, 4, 8)), BEFORE
    while place < ids.shape[1]:
        some = ids[:, place : place + next(rows)]
        at = torch.arange(some.shape[1])[None] + place
        logits = decoder._program.run(some, AppendState(done.cache, at), some.shape[1])
        assert logits is not None
        yield logits[0]
        place += some.shape[1]
