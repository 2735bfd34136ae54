"""Groups of options in a command's signature: what Typer reads of them, and what the command is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from uncomp_cli.budget.amount import Budget
from uncomp_cli.cli.declare.tree import command_of, group, key_name, only, option

HALF = Budget.parse("50%")


@dataclass(frozen=True, slots=True)
class Read:
    file: Annotated[tuple[str, ...], option("--file", "-f", help="Files.", show_default="standard input")] = ()
    name: Annotated[str | None, option("--name", help="A name.", metavar="NAME")] = None
    lengths: Annotated[tuple[int, ...], option("--lengths", help="Lengths.", min=2, setting=False)] = (20, 30)


@dataclass(frozen=True, slots=True)
class Held:
    name: Annotated[str, option("--model", "-m", help="A model.", metavar="NAME")] = "small"
    bits: Annotated[Literal[16, 8, 4] | None, option("--bits", help="Bits.", show_default="the preset's")] = None
    budget: Annotated[Budget, option("--budget", help="A budget.", metavar="AMOUNT", parser=Budget.parse)] = HALF
    whole: Annotated[bool, option("--whole/--no-whole", help="All of it.")] = False


@dataclass(frozen=True, slots=True)
class Needed:
    path: Annotated[Path, option("--path", help="A path.")]


def run(*args: str, **settings: str) -> tuple[str, list[Any]]:
    """What `say ARGS` writes, and what the command was given."""
    given: list[Any] = []
    app = group("say", "Say.")

    @command_of(app, "say")
    def say(
        ctx: typer.Context,
        text: Annotated[str, typer.Argument(metavar="TEXT")] = "hello",
        *,
        read: Read,
        loud: Annotated[bool, option("--loud", help="Loud.")] = False,
        held: Annotated[Held, only("name", "bits", "budget", bits="all of them")],
    ) -> None:
        """Say something."""
        given.extend([ctx.command.params, text, read, loud, held])

    typer.Typer.callback(app)(lambda: None)
    result = CliRunner().invoke(app, ["say", *args], env=settings)
    assert not isinstance(result.exception, Exception), result.exception
    return result.output, given


def test_the_options_of_the_groups_stand_in_the_order_of_the_signature() -> None:
    params = run()[1][0]
    assert [key_name(param.opts) for param in params[1:]] == [
        "file",
        "name",
        "lengths",
        "loud",
        "model",
        "bits",
        "budget",
    ]
    assert [param.envvar for param in params[1:]] == [
        "UNCOMP_FILE", "UNCOMP_NAME", None, "UNCOMP_LOUD", "UNCOMP_MODEL", "UNCOMP_BITS", "UNCOMP_BUDGET",
    ]  # fmt: skip


def test_a_command_that_is_told_nothing_has_the_defaults_of_the_dataclasses() -> None:
    assert run()[1][1:] == ["hello", Read(), False, Held()]


def test_a_command_is_given_filled_dataclasses() -> None:
    _, given = run(
        "bye", "-f", "a b", "--file", "c", "--lengths", "7", "--name", "x", "--loud", "-m", "y", "--bits", "8"
    )
    assert given[1:] == ["bye", Read(("a b", "c"), "x", (7,)), True, Held("y", 8)]


def test_a_variable_sets_an_option_of_a_group() -> None:
    assert run(UNCOMP_MODEL="large")[1][-1] == Held("large")


def test_a_value_is_made_where_it_is_typed() -> None:
    assert run("--budget", "512")[1][-1].budget == Budget.parse("512")
    assert run()[1][-1].budget == HALF


def test_the_help_tells_the_defaults() -> None:
    lines = run("--help")[0].splitlines()
    told = {line.split()[0]: line.partition("default: ")[2].rstrip("]") for line in lines if "default" in line}
    assert told["-f,"] == "(standard input)"
    assert told["--lengths"].startswith("(20, 30)")
    assert (told["-m,"], told["--bits"], told["--budget"]) == ("small", "(all of them)", "50%")


def test_what_a_command_does_not_take_is_no_option_of_it() -> None:
    output, given = run("--whole")
    assert "No such option: --whole" in output
    assert given == []


def test_a_bad_value_is_refused_by_its_flag() -> None:
    assert "'--bits'" in run("--bits", "5")[0]
    assert "'--lengths'" in run("--lengths", "1")[0]


def test_a_field_without_a_default_must_be_given() -> None:
    app = typer.Typer()

    @command_of(app, "go")
    def go(*, needed: Needed) -> None:
        pytest.fail(f"{needed} was not given")

    assert "Missing option '--path'" in CliRunner().invoke(app, []).output


def test_a_whole_number_may_be_in_thousands() -> None:
    assert run("--lengths", "2k", "--lengths", "1,500")[1][2].lengths == (2048, 1500)
    for wrong, said in (("1", "1 is not in the range x>=2."), ("2kk", "'2kk' is not a valid integer.")):
        assert said in run("--lengths", wrong)[0]
