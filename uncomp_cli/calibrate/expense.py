"""What a calibration takes, told before it begins: memory, before anything is loaded, and time, by a trial.

bytes     weights + twice, as what was freed is not all used again: a full cache of one sample + the more of: a pass
          over its prompt; logits of its answer and their slopes, and the two parts of a matrix that are made numbers
          at a time (products.py)
seconds   of every sample a + b · tokens, from two short texts, read and measured as the samples are. Attention's
          share, which grows with the square, is small at the lengths that are calibrated on
"""

import time
from collections.abc import Callable, Sequence

import torch

from uncomp_cli.engine.forward.products import PART_NUMBERS
from uncomp_cli.engine.spend.fitting import smaller_model
from uncomp_cli.engine.spend.memory import activation_bytes
from uncomp_cli.errors import OutOfMemoryError
from uncomp_cli.numerals import format_bytes, format_count
from uncomp_cli.spec import ModelSpec

ANSWER_TOKENS = 128
TRIAL_TOKENS = (64, 192)
_LEAST_TOKENS = 4000
"""What is over sooner is told of by its progress: a trial would take too much of it."""
_COPIES = 3
_HEAP = 2
"""Bytes of memory for one of what is held at once: what was freed in other sizes stays meanwhile (1.8 to 2.4)."""


def sample_bytes(spec: ModelSpec, tokens: int) -> int:
    """What is taken beside the weights while a sample of so many tokens is measured."""
    measured = _COPIES * torch.float64.itemsize * tokens * max(spec.hidden_size, spec.num_heads * spec.head_dim)
    answer = 2 * torch.float32.itemsize * (ANSWER_TOKENS * spec.vocab_size + PART_NUMBERS)
    return spec.full_kv_bytes(tokens + ANSWER_TOKENS) + max(activation_bytes(spec, tokens) + measured, answer)


def check_memory(spec: ModelSpec, tokens: int, *, weights_bytes: int, available: int) -> int:
    """What measuring samples of so many tokens takes, weights included.

    Raises OutOfMemoryError, with the sizes and a model that fits, for more than is `available`.
    """
    sample = _HEAP * sample_bytes(spec, tokens)
    if weights_bytes + sample > available:
        raise OutOfMemoryError(
            f"a sample of {format_count(tokens)} tokens needs {format_bytes(sample)} beside the weights' "
            f"{format_bytes(weights_bytes)}, {format_bytes(available)} are free",
            hint=f"use a smaller --tokens, or {smaller_model(available=available)}",
        )
    return weights_bytes + sample


def foreseen_seconds(measure: Callable[[int], object], lengths: Sequence[int]) -> float | None:
    """How long samples of `lengths` will take, by a trial of `measure`, which is given how many tokens to read.

    None where that is not worth a trial.
    """
    if sum(lengths) < _LEAST_TOKENS:
        return None
    short, long = TRIAL_TOKENS
    measure(short)  # the first makes the kernels
    took = {tokens: _timed(measure, tokens) for tokens in TRIAL_TOKENS}
    each = max(0.0, took[long] - took[short]) / (long - short)
    return sum(took[long] + each * (tokens - long) for tokens in lengths)


def _timed(measure: Callable[[int], object], tokens: int) -> float:
    begun_s = time.perf_counter()
    measure(tokens)
    return time.perf_counter() - begun_s
