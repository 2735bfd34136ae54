"""RULER's reference generators, as the package lm-eval has them, so that our own (ruler.py) can be held against them.

    lm-eval/niah_single_1                     a needle in repeated noise
    lm-eval/niah_multikey_2, niah_multikey_3  a needle among look-alikes
    lm-eval/vt, lm-eval/cwe, lm-eval/fwe      variable tracking, common words, frequent words

Their functions write the sample; here they are told how long it may be, and where their question begins. They draw
from generators of the whole process, print, and try again without end what has no room: each is put right around them.
What reads essays, SQuAD or HotpotQA is left out, because lm-eval fetches those from the network. Scores are those of
every task: `match` is RULER's own. The order of the reference continuation (`nll`, `exact`) is ours.
"""

import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from uncomp_cli.errors import UsageError
from uncomp_cli.evals.tasks.task import Query, Request, Sample

_TASK, _PACKAGE, _INSTALL = "lm-eval", "lm_eval", "pip install 'uncomp[ruler]'"
_ESSAYS = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
_FETCHED = {**dict.fromkeys(_ESSAYS, "essays"), "qa_squad": "SQuAD", "qa_hotpot": "HotpotQA"}

Tokenizer = Callable[[str], SimpleNamespace]
"""As much of a tokenizer as they use: the number of `input_ids`."""

_HOPS = 4
_LEAST_NOISES, _EXAMPLE_TOKENS, _TRACED_TOKENS = 10, 500, 30  # their own: the fewest sentences, room of the example


@dataclass(frozen=True, slots=True)
class _Generator:
    """`write` makes the record of a sample of so many tokens, its answer's `answer_tokens` included."""

    write: Callable[[Tokenizer, int], dict[str, Any]]
    answer_tokens: int
    delimiter: str = " "


def check_reference(name: str) -> None:
    """Raise UsageError for a task or subtask of theirs that is left out, or when the package is not installed."""
    task, _, subtask = name.partition("/")
    if task == _TASK and subtask in _FETCHED:
        message = f"task {name} is left out: lm-eval fetches its {_FETCHED[subtask]} from the network"
        raise UsageError(message, hint=f"there are: {', '.join(GENERATORS)}; --task ruler has all thirteen, of our own")
    if name in (_TASK, *GENERATORS) and find_spec(_PACKAGE) is None:
        raise UsageError(f"task {name} needs the package lm-eval, which is not installed", hint=_INSTALL)


def reference_sample(request: Request) -> Sample:
    """Their sample, its last line as the question. Raises UsageError where the package is missing or has no room."""
    generator = GENERATORS[request.subtask]
    limit = request.tokens + generator.answer_tokens
    while True:
        record = _record(request, generator, limit)
        context, _, asked = record["input"].rpartition("\n")
        question = f"\n{asked}{generator.delimiter}{record['gen_prefix']}"
        accepted = tuple(record["outputs"])
        if not accepted or any(answer not in context for answer in accepted):
            raise _too_short(request)
        excess = request.count_tokens(context) + request.count_tokens(question) - request.tokens
        if excess <= 0:
            break
        limit -= excess
    answer = f" {' '.join(accepted)}"
    return request.sample(context, (Query(question, answer, accepted, max_new_tokens=generator.answer_tokens),))


def _record(request: Request, generator: _Generator, limit: int) -> dict[str, Any]:
    def tokenizer(text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=range(request.count_tokens(text)))

    try:
        with _drawn(request.chance()), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return generator.write(tokenizer, limit)
    except ValueError as error:
        raise _too_short(request) from error


def _too_short(request: Request) -> UsageError:
    message = f"{request.subtask} has no room in {request.tokens:,} tokens"
    return UsageError(message, hint="use more --tokens, or other --tasks")


@contextmanager
def _drawn(chance: random.Random) -> Iterator[None]:
    """Their random choices are those of `chance`; afterwards all others go on where they were."""
    import numpy as np

    state, states, own = random.getstate(), np.random.get_state(), _module("cwe_utils").RNG
    for seed in (random.seed, np.random.seed, own.seed):
        seed(chance.getrandbits(32))
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(states)


def _module(name: str) -> Any:
    try:
        with patch.dict(os.environ, LOCAL_RANK="1"):  # rank 0 would fetch what sentences of essays are told apart with
            return import_module(f"{_PACKAGE}.tasks.ruler.{name}")
    except ImportError as error:
        raise UsageError(f"RULER's reference generators need the package lm-eval ({error})", hint=_INSTALL) from error


def _needle(haystack: str, key: str, value: str) -> Callable[[Tokenizer, int], dict[str, Any]]:
    def write(tokenizer: Tokenizer, limit: int) -> dict[str, Any]:
        niah = _module("prepare_niah")
        kinds = {"type_haystack": haystack, "type_needle_k": key, "type_needle_v": value}
        sizes = {"max_seq_length": limit, "num_samples": 1, "template": _module("niah_utils").TEMPLATE}
        return _only(niah.generate_samples(niah.get_haystack(haystack), tokenizer, **kinds, **sizes))

    return write


def _tracing(tokenizer: Tokenizer, limit: int) -> dict[str, Any]:
    vt = _module("vt_utils")
    least, _ = vt.generate_input_output(_LEAST_NOISES, 1, _HOPS)
    _check_room(least, tokenizer, _EXAMPLE_TOKENS - _TRACED_TOKENS)
    _check_room(least, tokenizer, limit - _EXAMPLE_TOKENS - 2 * _TRACED_TOKENS)
    make, room = vt.sys_vartrack_w_noise_random, {"tokenizer": tokenizer, "num_samples": 1, "num_hops": _HOPS}
    example = _only(make(**room, max_seq_length=_EXAMPLE_TOKENS, incremental=_LEAST_NOISES // 2))
    return _only(make(**room, max_seq_length=limit, incremental=_LEAST_NOISES, icl_example=example))


def _common_words(tokenizer: Tokenizer, limit: int) -> dict[str, Any]:
    cwe = _module("cwe_utils")
    _check_room(cwe.TEMPLATE, tokenizer, limit - cwe.CONFIG["tokens_to_generate"])
    return _only(cwe.sys_word_pair_random(1, limit, tokenizer))


def _frequent_words(tokenizer: Tokenizer, limit: int) -> dict[str, Any]:
    fwe = _module("fwe_utils")
    _check_room(fwe.TEMPLATE, tokenizer, limit)
    return _only(fwe.sys_kwext(tokenizer, limit, num_samples=1))


def _check_room(least: str, tokenizer: Tokenizer, limit: int) -> None:
    """Raise ValueError where the least that they write is longer than `limit`: they would look for less without end."""
    if len(tokenizer(least).input_ids) > limit:
        raise ValueError("the least that is written has no room")


def _only(records: list[dict[str, Any]]) -> dict[str, Any]:
    (record,) = records
    return record


GENERATORS = {
    "lm-eval/niah_single_1": _Generator(_needle("repeat", "words", "numbers"), 128),
    "lm-eval/niah_multikey_2": _Generator(_needle("needle", "words", "numbers"), 128),
    "lm-eval/niah_multikey_3": _Generator(_needle("needle", "uuids", "uuids"), 128),
    "lm-eval/vt": _Generator(_tracing, _TRACED_TOKENS),
    "lm-eval/cwe": _Generator(_common_words, 120, delimiter="\n\n"),
    "lm-eval/fwe": _Generator(_frequent_words, 50),
}
