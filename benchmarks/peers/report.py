"""The page in docs/results: what was run with what, the two tables, and what a reader must know to read them."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from join import Source, check_same_samples, common_samples, rows, table
from records import cpu_name

from uncomp_cli import __version__

REGIMES = {
    "aware": "Query-aware: the question is seen when the cache is compressed",
    "agnostic": "Query-agnostic: the question is not seen when the cache is compressed",
}
NOTES = """\
- *kept, allocated*: bytes of keys and values that are allocated after the compression, over those of a full cache of
  the tokens that it saw: context and question, or the context alone. kvpress and uncomp ran in fp32, over fp32: of a
  16-bit cache, uncomp's 8bit and 4bit rows keep twice the share that is shown.
  llama.cpp's bytes are the size of its serialised sequence state (`llama_state_seq_get_size`) after context and
  question, over a 16-bit cache; a few bytes of bookkeeping a token put f16 a little above 100 %.
- *kept, claimed*: the entries that attention still sees, over all. AdaKV in kvpress masks entries and frees
  nothing. uncomp claims nothing beside what is allocated.
- NLL: nats per token of the right answer, from its second token on. exact: argmax gives every token of the answer.
- llama.cpp keeps the whole cache, so its two regimes are one measurement. Its weights are the Q4_1 GGUF from which our
  safetensors were made: the numbers are the same, the arithmetic is not (it multiplies them with 8-bit activations).
- kvpress presses were given the recorded prefill layer by layer, by their own hooks; `run_kvpress.py --check` compares
  that with a prefill under the press. Where kvpress's caches differ in length by layer, or are masked, the tokens after
  the prompt went through one by one, which is exact; transformers' causal mask is not, for several tokens at once."""


def page(sources: Sequence[Source], *, command: str) -> str:
    """The Markdown page. Ends the program when the sources ran different samples."""
    check_same_samples(sources)
    lines = ["# Peers on the same samples", "", *_runs(sources, command=command)]
    for regime, title in REGIMES.items():
        found = rows(sources, regime)
        if found:
            lines += ["", f"## {title}", "", _coverage(sources, regime), "", table(found)]
    return "\n".join([*lines, "", "## How to read it", "", NOTES, ""])


def _coverage(sources: Sequence[Source], regime: str) -> str:
    """How many samples the table is about, and what was left out."""
    common = common_samples(sources, regime)
    subtasks = ", ".join(sorted({f"{subtask} at {tokens:,} tokens" for subtask, tokens, _ in common}))
    return f"{len(common)} samples that all sources ran: {subtasks or 'none'}."


def _runs(sources: Sequence[Source], *, command: str) -> list[str]:
    ours = {name: version(name) for name in ("torch", "transformers")}
    lines = [f"- joined by `{command}`, uncomp {__version__} ({_spoken(ours)}), Python {platform.python_version()}"]
    made = {source.run["samples_command"] for source in sources if source.run.get("samples_command")}
    lines += [f"- samples: `{text}`" for text in sorted(made)]
    for source in sources:
        if source.run:
            run = source.run
            where = f"{run['cpu']}, {run['cores']} cores, OMP_NUM_THREADS {run['threads']}"
            lines.append(f"- {source.name}: `{run['command']}` ({_spoken(run['versions'])}; {where})")
        else:
            lines.append(f"- {source.name}: {_spoken(source.samples)} (this machine: {cpu_name()})")
    return lines


def _spoken(values: dict[str, Any]) -> str:
    """`name value, ...`; a sha256 by its first digits."""
    shown = {name: value[:12] if name.endswith("sha256") else value for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())
