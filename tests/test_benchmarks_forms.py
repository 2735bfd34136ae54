"""The forms of one table: the same facts in all, and what is asked for stands in each."""

import importlib
import random
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("forms")
    sys.modules.pop("forms")


def test_all_forms_hold_the_same_cells(forms: Any) -> None:
    rows = forms.make_rows(random.Random(0), 12)
    for name, form in forms.FORMS.items():
        assert all(cell in form(rows) for row in rows for cell in row), name
    assert forms.FORMS["markdown/10"](rows).count("| item |") == 2


def test_a_pair_is_written_as_the_readers_write_it(forms: Any) -> None:
    """What was measured is what is used: a long table of a file reads as the form `pairs`."""
    from support.documents import extract

    rows = forms.make_rows(random.Random(0), 24)
    assert extract(forms.csv(rows).encode(), suffix=".csv").text == forms.pairs(rows)
    assert extract(forms.json_lines(rows).encode(), suffix=".jsonl").text == forms.pairs(rows)


def test_a_summary_pairs_forms_by_sample(forms: Any) -> None:
    from uncomp_cli.evals.tables.outcome import Outcome

    def outcome(form: str, index: int, nll: float) -> Outcome:
        kept = {"kept_fraction": 1.0, "kv_bytes": 1, "metrics": {"nll": nll, "match": float(nll < 1)}}
        return Outcome(f"forms/{form}", index, "aware", "full", "full", "full", 100, None, **kept)

    outcomes = [
        outcome(form, index, nll + index) for form, nll in (("markdown", 1.0), ("pairs", 0.5)) for index in (0, 1)
    ]
    lines = {line["form"]: line for line in forms.summary(outcomes)}
    assert lines["pairs"]["nll_to_markdown"][0] == -0.5
    assert lines["pairs"]["found"][0] == 0.5
    assert "-0.50" in forms.table_of(list(lines.values())).markdown()
