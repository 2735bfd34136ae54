"""A text about a town, with two facts to ask for; and a count of tokens that needs no tokenizer."""

import random
import re

CODE, NAME = "7391846", "Ishmael"
QUESTION, OTHER = "What is the secret access code of the vault?", "What is the name of the lighthouse keeper?"


def town(sentences: int = 28) -> str:
    """A text of about 600 tokens with a number in the middle and a name near the end."""
    things = ["river", "stone", "market", "lantern", "sailor", "harbour", "winter", "garden", "letter", "bridge"]
    draw = random.Random(0)
    lines = [
        "The {} near the {} was quiet, and the {} stood by the {} until evening.".format(*draw.choices(things, k=4))
        for _ in range(sentences)
    ]
    lines.insert(sentences // 2, f"The secret access code of the vault is {CODE}.")
    lines.insert(sentences - 3, f"The name of the lighthouse keeper is {NAME}.")
    return "\n".join(lines) + "\n"


def count_tokens(text: str) -> int:
    """Like a byte-pair tokenizer with single digits, roughly: pieces of at most five letters."""
    return len(re.findall(r"\d|[^\W\d]{1,5}|[^\w\s]|\n+", text))
