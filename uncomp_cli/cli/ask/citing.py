"""Evidence of an answer, as `uncomp ask --evidence` shows it: a line for each passage, and objects for programs.

The answer is replayed once behind the cache that it was read from (attended.py); heads count by the trust that the
budget's policy has in them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from uncomp_cli.documents.evidence import Evidence, find_evidence
from uncomp_cli.documents.places import Places

if TYPE_CHECKING:
    from uncomp_cli.cache.ragged import Head, RaggedKVCache
    from uncomp_cli.engine.forward.decoder import Decoder
    from uncomp_cli.engine.write.rows import Asked

__all__ = ["Trust", "cite", "cite_asked", "evidence_lines", "evidence_records", "evidence_warnings"]

Trust = Sequence[Sequence[float]] | None
"""How far each KV head of each layer is trusted; None where nothing was measured."""
_QUOTED_CHARS = 60


def cite_asked(
    decoder: "Decoder", asked: "Asked", answer: Sequence[int], *, places: Places, trust: Trust, sinks: int
) -> list[Evidence]:
    """What an answer (its tokens without the one that ends it) to a question of a prompt that was read looked at."""
    (prompt,) = asked.read.prompts
    waiting = [layer[asked.question] for layer in asked.read.questions]
    first = asked.prompt_tokens - 1
    last = prompt.questions[asked.question][-1]
    cache = asked.read.cache
    return cite(decoder, cache, (last, *answer), first, places=places, trust=trust, sinks=sinks, behind=waiting or None)


def cite(
    decoder: "Decoder",
    cache: "RaggedKVCache",
    ids: Sequence[int],
    first: int,
    *,
    places: Places,
    trust: Trust,
    sinks: int,
    behind: "Sequence[Sequence[Head]] | None" = None,
) -> list[Evidence]:
    """The evidence of an answer; `ids` are the prompt's last token, which stands at `first`, and all of the answer.

    The cache is not changed; what it holds from `first` on is not looked at. No answer has no evidence.
    """
    from uncomp_cli.cache.survival import survival
    from uncomp_cli.engine.look.attended import attended_by

    if len(ids) < 2:
        return []
    mass = attended_by(decoder, cache, ids[:-1], first, heads=trust, sinks=sinks, behind=behind)
    kept = survival(cache, first, layers=decoder.spec.full_layers)
    return find_evidence(mass.tolist(), kept.tolist(), places)


def evidence_records(found: Sequence[Evidence]) -> list[dict[str, Any]]:
    """The JSON array `evidence`."""
    return [asdict(evidence) for evidence in found]


def evidence_lines(found: Sequence[Evidence]) -> Iterator[str]:
    """`  handbook.md:120-121  34 %  kept 92 %  "The badge is …"`, aligned."""
    places = [evidence.lines for evidence in found]
    width = max(map(len, places), default=0)
    for place, evidence in zip(places, found, strict=True):
        share, kept = (f"{_per_cent(value):>3} %" for value in (evidence.attention_share, evidence.kept_fraction))
        yield f'  {place:<{width}}  {share}  kept {kept}  "{_quoted(evidence.text)}"'


def evidence_warnings(found: Sequence[Evidence]) -> list[str]:
    """What was cited although hardly anything of it was left."""
    return [
        f"{evidence.lines} was cited, but only {_per_cent(evidence.kept_fraction)} % of its keys and values were kept: "
        "check the answer against it, or use a larger --budget"
        for evidence in found
        if evidence.mostly_evicted
    ]


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f}"


def _quoted(text: str) -> str:
    """On one line, and no longer than is read at a glance."""
    words = " ".join(text.split())
    return words if len(words) <= _QUOTED_CHARS else words[: _QUOTED_CHARS - 1].rstrip() + "…"
