"""A chat template is a program of whoever made the model: it runs in a process of its own, which can be stopped.

Jinja's sandbox bounds what a template reaches, not what it takes: loops, powers, `'x' * n` and `tojson` can go on for
ever and fill all memory. So a child (child.py) renders it, held to SECONDS a rendering and to MEMORY_BYTES. It imports
jinja2 and nothing heavy, starts while the model is loaded, and stays for the next question, which waits for a line
through a pipe and no longer.

A template sees what transformers would show it: the messages, `add_generation_prompt`, the tokenizer's special tokens,
`raise_exception`, `strftime_now`, a `tojson` that escapes no HTML, and `{% generation %}`, which says nothing.
"""

import atexit
import contextlib
import json
import signal
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import cache, lru_cache
from threading import Lock
from typing import Any

from uncomp_cli.child import Child, allow, confine
from uncomp_cli.errors import ModelError

SECONDS = 5
MEMORY_BYTES = 256 * 2**20
MOST_CHARACTERS = 1_000_000
_SHOWN_CHARACTERS = 200
_REFUSES = "refuses"
OTHER_TEMPLATE = "choose another --model, or a --tokenizer directory with another chat template"


class Renderer:
    """The child; it is started when it is needed, or before, and anew when it was stopped."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.child = Child(__name__)
        self._lock = Lock()

    def start(self) -> None:
        """Start the child, which takes a while; what fails is told when something is rendered."""
        with self._lock, contextlib.suppress(OSError):
            self.child.start()

    def render(self, template: str, variables: Mapping[str, Any], *, hint: str = OTHER_TEMPLATE) -> str:
        """The text of a template. Raises ModelError for one that fails or takes too much; `hint` is for a refusal."""
        job = {"template": template, "variables": dict(variables), "seconds": self.seconds}
        line = json.dumps(job, default=str).encode() + b"\n"
        with self._lock:
            reply = self._ask(line)
        if "problem" in reply:
            refused = reply["problem"].startswith(_REFUSES)
            message = f"this model's chat template {reply['problem']}"
            raise ModelError(message, hint=hint if refused else OTHER_TEMPLATE)
        return str(reply["text"])

    def stop(self) -> int | None:
        """End the child; returns how it ended, None when there is none."""
        return self.child.stop()

    def _ask(self, line: bytes) -> dict[str, Any]:
        """The child's answer to one line; whatever breaks in between leaves no half answer for the next."""
        try:
            self.child.send(line)
            found = self.child.hear()
        except BaseException:
            self.stop()
            raise
        if found:
            reply: dict[str, Any] = json.loads(found)
            return reply
        late = self.child.stop(wait_s=self.seconds) == -signal.SIGALRM
        return {"problem": f"takes more than {self.seconds:g} seconds" if late else "ends the process that renders it"}


@cache
def renderer() -> Renderer:
    """The one of this process."""
    made = Renderer()
    atexit.register(made.stop)
    return made


def serve() -> None:
    """Be the child: a line of JSON in, a line of JSON out, until there are no more."""
    confine(memory_bytes=MEMORY_BYTES)
    compiled = lru_cache(maxsize=4)(_environment().from_string)
    for line in sys.stdin.buffer:
        job = json.loads(line)
        allow(job["seconds"])
        reply = _reply(compiled, job)
        allow(0)
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def _reply(compiled: Any, job: dict[str, Any]) -> dict[str, str]:
    import jinja2

    try:
        text = compiled(job["template"]).render(job["variables"])
    except jinja2.TemplateSyntaxError as error:
        return {"problem": f"cannot be read: {_shown(error)}"}
    except jinja2.TemplateError as error:
        return {"problem": f"{_REFUSES} these messages: {_shown(error)}"}
    except MemoryError:
        return {"problem": f"takes more than {MEMORY_BYTES // 2**20} MiB of memory"}
    except Exception as error:  # it is a program: it can fail in any way
        return {"problem": f"fails: {type(error).__name__}: {_shown(error)}"}
    if len(text) > MOST_CHARACTERS:
        return {"problem": f"makes {len(text):,} characters of these messages, more than {MOST_CHARACTERS:,}"}
    return {"text": text}


def _shown(error: Exception) -> str:
    """An error's own words on one line, no more than a few."""
    words = " ".join(str(error)[: 10 * _SHOWN_CHARACTERS].split())
    return words if len(words) <= _SHOWN_CHARACTERS else f"{words[:_SHOWN_CHARACTERS]}…"


def _environment() -> Any:
    """Jinja's sandbox with what chat templates are written for."""
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    Generation.tags = {"generation"}

    class Public(Namespace):
        """A namespace whose names do not begin with an underscore: those lead to Python's own."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a namespace has no {name!r}")
            super().__setitem__(name, value)

    def namespace(*pairs: Any, **values: Any) -> Public:
        made = Public()
        for name, value in dict(*pairs, **values).items():
            made[name] = value
        return made

    def tojson(value: Any, ensure_ascii: bool = False, **style: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **style)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": lambda *pairs, **values: dict(*pairs, **values),
        "namespace": namespace,
    }
    return made
