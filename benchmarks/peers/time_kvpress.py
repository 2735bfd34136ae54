"""One timed run through kvpress, in its environment: prefill under a press, then greedy decoding; for ../speed.py.

The job has beside `model` (a directory in Hugging Face format), `ids` and `new_tokens`: `press`, a name in presses.py,
and `keep`, the fraction of the prompt's entries to keep. In fp32 on the CPU with SDPA, as the presses' authors run it:
the hooks compress each layer after its attention, and new tokens stand at the positions after the whole prompt.
"""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from kvpress.presses.base_press import BasePress
from presses import FULL, Setting
from recording import layer_bytes, unmask
from run_kvpress import load
from timing import WARM_UP_TOKENS, read_job, timed, write_measurement
from transformers import DynamicCache, PreTrainedModel


@torch.no_grad()
def tokens(
    model: PreTrainedModel, cache: DynamicCache, ids: list[int], press: BasePress | None, *, count: int
) -> Iterator[int]:
    """`count` greedy tokens."""
    unmask(model)
    logits = read(model, cache, ids, press)
    for position in range(len(ids), len(ids) + count):
        token = int(logits.argmax())
        yield token
        if position + 1 < len(ids) + count:
            at = torch.tensor([[position]])
            logits = model(torch.tensor([[token]]), past_key_values=cache, position_ids=at).logits[0, -1]


def read(model: PreTrainedModel, cache: DynamicCache, ids: list[int], press: BasePress | None) -> torch.Tensor:
    """Logits [vocab] after the prompt, whose cache is compressed on the way."""
    if press is None:
        return model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1).logits[0, -1]
    with press(model):
        return model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1).logits[0, -1]


def run(job: dict[str, Any]) -> None:
    """Warm up without a press, then run."""
    model = load(Path(job["model"])).model
    for _ in tokens(model, DynamicCache(), job["ids"][:WARM_UP_TOKENS], None, count=2):
        pass
    setting = Setting(FULL if job["keep"] == 1 else job["press"], job["keep"])
    cache = DynamicCache()
    measured = timed(tokens(model, cache, job["ids"], setting.press(), count=job["new_tokens"]))
    versions = {name: version(name) for name in ("kvpress", "torch", "transformers")}
    write_measurement(measured, kv_bytes=layer_bytes(cache), threads=torch.get_num_threads(), versions=versions)


if __name__ == "__main__":
    run(read_job())
