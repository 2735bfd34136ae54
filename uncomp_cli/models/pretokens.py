"""How a byte-level BPE cuts a text before it merges, by the names that GGUF files have for it (`tokenizer.ggml.pre`).

Names and patterns are facts of the models' own tokenizer.json, as llama.cpp's list of them has them (llama-vocab.cpp).
A text is cut at what a pattern matches and between, by one pattern after the other. Not in the table: names of families
that are not supported, patterns that no regular expression says (kimi-k2, afmoe), and `deepseek-llm`.
"""

from dataclasses import dataclass
from typing import Any

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACE = r"\s+(?!\S)|\s+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACE}"
_REST_AND_SLASHES = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACE}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_DIGIT, _THREE = r"\p{N}", r"\p{N}{1,3}"
_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_MARKS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_SCRIPTS = rf"[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|{_SPACE}"
_PHRASE = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


def _cased(after: str) -> str:
    """Words that begin anew at a capital letter."""
    return f"{_BEFORE}{_UPPER}*{_LOWER}+{after}|{_BEFORE}{_UPPER}+{_LOWER}*{after}"


@dataclass(frozen=True, slots=True)
class Cut:
    """What cuts a text: patterns, then GPT-2's own when `gpt2`.

    `whole` takes a word that is a piece as that piece, whatever merges make of it; `bos` begins with BOS when the file
    does not say; `nfc` composes characters first.
    """

    patterns: tuple[str, ...] = ()
    gpt2: bool = False
    whole: bool = False
    bos: bool = False
    nfc: bool = False

    def build(self) -> Any:
        """The pre-tokenizer of the tokenizers library."""
        from tokenizers import Regex, pre_tokenizers

        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2)])


_LLAMA3 = "|".join((_SHORT, _WORD, _THREE, _REST))
_QWEN2 = "|".join((_SHORT, _WORD, _DIGIT, _REST))
_QWEN35 = _QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_GROUPS: dict[str, Cut] = {
    "gpt-2 default phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum exaone4": Cut(gpt2=True),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": Cut((_DIGIT,), gpt2=True),
    "llama-bpe llama3 llama-v3 falcon3 pixtral midm-2.0 lfm2": Cut((_LLAMA3,), whole=True, bos=True),
    "smaug-bpe dbrx glm4 chatglm-bpe": Cut((_LLAMA3,)),
    "qwen2": Cut((_QWEN2,), nfc=True),
    "qwen35": Cut((_QWEN35,), nfc=True),
    "deepseek-r1-qwen kormo megrez stablelm2 hunyuan grok-2 solar-open": Cut((_QWEN2,)),
    "tekken": Cut(("|".join((_cased(""), _DIGIT, _REST_AND_SLASHES)),), whole=True, bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Cut(("|".join((_cased(f"{_SHORT}?"), _THREE, _REST_AND_SLASHES)),)),
    "deepseek-coder": Cut(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", _DIGIT)
    ),
    "deepseek-v3 hunyuan-dense joyai-llm": Cut((_THREE, _HAN, f"{_MARKS}|{_SCRIPTS}")),
    "seed-coder": Cut(("|".join((_SHORT, _WORD, _DIGIT, rf" ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|{_SPACE}")),)),
    "bailingmoe bailingmoe2": Cut(
        ("|".join((r"'(?i:[sdmt]|ll|ve|re)", _WORD, _DIGIT, rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|{_SPACE}")),)
    ),
    "poro-chat bloom gpt3-finnish": Cut((_PHRASE,)),
    "viking": Cut((_PHRASE, _DIGIT)),
    "superbpe": Cut((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
}
CUTS: dict[str, Cut] = {name: cut for names, cut in _GROUPS.items() for name in names.split()}
