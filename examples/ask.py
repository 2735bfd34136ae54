"""Ask a document two questions, and show what every answer looked at and what it took.

python examples/ask.py docs/demo/lighthouse-handbook.md "What is the combination of the stores safe?" "Who winds it?"
"""

import sys

import uncomp_cli as uncomp

path, *questions = sys.argv[1:]
engine = uncomp.load(sampling=uncomp.SamplingConfig(max_new_tokens=40))
for event in engine.ask(uncomp.collect(path), questions, uncomp.preset("balanced", budget="10%"), evidence=True):
    match event:
        case uncomp.Planned():
            print(*event.lines, sep="\n", file=sys.stderr)
        case uncomp.Began():
            print(f"\n# {event.turn.question}")
        case uncomp.Piece():
            print(event.text, end="", flush=True)
        case uncomp.Done():
            kept = f"{event.stats.kept_fraction:.1%} of the cache, {event.stats.ttft_s:.1f} s to the first token"
            lines = [f"{each.path}:{each.line_start}  {each.attention_share:.0%}" for each in event.evidence]
            print("", kept, *lines, sep="\n")
