"""Tasks: each makes samples whose right answers are known.

To add one: a file with a class, a line in `TASKS`; or, in a package of your own, an entry of `uncomp.tasks`.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from uncomp_cli.errors import UsageError
from uncomp_cli.evals.tasks.continuation import Fidelity, Perplexity
from uncomp_cli.evals.tasks.quiz import Conversation, Evidence, Multiquestion, Needle
from uncomp_cli.evals.tasks.ruler import Ruler
from uncomp_cli.evals.tasks.task import JudgeName, Regime, Request, Sample
from uncomp_cli.plugins import plugin


class Task(Protocol):
    """Makes samples of its `subtasks` (`needle/uuid`), which are measured in `regimes` and scored by `judge`."""

    name: ClassVar[str]
    subtasks: ClassVar[tuple[str, ...]]
    regimes: ClassVar[tuple[Regime, ...]]
    judge: ClassVar[JudgeName]

    def sample(self, request: Request) -> Sample:
        """What is requested: the same request gives the same sample, another one another.

        Context and longest question have at most `request.tokens` tokens together, and hardly fewer. Raises UsageError
        when the haystack or the length is too short.
        """


TASKS: dict[str, Callable[[], Task]] = {
    Needle.name: Needle,
    Ruler.name: Ruler,
    Fidelity.name: Fidelity,
    Perplexity.name: Perplexity,
    Multiquestion.name: Multiquestion,
    Evidence.name: Evidence,
    Conversation.name: Conversation,
}


def choose_subtasks(names: Sequence[str]) -> list[tuple[Task, str]]:
    """The subtasks that `names` mean, each once, in the order named; a task's name means all of its subtasks."""
    tasks = [make() for make in TASKS.values()]
    added = {name.partition("/")[0]: None for name in names if name.partition("/")[0] not in TASKS}
    found = [plugin("tasks", name, built_in=TASKS) for name in added]
    tasks += [kind() for kind in found if kind is not None]
    by_subtask = {subtask: task for task in tasks for subtask in task.subtasks}
    meant = {**{task.name: task.subtasks for task in tasks}, **{subtask: (subtask,) for subtask in by_subtask}}
    chosen: dict[str, None] = {}
    for name in names:
        if name not in meant:
            raise _unknown(name, list(meant))
        chosen.update(dict.fromkeys(meant[name]))
    return [(by_subtask[subtask], subtask) for subtask in chosen]


def _unknown(name: str, known: list[str]) -> UsageError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(TASKS)}"
    return UsageError(f"unknown task {name!r}", hint=hint)
