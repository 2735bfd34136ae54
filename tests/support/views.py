"""What a scorer sees of one layer, drawn at random."""

import torch
from torch import Tensor

from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.view import LayerView

HEADS, KV_HEADS, CONTEXT, DIM, SCALING = 6, 2, 15, 4, 0.7


def make_view(questions: list[int], *, layer: int = 0, seed: int = 0) -> LayerView:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return 2 * torch.randn(*shape, generator=generator)

    return LayerView(
        layer=layer,
        queries=random(HEADS, CONTEXT, DIM),
        keys=random(KV_HEADS, CONTEXT, DIM),
        values=random(KV_HEADS, CONTEXT, DIM),
        branches=tuple((random(HEADS, count, DIM), random(KV_HEADS, count, DIM)) for count in questions),
        form=Form(SCALING),
    )
