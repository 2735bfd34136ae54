"""The table of families is what a run finds, and the page is the table; what is not in it is refused by name."""

import re

import pytest

from census import DOCS, README, counted, examine, families, page
from uncomp_cli.errors import ModelError
from uncomp_cli.models.families import TABLE, check_family, load_families

KNOWN = load_families()
OFTEN = [
    "afmoe",
    "cohere2",
    "falcon_h1",
    "gemma2",
    "gemma4_text",
    "gpt_oss",
    "llama",
    "qwen3_5_text",
]
"""Kinds of attention, of experts and of states, with two that are refused for what they get wrong."""
WRONG = ["diffllama", "doge"]
PARTS = ["deepseek_vl", "gemma3", "gemma4", "smolvlm"]


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in (*OFTEN, *WRONG, *PARTS) else pytest.mark.slow)
        for family in (*KNOWN.supported, *KNOWN.parts, *KNOWN.refused)
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_family_is_what_the_table_says(family: str) -> None:
    found = examine(family)
    assert found.reason == KNOWN.refused.get(family, ""), found.failed
    assert ("thinned" in found.passed) == (family in KNOWN.thinned)
    assert ("stepped" in found.passed) == (family in KNOWN.stepped)


def test_every_family_of_transformers_is_in_the_table() -> None:
    """With another version of transformers: make families."""
    assert sorted((*KNOWN.supported, *KNOWN.parts, *KNOWN.refused)) == families()
    assert set(KNOWN.thinned) | set(KNOWN.stepped) <= set(KNOWN.supported)
    assert not set(KNOWN.supported) & set(KNOWN.refused)


def test_the_page_is_the_table() -> None:
    assert DOCS.read_text(encoding="utf-8") == page(load_families(TABLE))
    readme = README.read_text(encoding="utf-8")
    assert counted(readme, KNOWN) == readme
    assert f"[{len(KNOWN.supported)} families]" in readme


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("deepseek_v3", "multi-head latent attention"),
        ("mamba", "none of its layers attends"),
        ("jamba", "otherwise behind a state"),
        ("bert", "both directions"),
        ("diffllama", "differs from the stock model|does not go through"),
        ("of_tomorrow", "it has not been tried"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_with_the_reason(family: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"'{family}' are not supported: .*({reason})") as caught:
        check_family(family)
    assert re.search("llama.* more families", str(caught.value.hint))
    assert "\n" not in f"{caught.value.message}{caught.value.hint}"
