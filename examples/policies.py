"""Compare two policies at one budget: how likely the right answer is under each, and what it took.

python examples/policies.py docs/demo/lighthouse-handbook.md "What is the combination of the stores safe?" 4096217
"""

import sys

import torch

import uncomp_cli as uncomp

path, question, right = sys.argv[1:]
engine, documents = uncomp.load(), uncomp.collect(path)
ids = engine.tokens_of(right)
for policy in ("uniform", "uncertain"):
    preset = uncomp.preset(policy=policy, budget="5%")
    context = engine.read(documents, [question], preset)
    logits = context.predict(ids)  # [N, vocab]: of each token given those before it
    nll = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(ids))
    answer = context.answer(question)
    print(f"{policy:10} {answer.stats.kv_bytes:>12,} bytes   NLL {nll:.3f}   {answer.text.strip()}")
