"""Chat templates: what transformers renders, in a process that can be stopped."""

import copy
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uncomp_cli.cli.app import run
from uncomp_cli.engine.tokens.prompt import render_template
from uncomp_cli.errors import ModelError
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.models.template import MOST_CHARACTERS, Renderer

MESSAGES = [
    {"role": "system", "content": "Be brief. <b> & 'ü'"},
    {"role": "user", "content": "  Who\nsigned?  "},
    {"role": "assistant", "content": "<think>hm</think>Ada"},
    {"role": "user", "content": "When?"},
]
LIKE_LLAMA = """{%- set loop_messages = messages %}{%- if messages[0]['role'] == 'system' %}
{%- set system_message = messages[0]['content']|trim %}{%- set loop_messages = messages[1:] %}{%- endif %}
{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = strftime_now("%Y") %}{%- endif %}
{{- '<|start|>' + system_message + date_string }}
{%- for message in loop_messages %}{{- '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"""
LIKE_QWEN = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
{%- set index = (messages|length - 1) - loop.index0 %}
{%- if ns.multi_step_tool and message.role == "user" %}{%- set ns.multi_step_tool = false %}
{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}
{%- for message in messages %}{%- if message.content is string %}{%- set content = message.content %}{%- endif %}
{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + content }}{{ ns.last_query_index }}
{%- if loop.last %}{% break %}{% endif %}{%- endfor %}{{ dict(a=1) | tojson }}{{ tools is none }}"""
MARKED = """{% for message in messages %}
  {% generation %}{{ message | tojson(indent=2) }}{% endgeneration %}
{% endfor %}"""


@pytest.fixture(scope="module")
def hasty() -> Iterator[Renderer]:
    """One that does not wait long: for what never ends alone, since a busy machine is late at anything."""
    made = Renderer(seconds=1)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def patient() -> Iterator[Renderer]:
    made = Renderer(seconds=60)
    yield made
    made.stop()


@pytest.mark.parametrize("template", [LIKE_LLAMA, LIKE_QWEN, MARKED], ids=["llama", "qwen", "marked"])
def test_a_template_says_what_it_says_in_transformers(loaded: LoadedModel, template: str) -> None:
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.bos_token, tokenizer.chat_template = "<|im_start|>", template
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert render_template(tokenizer, MESSAGES) == expected


DEEP = "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 7 ** (10 ** 9) }}",
    "comparison": f"{DEEP}{DEEP.replace('ns', 'other')}{{{{ ns.a == other.a }}}}",
    "tojson": f"{DEEP}{{{{ ns.a | tojson }}}}",
}
LARGE = {
    "product": "{{ 'x' * 10 ** 10 }}",
    "width": "{{ '%0999999999d' % 1 }}",
    "pad": "{{ 'x'.ljust(10 ** 10) }}",
    "centre": "{{ 'x' | center(10 ** 10) }}",
    "indent": "{{ ([1] | tojson(indent=10 ** 9)) }}",
    "doubled": "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
}
FAILING = {
    "ZeroDivisionError": "{{ 1 / 0 }}",
    "TypeError": "{{ 'x' + 1 }}",
    "RecursionError": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "cannot be read": "{% for %}",
    "refuses these messages: no, thanks": "{{ raise_exception('no,\n thanks') }}",
    "refuses": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "more than 1,000,000": f"{{{{ 'x' * {MOST_CHARACTERS + 1} }}}}",
}


def refused(renderer: Renderer, template: str) -> str:
    """The message of a template that is not rendered; the next one is, all the same."""
    with pytest.raises(ModelError) as caught:
        renderer.render(template, {"messages": MESSAGES})
    assert len(str(caught.value).splitlines()) == 1
    assert "--tokenizer" in str(caught.value.hint)
    assert renderer.render("{{ messages | length }}", {"messages": MESSAGES}) == "4"
    return str(caught.value)


@pytest.mark.parametrize("name", ENDLESS)
def test_what_takes_for_ever_is_stopped(hasty: Renderer, name: str) -> None:
    assert "1 second" in refused(hasty, ENDLESS[name])


@pytest.mark.parametrize("name", LARGE)
def test_what_takes_all_memory_is_stopped(patient: Renderer, name: str) -> None:
    said = refused(patient, LARGE[name])
    assert "MiB of memory" in said or "ends the process" in said


@pytest.mark.parametrize("named", FAILING)
def test_whatever_fails_is_one_line(patient: Renderer, named: str) -> None:
    assert named in refused(patient, FAILING[named])


def test_an_interrupt_leaves_no_half_answer(hasty: Renderer) -> None:
    slow = Renderer(seconds=20)
    slow.render("warm", {})
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        slow.render(ENDLESS["loops"], {})
    assert slow.render("{{ a }}", {"a": "next"}) == "next"
    assert slow.stop() is not None


def test_the_child_is_light_and_ends_with_us() -> None:
    made = Renderer()
    assert made.render("x", {}) == "x"
    child: Any = made.child.process
    assert not any(name in Path(f"/proc/{child.pid}/maps").read_text() for name in ("torch", "transformers", "numpy"))
    child.stdin.close()
    assert child.wait(60) == 0
    assert made.render("again", {}) == "again"
    made.stop()


def test_modules_that_lie_in_the_current_directory_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jinja2.py").write_text("open('taken', 'w')\n")
    (tmp_path / "json.py").write_text("open('taken', 'w')\n")
    monkeypatch.chdir(tmp_path)
    made = Renderer()
    assert made.render("x", {}) == "x"
    made.stop()
    assert not (tmp_path / "taken").exists()


def test_a_template_that_does_not_end_ends_a_command(
    copied_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied_model / "chat_template.jinja").write_text("{{ messages.no.such }}")
    document = tmp_path / "notes.txt"
    document.write_text("The harbour was quiet.")
    assert run(["ask", "-m", str(copied_model), "-f", str(document), "--max-new-tokens", "2", "Where?"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert "chat template" in lines[-2]
    assert lines[-1].startswith("hint:")
