"""A process of a team: it has its part of the model, and does silently what the first process does.

It is told once, on standard input, what is asked of which documents (team.py); on standard output it says that it is
ready, and why it failed when it does: a JSON object a line. What it is asked it answers as the first does, since every
choice is made of what all ranks know alike. When standard input ends nobody waits any more, and it ends.
"""

import json
import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from threading import Thread
from typing import BinaryIO, NoReturn

from uncomp_cli.asking.events import drained
from uncomp_cli.asking.pipeline import ask, engine_for
from uncomp_cli.asking.startup import load_as
from uncomp_cli.asking.team import Order
from uncomp_cli.errors import failure_of
from uncomp_cli.kernels.library import share_heap

READY = b'{"ready": true}\n'


def serve() -> None:
    """In the child: follow the order that comes, and end."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    with Path(os.devnull).open("wb") as nowhere:  # what libraries print is no word of ours
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    order: Order = pickle.load(sys.stdin.buffer)  # from the process that started this one
    Thread(target=_end_with, args=(sys.stdin.buffer, order), daemon=True).start()
    try:
        told.write(READY)
        _follow(order)
        os._exit(0)  # the interpreter would wait for the thread that reads
    except BaseException as error:  # of whatever kind: the first process tells it
        failure = failure_of(error)
        record = {"message": failure.message, "hint": failure.hint, "exit_code": failure.exit_code}
        with suppress(OSError):
            told.write(json.dumps(record).encode() + b"\n")
        _end(order)


def _end_with(stream: BinaryIO, order: Order) -> None:
    """End when the process that started this one has, or has enough."""
    stream.read()
    _end(order)


def _end(order: Order) -> NoReturn:
    """End without waiting for threads of torch that wait for the others; nobody meets any more."""
    rmtree(order.meeting.parent, ignore_errors=True)  # who made it may have been killed
    os._exit(1)


def _follow(order: Order) -> None:
    import torch

    from uncomp_cli.models.ranks import meet, part
    from uncomp_cli.models.runnable import fingerprint

    torch.set_num_threads(order.threads)
    share_heap()
    request, documents = order.request, order.documents
    meet(order.number, request.model.ranks, order.meeting)
    loaded = load_as(request.model, weights=request.model.weights)
    preset, _ = request.choice.settled(fingerprint(loaded))
    engine = drained(engine_for(loaded, request, preset, documents, order.questions), [])
    for _ in ask(engine, documents, order.questions, preset, request):
        pass
    part()
