"""Calibrate: read every sample once, and write down what was measured after each.

    for each sample that the file lacks: tokenise → read and measure → the file with one sample more, in one step

So a run that is stopped has lost the sample it was at, and the same samples again go on from there. To read a sample:

    prefill (exact)           each layer is measured as it hands its queries, keys and values to attention, and its
                              keys and values are kept for the answer
    hidden states             of the same forward: what each layer is given, when it is
    answer, there and back    the eviction loss (engine/look/cost.py), layer by layer

Beside the weights it takes the keys and values of one sample and the numbers of one layer.

A sliding layer is never compressed: its attention is measured over the last tokens that its window holds, and it loses
nothing.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch import Tensor

from uncomp_cli import __version__
from uncomp_cli.asking.events import Noted
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.states import States
from uncomp_cli.cache.view import LayerView
from uncomp_cli.calibrate.expense import ANSWER_TOKENS, foreseen_seconds
from uncomp_cli.calibrate.findings import LOSS, ProfileFiles
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.forward.attention import AttentionState, attend_causal
from uncomp_cli.engine.forward.decoder import Decoder, rope_frequencies
from uncomp_cli.engine.forward.mixers import Step
from uncomp_cli.engine.look.cost import ReadLayer, eviction_loss, few_tokens
from uncomp_cli.engine.spend.gauge import LayerMeter, measure_hidden
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import DoesNotFitError, ModelError, UsageError
from uncomp_cli.evals.judges.case import tokenise
from uncomp_cli.evals.tasks.task import Sample
from uncomp_cli.kernels.library import give_back
from uncomp_cli.models.runnable import LoadedModel, fingerprint
from uncomp_cli.numerals import format_count, format_seconds
from uncomp_cli.steps import Progress, resume
from uncomp_cli.uncertainty.measures import DEFAULT_MEASURES, Measure, parse_measure
from uncomp_cli.uncertainty.profile import SampleInfo, UncertaintyProfile


@dataclass(frozen=True, slots=True)
class MeasuringConfig:
    """What is measured, and how: attention by the scorer's window, the loss of `keep` context tokens a head."""

    measures: tuple[str, ...] = (*DEFAULT_MEASURES, LOSS)
    keep: int = 20
    scorer: ScorerConfig = field(default_factory=ScorerConfig)


def measurable(decoder: Decoder, measures: Sequence[str]) -> tuple[str, ...]:
    """Those of `measures` that this model has: states can be turned back when one rotation holds for all layers."""
    turned_alike = rope_frequencies(decoder.model) is not None
    found = [(key, parse_measure(key)) for key in measures]
    found = [(key, measure) for key, measure in found if turned_alike or not measure.prerope]
    return tuple(key for key, measure in found if decoder.shows_layers or measure.state != "hidden")


def read_and_measure(
    decoder: Decoder, prompt: Prompt, answer: Sequence[int], *, config: MeasuringConfig
) -> dict[str, Tensor]:
    """Values [L, X] of every measure on a prompt of one question and the answer that follows it.

    Raises ModelError, naming the layer, for states that are not finite.
    """
    state = _MeasuringState(decoder, prompt, config)
    ids = torch.tensor([[*prompt.context, *prompt.questions[0]]])
    hidden: dict[Measure, list[Tensor]] = {measure: [] for measure in state.measures if measure.state == "hidden"}

    def see(layer: int, states: Tensor) -> None:
        for measure, of_layers in hidden.items():
            of_layers.append(_hidden(measure, states[0, : len(prompt.context)], layer))

    decoder.layer_inputs(ids, torch.arange(ids.shape[1])[None], state, see)
    values = {str(measure): torch.stack(of_layers) for measure, of_layers in (state.values | hidden).items()}
    if LOSS in config.measures:
        give_back()  # what measuring took: the slopes of the answer are in other sizes
        values[LOSS] = eviction_loss(decoder, state.layers, answer, states=state.states)
    return {key: values[key].cpu() for key in config.measures}


class _MeasuringState(AttentionState):
    """Exact causal attention over one prompt; measures every layer."""

    def __init__(self, decoder: Decoder, prompt: Prompt, config: MeasuringConfig) -> None:
        self.prompt = prompt
        self.config = config
        self.frequencies = rope_frequencies(decoder.model)
        self.measures = [parse_measure(key) for key in config.measures]
        self.values: dict[Measure, list[Tensor]] = {measure: [] for measure in self.measures if measure.live}
        self.layers: list[ReadLayer] = []
        self.states = States()

    def recur(self, layer: int, hidden: Tensor, step: Step) -> Tensor:
        return step(hidden, self.states)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        queries, keys, values = query[0], key[0].contiguous(), value[0].contiguous()
        view = partial(self._view, layer, queries, keys, values, form)
        length, config = len(self.prompt.context), self.config.scorer
        first = 0 if form.window is None else max(0, length - form.window)
        meter = LayerMeter(view(first), window=config.window, sinks=0 if first else config.sinks)
        for measure, of_layers in self.values.items():
            of_layers.append(meter.value(measure))
        few = None
        if form.window is None:
            few = few_tokens(view(0), self.prompt, keep=self.config.keep, config=config)
        self.layers.append(ReadLayer(keys, values, few))
        return attend_causal(queries, keys, values, form)[None]

    def _view(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, form: Form, first: int) -> LayerView:
        """The context, its keys and values from token `first` on, and the question."""
        length = len(self.prompt.context)
        return LayerView(
            layer=layer,
            queries=queries[:, :length],
            keys=keys[:, first:length],
            values=values[:, first:length],
            branches=((queries[:, length:], keys[:, length:]),),
            form=form,
            frequencies=self.frequencies,
        )


def _hidden(measure: Measure, states: Tensor, layer: int) -> Tensor:
    try:
        return measure_hidden(measure, states)
    except ModelError as error:
        raise ModelError(f"layer {layer}: {error.message}", hint=error.hint) from error


@dataclass(frozen=True, slots=True)
class CalibrateRequest:
    """What to measure on which samples of the text `source`; `provenance` is JSON data about where they came from."""

    samples: tuple[Sample, ...]
    source: str
    config: MeasuringConfig = field(default_factory=MeasuringConfig)
    provenance: Mapping[str, Any] = field(default_factory=dict)


def calibrate(
    loaded: LoadedModel, request: CalibrateRequest, files: ProfileFiles
) -> Generator[Progress | Noted, None, UncertaintyProfile]:
    """Measure what `files` lacks of the samples; yields how long it will take, before each sample and once at the end.

    Returns the profile of the samples that were there and the new ones; `files` holds it as unfinished until
    `files.finish` is called. Raises UsageError for int8 weights, for samples of other settings and for answers of one
    token, DoesNotFitError for a sample that is longer than the model's context, ModelError for states that are not
    finite.
    """
    decoder = Decoder(loaded.model, loaded.spec)
    if decoder.rows_interact:
        raise UsageError(
            "in int8 weights a token's numbers depend on those read beside it, so that no answer's loss can be told",
            hint="use --quantize none: the profile serves the model in int8 as well",
        )
    config = request.config
    config = MeasuringConfig(measurable(decoder, config.measures), config.keep, config.scorer)
    parameters = provenance(loaded, config, request.provenance)
    profile = files.read(fingerprint(loaded), parameters, config.measures)
    prompts = [_Read.of(loaded, sample, request.source) for sample in request.samples]
    known = {sample.key for sample in profile.samples} if profile else set()
    todo = list({read.info.key: read for read in prompts if read.info.key not in known}.values())

    def measure(read: _Read) -> UncertaintyProfile:
        values = read_and_measure(decoder, read.prompt, read.answer, config=config)
        give_back()
        of_one = {key: value[None] for key, value in values.items()}  # [1, L, X]
        return UncertaintyProfile(fingerprint(loaded), (read.info,), of_one, parameters)

    def keep(one: UncertaintyProfile) -> None:
        nonlocal profile
        profile = one if profile is None else profile.merge(one)
        files.keep(profile)

    def try_out(tokens: int) -> None:
        read_and_measure(decoder, todo[0].shortened(tokens), todo[0].answer, config=config)

    seconds = foreseen_seconds(try_out, [read.info.tokens for read in todo])
    if seconds is not None:
        yield Noted(f"{len(todo):,} samples will take about {format_seconds(seconds)}")
    yield from resume(todo, measure, keep, label=lambda read: f"{read.info.task}, {read.info.tokens:,} tokens")
    if profile is None:
        raise UsageError("there is no sample to calibrate on", hint="use --samples 1 or more")
    return profile


def check_lengths(lengths: Sequence[int], trained_length: int) -> None:
    """Raise DoesNotFitError when a length leaves no room for an answer inside the model's context."""
    longest = max(lengths)
    if longest + ANSWER_TOKENS > trained_length:
        raise DoesNotFitError(
            f"samples of {longest:,} tokens and {ANSWER_TOKENS} of an answer do not fit into the model's "
            f"{trained_length:,}",
            hint=f"use --tokens {trained_length - ANSWER_TOKENS} or fewer, or another --model",
        )


def provenance(loaded: LoadedModel, config: MeasuringConfig, extra: Mapping[str, Any]) -> dict[str, Any]:
    """How the values are measured: what all samples of a profile must share, and the date."""
    scorer = config.scorer
    return {
        "uncomp": __version__,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "quantization": loaded.quantization or "none",
        "window": scorer.window,
        "sinks": scorer.sinks,
        "loss_kept_tokens": config.keep,
        "loss_pooling": f"{scorer.pooling} {scorer.width}{', whole words' if scorer.whole_words else ''}",
        **extra,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@dataclass(frozen=True, slots=True)
class _Read:
    """A sample in tokens."""

    info: SampleInfo
    prompt: Prompt
    answer: Sequence[int]

    @classmethod
    def of(cls, loaded: LoadedModel, sample: Sample, source: str) -> "_Read":
        """Tokenise `sample`; raises what cannot be measured before anything is read."""
        prompt, answer = measurable_sample(loaded, sample)
        return cls(SampleInfo(source, sample.sha256, prompt.flat_len, sample.subtask), prompt, answer)

    def shortened(self, tokens: int) -> Prompt:
        """The prompt with so many tokens of its context, for a trial."""
        return replace(self.prompt, context=self.prompt.context[:tokens])


def measurable_sample(loaded: LoadedModel, sample: Sample) -> tuple[Prompt, Sequence[int]]:
    """A sample of one question and its answer in tokens.

    Raises UsageError for an answer of one token, which no eviction changes, and for one without a context or question,
    DoesNotFitError for one that is longer than the model's context.
    """
    prompt, (answer,) = tokenise(loaded.tokenizer, sample)
    for part, text in (("context", sample.context), ("question", sample.queries[0].question)):
        if not text:
            message = f"a sample of {sample.subtask} has an empty {part}"
            raise UsageError(message, hint="use another --task, or more text")
    if len(answer) < 2:
        raise UsageError(
            f"a sample of {sample.subtask} has an answer of {format_count(len(answer), 'token')}, 2 are needed",
            hint="use another --task: eviction cannot change the first token of an answer",
        )
    needed, room = prompt.flat_len + len(answer), loaded.spec.trained_length
    if needed > room:
        raise DoesNotFitError(
            f"a sample of {sample.subtask} has {needed:,} tokens with its answer, the model was trained for {room:,}",
            hint="use a smaller --tokens, or another --model",
        )
    return prompt, answer
