"""RULER's reference generators through their package: what is put right around them and, where it is there, they."""

import os
import random
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from uncomp_cli.errors import UsageError
from uncomp_cli.evals.judges.answers import match_score
from uncomp_cli.evals.tasks import choose_subtasks, reference
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.oracle import check_solvable
from uncomp_cli.evals.tasks.reference import GENERATORS, reference_sample
from uncomp_cli.evals.tasks.task import Request

NIAH = """
import os, random, sys
import numpy as np
rank = os.environ["LOCAL_RANK"]

def get_haystack(kind):
    return kind

def generate_samples(haystack, tokenizer, *, max_seq_length, num_samples, template, **kinds):
    print("generating", file=sys.stdout)
    print("generating", file=sys.stderr)
    if max_seq_length < 140:
        raise ValueError("no room")
    value, room = str(random.randint(1000, 9999) + np.random.randint(1000, 9999)), max_seq_length - 120
    text = "word " * room + value
    assert len(tokenizer(text).input_ids) == room + 1
    record = {"input": f"Read.\\n{text}\\nWhat {rank} is it?", "outputs": [value], "gen_prefix": "It is"}
    return [record] * num_samples
"""
CWE = """
import random
RNG, TEMPLATE, CONFIG = random.Random(0), "word " * 90, {"tokens_to_generate": 120}

def sys_word_pair_random(samples, limit, tokenizer):
    assert limit >= 210, "it would try without end"
    return [{"input": "Read.\\n\\nWhich?", "outputs": [], "gen_prefix": "They are"}]
"""
VT = """
def generate_input_output(noises, chains, hops):
    return "word " * 40 * noises, []
"""
FWE = """
TEMPLATE = "word " * 90
"""
INSIDE = ("lm_eval", "lm_eval/tasks", "lm_eval/tasks/ruler")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of their names that writes in their form."""
    for folder in INSIDE:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    modules = {"prepare_niah": NIAH, "niah_utils": "TEMPLATE = ''", "cwe_utils": CWE, "vt_utils": VT, "fwe_utils": FWE}
    for name, source in modules.items():
        (tmp_path / INSIDE[-1] / f"{name}.py").write_text(source)
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "lm_eval"}
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        del sys.modules[name]


def requested(subtask: str, *, index: int = 0, tokens: int = 300) -> Request:
    return Request(subtask, index, tokens, Haystack.of_texts("none", []), lambda text: len(text.split()), seed=0)


@pytest.mark.usefixtures("package")
def test_a_sample_is_as_long_as_was_asked_and_nothing_around_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    states = random.getstate(), np.random.get_state()[1].tolist()
    sample = reference_sample(requested("lm-eval/niah_single_1"))
    (query,) = sample.queries
    assert query.question == "\nWhat 1 is it? It is"
    assert len(sample.context.split()) + len(query.question.split()) == 300  # theirs was longer at first
    assert query.accepted == (sample.context.split()[-1],)
    assert (query.answer, query.max_new_tokens) == (f" {query.accepted[0]}", 128)
    assert sample == reference_sample(requested("lm-eval/niah_single_1"))
    others = {reference_sample(requested("lm-eval/niah_single_1", index=i)).queries[0].answer for i in range(1, 9)}
    assert len({query.answer, *others}) > 7
    assert capsys.readouterr() == ("", "")
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    assert "LOCAL_RANK" not in os.environ


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("subtask", "tokens"),
    [("niah_single_1", 9), ("cwe", 9), ("cwe", 300), ("vt", 9), ("vt", 900), ("fwe", 9)],
)
def test_what_has_no_room_is_refused_and_never_tried_without_end(subtask: str, tokens: int) -> None:
    with pytest.raises(UsageError, match=f"lm-eval/{subtask} has no room in {tokens} tokens"):
        reference_sample(requested(f"lm-eval/{subtask}", tokens=tokens))


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "find_spec", lambda name: None)
    for name in ("lm-eval", "lm-eval/vt"):
        with pytest.raises(UsageError, match="needs the package lm-eval") as caught:
            choose_subtasks([name])
        assert caught.value.hint == "pip install 'uncomp[ruler]'"
    with pytest.raises(UsageError, match="unknown task 'lm-eval/nope'"):  # with the package it would be none either
        choose_subtasks(["lm-eval/nope"])
    assert choose_subtasks(["ruler/vt"])


@pytest.mark.parametrize(("subtask", "what"), [("niah_single_2", "essays"), ("qa_hotpot", "HotpotQA")])
def test_what_needs_the_network_is_left_out_by_name(subtask: str, what: str) -> None:
    with pytest.raises(UsageError, match=f"fetches its {what} from the network") as caught:
        choose_subtasks([f"lm-eval/{subtask}"])
    assert "lm-eval/vt" in (caught.value.hint or "")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'uncomp[ruler]'")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("subtask", GENERATORS)
def test_their_own_samples(subtask: str, capsys: pytest.CaptureFixture[str]) -> None:
    request = requested(subtask, tokens=1500)
    sample = reference_sample(request)
    capsys.readouterr()
    assert sample == reference_sample(request)
    assert capsys.readouterr() == ("", "")
    (query,) = sample.queries
    length = request.count_tokens(sample.context) + request.count_tokens(query.question)
    assert 0.6 * request.tokens < length <= request.tokens
    check_solvable(sample)
    assert len(query.accepted) == {"vt": 5, "cwe": 10, "fwe": 3}.get(subtask.partition("/")[2], 1)
    from lm_eval.tasks.ruler.common_utils import string_match_all

    for text in (query.answer, query.answer[: len(query.answer) // 2].upper(), "", " ".join(query.accepted[1:])):
        assert match_score(text, query) == string_match_all([text], [list(query.accepted)])
