"""Tasks: each makes samples whose right answers are known.

To add one: a function that makes a sample, and an entry in `TASKS`; or, in a package of your own, a class with the same
attributes and an entry of `uncomp.tasks`.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from uncomp_cli.errors import UsageError
from uncomp_cli.evals.tasks.continuation import fidelity_sample, perplexity_sample
from uncomp_cli.evals.tasks.quiz import (
    FACTS,
    LISTS,
    UNAIDED,
    conversation_sample,
    list_sample,
    multiquestion_sample,
    needle_sample,
)
from uncomp_cli.evals.tasks.reference import GENERATORS, check_reference, reference_sample
from uncomp_cli.evals.tasks.ruler import RULER
from uncomp_cli.evals.tasks.task import JudgeName, Regime, Request, Sample
from uncomp_cli.plugins import plugin


@dataclass(frozen=True, slots=True)
class Task:
    """Makes samples of its `subtasks` (`needle/uuid`), which are measured in `regimes` and scored by `judge`.

    `sample` makes what is requested: the same request gives the same sample, another one another. Context and longest
    question have at most `request.tokens` tokens together, and hardly fewer. It raises UsageError when the haystack or
    the length is too short. `count` says how many samples there are of a length, where that is not any number.
    """

    name: str
    subtasks: tuple[str, ...]
    regimes: tuple[Regime, ...]
    judge: JudgeName
    sample: Callable[[Request], Sample]
    count: Callable[[Request], int] | None = None


BOTH: tuple[Regime, ...] = ("aware", "agnostic")
_NEEDLES, _ASKED = ("digits7", "digits16", "uuid", "chat"), ("multiquestion/facts", "multiquestion/instruction")
_VALUES = "needle/values"
_ALL = (
    Task("needle", (*(f"needle/{kind}" for kind in _NEEDLES), _VALUES), BOTH, "answers", needle_sample),
    Task("ruler", tuple(RULER), BOTH, "answers", lambda request: RULER[request.subtask](request)),
    Task("lm-eval", tuple(GENERATORS), BOTH, "answers", reference_sample),
    Task("list", LISTS, BOTH, "answers", list_sample),
    Task("fidelity", ("fidelity/continuation",), BOTH, "fidelity", fidelity_sample),
    Task("perplexity", ("perplexity/continuation",), ("agnostic",), "perplexity", perplexity_sample),
    Task("multiquestion", _ASKED, ("agnostic",), "answers", multiquestion_sample),
    Task("evidence", tuple(f"evidence/{kind}" for kind in _NEEDLES), BOTH, "evidence", needle_sample),
    Task("conversation", (FACTS, UNAIDED), ("agnostic",), "conversation", conversation_sample),
)
TASKS = {task.name: task for task in _ALL}


def choose_subtasks(names: Sequence[str], outside: Sequence[Task] = ()) -> list[tuple[Task, str]]:
    """The subtasks that `names` mean, each once, in the order named; a task's name means all of its subtasks.

    Tasks are the built-in ones, those of packages, and those `outside` that were made of records. Raises UsageError for
    a name that is none, and for what needs a package that is not installed.
    """
    tasks = [*TASKS.values(), *outside]
    known = {task.name: None for task in tasks}
    added = {name.partition("/")[0]: None for name in names if name.partition("/")[0] not in known}
    found = [plugin("tasks", name, built_in=TASKS) for name in added]
    tasks += [
        Task(one.name, one.subtasks, one.regimes, one.judge, one.sample) for one in (kind() for kind in found if kind)
    ]
    by_subtask = {subtask: task for task in tasks for subtask in task.subtasks}
    meant = {**{task.name: task.subtasks for task in tasks}, **{subtask: (subtask,) for subtask in by_subtask}}
    chosen: dict[str, None] = {}
    for name in names:
        check_reference(name)
        if name not in meant:
            raise _unknown(name, list(meant))
        chosen.update(dict.fromkeys(meant[name]))
    return [(by_subtask[subtask], subtask) for subtask in chosen]


def _unknown(name: str, known: list[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    there = ", ".join(one for one in known if "/" not in one)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {there}"
    return UsageError(f"unknown task {name!r}", hint=hint)
