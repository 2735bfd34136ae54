"""Ray: where workers and readers run, and how documents flow through them.

    entries → reader (a task: files become text) → batches → actor (a model: text becomes rows) → here

Ray Data holds readers back when actors are busy, and starts an actor again that has died. The documents of one window
are in flight at a time: what Ray remembers of a run grows with its documents, and ends with its window.
"""

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

from uncomp_cli import __version__
from uncomp_cli.batch.manifest import EXTRA, Entry, source_of
from uncomp_cli.batch.worker import Attempts, Job, Line, Maker, answer_all
from uncomp_cli.child import usable_cores
from uncomp_cli.config import LOCAL, CrewConfig
from uncomp_cli.documents.collection import documents_of
from uncomp_cli.documents.text import Wishes
from uncomp_cli.errors import UncompError, UsageError, failure_of
from uncomp_cli.numerals import format_count

WINDOW = 8_192
"""Documents for each actor that Ray hears of at once: loading a model again for the next costs little against them."""
PART = 256
"""Documents that a reader takes at once."""
_READER_CORES = 0.5
"""What a reader asks for, whose children do the work; with as much as an actor's Ray would make one of both."""
_CONNECT_S, _JOIN_S = 5.0, 60.0
_STORE_BYTES = 256 * 2**20
_PROBE = "import logging, sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)"


@dataclass(frozen=True, slots=True)
class Node:
    """A machine: cores, memory and GPUs that may be used, and what Ray calls it."""

    cores: int
    free_bytes: int
    gpus: float = 0.0
    id: str = ""


@dataclass(frozen=True, slots=True)
class Crew:
    """How many actors with how many threads and which part of a GPU each, how many readers, and documents a batch."""

    actors: int
    threads: int
    gpus: float
    readers: int
    batch_size: int

    def shared(self, documents: int) -> "Crew":
        """The same for so few documents that some would have none: smaller batches, and no actor for nothing."""
        each = -(-documents // self.actors)
        return replace(self, actors=min(self.actors, documents), batch_size=min(self.batch_size, each))


def check_installed() -> None:
    """Raise UncompError where the extra is not installed."""
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise UncompError("uncomp batch needs Ray Data, which is not installed", hint=EXTRA)


def this_node(readers: int) -> Node:
    """This machine with its GPUs; readers come on top of its cores, as they wait for its disk most of the time."""
    import torch

    from uncomp_cli.engine.spend.memory import free_bytes

    return Node(usable_cores() + readers, free_bytes(torch.device("cpu")), float(torch.cuda.device_count()))


def crew_of(nodes: Sequence[Node], wanted: CrewConfig, *, needs_bytes: int) -> Crew:
    """What was asked for, and else an actor for each GPU, or as many as cores and memory have room for.

    Raises UsageError for more than there are cores or GPUs.
    """
    all_gpus, cores = sum(node.gpus for node in nodes), sum(node.cores for node in nodes) - wanted.readers
    share = wanted.gpus if wanted.gpus is not None else min(1.0, all_gpus)
    least = wanted.threads or 1
    room = sum(max(1, min(node.cores // least, node.free_bytes // max(1, needs_bytes))) for node in nodes)
    count = wanted.actors or max(1, int(all_gpus / share) if share else min(room, cores))
    width = wanted.threads or max(1, min(cores // count, *(node.cores for node in nodes)))
    if count * width > cores or width > max(node.cores for node in nodes):
        crew = f"{format_count(count, 'actor')} of {format_count(width, 'thread')}"
        message = f"{crew} would need {format_count(count * width, 'core')}, and there are {max(0, cores)}"
        raise UsageError(message, hint=f"use --actors {max(1, cores // width)}, or fewer --threads")
    if count * share > all_gpus:
        crew = f"{format_count(count, 'actor')} with {share:g} GPU each"
        message = f"{crew} would need {count * share:g}, and there are {all_gpus:g}"
        hint = "use fewer --actors, or a smaller share with --gpus" if all_gpus else "leave --gpus out"
        raise UsageError(message, hint=hint)
    return Crew(count, width, share, wanted.readers, wanted.batch_size)


@contextmanager
def connected(address: str, *, readers: int = 1) -> Iterator[list[Node]]:
    """Ray on this machine, or the cluster at an address; its nodes. Raises UncompError where it cannot be reached."""
    check_installed()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray.data  # which sets how it logs: before we do
    except ImportError as error:
        raise UncompError(f"Ray is installed and cannot be loaded: {error}", hint=EXTRA) from error
    is_local, handler, ended = address == LOCAL, signal.getsignal(signal.SIGTERM), False
    if not is_local:
        _probe(address)
    own = {"num_cpus": this_node(readers).cores, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    where: dict[str, Any] = {"address": address, **(own if is_local else {})}
    try:
        with _hushed():
            ray.init(**where, log_to_driver=False, logging_level=logging.CRITICAL)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        ray._private.worker._worker_logs_enabled = False  # what it would print on standard output
    except Exception as error:
        raise _unreachable(address, failure_of(error).message) from error
    except SystemExit:  # Ray's own answer to SIGTERM while it starts; ours is another
        ended = True
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, handler)
    try:
        if ended:
            signal.raise_signal(signal.SIGTERM)
        yield [node for node in map(_node, ray.nodes()) if node.cores > 0]
    finally:
        ray.shutdown()


def _node(told: dict[str, Any]) -> Node:
    has = told["Resources"] if told["Alive"] else {}
    return Node(int(has.get("CPU", 0)), int(has.get("memory", 0)), has.get("GPU", 0.0), told["NodeID"])


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing on the process's own standard error, on which Ray's libraries write."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _unreachable(address: str, reason: str) -> UncompError:
    what = "Ray does not start here" if address == LOCAL else f"--ray {address}: no Ray cluster can be joined there"
    hint = "run it on a machine of the cluster: ray start --head there, then --ray HOST:6379; or --ray local"
    return UncompError(f"{what}: {reason}", hint=hint)


def _probe(address: str) -> None:
    """Join the cluster in a child first: Ray waits for minutes where none answers, and ends the process that does."""
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdigit()):
        raise UsageError(f"--ray '{address}' is no address", hint="use --ray local, --ray HOST:6379 or --ray auto")
    if address != "auto":
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, str(getattr(error, "strerror", None) or error)) from error
    try:
        command = [sys.executable, "-c", _PROBE, address]
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_JOIN_S, errors="replace")
    except subprocess.TimeoutExpired as error:
        raise _unreachable(address, f"nothing of Ray answers within {_JOIN_S:.0f} s") from error
    if tried.returncode:
        lines = [line for line in tried.stderr.splitlines() if line.strip()]
        raise _unreachable(address, lines[-1].strip()[:300] if lines else f"it ends with {tried.returncode}")


def check_workers(nodes: Sequence[Node], make: Maker) -> None:
    """Raise UncompError where a machine has no uncomp, or another: an actor would be started there for ever."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=1)(_version)
    places = [NodeAffinitySchedulingStrategy(node.id, soft=False) for node in nodes]
    hint = "install the same uncomp with its extra 'batch' on every machine of the cluster"
    try:
        found = set(
            ray.get([look.options(scheduling_strategy=place).remote(make) for place in places], timeout=_JOIN_S)
        )
    except Exception as error:
        raise UncompError(f"no worker can be started: {_last_line(error)}", hint=hint) from error
    if found != {__version__}:
        raise UncompError(f"machines have uncomp {', '.join(sorted(found))}, this one {__version__}", hint=hint)


def _version(_: Maker) -> str:
    return __version__


def window_rows(
    entries: Sequence[Entry], make: Maker, crew: Crew, wishes: Wishes, ledger: Any
) -> Iterator[tuple[list[Line], tuple[str, ...]]]:
    """The rows of every batch of a window as it is answered, and what there is to say.

    Raises what making a worker does, and UncompError for what Ray cannot mend.
    """
    import ray

    parts = [zlib.compress(pickle.dumps(entries[at : at + PART])) for at in range(0, len(entries), PART)]
    data = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    data.context.enable_progress_bars = data.context.print_on_execution_start = False
    data.context.enable_auto_log_stats = False
    data.context.target_max_block_size = data.context.target_min_block_size = 1  # a batch is a block, handed on at once
    data.context.execution_no_progress_timeout_s = -1
    flow: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    read = partial(_read, batch_size=crew.batch_size, wishes=wishes)
    batches = -(-len(entries) // crew.batch_size)
    readers = ray.data.TaskPoolStrategy(size=crew.readers)
    actors = ray.data.ActorPoolStrategy(size=min(crew.actors, batches))  # no model for nothing
    data = data.map_batches(read, **flow, compute=readers, num_cpus=_READER_CORES)
    data = data.map_batches(
        _Actor,
        **flow,
        fn_constructor_args=(partial(make, crew.threads), ledger),
        compute=actors,
        num_cpus=crew.threads,
        **({"num_gpus": crew.gpus} if crew.gpus else {}),
    )
    try:
        for table in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for packed in table["rows"].to_pylist():
                found = pickle.loads(packed)  # from our own worker
                if isinstance(found, Exception):
                    raise found
                yield found
    except ray.exceptions.RayError as error:
        raise UncompError(f"Ray ended the run: {_last_line(error)}", hint="--resume goes on with its rows") from error


def _last_line(error: Exception) -> str:
    """What went wrong, behind the trace that Ray tells it with."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _read(table: Any, *, batch_size: int, wishes: Wishes) -> Iterator[Any]:
    """What a reader does: documents of a part, a batch at a time."""
    import pyarrow

    for part in table["part"].to_pylist():
        entries: list[Entry] = pickle.loads(zlib.decompress(part))  # from our own driver
        for at in range(0, len(entries), batch_size):
            some = entries[at : at + batch_size]
            documents = documents_of([source_of(entry) for entry in some], wishes)
            jobs = [Job(entry.name, document) for entry, document in zip(some, documents, strict=True)]
            yield pyarrow.table({"jobs": [pickle.dumps(jobs)]})


class _Actor:
    """What an actor does: a batch of documents into rows. What it could not be made for is its first answer."""

    def __init__(self, make: Any, ledger: Any) -> None:
        self._ledger = _Remote(ledger)
        self._failed: UncompError | None = None
        try:
            self._work = make()
        except Exception as error:
            failure = failure_of(error)
            self._failed = UncompError(failure.message, hint=failure.hint)

    def __call__(self, table: Any) -> Any:
        import pyarrow

        (packed,) = table["jobs"].to_pylist()
        found: object = self._failed
        if self._failed is None:
            jobs: list[Job] = pickle.loads(packed)  # from our own reader
            found = answer_all(self._work, jobs, self._ledger), self._work.notes
        return pyarrow.table({"rows": [pickle.dumps(found)]})


def open_ledger() -> Any:
    """The ledger of attempts, in an actor of its own, which outlives the others."""
    import ray

    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()


class _Remote(Attempts):
    """A ledger that is an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, names: Sequence[str], *, again: bool = False) -> int:
        import ray

        return int(ray.get(self._actor.begin.remote(names, again=again)))

    def end(self, names: Sequence[str]) -> None:
        import ray

        ray.get(self._actor.end.remote(names))
