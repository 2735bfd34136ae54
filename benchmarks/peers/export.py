"""Write an evaluation's samples with their token ids, for peers that have another tokenizer call or none.

    python benchmarks/peers/export.py --task ruler/niah_multikey_1 --tokens 1800 --samples 10 --out samples.jsonl
        [--data DIR] [--seed 0] [--file PATH] [--model smollm2-135m] [--regime aware|agnostic|both]

Runs in uncomp's environment. A line is one query of one sample: its names as `uncomp eval` has them (subtask, tokens,
index), the ids of context, question and answer, each tokenised by itself as the engine does it, and the texts. Options
that have the name of one of `uncomp eval` mean the same; give both the same, and the samples are the same.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from records import SAMPLES, command_line, say, write_lines
from transformers import PreTrainedTokenizerBase

from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig
from uncomp_cli.documents.collection import read_documents
from uncomp_cli.engine.tokens.prompt import count_tokens
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.evals.judges.case import tokenise
from uncomp_cli.evals.tasks import Task, choose_subtasks
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.outside import outside_tasks
from uncomp_cli.evals.tasks.task import Regime, Request, Sample
from uncomp_cli.models.catalog import ensure_local, local_path
from uncomp_cli.models.checkpoint import load_tokenizer

REGIMES: tuple[Regime, ...] = ("aware", "agnostic")


def read_haystack(paths: Sequence[str], *, seed: int, tokens: Sequence[int]) -> Haystack:
    """The text that `uncomp eval` hides facts in when it is given the same."""
    if not paths:
        return Haystack.generated_for(max(tokens), seed=seed)
    return Haystack.of_documents(read_documents(list(paths), stdin=None).documents)


def answer_subtasks(names: Sequence[str], outside: Sequence[Task] = ()) -> list[tuple[Task, str]]:
    """The subtasks that have right answers. Raises UsageError for a task that is judged against our own full cache."""
    chosen = choose_subtasks(names, outside)
    for task, subtask in chosen:
        if task.judge != "answers":
            raise UsageError(f"{subtask} has no right answer to give a peer", hint="--task needle ruler multiquestion")
    return chosen


def made_samples(
    chosen: Sequence[tuple[Task, str]],
    tokenizer: PreTrainedTokenizerBase,
    haystack: Haystack,
    *,
    tokens: Sequence[int],
    samples: int,
    seed: int,
) -> Iterator[tuple[Task, Sample]]:
    """The samples, index first: a peer that is stopped has run all subtasks on equally many."""
    count = partial(count_tokens, tokenizer)
    for index in range(samples):
        for length in tokens:
            for task, subtask in chosen:
                request = Request(subtask, index, length, haystack, count, seed)
                if task.count is None or index < task.count(request):
                    yield task, task.sample(request)


def sample_lines(
    tokenizer: PreTrainedTokenizerBase, sample: Sample, *, regimes: Sequence[Regime], seed: int, haystack: str
) -> Iterator[dict[str, Any]]:
    """A line for each query of a sample; `regimes` are those to run it in."""
    prompt, answers = tokenise(tokenizer, sample)
    for number, query in enumerate(sample.queries):
        yield {
            "subtask": sample.subtask,
            "index": sample.index,
            "query": number,
            "tokens": sample.tokens,
            "seed": seed,
            "haystack": haystack,
            "regimes": list(regimes),
            "context_ids": list(prompt.context),
            "question_ids": list(prompt.questions[number]),
            "answer_ids": list(answers[number]),
            "accepted": list(query.accepted),
            "need": query.need,
            "max_new_tokens": query.max_new_tokens,
            "context": sample.context,
            "question": query.question,
            "answer": query.answer,
        }


def export(args: argparse.Namespace) -> int:
    """Write the file; the number of lines. Raises UncompError for a name, length or text that does not do."""
    for _ in ensure_local(args.model):
        pass
    directory = local_path(args.model)
    if directory is None:
        raise UsageError(f"model {args.model} is not here", hint=f"uncomp model pull {args.model}")
    tokenizer = load_tokenizer(directory)
    tokens = args.tokens or [1800]
    haystack = read_haystack(args.file or [], seed=args.seed, tokens=tokens)
    outside, data, _ = outside_tasks(args.data) if args.data else ([], {}, [])
    chosen = answer_subtasks(args.task, outside)
    made = made_samples(chosen, tokenizer, haystack, tokens=tokens, samples=args.samples, seed=args.seed)
    wanted = REGIMES if args.regime == "both" else (args.regime,)
    lines = (
        line
        for task, sample in made
        for line in sample_lines(
            tokenizer,
            sample,
            regimes=[regime for regime in task.regimes if regime in wanted],
            seed=args.seed,
            haystack=haystack.name,
        )
    )
    names = {"haystack": haystack.name, "haystack_sha256": haystack.sha256}
    made_with = {"model": args.model, "seed": args.seed, **names, **({"data": data} if data else {})}
    settings = {"made_with": made_with, "command": command_line()}
    return write_lines(args.out, kind=SAMPLES, settings=settings, lines=lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", action="append", required=True, help="task or subtask, repeatable")
    parser.add_argument("--data", type=Path, action="append", help="records of others, or a directory of such files")
    parser.add_argument("--tokens", type=int, action="append", help="length of a sample, repeatable; default: 1800")
    parser.add_argument("--samples", type=int, default=10, help="samples of each subtask and length")
    parser.add_argument("--seed", type=int, default=SamplingConfig().seed)
    parser.add_argument("--file", action="append", help="text that facts are hidden in; default: generated prose")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="whose tokenizer")
    parser.add_argument("--regime", choices=(*REGIMES, "both"), default="both")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    try:
        say(f"wrote {export(args)} lines to {args.out}")
    except UncompError as error:
        say(f"{error.message}\nhint: {error.hint}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
