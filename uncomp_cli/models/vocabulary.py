"""Build a tokenizer from a GGUF file's own vocabulary, merges and token types.

`tokenizer.ggml.pre` names the pre-tokenizer of a byte-level BPE; `tokenizer.ggml.model = llama` means SentencePiece
BPE, whose merges follow from the scores: of all pairs that make a known piece, the one with the highest score first.
llama.cpp's tokenization of the same file is the reference (transformers' own conversion drops the pre-tokenizer).
Not done: WordPiece, unigram and RWKV vocabularies, and byte-level pre-tokenizers of families that are not
supported, of patterns that no regular expression says (kimi-k2, afmoe), and `deepseek-llm`.

Whatever the template or the stop list uses is control, and whatever looks like it, flagged or not: a text that spells
it is read as that text (`guard`). Files flag some of it as ordinary (llama.cpp overrides the same ones).

How a byte-level BPE cuts a text before it merges stands in `CUTS`, by the names that files have for it: facts of the
models' own tokenizer.json, as llama.cpp's list of them has them (llama-vocab.cpp). A text is cut at what a pattern
matches and between, by one pattern after the other.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uncomp_cli.errors import ModelError
from uncomp_cli.schema import shortened

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_MARKUP = re.compile(r"\s*(<.+>|\[.+\]|\{.+\})\s*", re.DOTALL)
_COMMAND = re.compile(r"<\|.+\|>|<(start|end)_of_\w+>", re.DOTALL)
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_TURN_ENDS = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|end_of_turn|>",
        "<|eot|>",
        "<|endofturn|>",
        "<|return|>",
    )
)
TOKENIZER_HINT = "name a directory with the original tokenizer: --tokenizer DIR"

Metadata = Mapping[str, Any]


def guard(tokenizer: Any, stops: Collection[int]) -> None:
    """Make added tokens that are control unreachable for text in which no special tokens are meant.

    Control are those in the template, those in `stops`, and those in brackets. White space and plain words stay. What
    an answer says of them is shown as before: `spoken_ids`.
    """
    template = str(tokenizer.chat_template or "")
    control = {
        token: added
        for token, added in tokenizer.added_tokens_decoder.items()
        if not added.special and (token in stops or is_markup(added.content) or _is_used(added.content, template))
    }
    tokenizer.spoken_ids = frozenset(control)
    for added in control.values():
        added.special = True
    tokenizer.backend_tokenizer.add_special_tokens(list(control.values()))


def _is_used(content: str, template: str) -> bool:
    """Whether a template names a piece that is more than white space."""
    return bool(content.strip(" ▁\n\t")) and content in template


def is_markup(content: str) -> bool:
    """Whether a piece looks like a mark of the model's own and not like text."""
    return _MARKUP.fullmatch(content) is not None


def build_tokenizer(metadata: Metadata) -> "PreTrainedTokenizerFast":
    """The tokenizer that the metadata of a GGUF file describes.

    Raises ModelError when the vocabulary is of a kind that is not supported, or is missing or inconsistent.
    """
    from transformers import PreTrainedTokenizerFast

    kind = metadata.get("tokenizer.ggml.model")
    builder = VOCABULARIES.get(str(kind))
    if builder is None:
        known = ", ".join(VOCABULARIES)
        raise ModelError(f"GGUF tokenizer of kind {kind!r} is not supported (known: {known})", hint=TOKENIZER_HINT)
    tokens, types = token_table(metadata)
    types = as_meant(tokens, types, metadata)
    try:
        tokenizer, adds_bos = builder(metadata, tokens, types)
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception on a vocabulary that does not fit
        raise ModelError(f"GGUF vocabulary cannot be used: {error}", hint=TOKENIZER_HINT) from error
    add_special_tokens(tokenizer, tokens, types)
    add_bos_and_eos(tokenizer, metadata, tokens, adds_bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        chat_template=metadata.get("tokenizer.chat_template"),
        **special_names(metadata, tokens),
    )


def stop_ids(metadata: Metadata) -> list[int]:
    """The tokens that end an answer: those that the file names, and ends of a turn that its template writes.

    A file whose `eos_token_id` is the end of a text, while its template ends turns with another token, would run on.
    Ids that the vocabulary does not have end nothing.
    """
    tokens, template = metadata.get("tokenizer.ggml.tokens") or (), str(metadata.get("tokenizer.chat_template", ""))
    named = [metadata.get(f"tokenizer.ggml.{key}") for key in END_KEYS]
    several: Iterable[Any] = metadata.get("tokenizer.ggml.eos_token_ids") or ()
    turns = [index for index, token in enumerate(tokens) if token in _TURN_ENDS and token in template]
    found = (int(each) for each in (*named, *several, *turns) if each is not None)
    return list(dict.fromkeys(index for index in found if 0 <= index < len(tokens)))


def token_table(metadata: Metadata) -> tuple[list[str], list[int]]:
    """The pieces and their types, by id."""
    tokens: Sequence[str] = metadata.get("tokenizer.ggml.tokens") or ()
    types: Sequence[int] = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not tokens or len(types) != len(tokens):
        raise ModelError("GGUF file has no usable vocabulary", hint=TOKENIZER_HINT)
    return list(tokens), [int(kind) for kind in types]


def as_meant(tokens: Sequence[str], types: Sequence[int], metadata: Metadata) -> list[int]:
    """The types, with those that the file calls normal and that end a text, or command in the template, as control."""
    template = str(metadata.get("tokenizer.chat_template", ""))
    ends = {metadata.get(f"tokenizer.ggml.{key}") for key in END_KEYS}

    def commands(index: int) -> bool:
        token = tokens[index]
        return bool(_COMMAND.fullmatch(token)) and (index in ends or token in template)

    return [CONTROL if kind == NORMAL and commands(index) else kind for index, kind in enumerate(types)]


def special_names(metadata: Metadata, tokens: Sequence[str]) -> dict[str, str]:
    """`bos_token`, `eos_token`, … for those that the file names by id."""
    keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: tokens[int(index)] for name, index in ids.items() if index is not None and index < len(tokens)}


def add_special_tokens(tokenizer: "Tokenizer", tokens: Sequence[str], types: Sequence[int]) -> None:
    """Match control tokens (special) and user-defined ones (ordinary text) before the vocabulary is asked."""
    from tokenizers import AddedToken

    def of_type(*kinds: int, special: bool) -> list[AddedToken]:
        chosen = [token for token, kind in zip(tokens, types, strict=True) if kind in kinds]
        return [AddedToken(token, normalized=False, special=special) for token in chosen]

    tokenizer.add_special_tokens(of_type(UNKNOWN, CONTROL, special=True))
    tokenizer.add_tokens(of_type(USER_DEFINED, special=False))


def add_bos_and_eos(tokenizer: "Tokenizer", metadata: Metadata, tokens: Sequence[str], adds_bos: bool) -> None:
    """Put the tokens around a text that the file asks for; llama.cpp's defaults where it does not say."""
    from tokenizers.processors import TemplateProcessing

    names = special_names(metadata, tokens)
    wanted = {
        "bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos)),
        "eos_token": bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
    }
    bos, eos = ([names[name]] if on and name in names else [] for name, on in wanted.items())
    tokenizer.post_processor = TemplateProcessing(
        single=[*bos, "$A", *eos],
        pair=[*bos, "$A", *eos, *(f"{token}:1" for token in bos), "$B:1", *(f"{token}:1" for token in eos)],
        special_tokens=[(token, tokens.index(token)) for token in {*bos, *eos}],
    )


def byte_level(metadata: Metadata, tokens: Sequence[str], types: Sequence[int]) -> tuple["Tokenizer", bool]:
    """A byte-level BPE with the pre-tokenizer that the file names, and whether it starts with BOS by default."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    name = str(metadata.get("tokenizer.ggml.pre", "default"))
    cut = CUTS.get(name)
    if cut is None:
        message = f"GGUF pre-tokenizer {shortened(name)!r} is not one of the {len(CUTS)} that are supported"
        raise ModelError(message, hint=TOKENIZER_HINT)
    vocab = {token: index for index, token in enumerate(tokens)}
    marks = marks_of(tokens, types)
    pairs = map(split_merge, metadata.get("tokenizer.ggml.merges") or ())
    merges = [(left, right) for left, right in pairs if left + right not in marks]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=cut.whole))
    tokenizer.pre_tokenizer = cut.build()
    tokenizer.decoder = decoders.ByteLevel()
    if cut.nfc:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer, cut.bos


def marks_of(tokens: Sequence[str], types: Sequence[int]) -> set[str]:
    """Pieces that no text is made of: control, and user-defined ones that look like it."""
    return {
        token
        for token, kind in zip(tokens, types, strict=True)
        if kind in (UNKNOWN, CONTROL, BYTE) or (kind == USER_DEFINED and is_markup(token))
    }


def split_merge(line: str) -> tuple[str, str]:
    """`"a b"` → `("a", "b")`; the separating space is the first one that is not the first character."""
    at = line.find(" ", 1)
    return line[:at], line[at + 1 :]


def sentence_piece(metadata: Metadata, tokens: Sequence[str], types: Sequence[int]) -> tuple["Tokenizer", bool]:
    """A SentencePiece BPE with byte fallback; spaces are `▁`, and one is put before a text unless the file says no."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise ModelError("GGUF SentencePiece vocabulary has no scores", hint=TOKENIZER_HINT)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    unknown = tokens[types.index(UNKNOWN)] if UNKNOWN in types else None
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = merges_from_scores(tokens, types, scores)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer, True


def merges_from_scores(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, the highest score of the made piece first."""
    marks = marks_of(tokens, types)
    ids = {token: index for index, token in enumerate(tokens) if token not in marks}
    found = [
        (-score, left, right)  # ids alone: pieces of pieces would take a hundred megabytes
        for token, score in ((token, float(scores[index])) for token, index in ids.items())
        for at in range(1, len(token))
        if (left := ids.get(token[:at])) is not None and (right := ids.get(token[at:])) is not None
    ]
    found.sort()
    return [(tokens[left], tokens[right]) for _, left, right in found]


VOCABULARIES: dict[str, Callable[[Metadata, Sequence[str], Sequence[int]], tuple["Tokenizer", bool]]] = {
    "gpt2": byte_level,
    "llama": sentence_piece,
}


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
