"""`uncomp serve`: a real process on a free port, asked by the openai client and by whoever speaks HTTP."""

import base64
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from support.commands import environment, run_here, two_lines
from uncomp_cli.serving.exchange import Stops

MODEL = "tiny"
TEXT = "The keeper counts the gulls. " * 50 + "The code is 4711. " + "The sea is calm. " * 50


@dataclass(frozen=True)
class Server:
    process: "subprocess.Popen[str]"
    port: int
    model: str
    client: openai.OpenAI

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Status and body of one plain request."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, response.read()

    def refused(self, body: Any, path: str = "/v1/chat/completions") -> tuple[int, str]:
        """Status and message of a request that is not answered."""
        data = body if isinstance(body, bytes) else json.dumps({"model": self.model, **body}).encode()
        status, answer = self.send("POST", path, data)
        return status, json.loads(answer)["error"]["message"]

    def metric(self, name: str) -> float:
        text = self.send("GET", "/metrics")[1].decode()
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]

    def wait_idle(self) -> None:
        until = time.monotonic() + 60
        while self.metric("uncomp_answers_writing") or self.metric("uncomp_requests_waiting"):
            assert time.monotonic() < until
            time.sleep(0.05)


@contextmanager
def serving(model: Path, *args: str, **changes: str) -> Iterator[Server]:
    """A server on a free port, until it is no longer needed."""
    command = [sys.executable, "-m", "uncomp_cli", "serve", "-m", str(model), "--port", "0", *args]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(**changes)) as process:
        try:
            port = _port(process)
            url = f"http://127.0.0.1:{port}/v1"
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
                yield Server(process, port, str(model), client)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)


def _port(process: "subprocess.Popen[str]") -> int:
    lines = []
    for line in process.stderr or ():
        lines.append(line)
        if found := re.search(r"http://[\d.]+:(\d+)/v1", line):
            return int(found[1])
    raise AssertionError("".join(lines))


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    with serving(tiny_model, "--max-new-tokens", "12", "--rows", "4", "--queue", "64", "--body", "1MiB") as found:
        yield found


def said(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "user" if at % 2 == 0 else "assistant", "content": text} for at, text in enumerate(texts)]


def with_file(question: str, text: str = TEXT) -> list[dict[str, Any]]:
    data = base64.b64encode(text.encode()).decode()
    file = {"type": "file", "file": {"filename": "log.md", "file_data": f"data:text/plain;base64,{data}"}}
    return [{"role": "user", "content": [file, {"type": "text", "text": question}]}]


def test_an_answer_is_the_one_that_ask_gives(server: Server, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "log.md").write_text(TEXT)
    args = ("ask", "-m", str(tiny_model), "-f", str(tmp_path / "log.md"), "--max-new-tokens", "12", "--json")
    code, out, err = run_here(*args, "What is the code?")
    assert code == 0, err
    asked = json.loads(out.splitlines()[-1])
    reply = server.client.chat.completions.create(model=server.model, messages=with_file("What is the code?"))
    assert reply.choices[0].message.content == asked["answer"]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == asked["usage"]["prompt_tokens"]
    assert reply.usage.model_extra is not None
    assert reply.usage.model_extra["kv_bytes"] == asked["memory"]["kv_bytes"]


def test_a_budget_and_a_preset_are_fields_of_a_request(server: Server) -> None:
    kept = {}
    for budget in ("10%", "50%"):
        more = {"preset": "live", "budget": budget}
        reply = server.client.chat.completions.create(model=server.model, messages=with_file("?"), extra_body=more)
        kept[budget] = reply.usage.model_extra["kv_bytes"]  # type: ignore[union-attr, index]
        assert reply.model_extra["uncomp"]["compression"]["budget_requested"] == budget  # type: ignore[index]
    assert kept["10%"] < 0.6 * kept["50%"]


def test_a_stream_is_the_whole_answer_in_pieces(server: Server) -> None:
    ask = server.client.chat.completions.create
    whole = ask(model=server.model, messages=said("Who?", "Nobody.", "Why?"))  # type: ignore[arg-type]
    pieces = [
        *ask(
            model=server.model,
            messages=said("Who?", "Nobody.", "Why?"),
            stream=True,
            stream_options={"include_usage": True},
        )
    ]  # type: ignore[call-overload]
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == whole.choices[0].finish_reason
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_text_goes_on_and_ends_where_it_is_told_to(server: Server) -> None:
    client = server.client
    whole = client.completions.create(model=server.model, prompt="Once upon a time", max_tokens=12).choices[0].text
    stop = whole[3:5]
    short = client.completions.create(model=server.model, prompt="Once upon a time", max_tokens=12, stop=stop).choices[
        0
    ]
    assert short.text == whole[: whole.index(stop)]
    assert short.finish_reason == "stop"


def test_one_model_is_there(server: Server) -> None:
    assert [model.id for model in server.client.models.list()] == [server.model]
    with pytest.raises(openai.NotFoundError, match="is served"):
        server.client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "?"}])
    assert server.send("GET", "/v1/models/other")[0] == 404


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": said("x"), "nonsense": 1}, "nonsense is an unknown key"),
        ({"messages": said("x"), "tools": [{}]}, "tools is"),
        ({"messages": said("x"), "n": 2}, "n is 2"),
        ({"messages": []}, "messages is empty"),
        ({"messages": said("x", "y")}, "must begin and end"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "neither text nor a file"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "*"}}]}]}, "not base64"),
        ({"messages": said("x"), "temperature": -1}, "temperature is -1"),
        ({"messages": said("x"), "max_tokens": 0}, "max_tokens is 0"),
        ({"messages": said("x"), "budget": "7 apples"}, "unknown unit"),
        ({"messages": said("x"), "stop": ["a"] * 5}, "stop is"),
        ({"messages": said("x"), "cache": "no-such"}, "no-such"),
        ({"messages": said("x"), "cache": "../../etc/passwd"}, "cache"),
        ({"messages": said("\ud800")}, "not UTF-8"),
        (b"{", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "object"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(server: Server, body: Any, message: str) -> None:
    status, told = server.refused(body)
    assert status == 400
    assert message in told


def test_too_much_is_refused(server: Server) -> None:
    status, told = server.refused(b" " * (2**20 + 1))
    assert (status, "more than 1 MiB" in told) == (413, True)
    status, told = server.refused({"messages": with_file("?", "word " * 9_000)})
    assert (status, "tokens" in told) == (400, True)


def test_no_web_page_and_no_other_host_is_let_in(server: Server) -> None:
    body = json.dumps({"model": server.model, "messages": said("x")}).encode()
    assert server.send("POST", "/v1/chat/completions", body, **{"Content-Type": "text/plain"})[0] == 400
    assert server.send("POST", "/v1/chat/completions", body, Host="evil.example")[0] == 401
    assert server.send("GET", "/metrics", Host="evil.example")[0] == 401


def test_a_person_sees_what_goes_on(server: Server) -> None:
    status, page = server.send("GET", "/")
    assert status == 200
    assert b"answers being written" in page
    assert b"<script" not in page


def test_a_key_is_asked_for(tiny_model: Path) -> None:
    code, _, err = run_here("serve", "-m", str(tiny_model), "--host", "0.0.0.0")
    assert (code, "lets other machines in" in two_lines(err)[0]) == (2, True)
    with serving(tiny_model, "--host", "0.0.0.0", UNCOMP_KEY="secret") as server:
        assert server.send("GET", "/v1/models")[0] == 401
        assert server.send("GET", "/v1/models", Authorization="Bearer secre")[0] == 401
        assert server.send("GET", "/v1/models", Authorization="Bearer secret", Host="any.example")[0] == 200


def test_a_port_in_use_is_told_before_a_model_is_loaded(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run_here("serve", "-m", str(tiny_model), "--port", str(port))
    message, hint = two_lines(err)
    assert (code, f"127.0.0.1:{port} cannot be listened on" in message, f"--port {port + 1}" in hint) == (1, True, True)


def test_a_saved_document_is_answered_from(server: Server, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "log.md").write_text(TEXT)
    args = ("ask", "-m", str(tiny_model), "--max-new-tokens", "12")
    code, first, err = run_here(*args, "-f", str(tmp_path / "log.md"), "--cache", "log", "What is the code?")
    assert code == 0, err
    reply = server.client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": "What is the code?"}], extra_body={"cache": "log"}
    )
    assert reply.choices[0].message.content == first.rstrip("\n")
    assert reply.usage.prompt_tokens_details.cached_tokens > 1_000  # type: ignore[union-attr, operator]


def test_many_clients_at_once_get_each_their_own_answer(server: Server) -> None:
    """And who leaves in the middle is forgotten: nothing is lost, mixed, or held."""
    ask = server.client.chat.completions.create
    questions = [f"Question {number}: {'why ' * (number % 7)}?" for number in range(12)]
    alone = {each: ask(model=server.model, messages=said(each)).choices[0].message.content for each in questions}  # type: ignore[arg-type]
    server.wait_idle()
    resident = server.metric("uncomp_resident_bytes")

    def client(number: int) -> None:
        chance = random.Random(number)
        for _ in range(4):
            question = chance.choice(questions)
            stream = server.client.chat.completions.create(model=server.model, messages=said(question), stream=True)  # type: ignore[call-overload]
            if chance.random() < 0.3:
                next(iter(stream))
                stream.close()
                continue
            assert "".join(piece.choices[0].delta.content or "" for piece in stream) == alone[question]

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(client, range(32)))  # raises what an assertion did
    server.wait_idle()
    assert server.metric("uncomp_kv_bytes") == 0
    assert server.metric("uncomp_resident_bytes") < resident + 64 * 2**20


def test_a_line_that_is_full_says_so(tiny_model: Path) -> None:
    with serving(tiny_model, "--rows", "1", "--queue", "1", "--max-new-tokens", "400") as server:
        body = json.dumps({"model": server.model, "messages": said("?"), "stream": True}).encode()
        with ThreadPoolExecutor(8) as pool:
            statuses = [*pool.map(lambda _: server.send("POST", "/v1/chat/completions", body)[0], range(8))]
        assert set(statuses) == {200, 429}
        assert server.metric('uncomp_requests_total{outcome="full"}') == statuses.count(429)


def test_who_leaves_while_a_text_is_read_leaves_nothing(server: Server) -> None:
    before = server.metric('uncomp_requests_total{outcome="left"}')
    body = json.dumps({"model": server.model, "messages": with_file("?", TEXT)}).encode()
    raw = socket.create_connection(("127.0.0.1", server.port))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    time.sleep(0.05)
    raw.close()
    server.wait_idle()
    until = time.monotonic() + 20
    while (
        server.metric('uncomp_requests_total{outcome="left"}')
        + server.metric('uncomp_requests_total{outcome="answered"}')
        <= before
    ):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_it_ends_on_a_signal_with_answers_in_the_air(tiny_model: Path) -> None:
    with serving(tiny_model, "--max-new-tokens", "3000") as server:
        ask = server.client.chat.completions.create
        stream = ask(model=server.model, messages=said("?"), stream=True)  # type: ignore[call-overload]
        next(iter(stream))
        server.process.terminate()
        assert server.process.wait(20) is not None
        stream.close()


def test_sampling_is_each_requests_own(server: Server) -> None:
    ask = server.client.chat.completions.create
    warm = [
        ask(model=server.model, messages=said("?"), temperature=1.5, seed=seed).choices[0].message.content
        for seed in (1, 1, 2)
    ]  # type: ignore[arg-type]
    assert warm[0] == warm[1] != warm[2]


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_text_ends_before_the_first_stop_however_it_comes(size: int) -> None:
    text, stops = "one two threne three four", Stops(("three", "rene four"))
    told = ""
    for at in range(0, len(text), size):
        told += "" if stops.met else stops.push(text[at : at + size])
    assert told == "one two threne "
    assert stops.met
    free = Stops(("xyz",))
    assert free.push("ends in xy") + free.rest() == "ends in xy"
