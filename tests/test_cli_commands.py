"""doctor, model and preset: what they print, for people and as JSON."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uncomp_cli.budget import presets
from uncomp_cli.cli.app import run
from uncomp_cli.cli.declare.completion import model_names, policy_names, preset_names
from uncomp_cli.cli.stock import doctor
from uncomp_cli.models import catalog

MODEL = catalog.ModelInfo(
    name="tiny", path=Path("/models/tiny"), source="hub", sha256="ab12", architecture="LlamaForCausalLM", layers=2,
    heads=4, kv_heads=2, head_dim=8, trained_length=8192, kv_bytes_per_token=46080, dtype="float32", licence=None,
    size_bytes=513 * 2**20,
)  # fmt: skip


def test_model_list_and_show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(catalog, "list_models", lambda: [MODEL])
    monkeypatch.setattr(catalog, "show_model", lambda name: MODEL)
    assert run(["model", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [
        "tiny", "LlamaForCausalLM", "8,192", "float32", "513", "MiB",
    ]  # fmt: skip
    assert run(["model", "show", "tiny"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.replace(" length", "_length").splitlines())
    assert shown["licence"] == "unknown"
    assert shown["trained_length"] == "8,192"
    assert run(["model", "show", "tiny", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema_version"] == 1
    assert (record["path"], record["kv_heads"], record["licence"]) == ("/models/tiny", 2, None)


def test_model_list_when_there_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(catalog, "list_models", list)
    assert run(["model", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_model_remove(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    removed: list[str] = []
    monkeypatch.setattr(catalog, "remove_model", lambda name: removed.append(name) or ["/models/tiny.gguf"])
    assert run(["model", "remove", "tiny"]) == 0
    assert removed == ["tiny"]
    assert capsys.readouterr() == ("", "removed model tiny; /models/tiny.gguf stays\n")


@pytest.fixture
def own_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preset of the user's own, in a user data directory of its own."""
    monkeypatch.setattr(presets, "user_preset_dir", lambda: tmp_path)
    path = tmp_path / "careful.json"
    record = replace(presets.load_preset("full"), name="careful", description="keeps much", budget="30%").to_dict()
    record["thinning"] = "gather:keep=0.3"
    path.write_text(json.dumps(record))
    return path


def test_preset_list_and_show(own_preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preset", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [re.split(r"  +", line) for line in lines]
    assert rows[0] == ["NAME", "BUDGET", "MODEL", "LOSES", "WHEN TO TAKE IT"]
    assert ["careful", "30%", "any", "nothing", "keeps much"] in rows
    by_name = {row[0]: row for row in rows[1:-1]}
    assert by_name["balanced"][1:3] == ["20%", "smollm2-135m"]
    assert re.fullmatch(r"\d+\.\d % \(\d+\.\d to \d+\.\d\)", by_name["balanced"][3])
    assert by_name["live"][2:4] == ["any", "not measured"]
    assert all(row[4].startswith(("For ", "Where ", "To ")) for name, row in by_name.items() if name != "careful")
    assert "likelihood" in lines[-1]
    assert run(["preset", "show", "careful"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (shown["budget"], shown["scorer.name"], shown["thinning"]) == ("30%", "window", "gather:keep=0.3")
    assert run(["preset", "show", "careful", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"] == "30%"


def test_preset_validate_and_remove(own_preset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["preset", "validate", str(own_preset)]) == 0
    assert capsys.readouterr().out == f"{own_preset}: valid preset 'careful'\n"
    own_preset.write_text(own_preset.read_text().replace("description", "descripton"))
    assert run(["preset", "validate", str(own_preset)]) == 2
    assert "descripton" in capsys.readouterr().err
    own_preset.write_text(own_preset.read_text().replace("descripton", "description").replace("gather", "gahter"))
    assert run(["preset", "validate", str(own_preset)]) == 2
    assert "did you mean 'gather'" in capsys.readouterr().err
    assert run(["preset", "remove", "careful"]) == 0
    assert not own_preset.exists()
    assert run(["preset", "remove", "full"]) == 2


def test_completions(own_preset: Path) -> None:
    assert preset_names("care") == ["careful"]
    assert policy_names("uni") == ["uniform"]
    assert model_names("smol")[0] == "smollm2-135m"


def test_doctor_says_what_cannot_be_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        raise OSError("no such sensor\nsecond line")

    probes: dict[str, Callable[[], Any]] = {"memory_free_bytes": lambda: 3 * 2**30, "devices": broken}
    monkeypatch.setattr(doctor, "_PROBES", probes)
    assert run(["doctor"]) == 0
    *table, advice = capsys.readouterr().out.splitlines()[1:]
    assert [line.split(maxsplit=1) for line in table] == [
        ["memory", "free  3.0 GiB"],
        ["devices", "unreadable: OSError: no such sensor"],
    ]
    assert advice == (
        "- 3.0 GiB are free: uncomp ask --preset small for long documents, balanced for short ones; a larger model "
        "fits too: uncomp model pull qwen3-4b, then -m qwen3-4b"
    )


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ({"default_model": "smollm2-135m is not here: …"}, "uncomp model pull smollm2-135m"),
        ({"memory_free_bytes": 2**30}, "--preset tiny"),
        ({"memory_free_bytes": 32 * 2**30}, "a larger model fits too: uncomp model pull qwen3-8b, then -m qwen3-8b"),
        ({"cores": 8, "threads": 2}, "OMP_NUM_THREADS=8"),
        ({"readers": {".pdf": "missing: pip", ".html": "lxml 6"}}, ".pdf cannot be read yet"),
        ({"readers": {"unreadable": "OSError"}, "memory_free_bytes": {"unreadable": "x"}}, None),
    ],
)
def test_doctor_recommends_what_helps(report: dict[str, Any], words: str | None) -> None:
    said = [*doctor.recommended(report)]
    assert len(said) == (words is not None)
    assert words is None or words in said[0]


def test_doctor_reports_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text("= broken")
    monkeypatch.setenv("UNCOMP_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path))
    # bitsandbytes is only probed in a process of its own: importing it here would warn, and warnings are errors.
    monkeypatch.delitem(doctor._PROBES, "quantization")
    assert run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cache_size_bytes"] == len("= broken")
    assert report["cache_dir"] == str(tmp_path)
    assert "Invalid" in report["config_file"]["unreadable"]
    assert report["memory_total_bytes"] > report["memory_free_bytes"] > 0
    assert "cpu" in report["devices"]
    assert "uncomp model pull smollm2-135m" in report["default_model"]
