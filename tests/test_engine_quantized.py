"""Quantized weights under the engine: a plan that keeps everything equals the stock quantized model.

Both kinds of weights round activations on the way (LLM.int8() to 8 bits), so a difference of one bit grows: stock
transformers with eager attention is 1.0 (int8) and 0.15 (nf4) away from itself with SDPA, in logits that reach 30. The
tolerance here is small because the engine's attention gives SDPA's very bits.
"""

from typing import Any

import pytest
import torch

from support.batches import writer_behind
from support.families import read
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward import attention
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.tokens.prompt import Prompt, completion_prompt
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

pytestmark = [pytest.mark.slow, pytest.mark.model]

NEW_TOKENS = 8
CONTEXT = " ".join(
    f"On day {day} the keeper lit the lamp at {5 + day % 3} in the evening and wrote {day * 7} ships into the book."
    for day in range(1, 9)
)
QUESTION = " On day 9 the keeper"
LOGIT_TOLERANCE = 1e-3


def load(method: str) -> tuple[LoadedModel, Prompt]:
    """The default model on the CPU and a prompt of about 200 tokens."""
    pytest.importorskip("bitsandbytes")
    loaded = load_model("smollm2-135m", device="cpu", quantize=method)
    assert loaded.model.config._attn_implementation == "sdpa"
    prompt = completion_prompt(loaded.tokenizer, CONTEXT, QUESTION, sinks=4)
    assert 180 <= prompt.seq_len <= 260
    return loaded, prompt


def stock_output(model: Any, prompt: Prompt) -> Any:
    """The stock model's output for the prompt, with its cache."""
    ids = torch.tensor([[*prompt.context, *prompt.questions[0]]])
    with torch.no_grad():
        return model(ids, use_cache=True, logits_to_keep=1)


def stock_tokens(model: Any, output: Any) -> list[int]:
    """The greedy continuation, through the cache as the engine does it: int8 rows depend on their neighbours."""
    chosen: list[int] = []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            chosen.append(int(output.logits[0, -1].argmax()))
            new = torch.tensor([chosen[-1:]])
            output = model(new, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
    return chosen


def read_all(decoder: Decoder, prompt: Prompt) -> Context:
    """Prefill with a plan that keeps everything."""
    spec = decoder.spec
    plan = BudgetPlan(prompt.seq_len, ((prompt.seq_len,) * spec.num_kv_heads,) * spec.num_layers)
    return read(decoder, prompt, plan)[1]


def engine_tokens(loaded: LoadedModel, decoder: Decoder, prefilled: Context) -> list[int]:
    """The engine's greedy continuation."""
    return [step.token for step in writer_behind(prefilled, NEW_TOKENS).write()]


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_the_engine_equals_the_stock_quantized_model(
    default_model_dir, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # These layers round what they are given, so that another last bit of attention is another number: torch's for both.
    monkeypatch.setattr(attention, "_library_for", lambda query, form: None)
    loaded, prompt = load(method)
    stock = stock_output(loaded.model, prompt)
    logits, tokens = stock.logits[0, -1], stock_tokens(loaded.model, stock)
    decoder = Decoder(loaded.model, loaded.spec)
    prefilled = read_all(decoder, prompt)
    torch.testing.assert_close(prefilled.questions.logits[0], logits, atol=LOGIT_TOLERANCE, rtol=0)
    prefilled.begin()
    for layer, expected in enumerate(stock.past_key_values.layers):
        for head in range(loaded.spec.num_kv_heads):
            keys, values, _ = prefilled.cache.layer(layer).head(head)
            torch.testing.assert_close(keys, expected.keys[0, head, : prompt.seq_len], atol=1e-3, rtol=0)
            torch.testing.assert_close(values, expected.values[0, head, : prompt.seq_len], atol=1e-3, rtol=0)
    assert engine_tokens(loaded, decoder, prefilled) == tokens
