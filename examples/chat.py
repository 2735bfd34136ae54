"""A chat about a document: only what is new is read, in a cache that keeps its budget.

python examples/chat.py docs/demo/lighthouse-handbook.md
"""

import sys

import uncomp_cli as uncomp

engine = uncomp.load(sampling=uncomp.SamplingConfig(max_new_tokens=60))
chat = engine.chat(uncomp.preset("unseen"))
for event in chat.add(uncomp.collect(*sys.argv[1:]).documents):
    if isinstance(event, uncomp.Noted):
        print(event.text, file=sys.stderr)
print("An empty line ends it.")
while question := input("> "):
    for event in chat.say(question):
        if isinstance(event, uncomp.Piece):
            print(event.text, end="", flush=True)
        elif isinstance(event, uncomp.Done):
            print(f"\n[KV {event.stats.kv_bytes:,} bytes, {event.stats.kept_fraction:.0%}]")
