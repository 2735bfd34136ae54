"""What `uncomp batch` costs and what it survives: one line of JSON.

    python benchmarks/batch.py kills      rows lost or doubled over kill -9 of workers and of the driver (with --resume)
    python benchmarks/batch.py memory     the driver's memory with 1,000 and 100,000 rows of a manifest
    python benchmarks/batch.py overhead   the default model's documents through Ray, and through as many bare pipelines
    python benchmarks/batch.py scale      2 to 8 actors that only wait: where it stops being linear

`Waiting` stands for the model in all but `overhead`: it waits for each document, and gives back its last letters.
"""

import argparse
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from uncomp_cli.asking.events import Done
from uncomp_cli.asking.pipeline import run as run_ask
from uncomp_cli.asking.request import Request
from uncomp_cli.batch.run import Batch, Summary, run
from uncomp_cli.batch.worker import Job
from uncomp_cli.bench.rounds import cpu_name
from uncomp_cli.config import CrewConfig, SamplingConfig
from uncomp_cli.steps import Progress, finished

QUESTION = "What is the code?"
WORKER = "ray::MapWorker"
BATCH = CrewConfig().batch_size
"""Documents that are answered together, here as in the pipeline alone."""


@dataclass(frozen=True)
class Waiting:
    """Work that is no work: `seconds` a document. It ends its process where a text says so."""

    seconds: float
    notes: tuple[str, ...] = ()

    def answer(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        rows = []
        for job in jobs:
            if not hasattr(job.document, "text"):
                raise job.document
            if "end the worker" in job.document.text:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.seconds)
            rows.append({"schema_version": 1, "name": job.name, "answers": [{"answer": job.document.text[-8:]}]})
        return rows


@dataclass(frozen=True)
class Waits:
    """Makes what waits, after what a model takes to load."""

    seconds: float
    load_s: float = 0.0

    def __call__(self, threads: int) -> Waiting:
        time.sleep(self.load_s)
        return Waiting(self.seconds)


def write_documents(path: Path, count: int, *, words: int = 0) -> Path:
    """A manifest of `count` short documents, each with a code of its own."""
    rng = random.Random(0)
    plain = ["the", "keeper", "counts", "gulls", "while", "a", "calm", "sea", "turns", "grey", "and", "cold"]
    with path.open("w") as stream:
        for number in range(count):
            text = " ".join(rng.choice(plain) for _ in range(words))
            row = {"name": f"document {number:07}", "text": f"{text}. The code is {number:08}"}
            stream.write(json.dumps(row) + "\n")
    return path


def batch_of(args: argparse.Namespace) -> Batch:
    return Batch(
        (args.manifest,),
        Path(args.out),
        Request(questions=(QUESTION,)),
        resume=True,
        crew=CrewConfig(args.ray, args.actors, threads=1),
        make=Waits(args.seconds),
    )


def drive(args: argparse.Namespace) -> None:
    """The driver, in a process of its own: its summary, and the most private memory that it had while it worked."""
    most = [0]

    def watch() -> None:
        while True:
            most[0] = max(most[0], _private_bytes())
            time.sleep(0.1)

    threading.Thread(target=watch, daemon=True).start()
    summary: Summary = finished(run(batch_of(args)))
    print(json.dumps({**summary.record(), "private_bytes": most[0]}))


def _private_bytes() -> int:
    """What this process has of memory that it shares with nobody."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


@contextmanager
def _cluster(*, cores: int) -> Iterator[str]:
    """A cluster of one machine that says it has so many cores, which actors that only wait do not need; its address."""
    from ray.util import get_node_ip_address

    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false"]
    command += [f"--port={port}", f"--num-cpus={cores}", "--object-store-memory=268435456"]
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # for who joins it from here
    head = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(10)  # until it is up; who joins it too early is refused
        yield f"{get_node_ip_address()}:{port}"
    finally:
        head.terminate()
        head.wait()


def _driver(
    manifest: Path, out: Path, *, seconds: float, actors: int = 2, ray: str = "local"
) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "drive", "--manifest", str(manifest), "--out", str(out)]
    command += ["--seconds", str(seconds), "--actors", str(actors), "--ray", ray]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _workers(driver: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The actors that answer, of this driver's Ray: nothing else of Ray's is touched."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if process.name().startswith(WORKER) or " ".join(process.cmdline()).startswith(WORKER):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _count_rows(out: Path) -> int:
    return out.read_bytes().count(b"\n") if out.exists() else 0


def kills(args: argparse.Namespace) -> dict[str, Any]:
    """Kill workers as rows come, and twice the driver; then every document must have one row."""
    rng, count, killed, drivers = random.Random(args.seed), args.documents, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        manifest, out = write_documents(Path(folder) / "documents.jsonl", count), Path(folder) / "results.jsonl"
        marks = sorted(rng.sample(range(count // 20, count - count // 20), args.workers + args.drivers))
        ends = set(rng.sample(marks, args.drivers))
        begun_s, driver = time.monotonic(), _driver(manifest, out, seconds=args.seconds)
        for mark in marks:
            while _count_rows(out) < mark and driver.poll() is None:
                time.sleep(0.02)
            if mark in ends:
                driver.kill()
                driver.communicate()
                drivers += 1
                driver = _driver(manifest, out, seconds=args.seconds)
                continue
            while not (victims := _workers(driver)) and driver.poll() is None:
                time.sleep(0.05)
            if victims:
                rng.choice(victims).kill()
                killed += 1
        output, _ = driver.communicate()
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = [row["name"] for row in rows]
    wanted = {f"document {number:07}": f"{number:08}" for number in range(count)}
    wrong = sum(not row["answers"] or row["answers"][0]["answer"] != wanted[row["name"]] for row in rows)
    return {
        "documents": count,
        "workers_killed": killed,
        "drivers_killed": drivers,
        "rows": len(rows),
        "lost": len(wanted.keys() - set(names)),
        "doubled": len(names) - len(set(names)),
        "wrong_or_failed": wrong,
        "in_order": names == sorted(names),
        "seconds": time.monotonic() - begun_s,
        "last_driver": json.loads(output) if output.strip() else None,
    }


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """The driver's private memory, few rows against many."""
    found = {}
    for count in (1000, args.documents):
        with tempfile.TemporaryDirectory() as folder:
            manifest = write_documents(Path(folder) / "documents.jsonl", count)
            output, _ = _driver(manifest, Path(folder) / "results.jsonl", seconds=0.0).communicate()
            found[str(count)] = json.loads(output)
    few, many = (each["private_bytes"] for each in found.values())
    return {"drivers": found, "ratio": many / few}


def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """The same documents by actors and by as many processes that run the pipeline alone, half before and half after."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_documents(Path(folder) / "documents.jsonl", args.documents, words=args.words)
        texts = Path(folder) / "texts"
        texts.mkdir()
        for line in manifest.read_text().splitlines():
            row = json.loads(line)
            (texts / f"{row['name']}.txt").write_text(row["text"])
        paths = sorted(map(str, texts.iterdir()))
        half = len(paths) // 2
        for actors in args.counts:
            blocks = [_alone(paths[:half], actors, Path(folder))]
            out, clock = Path(folder) / f"{actors}.jsonl", list[tuple[float, int]]()
            begun_s, crew = time.monotonic(), CrewConfig(actors=actors, threads=1)
            for event in run(Batch((str(texts),), out, asked_of(()), crew=crew)):
                if isinstance(event, Progress) and event.fraction:
                    clock.append((time.monotonic() - begun_s, round(event.fraction * args.documents)))
            blocks.append(_alone(paths[half:], actors, Path(folder)))
            rows = [json.loads(line) for line in out.read_text().splitlines()]
            answers = blocks[0].pop("answers") | blocks[1].pop("answers")
            found[f"{actors} actors"] = {
                "alone": blocks,
                "batch": _pace(clock),
                "same_answers": sum(row["answers"][0]["answer"] == answers[Path(row["name"]).name] for row in rows),
                "row_bytes": out.stat().st_size // len(rows),
            }
    return {"documents": args.documents, **found}


def asked_of(paths: Sequence[str]) -> Request:
    """What is asked of each document."""
    sampling = SamplingConfig(max_new_tokens=16)
    return Request(paths=tuple(paths), questions=(QUESTION,), sampling=sampling, each=True)


def _alone(paths: Sequence[str], count: int, folder: Path) -> dict[str, Any]:
    """The pace and the answers of `count` processes that share these documents and begin together."""
    begun_s, processes = time.monotonic(), []
    for number in range(count):
        listed = folder / f"alone.{number}"
        listed.write_text(json.dumps(paths[number::count]))
        command = [sys.executable, __file__, "alone", "--manifest", str(listed)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    told = [json.loads(process.communicate()[0]) for process in processes]
    ends = sorted(end_s - begun_s for each in told for end_s in each["ends_s"])
    answers = {name: answer for each in told for name, answer in each["answers"].items()}
    return {**_pace([(end_s, number) for number, end_s in enumerate(ends, start=1)]), "answers": answers}


def alone(args: argparse.Namespace) -> None:
    """The pipeline alone, in a process of its own: when each answer came, and all of them."""
    torch.set_num_threads(1)
    ends_s, answers = list[float](), dict[str, str]()
    for event in run_ask(asked_of(json.loads(Path(args.manifest).read_text()))):
        if isinstance(event, Done):
            ends_s.append(time.monotonic())
            answers[Path(str(event.turn.document)).name] = event.text
    print(json.dumps({"ends_s": ends_s, "answers": answers}))


def _pace(clock: Sequence[tuple[float, int]]) -> dict[str, float]:
    """Seconds to the end, to the first answers, and a document behind those; answers come a batch at a time."""
    (first_s, first), (last_s, last) = next(each for each in clock if each[1] >= BATCH), clock[-1]
    return {"seconds": last_s, "first_s": first_s, "document_s": (last_s - first_s) / max(1, last - first)}


def scale(args: argparse.Namespace) -> dict[str, Any]:
    """How many documents a second actors do that only wait: what is lost is Ray's and the driver's."""
    found = {}
    for seconds in args.waits:
        for actors in args.counts:
            count = max(200, round(args.lasts_s * actors / max(seconds, 0.005)))
            with tempfile.TemporaryDirectory() as folder, _cluster(cores=actors + 1) as address:
                manifest = write_documents(Path(folder) / "documents.jsonl", count)
                process = _driver(manifest, Path(folder) / "results.jsonl", seconds=seconds, actors=actors, ray=address)
                summary = json.loads(process.communicate()[0])
            rate = summary["answered"] / summary["elapsed_s"]
            found[f"{seconds:g} s, {actors} actors"] = {
                "documents": count,
                "documents_s": rate,
                "of_ideal": rate * seconds / actors,
                "seconds": summary["elapsed_s"],
            }
    return found


PARTS = {"kills": kills, "memory": memory, "overhead": overhead, "scale": scale}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "drive", "alone"])
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--words", type=int, default=150, help="of a document that a model answers, for overhead")
    parser.add_argument("--seconds", type=float, default=0.05, help="what a document takes that only waits")
    parser.add_argument("--workers", type=int, default=10, help="how many of them are killed")
    parser.add_argument("--drivers", type=int, default=2, help="and how many drivers")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2], help="actors that are compared")
    parser.add_argument("--waits", type=float, nargs="+", default=[0.02, 0.2], help="seconds a document, for scale")
    parser.add_argument("--lasts-s", type=float, default=20.0, help="how long a run of scale should last")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", default="local")
    parser.add_argument("--manifest")
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.part in ("drive", "alone"):
        {"drive": drive, "alone": alone}[args.part](args)
        return
    print(json.dumps({"part": args.part, "cpu": cpu_name(), "cores": os.cpu_count(), **PARTS[args.part](args)}))


if __name__ == "__main__":
    main()
