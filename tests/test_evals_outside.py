"""Records that others made become samples: forms, evidence, lengths, broken files, scores by hand."""

import gzip
import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from support.commands import two_lines
from uncomp_cli.cli.app import run
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.evals.journal import read_journal
from uncomp_cli.evals.judges.answers import evidence_lines, f1_score, judge_answers
from uncomp_cli.evals.judges.case import read_case, tokenise
from uncomp_cli.evals.judges.contestants import make_settings
from uncomp_cli.evals.tables.outcome import OUTCOMES, Outcome
from uncomp_cli.evals.tasks import Task
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.oracle import check_solvable
from uncomp_cli.evals.tasks.outside import outside_tasks
from uncomp_cli.evals.tasks.task import Query, Request, Sample
from uncomp_cli.models.runnable import LoadedModel

PROSE = Haystack.generated(seed=0, tokens=400)
NAMES = ("Ada", "Bruno", "Clara", "Dora", "Emil", "Frida", "Gustav", "Hanna")


def questions() -> list[dict[str, Any]]:
    """Natural Questions with their gold passages."""
    return [
        {
            "question": f"who kept bees in {name}'s valley?",
            "answers": [f"{name} Miller", f"the {name.lower()} family"],
            "ctxs": [
                {
                    "title": f"Valley of {name}",
                    "text": f"For years {name} Miller\nkept bees there. " + "Rain fell. " * 9,
                }
                | {"isgold": True}
            ],
        }
        for name in NAMES
    ]


def pairs() -> list[dict[str, Any]]:
    records = [[f"key-{number}", f"value-{number}"] for number in range(30)]
    return [{"ordered_kv_records": records, "key": "key-21", "value": "value-21"}]


def hops() -> list[dict[str, Any]]:
    return [
        {
            "title_a": "Pixel",
            "para_a": ["Pixel is a game.", " It came out on discs."],
            "title_b": "Portable",
            "para_b": ["Portable is a machine.", " It has a screen.", " It takes discs."],
            "supporting_facts": [[1], [0, 2]],
            "question": "What do both have?",
            "answer": "discs",
            "distractors": [[f"Title {number}", ["One thing.", " Another thing."], 0.5] for number in range(20)],
        }
    ]


def pages() -> list[dict[str, Any]]:
    rows = " ".join(f"<Tr> <Td> year {year} </Td> <Td> {year * 7} sheep </Td> </Tr>" for year in range(1900, 1990))
    questions = [f"how many sheep in {year}" for year in (1901, 1902, 1989)]
    return [{"instructions": questions, "outputs": ["13307", "13314", "13923"], "input": rows, "evaluation": "rouge"}]


def lectures() -> list[dict[str, Any]]:
    question = "where did they go\nA. to the sea\nB. home\nC. nowhere"
    text = "They walked to the sea. " * 20
    return [{"instructions": [question] * 8, "outputs": ["A", "B"] * 4, "input": text, "evaluation": "exam"}]


def meetings() -> list[dict[str, Any]]:
    turns = [{"speaker": f"P{number % 3}", "content": f"point {number} is open ."} for number in range(60)]
    asked = {"query": "What was open?", "answer": "Points 40 and 41.", "relevant_text_span": [["40", "41"]]}
    return [{"specific_query_list": [asked], "meeting_transcripts": turns}]


def own() -> list[dict[str, Any]]:
    return [
        {"question": "What is the code?", "answers": ["4711"], "path": "notes.txt"},
        {
            "question": "What is red?",
            "answers": ["the door", "a door"],
            "document": "The door is red.\nThe roof is not.",
        },
    ]


def write(path: Path, records: Iterable[Any]) -> Path:
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def tasks_of(path: Path, records: list[dict[str, Any]]) -> dict[str, Task]:
    tasks, digests, unknown = outside_tasks([write(path, records)])
    assert list(digests) == [path.name]
    assert unknown == []
    return {task.name: task for task in tasks}


def count_words(text: str) -> int:
    return len(text.split())


def request(subtask: str, tokens: int, index: int = 0) -> Request:
    return Request(subtask, index, tokens, PROSE, count_words, 0)


def made(task: Task, tokens: int, index: int = 0, part: int = 0) -> Sample:
    wanted = request(task.subtasks[part], tokens, index)
    sample = task.sample(wanted)
    assert sample == task.sample(wanted)
    assert sum(map(count_words, (sample.context, max(query.question for query in sample.queries)))) <= tokens
    check_solvable(sample)
    return sample


def evidence(sample: Sample, query: int = 0) -> list[str]:
    return [sample.context[begin:end] for begin, end in sample.queries[query].evidence]


def test_a_passage_stands_between_those_of_other_questions(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path / "any.jsonl.gz", questions())
    assert [(name, task.judge) for name, task in tasks.items()] == [("nq", "answers"), ("nq-cited", "evidence")]
    halves = [tasks["nq"].count(request(subtask, 300)) for subtask in tasks["nq"].subtasks if tasks["nq"].count]
    assert sum(halves) == len(NAMES)
    sample = made(tasks["nq"], 300)
    (query,) = sample.queries
    (passage,) = evidence(sample)
    assert query.accepted[0] in passage
    assert "\n" not in passage
    assert (query.need, query.whole, query.answer) == ("any", True, query.accepted[0])
    assert query.question.startswith("who kept bees")
    assert "few words" in query.instruction
    assert "few words" not in query.question
    assert sample.context.count("# Valley of") > 3
    assert sample.context.count(query.accepted[0]) == 1
    lines = sample.context.split("\n")
    assert {lines[line - 1] for line in evidence_lines(sample)} == {passage}
    others = questions()
    others[3]["ctxs"][0]["text"] += f" So said {query.accepted[0].upper()}."
    again = made(tasks_of(tmp_path / "more.jsonl", others)["nq"], 500)
    assert again.context.count("# Valley of") == len(NAMES) - 1
    assert again.context.lower().count(query.accepted[0].lower()) == 1  # what holds an answer is no distractor
    depths = {made(tasks["nq"], 300, index).depth for index in range(3)}
    assert len(depths) > 1


def test_a_longer_sample_has_more_around_it_and_too_short_a_one_is_refused(tmp_path: Path) -> None:
    task = tasks_of(tmp_path / "nq.jsonl", questions())["nq"]
    assert count_words(made(task, 180).context) < count_words(made(task, 300).context)
    with pytest.raises(UsageError, match=r"nq/\w+ has 0 samples that fit into 90 tokens"):
        task.sample(request(task.subtasks[0], 90))


def test_a_pair_keeps_its_place_among_the_others(tmp_path: Path) -> None:
    sample = made(tasks_of(tmp_path / "kv.jsonl", pairs())["kv"], 200)
    assert evidence(sample) == ['"key-21": "value-21"']
    assert 0.6 < sample.context.index("key-21") / len(sample.context) < 0.8
    assert sample.queries[0].accepted == ("value-21",)


def test_two_paragraphs_and_the_sentences_that_support_the_answer(tmp_path: Path) -> None:
    sample = made(tasks_of(tmp_path / "hotpot.jsonl", hops())["hotpot"], 160)
    assert sorted(evidence(sample)) == ["It came out on discs.", "It takes discs.", "Portable is a machine."]
    assert sample.depth is None
    assert sample.context.count("# Title") > 3


def test_of_a_page_that_is_cut_only_what_is_left_is_asked(tmp_path: Path) -> None:
    task = tasks_of(tmp_path / "pages.jsonl", pages())["leval"]
    assert task.regimes == ("agnostic",)
    assert [query.accepted for query in made(task, 220).queries] == [("13307",), ("13314",)]
    assert len(made(task, 2000).queries) == 3


def test_a_lecture_is_read_whole_and_asked_by_choices(tmp_path: Path) -> None:
    task = tasks_of(tmp_path / "lectures.jsonl", lectures())["leval"]
    assert task.subtasks == ("leval/lectures",)
    assert task.count is not None
    assert [task.count(request("leval/lectures", tokens)) for tokens in (150, 400)] == [0, 2]
    first, second = made(task, 400), made(task, 400, 1)
    assert (len(first.queries), len(second.queries)) == (6, 2)
    assert [(query.choices, query.answer) for query in second.queries] == [
        (("A", "B", "C"), "A"),
        (("A", "B", "C"), "B"),
    ]


def test_a_meeting_is_cut_around_the_turns_that_matter(tmp_path: Path) -> None:
    sample = made(tasks_of(tmp_path / "qmsum.jsonl", meetings())["qmsum"], 200)
    assert evidence(sample) == ["P1: point 40 is open .\nP2: point 41 is open ."]
    assert "point 39" in sample.context
    assert "point 42" in sample.context
    assert "point 0 " not in sample.context


def test_own_questions_name_a_file_or_hold_their_text(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The code is 4711.\n")
    task = tasks_of(tmp_path / "mine.jsonl", own())["qa"]
    assert made(task, 200).context.strip() == "The code is 4711."
    assert made(task, 200, 1).queries[0].accepted == ("the door", "a door")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "a", "answers": ["b"], "document": "c"}\n{"question": ', "line 2 is no JSON object"),
        (b"[1]\n", "line 1 is no JSON object"),
        (b'{"question": "a", "answers": "b", "document": "c"}\n', r"record 1 of '.*x\.jsonl': answers is \"b\""),
        (b'{"question": "a", "answers": ["b"], "path": "gone.md"}\n', r"record 1 of '.*x\.jsonl': .*gone\.md"),
        (b'{"question": "a", "answers": [], "document": "c"}\n', "record 1 .* without question or answer"),
        (b'{"question": "a", "answers": ["b"]}\n', "record 1 .* has no 'path'$"),
        (b'{"some": "thing"}\n', "no tasks: .* no form that is known"),
        (b"", "no tasks: "),
        (b"\x1f\x8b broken", "line 1 is no JSON object"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(UncompError, match=message):
        outside_tasks([path])


def test_a_gzip_that_ends_early_or_unpacks_to_too_much(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(own()[1]).encode())[:-9])
    with pytest.raises(UncompError, match="cannot be read"):
        outside_tasks([path])
    path.write_bytes(gzip.compress(bytes(2**28 + 1), 1))
    with pytest.raises(UncompError, match="unpacks to 256 MiB or more"):
        outside_tasks([path])


def test_a_device_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path / "none.jsonl"):
        with pytest.raises(UncompError):
            outside_tasks([path])


@pytest.mark.parametrize(
    ("text", "accepted", "score"),
    [
        ("The Eiffel Tower.", ("eiffel tower",), 1.0),
        ("It is the Eiffel Tower", ("Eiffel Tower",), 2 * 2 / (4 + 2)),
        ("in 1901", ("1902", "1901 or so"), 2 * 1 / (2 + 3)),
        ("no", ("yes",), 0.0),
        ("the", ("a",), 1.0),
    ],
)
def test_f1_by_hand(text: str, accepted: tuple[str, ...], score: float) -> None:
    assert f1_score(text, accepted) == pytest.approx(score)


@pytest.fixture
def evaluate(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`uncomp eval` in this process, on an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNCOMP_CONFIG", "/dev/null")
    common = ("-m", str(tiny_model), "--out", "r.jsonl", "--tokens", "1500", "-b", "30%", "--policy", "uniform")
    return lambda *args: run(["eval", *common, *args])


def test_records_are_judged_from_the_command_line(
    evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.jsonl.gz", lectures())
    write(tmp_path / "data" / "b.jsonl", [{"some": "thing"}])
    (tmp_path / "notes.txt").write_text("The code is 4711.\n" * 9)
    write(tmp_path / "mine.jsonl", own())
    assert evaluate("--data", "data", "--qa", "mine.jsonl", "--samples", "5", "--tokens", "250", "--json") == 0
    out, err = capsys.readouterr()
    assert "leval/lectures has no sample that fits into 250 tokens" in err
    assert "b.jsonl' has records of no form that is known" in err
    tables = {(table["tasks"][0], table["regime"]) for table in json.loads(out)["tables"]}
    assert tables == {("leval", "agnostic"), ("qa", "aware"), ("qa", "agnostic")}
    settings, outcomes = read_journal(Path("r.jsonl"), OUTCOMES)
    assert sorted(settings["data"]) == ["a.jsonl.gz", "mine.jsonl"]
    found = {(one.subtask, one.index) for one in outcomes}
    assert found == {("leval/lectures", 0), ("leval/lectures", 1), ("qa/test", 0), ("qa/test", 1)}
    assert {"f1", "match", "nll"} <= {name for one in outcomes if one.subtask == "qa/test" for name in one.metrics}
    assert all(0 <= one.metrics["choice"] <= 1 for one in outcomes if one.subtask == "leval/lectures")


def test_presets_are_judged_as_they_are_asked_with(evaluate: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The code is 4711.\n" * 9)
    write(tmp_path / "mine.jsonl", own())
    assert evaluate("--qa", "mine.jsonl", "--samples", "1", "--tokens", "250", "-p", "live", "--csv") == 0
    _, outcomes = read_journal(Path("r.jsonl"), OUTCOMES)
    assert {one.setting.partition("#")[0] for one in outcomes} == {"full", "uniform 30%", "preset:live@own"}


def test_records_that_have_no_sample_of_that_length_are_refused_before_the_weights(
    evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("The code is 4711.\n" * 900)
    write(tmp_path / "mine.jsonl", own()[:1])
    assert evaluate("--qa", "mine.jsonl") == 2
    message, hint = two_lines(capsys.readouterr().err)
    assert "qa/test has 0 samples that fit into 1,500 tokens" in message
    assert "--tokens" in hint


def likelihood(loaded: LoadedModel, before: Sequence[int], after: Sequence[int]) -> float:
    """Mean NLL of `after` behind `before`, from the model's own forward pass."""
    stock = deepcopy(loaded.model)
    stock.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = stock(torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits.float(), torch.tensor(after)))


def test_an_instruction_is_for_models_with_a_chat_format(small_model: LoadedModel) -> None:
    plain, chatty = deepcopy(small_model.tokenizer), deepcopy(small_model.tokenizer)
    plain.chat_template = None
    chatty.chat_template = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
    query = Query("Where to?", "the sea", ("the sea",), instruction="Be brief.")
    sample = Sample("qa/test", 0, 200, "They walked to the sea.", (query,), system="")
    asked = [tokenise(one, sample)[0].questions[0] for one in (plain, chatty)]
    assert [one.decode(ids).strip() for one, ids in zip((plain, chatty), asked, strict=True)] == [
        "Question: Where to?\nAnswer:",
        "Where to?\nBe brief.>",
    ]


@pytest.mark.parametrize("choices", [("A", "B", "C"), ("the sea", "a long way", "no")])
def test_the_likeliest_choice_is_the_models_own(small_model: LoadedModel, choices: tuple[str, ...]) -> None:
    tokenizer, right = small_model.tokenizer, set()
    for answer in choices:
        query = Query("Where to?", answer, (answer,), need="any", max_new_tokens=2, choices=choices)
        sample = Sample("leval/lectures", 0, 200, "They walked to the sea. " * 9, (query,), system="")
        case = read_case(Decoder(small_model.model, small_model.spec), tokenizer, sample)
        (full,) = judge_answers(case, make_settings(["full"], ["full"], seed=0)[:1], "agnostic", ())
        if full.metrics["choice"] == 1:
            right.add(answer)
    before = [*case.prompt.context.ids, *case.prompt.questions[0]]
    losses = {choice: likelihood(small_model, before, tokenizer.encode(choice)) for choice in choices}
    assert right == {min(losses, key=lambda choice: losses[choice])}


def test_a_whole_answer_is_written_to_its_end(small_model: LoadedModel) -> None:
    decoder = Decoder(small_model.model, small_model.spec)

    def judged(query: Query) -> Outcome:
        sample = Sample("qa/test", 0, 200, "They walked to the sea. " * 9, (query,), system="")
        case = read_case(decoder, small_model.tokenizer, sample)
        (full,) = judge_answers(case, make_settings(["full"], ["full"], seed=0)[:1], "agnostic", ())
        assert ("f1" in full.metrics) == query.whole
        return full

    def written(query: Query) -> str:
        return judged(query).answer or ""

    def starts(text: str) -> bool:
        return judged(Query("Where?", text, (text,), max_new_tokens=12)).metrics["exact"] == 1

    whole = written(Query("Where?", "nowhere", ("nowhere",), max_new_tokens=12, whole=True))
    begun = next(whole[:length] for length in range(1, 9) if starts(whole[:length]))
    assert len(written(Query("Where?", begun, (begun,), max_new_tokens=12))) < len(whole)
    assert written(Query("Where?", begun, (begun,), max_new_tokens=12, whole=True)) == whole
