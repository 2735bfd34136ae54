"""Whether the words of an answer (sure, unsure, probably not in the document) hold for a preset, and what they are
fitted to: the signs of answers to questions that have an answer in their text or have none.

    python benchmarks/words.py HALF --data DIRECTORY [--file TEXTS] [--preset NAME] --out ANSWERS.jsonl

The questions are those of `questions.py`: of one HALF, `fit` or `test`; `--file` are texts that facts are planted in
(default: generated prose). Each is asked by itself, as `uncomp ask` does; with `--saved` a text is read before anything
is known of its four questions, as for a chat or a saved document. A run that is stopped goes on. What tells that a text
does not answer a question is seen without an answer: `--unanswered` writes none, and says what a conversation says too;
with `--weights` another model's vocabulary weighs the words of the same texts. `--from` reads what is there
(`risk_words.jsonl.gz`) instead. Printed: AUROC of the shipped curve's signal with its interval, how many of what the
text does not answer are told, how many of the others, and how much of talk; the words of answers; the last line is
JSON.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from questions import HALVES, Source
from risk import ASIDE, TALK, WHOLE, lines_of

from uncomp_cli.asking.doubts import Risk
from uncomp_cli.asking.request import ModelChoice
from uncomp_cli.asking.startup import load
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import SamplingConfig
from uncomp_cli.documents.collection import read_documents
from uncomp_cli.engine.context.telling import Telling, rarity
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.look.watch import Watched
from uncomp_cli.engine.tokens.prompt import count_tokens
from uncomp_cli.evals.judges.answers import match_score
from uncomp_cli.evals.judges.case import tokenise
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.outside import outside_tasks
from uncomp_cli.evals.tasks.task import Query, Sample
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.steps import finished
from uncomp_cli.uncertainty.error_rates import auroc, auroc_interval, wilson_interval

NEW_TOKENS = 32


def key_of(sample: Sample, query: Query) -> str:
    """The digest of what is read and asked."""
    return hashlib.sha256(f"{sample.context}\0{query.question}".encode()).hexdigest()


def answered(
    loaded: LoadedModel, preset: Preset, sample: Sample, watch: Watched, *, saved: bool
) -> Iterator[dict[str, Any]]:
    """The signs of the answer to every question of a text, and whether it is right."""
    prompt, _ = tokenise(loaded.tokenizer, sample)
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=NEW_TOKENS)
    engine = Engine(loaded, sampling=sampling, matmul="auto")
    context = engine.read(prompt, preset, for_any=saved).finish()
    asked = engine.asked(context, words=[query.question for query in sample.queries])
    for one, query in zip(asked, sample.queries, strict=True):
        writer = engine.writer([one], watch=watch)
        text = "".join(step.text for step in writer.write())
        stats, absent = writer.stats(), not query.evidence and sample.task != WHOLE
        yield {
            "sha256": key_of(sample, query),
            "source": sample.task,
            "tokens": prompt.seq_len,
            "absent": absent,
            "wrong": absent or match_score(text, query) < 1,
            "whole": stats is not None and stats.whole,
            "signs": {} if stats is None else {name: round(value, 6) for name, value in stats.signs.items()},
        }


def unanswered(loaded: LoadedModel, weight: Callable[[str], float], sample: Sample) -> Iterator[dict[str, Any]]:
    """What the text has of every question, by what words tell."""
    for query in sample.queries:
        telling = Telling.of(query.question, sample.context, weight)
        yield {
            "sha256": key_of(sample, query),
            "source": sample.task,
            "tokens": count_tokens(loaded.tokenizer, sample.context),
            "absent": not query.evidence and sample.task not in ASIDE,
            "whole": telling.whole,
            "signs": {"together": round(telling.together, 6)},
        }


def told(lines: Iterable[dict[str, Any]], preset: Preset) -> dict[str, Any]:
    """What the words of `preset` came to; answers that had nothing to watch have none."""
    curve, name = preset.risk[0], preset.scorer.name
    found = [
        (
            line,
            Risk(
                line["signs"],
                curve,
                line["tokens"],
                curve.rope,
                preset.budget,
                name,
                line.get("whole", False),
                preset.absent,
            ),
        )
        for line in lines
        if line["signs"]
    ]
    facts = [(line, risk) for line, risk in found if line["source"] not in ASIDE]
    said = Counter((risk.word or "nothing", _what(line)) for line, risk in found if "wrong" in line)
    return {
        **_signal(facts),
        "told": _share([risk.absence is not None for line, risk in facts if line["absent"]]),
        "alarms": _share([risk.absence is not None for line, risk in facts if not line["absent"]]),
        "talk": _share([risk.absence is not None for line, risk in found if line["source"] == TALK]),
        "said": {f"{word}, {what}": count for (word, what), count in sorted(said.items())},
    }


def _signal(facts: list[tuple[dict[str, Any], Risk]]) -> dict[str, Any]:
    """How well the signal tells wrong answers from right ones, where there are answers."""
    judged = [
        (line["wrong"], risk.signal or 0.0) for line, risk in facts if "wrong" in line and "attention" in line["signs"]
    ]
    if not judged:
        return {"questions": len(facts)}
    wrong = [each for each, _ in judged]
    area = auroc([signal for _, signal in judged], wrong)
    low, high = auroc_interval(area, wrong=sum(wrong), right=len(wrong) - sum(wrong))
    right = len(wrong) - sum(wrong)
    return {"answers": len(wrong), "right": right, "auroc": [round(each, 3) for each in (area, low, high)]}


def _what(line: dict[str, Any]) -> str:
    if line["source"] == WHOLE:
        return WHOLE
    return "absent" if line["absent"] else "wrong" if line["wrong"] else "right"


def _share(flags: list[bool]) -> list[float]:
    """How many of how many, and the interval of the share."""
    low, high = wilson_interval(sum(flags), len(flags)) if flags else (0.0, 1.0)
    return [sum(flags), len(flags), round(low, 3), round(high, 3)]


def measure(asked: argparse.Namespace, preset: Preset) -> list[dict[str, Any]]:
    """The answers of one half, those of an earlier run included."""
    loaded, half = finished(load(ModelChoice())), HALVES[asked.half]
    count = partial(count_tokens, loaded.tokenizer)
    haystack = (
        Haystack.of_documents(read_documents(asked.file, stdin=None).documents)
        if asked.file
        else Haystack.generated_for(max(asked.tokens), seed=half.seed)
    )
    source = Source(half, outside_tasks(asked.data)[0], haystack, count)
    share = {"natural": asked.natural, "hotpot": asked.hotpot, "planted": asked.planted}
    samples = [
        *(source.shared if asked.saved else source.samples)(asked.tokens, **share),
        *source.wholes(asked.tokens[:2], asked.whole),
        *(source.talk(asked.tokens, asked.talk) if asked.unanswered else ()),
    ]
    done = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    known = {line["sha256"] for line in done}
    weighs = finished(load(ModelChoice(asked.weights))) if asked.weights else loaded
    weight = lru_cache(None)(partial(rarity, weighs.tokenizer.backend_tokenizer))
    watch, bare = Watched(preset.risk[0].heads, preset.scorer.sinks), replace(preset, risk=())
    for number, sample in enumerate(samples, 1):
        if known.issuperset(key_of(sample, query) for query in sample.queries):
            continue
        print(f"{number} of {len(samples)}: {sample.subtask}, {sample.tokens:,} tokens")
        lines = (
            unanswered(loaded, weight, sample)
            if asked.unanswered
            else answered(loaded, bare, sample, watch, saved=asked.saved)
        )
        for line in lines:
            done.append({"preset": "" if asked.unanswered else preset.name, "half": asked.half, **line})
            with asked.out.open("a") as stream:
                stream.write(json.dumps(done[-1]) + "\n")
    return done


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("half", choices=sorted(HALVES))
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--file", action="append", default=[])
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--saved", action="store_true", help="read before anything is asked, four questions a text")
    parser.add_argument("--unanswered", action="store_true", help="what the text has of the questions, and no answers")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1000, 1500, 2200, 3600])
    parser.add_argument("--natural", type=int, default=40)
    parser.add_argument("--hotpot", type=int, default=16)
    parser.add_argument("--planted", type=int, default=48)
    parser.add_argument("--whole", type=int, default=8)
    parser.add_argument("--talk", type=int, default=8, help="texts that what is said in a conversation is asked of")
    parser.add_argument("--weights", metavar="MODEL", help="whose vocabulary weighs words")
    answers = parser.add_mutually_exclusive_group(required=True)
    answers.add_argument("--out", type=Path, help="where answers go, and an earlier run's are")
    answers.add_argument("--from", type=Path, dest="there", help="answers that are there")
    asked = parser.parse_args()
    preset = load_preset(asked.preset)
    lines = lines_of(asked.there) if asked.there else measure(asked, preset)
    name = "" if asked.unanswered else preset.name
    found = told([line for line in lines if line["half"] == asked.half and line["preset"] == name], preset)
    for word, count in found["said"].items():
        print(f"{count:>4}  {word}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
