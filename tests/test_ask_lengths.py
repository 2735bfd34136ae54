"""`uncomp ask` past the trained length: --rope, --context and --force, what they come to, and what is said of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.commands import Ask, two_lines
from support.tiny import scaled_model
from uncomp_cli.engine.spend import memory

AUTO = ("reread",)
"""What `auto` comes to for a model whose keys can be moved."""
TRAINED = 2048
LONG = TRAINED + 600
ASKED = ("--max-new-tokens", "6", "--policy", "uniform", "-b", "20%")


@pytest.fixture(scope="module")
def tiny_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for half as many tokens, so that less has to be read to pass them."""
    return Path(scaled_model(tiny_model, TRAINED, folder=tmp_path_factory.mktemp("half") / "tiny", rope_type="default"))


@pytest.fixture(autouse=True)
def texts(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    Path("short.txt").write_text("The harbour was quiet. " * 20)
    Path("long.txt").write_text(("The harbour was quiet and the lamps were lit. " * 400)[:LONG])


def record_of(out: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(out.splitlines()[-1])
    return record


def test_a_long_document_is_refused_where_no_way_is_named(ask: Ask) -> None:
    assert ask("-f", "long.txt", "Where?")[0] == 3


@pytest.mark.parametrize(
    ("args", "rope", "how"),
    [
        (["--rope", "yarn:2"], "yarn:2", "extended by --rope yarn:2"),
        (["--rope", "dynamic:2"], "dynamic:2", "extended by --rope dynamic:2"),
        (["--rope", "linear", "--context", "4k"], "linear:2", "extended by --rope linear:2"),
        (["--rope", "repack:3"], "repack:3", "re-packed within that length (--rope repack:3)"),
        (["--rope", "repack"], "repack", "re-packed within that length (--rope repack)"),
        (["--rope", "reread"], "reread", "re-packed within that length (--rope reread)"),
        (["--force"], "plain", "read on as trained (--rope plain)"),
        (["--rope", "plain"], "plain", "read on as trained (--rope plain)"),
    ],
)
def test_a_long_document(ask: Ask, args: list[str], rope: str, how: str) -> None:
    code, out, err = ask("-f", "long.txt", *args, "--json", "Where?")
    assert code == 0, err
    record = record_of(out)
    assert record["model"]["rope"] == rope
    assert record["uncertainty"]["prompt_in_trained_length"] is False
    (warning,) = [each for each in record["warnings"] if "was trained for" in each]
    assert warning.endswith(f"trained for 2,048: answers from a context {how} are less reliable")
    assert f"warning: {warning}" in err.splitlines()


@pytest.mark.parametrize("args", [["--rope", "auto"], ["--context", "4k"], ["--rope", "auto", "--context", "4096"]])
def test_auto_is_said_and_is_as_trained_where_all_fits(ask: Ask, args: list[str]) -> None:
    code, out, err = ask("-f", "long.txt", *args, "--json", "Where?")
    assert code == 0, err
    rope = record_of(out)["model"]["rope"]
    assert rope in AUTO
    assert [line for line in err.splitlines() if line.startswith("rope auto: ") and line.endswith(f"--rope {rope}")]
    plain = ask("-f", "short.txt", "--json", "Where?")[1]
    code, out, err = ask("-f", "short.txt", *args, "--json", "Where?")
    assert code == 0, err
    assert record_of(out)["model"]["rope"] == "trained"
    assert record_of(out)["answer"] == record_of(plain)["answer"]
    assert record_of(out)["warnings"] == []


def test_a_plan_takes_what_auto_takes(ask: Ask) -> None:
    args = ["-f", "long.txt", "--rope", "auto", "--json"]
    plan, record = (record_of(ask(*args, *mode, "Where?")[1]) for mode in (["--dry-run"], []))
    assert plan["rope"] == record["model"]["rope"]


def test_auto_goes_by_the_longest_of_several_documents(ask: Ask) -> None:
    code, out, err = ask("-f", "short.txt", "-f", "long.txt", "--each", "--rope", "auto", "--json", "Where?")
    assert code == 0, err
    first, second = (json.loads(line)["model"]["rope"] for line in out.splitlines())
    assert first == second
    assert first in AUTO
    assert sum(line.startswith("rope auto: ") for line in err.splitlines()) == 1


def test_documents_of_two_lengths_share_frequencies_that_depend_on_it(ask: Ask) -> None:
    code, out, err = ask("-f", "short.txt", "-f", "long.txt", "--each", "--rope", "dynamic:2", "--json", "Where?")
    assert code == 0, err
    both = [json.loads(line)["answer"] for line in out.splitlines()]
    assert both[1] == record_of(ask("-f", "long.txt", "--rope", "dynamic:2", "--json", "Where?")[1])["answer"]


@pytest.mark.parametrize(
    ("args", "rope", "length"),
    [(["--rope", "repack"], "repack", 2**20), (["--rope", "yarn:2"], "yarn:2", 4096), (["--force"], "plain", 2**20)],
)
def test_a_plan_says_how_the_length_is_reached(ask: Ask, args: list[str], rope: str, length: int) -> None:
    code, out, err = ask("-f", "long.txt", *args, "--dry-run", "--json", "Where?")
    assert code == 0, err
    plan = record_of(out)
    assert (plan["rope"], plan["context_length"], plan["trained_length"]) == (rope, length, TRAINED)
    record = record_of(ask("-f", "long.txt", *args, "--json", "Where?")[1])
    assert plan["prompt_tokens"] == record["usage"]["prompt_tokens"]
    assert plan.get("chunk_tokens") == record["compression"]["chunk_tokens"]
    assert ("chunk_tokens" in plan) == (rope == "repack")
    assert plan["kv_planned_bytes"] == pytest.approx(record["memory"]["kv_bytes"], rel=0.1)


@pytest.mark.parametrize("flag", [["--save-cache", "town"], ["--reuse", "auto"]])
def test_what_is_saved_is_extended_and_not_re_packed(ask: Ask, flag: list[str]) -> None:
    code, out, err = ask("-f", "long.txt", "--rope", "repack", *flag, "Where?")
    assert (code, out) == (2, "")
    message, hint = two_lines(err)
    assert message == "a saved document cannot be re-packed: what is kept of it has to stay where it is"
    assert "--rope yarn:2" in hint
    code, out, err = ask("-f", "long.txt", "--rope", "auto", *flag, "--json", "Where?")
    assert code == 0, err
    assert record_of(out)["model"]["rope"] == "yarn:2"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--force", "--rope", "yarn:2"], 2, "--force reads on as the model was trained"),
        (["--context", "many"], 2, "context 'many' is not a length in tokens"),
        (["--rope", "plain:2"], 2, "rope 'plain' takes no factor"),
        (["--rope", "yarn:2", "--context", "32k"], 2, "--rope yarn:2 makes 2,048 tokens 4,096, not the 32,768"),
        (["--rope", "yarn:0.5"], 2, "rope factor 0.5 is not above 1"),
        (["--context", "2500"], 3, "the prompt has 2,6"),
    ],
)
def test_what_cannot_be(ask: Ask, args: list[str], code: int, message: str) -> None:
    found, out, err = ask("-f", "long.txt", *args, "Where?")
    assert (found, out) == (code, "")
    (said,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said.removeprefix("error: ").startswith(message)


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_a_context_that_the_memory_does_not_hold(ask: Ask, monkeypatch: pytest.MonkeyPatch, mode: list[str]) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**24)
    code, out, err = ask("-f", "short.txt", "--rope", "yarn", "--context", "128k", *mode, "Where?")
    assert (code, out) == (3, "")
    message, hint = two_lines(err)
    assert message.startswith("a context of 131,072 tokens needs 26 MiB of KV cache under --budget 20%, 1")
    assert "--context" in hint
    assert ask("-f", "short.txt", "--rope", "yarn", "--context", "64k", *mode, "Where?")[0] == 0


def test_what_a_model_reads_by_its_own_scaling_is_no_less_sure(ask: Ask, tiny_model: Path) -> None:
    model = scaled_model(tiny_model, 256, rope_type="dynamic", factor=4.0)
    for rope in ([], ["--rope", "auto"], ["--force", "--context", "1k"]):
        code, out, err = ask("-f", "short.txt", "-m", model, *rope, "--json", "Where?")
        assert code == 0, err
        record = record_of(out)
        assert 256 < record["usage"]["prompt_tokens"] < 1024
        assert record["warnings"] == []
    (warning,) = record_of(ask("-f", "short.txt", "-m", model, "--rope", "ntk:4", "--json", "Where?")[1])["warnings"][
        1:
    ]
    assert warning.endswith("extended by --rope ntk:4 are less reliable")


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_reading_on_as_trained_is_refused_where_nothing_says_how(ask: Ask, tiny_model: Path, mode: list[str]) -> None:
    model = scaled_model(tiny_model, 256, rope_type="dynamic", factor=4.0)
    code, out, err = ask("-f", "long.txt", "-m", model, "--force", *mode, "Where?")
    assert (code, out) == (2, "")
    message, hint = two_lines(err)
    assert message.endswith("(--rope plain): its dynamic RoPE ends at 1,024 tokens")
    assert "--rope auto" in hint


def test_a_scaling_of_its_own_that_gives_way_is_said(ask: Ask, tiny_model: Path) -> None:
    model = scaled_model(tiny_model, TRAINED, rope_type="yarn", factor=2.0, original_max_position_embeddings=1024)
    code, out, err = ask("-f", "long.txt", "-m", model, "--rope", "ntk:4", "--json", "Where?")
    assert code == 0, err
    said = "the model's own RoPE scaling (yarn:2) is replaced by --rope ntk:4"
    assert said in record_of(out)["warnings"]
    assert f"warning: {said}" in err.splitlines()
