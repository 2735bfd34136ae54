"""`uncomp serve` under a crowd: none lost, none mixed up, memory back where it was, and how fast it answers.

    python benchmarks/serving.py [--parts crowd,pace,first] [--clients 32] [--requests 500] [--leave 0.3]
        [--new-tokens 16] [--tokens 4000] [--rounds 5] [--out serving.json]

A server of its own, a process, for each part, and clients that speak plain HTTP:

    crowd   questions are asked alone, then by many clients at once, whole or as streams; some leave while their text is
            read or at some token. An answer is its question's when it is the one that was given alone (`same`);
            `rounded` ones begin as it does and differ where two tokens were near a tie, which a batch rounds otherwise;
            `mixed` are all others. Resident memory is of an idle server: before, after, and after as many again
    pace    tokens a second that 1, 2, 4 and 8 clients get together, and tokens a forward pass: more than one client's
            where answers are written together
    first   the first token of a saved document, `uncomp ask --cache` and the server in turn: seconds, and the median
            of the ratios within a round. Of `ask` it is what it reports, from the opened file on, without loading the
            model; of the server it is on the client's clock

The last line of standard output is the JSON.
"""

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from uncomp_cli import __version__
from uncomp_cli.bench.rounds import cpu_name
from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.documents.prose import write_prose

Line = dict[str, Any]
_COMMAND = [sys.executable, "-m", "uncomp_cli"]
_SUBJECTS = ("the sea", "a lighthouse", "bread", "winter", "a train", "copper", "an owl", "chess", "the moon", "tea")
_FORMS = ("What is {}?", "Write a line about {}.", "Name three things that go with {}.", "Why do people like {}?")
QUESTIONS = tuple(form.format(subject) for form in _FORMS for subject in _SUBJECTS)
_CACHE = "serving-benchmark"


@dataclass(frozen=True)
class Server:
    """A server that runs, and how it is asked."""

    port: int
    model: str

    def ask(
        self, question: str, *, new_tokens: int, leave_at: int | None = None, whole: bool = False, **more: Any
    ) -> Line:
        """Text, usage and the wait for the first token of an answer; who leaves does so at that piece, and has none."""
        body = {"model": self.model, "messages": [{"role": "user", "content": question}], "max_tokens": new_tokens}
        body |= {"stream": not whole, **({} if whole else {"stream_options": {"include_usage": True}}), **more}
        begun, texts, first_s, usage = time.perf_counter(), list[str](), None, {}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)) as connection:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            if leave_at == 0:
                return {"left": True}
            response = connection.getresponse()
            if response.status != http.client.OK:
                return {"status": response.status}
            if whole:
                answer = json.loads(response.read())
                return {"text": answer["choices"][0]["message"]["content"], "usage": answer["usage"]}
            for number, event in enumerate(_events(response)):
                if number == leave_at:
                    return {"left": True}
                first_s = first_s or time.perf_counter() - begun
                texts += [choice["delta"].get("content", "") for choice in event["choices"]]
                usage = event.get("usage", usage)
        return {"text": "".join(texts), "usage": usage, "first_s": first_s}

    def metric(self, name: str) -> float:
        """A figure of /metrics."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", "/metrics")
            found = re.search(rf"^{re.escape(name)} (\S+)$", connection.getresponse().read().decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def resident_bytes(self) -> float:
        """Of the server, when nobody waits."""
        while self.metric("uncomp_answers_writing") or self.metric("uncomp_requests_waiting"):
            time.sleep(0.05)
        return self.metric("uncomp_resident_bytes")


def _events(response: http.client.HTTPResponse) -> Iterator[Line]:
    for line in response:
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))


@contextmanager
def serving(model: str) -> Iterator[Server]:
    """A server on a free port."""
    command = [*_COMMAND, "serve", "-m", model, "--port", "0", "--queue", "1000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = next(
                found[1] for line in process.stderr or () if (found := re.search(r"http://[\d.]+:(\d+)/", line))
            )
            yield Server(int(port), model)
        finally:
            process.terminate()
            process.communicate()


def crowd(server: Server, args: argparse.Namespace) -> Line:
    """Many clients at once, some of whom leave."""
    alone = {each: server.ask(each, new_tokens=args.new_tokens)["text"] for each in QUESTIONS}
    resident = [server.resident_bytes()]
    found, begun = Counter[str](), time.perf_counter()
    for wave in range(2):
        with ThreadPoolExecutor(args.clients) as pool:
            numbers = range(wave * args.requests, (wave + 1) * args.requests)
            found.update(pool.map(lambda number: _visit(server, alone, number, args), numbers))
        resident.append(server.resident_bytes())
    outcomes = ("answered", "refused", "full", "left")
    return {
        "requests": 2 * args.requests,
        "clients": args.clients,
        "seconds": time.perf_counter() - begun,
        "outcomes": dict(found),
        "lost": 2 * args.requests - sum(found[each] for each in ("same", "rounded", "mixed", "left")),
        "resident_bytes": resident,
        "kv_bytes_after": server.metric("uncomp_kv_bytes"),
        "of_the_server": {each: server.metric(f'uncomp_requests_total{{outcome="{each}"}}') for each in outcomes},
    }


def _visit(server: Server, alone: dict[str, str], number: int, args: argparse.Namespace) -> str:
    """What became of one request."""
    chance = random.Random(number)
    question = chance.choice(QUESTIONS)
    leave_at = chance.randrange(args.new_tokens) if chance.random() < args.leave else None
    answer = server.ask(question, new_tokens=args.new_tokens, leave_at=leave_at, whole=chance.random() < 1 / 3)
    if "text" not in answer:
        return "left" if "left" in answer else f"status {answer['status']}"
    return judge(answer["text"], question, alone)


def judge(text: str, question: str, alone: dict[str, str]) -> str:
    """Whose an answer is: its own question's, as it was or from some token on otherwise, or not."""
    if text == alone[question]:
        return "same"
    begins = {each: _same_letters(text, other) for each, other in alone.items()}
    return "rounded" if begins[question] and begins[question] == max(begins.values()) else "mixed"


def _same_letters(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def pace(server: Server, args: argparse.Namespace) -> list[Line]:
    """Tokens a second, by clients."""
    lines = []
    for clients in (1, 2, 4, 8):
        steps, begun = server.metric("uncomp_steps_total"), time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            asked = QUESTIONS[: max(8, 2 * clients)]
            answers = list(pool.map(lambda question: server.ask(question, new_tokens=4 * args.new_tokens), asked))
        seconds = time.perf_counter() - begun
        tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
        passes = server.metric("uncomp_steps_total") - steps
        lines.append({"clients": clients, "tokens_per_s": tokens / seconds, "tokens_per_step": tokens / passes})
    return lines


def first(server: Server, args: argparse.Namespace) -> Line:
    """First tokens of a saved document: `ask`, and the server."""
    question, more = "What is this text about?", ("--json", "-q", "--max-new-tokens", "4")
    command = [*_COMMAND, "ask", "-m", args.model, "--cache", _CACHE, *more, question]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "document.txt"
        path.write_text(write_prose(args.tokens, seed=0), encoding="utf-8")
        subprocess.run([*command, "-f", str(path)], check=True, capture_output=True)
    try:
        rounds = [_first_round(server, command, question) for _ in range(args.rounds + 1)][1:]  # the first warms up
    finally:
        subprocess.run([*_COMMAND, "cache", "remove", _CACHE], check=True, capture_output=True)
    asked, served = [each[0] for each in rounds], [each[1] for each in rounds]
    ratio = median(serve / ask for ask, serve in rounds)
    return {"ask_s": asked, "serve_s": served, "medians_s": [median(asked), median(served)], "ratio": ratio}


def _first_round(server: Server, command: Sequence[str], question: str) -> tuple[float, float]:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    asked_s = json.loads(done.stdout.splitlines()[-1])["timing"]["ttft_s"]
    return asked_s, server.ask(question, new_tokens=4, cache=_CACHE)["first_s"]


PARTS = {"crowd": crowd, "pace": pace, "first": first}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--parts", default=",".join(PARTS))
    for name, usual in (("clients", 32), ("requests", 500), ("new-tokens", 16), ("tokens", 4000), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--leave", type=float, default=0.3, help="share of the requests whose client leaves")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    record: Line = {
        "schema_version": 1,
        "kind": "serving",
        "model": args.model,
        "new_tokens": args.new_tokens,
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "versions": {"uncomp": __version__, **{name: version(name) for name in ("torch", "transformers", "uvicorn")}},
    }
    for name in args.parts.split(","):
        with serving(args.model) as server:
            record[name] = PARTS[name](server, args)
        print(f"{name}: {json.dumps(record[name])}", file=sys.stderr)
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
