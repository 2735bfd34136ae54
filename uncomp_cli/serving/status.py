"""What the server does and did: a page for people, and Prometheus' text format for machines."""

from html import escape
from statistics import median

import torch

from uncomp_cli.engine.spend.memory import resident_bytes
from uncomp_cli.numerals import format_bytes, format_count, format_seconds
from uncomp_cli.serving.desk import Desk

_REFRESH_S = 2
_CPU = torch.device("cpu")
_OUTCOMES, _KINDS = ("answered", "refused", "full", "left"), ("prompt", "cached", "completion")
_STYLE = "body{font:16px/1.5 system-ui;margin:3em auto;max-width:40em}td{padding:0 2em 0 0}td+td{text-align:right}"


def page(desk: Desk, model: str) -> str:
    """A page that shows itself anew every two seconds."""
    counts = desk.counts
    first = format_seconds(median(counts.first_s)) if counts.first_s else "none yet"
    rows = [
        ("answers being written", format_count(desk.writing)),
        ("requests waiting", f"{format_count(desk.waiting)} of at most {format_count(desk.places)}"),
        ("their KV caches", format_bytes(desk.kv_bytes)),
        ("resident memory", format_bytes(resident_bytes(_CPU))),
        ("answered", format_count(counts.requests["answered"])),
        ("refused, or too many at once", format_count(counts.requests["refused"] + counts.requests["full"])),
        ("left before the end", format_count(counts.requests["left"])),
        ("tokens written", format_count(counts.tokens["completion"])),
        ("first token, median of the latest", first),
    ]
    cells = "".join(f"<tr><td>{escape(what)}</td><td>{escape(value)}</td></tr>" for what, value in rows)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{_REFRESH_S}">'
        f"<title>uncomp</title><style>{_STYLE}</style><h1>uncomp: {escape(model)}</h1><table>{cells}</table></html>"
    )


def exposition(desk: Desk) -> str:
    """Counters and gauges, https://prometheus.io/docs/instrumenting/exposition_formats/."""
    counts = desk.counts
    lines = [
        "# HELP uncomp_requests_total Requests by what became of them.",
        "# TYPE uncomp_requests_total counter",
        *(f'uncomp_requests_total{{outcome="{each}"}} {counts.requests[each]}' for each in _OUTCOMES),
        "# HELP uncomp_tokens_total Tokens: read, of those found in a saved cache, and written.",
        "# TYPE uncomp_tokens_total counter",
        *(f'uncomp_tokens_total{{kind="{each}"}} {counts.tokens[each]}' for each in _KINDS),
        "# HELP uncomp_steps_total Forward passes that wrote tokens, of one answer or of several.",
        "# TYPE uncomp_steps_total counter",
        f"uncomp_steps_total {counts.steps}",
        "# HELP uncomp_first_token_seconds From a request's arrival to its first token.",
        "# TYPE uncomp_first_token_seconds summary",
        f"uncomp_first_token_seconds_sum {counts.waited_s:.6f}",
        f"uncomp_first_token_seconds_count {counts.num_first}",
    ]
    for name, what, value in (
        ("requests_waiting", "Requests in line.", desk.waiting),
        ("answers_writing", "Answers being written.", desk.writing),
        ("kv_bytes", "Bytes of the rows' KV caches.", desk.kv_bytes),
        ("resident_bytes", "Resident memory of the process.", resident_bytes(_CPU)),
    ):
        lines += [f"# HELP uncomp_{name} {what}", f"# TYPE uncomp_{name} gauge", f"uncomp_{name} {value}"]
    return "\n".join(lines) + "\n"
