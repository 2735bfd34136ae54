"""Packages that add a policy, a scorer or a task: found when they are installed, and named when they are broken."""

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from support.budgets import make_spec
from support.families import make_prompt
from uncomp_cli.budget.policies import POLICIES, make_policy
from uncomp_cli.budget.presets import preset
from uncomp_cli.cache.scorers import SCORERS, make_scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.spend.compression import plan_compression
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.evals.judges.contestants import parse_contestant
from uncomp_cli.evals.tasks import TASKS, choose_subtasks
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.task import Request

MODULE = '''
    from dataclasses import dataclass
    from typing import ClassVar

    import torch

    from uncomp_cli.budget.baselines import UniformPolicy
    from uncomp_cli.budget.plan import BudgetPlan
    from uncomp_cli.config import ScorerConfig
    from uncomp_cli.evals.tasks.task import Query


    @dataclass(frozen=True, slots=True)
    class SteepPolicy(UniformPolicy):
        """The first layers keep most."""

        name: ClassVar[str] = "steep"
        slope: float = 2.0

        def weights(self, spec, uncertainty):
            layers = range(spec.num_layers, 0, -1)
            return [[1 + self.slope * order] * spec.num_kv_heads for order in layers]


    @dataclass(frozen=True, slots=True)
    class OldScorer:
        """The earlier the better."""

        name: ClassVar[str] = "old"
        query_aware: ClassVar[bool] = False
        needs_queries: ClassVar[bool] = False
        repeats: ClassVar[bool] = False
        shared: ClassVar[float] = 0.0
        published: ClassVar[ScorerConfig] = ScorerConfig("old")
        config: ScorerConfig

        def score(self, view):
            heads, length, _ = view.keys.shape
            return -torch.arange(length, dtype=torch.float32).expand(heads, -1)


    class Echo:
        """What is the first word?"""

        name = "echo"
        subtasks = ("echo/first",)
        regimes = ("aware",)
        judge = "answers"

        def sample(self, request):
            context = request.haystack.paragraphs[request.index]
            return request.sample(context, (Query("The first word is", " " + context.split()[0], ()),))
'''
ENTRIES = """
    [uncomp.policies]
    steep = mine:SteepPolicy
    [uncomp.scorers]
    old = mine:OldScorer
    [uncomp.tasks]
    echo = mine:Echo
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package where Python looks for installed ones."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(entries: str = ENTRIES, *, module: str = "mine", name: str = "uncomp-mine", code: str = MODULE) -> None:
        (tmp_path / f"{module}.py").write_text(dedent(code))
        about = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (about / "entry_points.txt").write_text(dedent(entries))
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def test_a_package_adds_a_policy_a_scorer_and_a_task(install: Install) -> None:
    install()
    chosen = preset(policy="steep:slope=3", scorer="old", budget="20%")
    prompt, spec = make_prompt(500, [20], protected=4), make_spec((None,) * 3)
    planned = plan_compression(spec, chosen, prompt, available=10**10)
    first, second, third = (layer[0] for layer in planned.allocation.plan.kept)
    assert first > second > third
    assert planned.allocation.plan.entries == spec.full_entries(520) // 5
    assert (planned.scorer.name, chosen.policy) == ("old", "steep:slope=3")
    assert parse_contestant("steep/old", seed=0).scorer.name == "old"
    ((task, subtask),) = choose_subtasks(["echo"])
    assert choose_subtasks(["echo/first"])[0][1] == subtask == "echo/first"
    haystack = Haystack.of_texts("a", ["The harbour was quiet and the lamps were lit at the end of the pier. " * 3])
    sample = task.sample(Request(subtask, 0, 9, haystack, len, seed=0))
    assert (sample.task, sample.queries[0].answer) == ("echo", " The")


def test_names_that_nobody_adds_are_told_as_ever(install: Install) -> None:
    for install_it in (False, True):
        if install_it:
            install()
        with pytest.raises(UsageError, match="unknown policy 'unifrom'") as policy:
            make_policy("unifrom")
        with pytest.raises(UsageError, match="unknown scorer 'windwo'") as scorer:
            make_scorer(ScorerConfig("windwo"))
        with pytest.raises(UsageError, match="unknown task 'neeedle'"):
            choose_subtasks(["neeedle"])
        assert (policy.value.hint, scorer.value.hint) == ("did you mean 'uniform'?", "did you mean 'window'?")
    with pytest.raises(UsageError) as near:
        make_policy("stepe")
    assert near.value.hint == "did you mean 'steep'?"


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (
            "lost = absent:Policy",
            "'lost' of uncomp.policies cannot be loaded: ModuleNotFoundError: No module",
        ),
        ("lost = mine:Absent", "'lost' of uncomp.policies cannot be loaded: AttributeError: "),
        (
            "lost = mine:Echo",
            "'lost' of uncomp.policies is not what the group needs: mine:Echo has no fixed_",
        ),
        ("lost = mine:SteepPolicy", "'lost' of uncomp.policies is called 'steep' itself"),
        ("uniform = mine:SteepPolicy", "'uniform' of uncomp.policies takes the name of a built-in: full, uniform"),
    ],
)
def test_an_entry_that_is_broken_is_named_with_its_package(install: Install, entries: str, reason: str) -> None:
    install(f"[uncomp.policies]\n{entries}\n")
    with pytest.raises(UncompError) as caught:
        make_policy("lost")
    assert caught.value.message.startswith(f"package uncomp-mine 1.2: entry {reason}")
    assert caught.value.hint == "update or uninstall uncomp-mine 1.2"
    assert make_policy("uniform").name == "uniform"  # whatever else is installed


def test_two_packages_with_one_name(install: Install) -> None:
    install()
    install(module="yours", name="uncomp-yours", entries="[uncomp.policies]\nsteep = yours:SteepPolicy\n")
    with pytest.raises(UncompError, match=r"'steep' of uncomp\.policies is also one of package uncomp-"):
        make_policy("steep")


def test_what_is_built_in_does_not_look_at_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", None)
    assert [make_policy(name).name for name in POLICIES] == list(POLICIES)
    assert [make_scorer(ScorerConfig(name)).name for name in SCORERS] == list(SCORERS)
    own = [name for name in TASKS if name != "lm-eval"]  # which asks for its package
    assert {task.name for task, _ in choose_subtasks(own)} == set(own)
    assert parse_contestant("uniform/window/8bit", seed=0).kv_bits == 8
