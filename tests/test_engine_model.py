"""The default model itself: kept in full, the engine says what the stock model says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.batches import writer_behind
from support.families import assert_same, full_plan, read
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.tokens.prompt import completion_prompt
from uncomp_cli.engine.write.writer import TextStream
from uncomp_cli.models.checkpoint import load_tokenizer
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

pytestmark = pytest.mark.model
LICENSE = Path(__file__).parents[1] / "LICENSE"
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def loaded(default_model_dir: Path) -> LoadedModel:
    return load_model("smollm2-135m", dtype="float32", device="cpu", widened=True)


def test_full_plan_is_the_stock_model(loaded: LoadedModel) -> None:
    """About 300 tokens of the licence: logits to 1e-4 and the same greedy continuation."""
    text = LICENSE.read_text()[:1700]
    prompt = completion_prompt(loaded.tokenizer, text[:-60], text[-60:], sinks=4)
    assert 250 < prompt.seq_len < 450
    ids = torch.tensor([[*prompt.context, *prompt.questions[0]]])
    model = loaded.model
    model.set_attn_implementation("sdpa")
    stock = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    decoder = Decoder(model, loaded.spec)
    _, done = read(decoder, prompt, full_plan(loaded.spec, prompt))
    assert_same(done.questions.logits, stock.logits[0])
    tokens = [step.token for step in writer_behind(done, NEW_TOKENS).write()]
    assert tokens == stock.sequences[0, ids.shape[1] :].tolist()
    assert len(set(tokens)) > 5


def test_a_session_reads_and_answers(loaded: LoadedModel) -> None:
    """A number from the middle of the document is found with a third of the cache, also by the second question."""
    filler = LICENSE.read_text()
    document = f"{filler[:1500]}\nThe secret number of Anna is 7391204.\n{filler[1500:2600]}"
    prompt = completion_prompt(loaded.tokenizer, document, "\n\nThe secret number of Anna is", sinks=4)
    preset = replace(load_preset("balanced"), floor_tokens=0)
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=8))
    reading = engine.read(prompt, preset)
    steps = list(reading)
    assert [step.layers_done for step in steps] == list(range(1, 31))
    for _ in range(2):  # asked again, the answer is the same
        writer = engine.writer(engine.asked(reading.context))
        assert "7391204" in "".join(step.text for step in writer.write())
    stats = writer.stats()
    assert stats is not None
    assert reading.context.account.plan.entries == int(0.2 * loaded.spec.full_entries(prompt.seq_len))
    assert stats.prompt_tokens == prompt.seq_len
    assert stats.kept_fraction < 0.3
    assert stats.finish_reason == "length"


def test_characters_of_several_tokens(default_model_dir: Path) -> None:
    tokenizer = load_tokenizer(default_model_dir)
    text = "naïve 漢字 😀👩‍🔬 ok"
    stream = TextStream(tokenizer)
    ids = tokenizer(text).input_ids
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == text
    assert "" in pieces  # some characters need several tokens
    assert not any("\ufffd" in piece for piece in pieces)
