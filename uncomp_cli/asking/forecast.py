"""`uncomp ask --dry-run`: what asking would take, from tokenizer and shape alone; no weights are loaded.

How long a reading would take goes by the pace at which the model last read on this machine, tokens a second: a number
in the user's state directory. Nothing is said of a model that was not measured.
"""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from uncomp_cli.asking.events import Event, Foreseen, Noted
from uncomp_cli.asking.material import blame, build_prompt, describe_files, join_documents, longest_read, pins_in
from uncomp_cli.asking.readout import SCHEMA_VERSION, held_bits
from uncomp_cli.asking.request import Request, apart
from uncomp_cli.asking.startup import during, fetch, planned_length, weigh
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.files import write_whole
from uncomp_cli.numerals import format_bytes, format_count, format_seconds
from uncomp_cli.share import Share

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.tokens.prompt import Prompt
    from uncomp_cli.models.extension import RopeState
    from uncomp_cli.spec import ModelSpec


_SAMPLE_CHARS = 2**14


def forecast(request: Request, contexts: Sequence[DocumentSet], questions: Sequence[str]) -> Iterator[Event]:
    """The plan of every context, or why it is refused."""
    path = yield from fetch(request.model)
    weighed = yield from during("measuring", lambda: weigh(request.model, path))
    spec, weights, available = weighed.spec, weighed.weights_bytes, weighed.available_bytes
    yield from map(Noted, weighed.notes)
    from uncomp_cli.engine.spend.memory import check_context
    from uncomp_cli.models.catalog import show_model
    from uncomp_cli.models.checkpoint import load_tokenizer
    from uncomp_cli.models.extension import RopeState
    from uncomp_cli.models.runnable import fingerprint_of

    info = show_model(request.model.name)
    preset, notes = request.choice.settled(fingerprint_of(info, spec))
    yield from map(Noted, notes)
    tokenizer = yield from during("preparing the prompt", lambda: load_tokenizer(request.model.tokenizer or path))
    machine = _Machine(spec, info.trained_length, weights, weighed.passing_bytes, available, RopeState())
    if request.model.rope_choice is not None:
        tokens = longest_read(request, contexts, questions, tokenizer)
        spec, rope = yield from planned_length(request.model, path, spec, tokens, grows=request.saves_context)
        machine = replace(machine, spec=spec, rope=rope)
        wanted, free = request.model.rope_choice.context, machine.left_bytes
        check_context(spec, preset, context=wanted, available=free, held_tokens=rope.reach)
    for number, documents in enumerate(contexts):
        work = partial(_foresee, request, documents, questions, tokenizer, preset, machine)
        yield (yield from during("preparing the prompt", work)) if number == 0 else work()


def too_long_ahead(
    request: Request, documents: DocumentSet, questions: Sequence[str], preset: "Preset"
) -> Generator[Event, None, list[DoesNotFitError]]:
    """Why each context is too long for the model, which is not loaded for it; none where one of them fits.

    It is to be answered then, and the others are told of in their turn. A text of half as many bytes as the model reads
    tokens fits, whatever stands around it: such a one is not looked at twice. Raises DoesNotFitError for the weights.
    """
    from uncomp_cli.models.checkpoint import load_tokenizer

    path = yield from fetch(request.model)

    def measure() -> list[DoesNotFitError]:
        spec, choice = weigh(request.model, path).spec, request.model.rope_choice
        contexts = request.contexts(documents) if documents.documents else []
        is_cut = request.truncate is not None or (choice is not None and choice.kind == "auto")
        if is_cut or not contexts or any(2 * _bytes(each) <= spec.trained_length for each in contexts):
            return []
        tokenizer = load_tokenizer(request.model.tokenizer or path)
        length = partial(_length, request, questions, tokenizer, spec, preset)
        return _refusals(request, documents, length, spec, readings=_readings(preset))

    return (yield from during("measuring", measure))


def _refusals(
    request: Request,
    documents: DocumentSet,
    length: "Callable[[DocumentSet], _Length]",
    spec: "ModelSpec",
    *,
    readings: int,
) -> list[DoesNotFitError]:
    from uncomp_cli.engine.spend.compression import too_long
    from uncomp_cli.models.catalog import show_model

    contexts, lengths = request.contexts(documents), list[_Length]()
    for each in contexts:
        lengths.append(length(each))
        if lengths[-1].tokens < spec.trained_length:
            return []
    trained, others, count = show_model(request.model.name).trained_length, "", len(documents.documents)
    if len(contexts) < count:
        longest = round(lengths[0].tokens * max(map(_bytes, apart(documents))) / _bytes(documents))
        if longest < spec.trained_length:
            size = f"about {format_count(longest)} tokens at most, {format_bytes(spec.full_kv_bytes(longest))}"
            whole = takes(request.model.name, readings * lengths[0].tokens)
            size += f"; all {whole}" if whole else ""
            others = f"ask the {count:,} documents by themselves with --each ({size}), "
    return [
        too_long(
            spec,
            each.tokens,
            trained_length=trained,
            counted=each.counted,
            others=others,
            lasts=takes(request.model.name, readings * each.tokens),
        )
        for each in lengths
    ]


def _readings(preset: "Preset") -> int:
    """How often a text is read with a preset: twice where a scorer repeats it and something goes."""
    from uncomp_cli.cache.scorers import make_scorer
    from uncomp_cli.engine.spend.allocation import scorer_config

    return 2 if preset.policy != "full" and make_scorer(scorer_config(preset)).repeats else 1


@dataclass(frozen=True, slots=True)
class _Length:
    """Tokens of a prompt with its shortest question: `counted`, or about so many."""

    tokens: int
    counted: bool = True


def _length(
    request: Request,
    questions: Sequence[str],
    tokenizer: Any,
    spec: "ModelSpec",
    preset: "Preset",
    documents: DocumentSet,
) -> _Length:
    """How long a prompt is; what is too long by its letters alone is not made tokens: a sample says about how many."""
    from uncomp_cli.engine.tokens.prompt import count_tokens

    longest_piece = max(map(len, tokenizer.get_vocab()))
    if _bytes(documents) > _SAMPLE_CHARS * longest_piece and _bytes(documents) > spec.trained_length * longest_piece:
        text = join_documents(documents)
        middle = (len(text) - _SAMPLE_CHARS) // 2
        sample = count_tokens(tokenizer, text[middle : middle + _SAMPLE_CHARS])
        about = 1000 * round(sample * len(text) / _SAMPLE_CHARS / 1000)
        if about > 2 * spec.trained_length:
            return _Length(about, counted=False)
    prompt, _ = build_prompt(request, documents, questions, tokenizer, spec, preset)
    return _Length(len(prompt.context) + min(map(len, prompt.questions)))


def _bytes(documents: DocumentSet) -> int:
    return sum(len(each.text.encode("utf-8", "replace")) for each in documents.documents)


def _foresee(
    request: Request,
    documents: DocumentSet,
    questions: Sequence[str],
    tokenizer: Any,
    preset: "Preset",
    machine: "_Machine",
) -> Foreseen:
    """What one context would take."""
    prompt, cut = build_prompt(request, documents, questions, tokenizer, machine.spec, preset)
    record, refusal, pins = _measured(prompt, preset, machine), None, pins_in(request, documents)
    unpinned = prompt
    if pins:
        unpinned, _ = build_prompt(request.without_pins(), documents, questions, tokenizer, machine.spec, preset)
    plan = partial(_planned, request, preset, machine)
    try:
        record |= plan(prompt)
    except DoesNotFitError as error:
        refusal = blame(error, pins, prompt, unpinned, plan=plan)
        record |= {"fits": False, "refusal": refusal.message}
    if pins:
        record["pinned_tokens"] = int(prompt.context.protected.sum()) - int(unpinned.context.protected.sum())
    files = describe_files(documents, tokenizer, cut, request.wishes.keeps)
    return Foreseen(
        {
            "schema_version": SCHEMA_VERSION,
            "model": request.model.name,
            "files": files,
            "warnings": documents.warnings,
            **record,
        },
        refusal,
    )


@dataclass(frozen=True, slots=True)
class _Machine:
    """What a prompt has to fit into, and how its positions are turned."""

    spec: "ModelSpec"
    trained_length: int
    weights_bytes: int
    passing_bytes: int
    free_bytes: int
    rope: "RopeState"

    @property
    def left_bytes(self) -> int:
        """What loading leaves."""
        return self.free_bytes - self.weights_bytes - self.passing_bytes


def _measured(prompt: "Prompt", preset: "Preset", machine: _Machine) -> dict[str, Any]:
    """What is known of `prompt` before it is planned."""
    spec = machine.spec
    opened = _opened(prompt, preset)
    return {
        "questions": len(prompt.questions),
        "prompt_tokens": opened.seq_len,
        "trained_length": machine.trained_length,
        "context_length": spec.trained_length,
        "rope": str(machine.rope),
        "weights_bytes": machine.weights_bytes,
        "kv_full_bytes": spec.full_kv_bytes(opened.seq_len),
        "kv_full_16_bit_bytes": Share.of(spec, 0, opened.seq_len).full_16_bit_bytes,
        "free_bytes": machine.free_bytes,
        "budget_requested": str(preset.budget),
        "kv_bits": held_bits(preset, spec),
        "fits": True,
        "refusal": None,
    }


def _planned(request: Request, preset: "Preset", machine: _Machine, prompt: "Prompt") -> dict[str, Any]:
    """What reading `prompt` would take. Raises DoesNotFitError when it does not fit."""
    from uncomp_cli.engine.read.distances import Reach
    from uncomp_cli.engine.spend.compression import check_length, plan_compression
    from uncomp_cli.engine.spend.memory import planned_kv_bytes

    spec, trained, free = machine.spec, machine.trained_length, machine.left_bytes
    opened, answer = _opened(prompt, preset), request.sampling.max_new_tokens
    check_length(spec, opened, trained_length=trained)
    reach = Reach.of(machine.rope, opened.seq_len, trained_length=trained, answer_tokens=answer)
    planned = plan_compression(spec, preset, prompt, available=free, limits=request.limits, reach=reach)
    plan, chunk = planned.plan, planned.chunk_tokens
    return {
        "kv_planned_bytes": planned_kv_bytes(spec, plan, question_tokens=opened.longest_question),
        "expected_peak_bytes": machine.weights_bytes + machine.passing_bytes + planned.peak_bytes,
        "thinning": preset.thinning,
        **({} if chunk is None else {"chunk_tokens": chunk}),
        **({} if planned.reread_tokens is None else {"reread_tokens": planned.reread_tokens}),
        **({"repeated_tokens": planned.repeated_tokens} if planned.repeats else {}),
    }


def _opened(prompt: "Prompt", preset: "Preset") -> "Prompt":
    from uncomp_cli.engine.spend.allocation import scorer_config
    from uncomp_cli.engine.tokens.prompt import open_question

    return open_question(prompt, recent=scorer_config(preset).recent)


_LEAST_TOKENS = 200
"""A shorter text is read in the time that it takes to begin."""


def remember_pace(model: str, record: Mapping[str, Any]) -> None:
    """Keep the pace of an answer's `record`, where a text was read for it that is long enough to tell."""
    usage, speed = record["usage"], record["timing"]["prefill_tok_s"]
    if speed and usage["prompt_tokens"] - usage["cached_tokens"] >= _LEAST_TOKENS:
        with suppress(OSError):
            path = _path(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, f"{speed:.3g}\n".encode())


def takes(model: str, tokens: int) -> str:
    """`about 3 min at the pace of the last reading`; nothing where none was measured."""
    try:
        seconds = tokens / float(_path(model).read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return ""
    return f"about {format_seconds(seconds)} at the pace of the last reading" if 0 < seconds < math.inf else ""


def _path(model: str) -> Path:
    return platformdirs.user_state_path("uncomp") / "pace" / sha256(model.encode("utf-8", "surrogatepass")).hexdigest()
