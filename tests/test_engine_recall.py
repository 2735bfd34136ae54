"""Recall: what was evicted comes back as it was, where what lay before it was not evicted."""

import pytest
import torch

from support.families import FAMILIES, config_of, make_prompt, read, tiny
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.engine.context.recall import put_back
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.models.shape import spec_from_config

CONTEXT, SPANS = 90, (range(20, 29), range(40, 61))
SPAN = [at for span in SPANS for at in span]


def slides(family: str) -> bool:
    spec = spec_from_config(config_of(family), "float32")
    return len(spec.full_layers) < spec.num_layers


def whole(family: str) -> tuple[Decoder, RaggedKVCache, Tokens]:
    """A prompt with its full cache, and its tokens."""
    _, decoder, _ = tiny(family)
    prompt = make_prompt(CONTEXT, [8])
    plan = BudgetPlan.everything(Wanted(decoder.spec, seq_len=prompt.seq_len, entries=0, protected=0))
    return decoder, read(decoder, prompt, plan)[1].cache, Tokens.join([prompt.context, Tokens.of(prompt.questions[0])])


@pytest.mark.parametrize("family", [family for family in FAMILIES if not slides(family)])
def test_a_hole_is_filled_as_it_was(family: str) -> None:
    decoder, full, ids = whole(family)
    _, cut, _ = whole(family)
    chance = torch.Generator().manual_seed(1)
    for index in decoder.spec.full_layers:
        layer = cut.layer(index)
        keep = []
        for head in range(len(layer.lengths)):
            inside = torch.tensor(SPAN)
            gone = inside[torch.rand(len(inside), generator=chance) < 0.7]
            keep.append(torch.tensor([at for at in range(layer.lengths[head]) if at not in gone.tolist()]))
        cut.retain(index, keep)
    assert cut.entries < full.entries
    put_back(decoder, cut, ids, SPANS)
    for index in range(decoder.spec.num_layers):
        for head in range(len(full.layer(index).lengths)):
            for mine, theirs in zip(cut.layer(index).head(head), full.layer(index).head(head), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_what_is_held_stays_as_it_is() -> None:
    decoder, cache, ids = whole("llama")
    cache.layer(0).tail(0)[0][SPAN[0]] = 7.0
    put_back(decoder, cache, ids, SPANS)
    assert (cache.layer(0).tail(0)[0][SPAN[0]] == 7.0).all()
