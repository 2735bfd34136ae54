"""Tokenizers built from GGUF metadata: llama.cpp and SentencePiece are the oracles."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX

from uncomp_cli.engine.tokens.prompt import decode, encode, encode_words
from uncomp_cli.engine.write.writer import TextStream
from uncomp_cli.errors import ModelError
from uncomp_cli.models.checkpoint import load_tokenizer
from uncomp_cli.models.vocabulary import CUTS, build_tokenizer, stop_ids

CASES = json.loads((Path(__file__).parent / "data" / "smollm2_tokens.json").read_text())["cases"]
GPL3 = Path("/usr/share/common-licenses/GPL-3")
LICENSE = Path(__file__).parents[1] / "LICENSE"
NORMAL_TYPE, SPECIAL_TYPE, UNKNOWN_TYPE, USER_TYPE, BYTE_TYPE = 1, 3, 2, 4, 6
TEXTS = ["The year 2024, 1,000 days.", "  two  spaces\n\n\tand tabs", "café naïve 日本語 👩‍🔬", "It's we'LL I'd", ""]


def byte_level_metadata(pre: str) -> dict[str, object]:
    """A vocabulary of the 256 bytes, a few merges, one control and one user-defined token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["h e", "l l", "1 2", "12 3", "123 4", "Ġ t"]
    tokens = [*alphabet, *(merge.replace(" ", "") for merge in merges), "<|end|>", "[[mark]]"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [SPECIAL_TYPE, USER_TYPE],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }


@pytest.fixture(scope="module")
def smollm(default_model_dir):
    return load_tokenizer(default_model_dir)


@pytest.mark.model
@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_smollm_ids_are_those_of_llama_cpp(smollm, case):
    assert smollm(case["text"])["input_ids"] == case["ids"]
    assert smollm.decode(case["ids"]) == case["text"]


@pytest.mark.model
def test_a_long_text_has_the_known_number_of_tokens(smollm):
    text = (GPL3 if GPL3.exists() else LICENSE).read_text()
    ids = smollm(text)["input_ids"]
    assert smollm.decode(ids) == text
    if GPL3.exists():
        assert len(ids) == 7639


@pytest.mark.model
def test_chat_template_of_the_default_model(smollm):
    messages = [{"role": "user", "content": "Hi"}]
    text = smollm.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert smollm.eos_token == "<|im_end|>"
    assert smollm.clean_up_tokenization_spaces is False


ONE_A_CUT = sorted({cut: name for name, cut in reversed(CUTS.items())}.values())


@pytest.mark.parametrize("pre", ONE_A_CUT)
def test_byte_level_round_trip_and_reload(tmp_path, pre):
    tokenizer = build_tokenizer(byte_level_metadata(pre))
    tokenizer.save_pretrained(tmp_path)
    reloaded = [PreTrainedTokenizerFast.from_pretrained(tmp_path), load_tokenizer(tmp_path)]
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        for other in reloaded:
            assert other(text, add_special_tokens=False)["input_ids"] == ids
            assert other(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert reloaded[0].chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["1", "2", "3", "4"]),
        ("qwen2", ["1", "2", "3", "4"]),
        ("llama-bpe", ["123", "4"]),
        ("gpt-2", ["1234"]),
        ("refact", ["1", "2", "3", "4"]),
        ("smaug-bpe", ["123", "4"]),
        ("tekken", ["1", "2", "3", "4"]),
        ("gpt-4o", ["123", "4"]),
        ("deepseek-v3", ["123", "4"]),
        ("deepseek-coder", ["1", "2", "3", "4"]),
        ("viking", ["1", "2", "3", "4"]),
    ],
)
def test_digits_stay_together_as_the_pre_tokenizer_says(pre, pieces):
    tokenizer = build_tokenizer(byte_level_metadata(pre))
    assert tokenizer.tokenize("1234") == pieces


def pieces_of(pre: str, text: str) -> list[str]:
    """What a text is cut into, before anything is merged."""
    return [text[first:last] for _, (first, last) in CUTS[pre].build().pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "It's we'LL 1,000", ["It", "'s", " we", "'", "LL", " 1", ",", "000"]),
        ("llama-bpe", "It's we'LL\n\n x", ["It", "'s", " we", "'LL", "\n\n", " x"]),
        ("qwen2", "a (b)\r\n  c", ["a", " (", "b", ")\r\n", " ", " c"]),
        ("tekken", "camelCase HTTPServer's path/", ["camel", "Case", " HTTPServer", "'s", " path", "/"]),
        ("gpt-4o", "camelCase can't", ["camel", "Case", " can't"]),
        ("gpt-4o", "a://b", ["a", "://", "b"]),
        ("deepseek-v3", "漢字かな ab123", ["漢字かな", " ab", "123"]),
        ("deepseek-coder", "x (12)\n漢字", ["x", " (", "1", "2", ")", "\n", "漢字"]),
        ("seed-coder", "a..\nb", ["a", "..", "\n", "b"]),
        ("qwen2", "a..\nb", ["a", "..\n", "b"]),
        ("bailingmoe", "a.\n\nb\n\nc", ["a", ".\n\n", "b", "\n\n", "c"]),
        ("viking", "a b, 12.", ["a", " b", ",", " ", "1", "2", "."]),
        ("superbpe", "1234567", ["1", "234", "567"]),
        ("llama-bpe", "नमस्ते", ["नमस", "्त", "े"]),
        ("gpt-4o", "नमस्ते", ["नमस्ते"]),
        ("qwen2", "🙂🙂!", ["🙂🙂!"]),
        ("qwen35", "नमस्ते it's 12", ["नमस्ते", " it", "'s", " ", "1", "2"]),
        ("lfm2", "It's we'LL 1234", ["It", "'s", " we", "'LL", " ", "123", "4"]),
    ],
)
def test_a_text_is_cut_as_the_patterns_say(pre, text, pieces):
    assert pieces_of(pre, text) == pieces


def test_qwen35_is_cut_as_transformers_cuts_it():
    assert CUTS["qwen35"].patterns == (PRETOKENIZE_REGEX,)


@pytest.mark.parametrize("pre", ONE_A_CUT)
@given(text=st.text(max_size=60))
def test_no_cut_loses_or_doubles_anything(pre, text):
    assert "".join(pieces_of(pre, text)) == text


def test_what_ends_an_answer_is_named_or_ends_a_turn_of_the_template():
    """A file that names the end of a text alone, as Llama 3's and Gemma's first ones did, does not run on."""
    tokens = ["a", "<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "<|eom_id|>"]
    file = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": 1}
    assert stop_ids(file) == [1]
    template = {"tokenizer.chat_template": "{{ messages[0].content }}<|eot_id|>"}
    assert stop_ids({**file, **template}) == [1, 2]
    more = {"tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eos_token_ids": [4, 1]}
    assert stop_ids({**file, **more, **template}) == [1, 3, 4, 2]
    assert stop_ids({**file, "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 2**31}) == [1]


def test_llama_bpe_starts_with_bos_and_others_do_not():
    assert build_tokenizer(byte_level_metadata("llama-bpe"))("he")["input_ids"][0] == 262
    assert build_tokenizer(byte_level_metadata("qwen2"))("he")["input_ids"] == [256]


def test_control_and_user_defined_tokens_are_matched_whole():
    tokenizer = build_tokenizer(byte_level_metadata("smollm"))
    assert tokenizer("<|end|>[[mark]]")["input_ids"] == [262, 263]
    assert tokenizer.decode([262, 263], skip_special_tokens=True) == "[[mark]]"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer.ggml.pre": "deepseek-v9"}, "deepseek-v9"),
        ({"tokenizer.ggml.model": "bert"}, "bert"),
        ({"tokenizer.ggml.tokens": []}, "vocabulary"),
        ({"tokenizer.ggml.token_type": [1]}, "vocabulary"),
        ({"tokenizer.ggml.merges": ["nothing known"]}, "cannot be used"),
    ],
)
def test_what_is_not_supported_is_refused_with_a_hint(change, words):
    with pytest.raises(ModelError, match=words) as caught:
        build_tokenizer({**byte_level_metadata("smollm"), **change})
    assert "--tokenizer DIR" in str(caught.value.hint)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece_ids_are_those_of_sentence_piece(prefix):
    oracle_module = pytest.importorskip("sentencepiece")
    oracle = train_sentence_piece(oracle_module, prefix=prefix)
    tokenizer = build_tokenizer(sentence_piece_metadata(oracle, prefix=prefix))
    for text in [*TEXTS[:4], LICENSE.read_text()[:3000]]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == oracle.encode(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer("a")["input_ids"][0] == oracle.bos_id()


def train_sentence_piece(module, *, prefix: bool):
    """A small byte-fallback BPE model trained on our licence."""
    model = io.BytesIO()
    module.SentencePieceTrainer.train(
        sentence_iterator=iter(LICENSE.read_text().splitlines()),
        model_writer=model,
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return module.SentencePieceProcessor(model_proto=model.getvalue())


def sentence_piece_metadata(oracle, *, prefix: bool) -> dict[str, object]:
    """What llama.cpp's converter writes for a SentencePiece model."""
    ids = range(oracle.get_piece_size())
    checks = ((oracle.is_unknown, UNKNOWN_TYPE), (oracle.is_control, SPECIAL_TYPE), (oracle.is_byte, BYTE_TYPE))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [oracle.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [oracle.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [next((kind for check, kind in checks if check(i)), 1) for i in ids],
        "tokenizer.ggml.bos_token_id": oracle.bos_id(),
        "tokenizer.ggml.eos_token_id": oracle.eos_id(),
        "tokenizer.ggml.unknown_token_id": oracle.unk_id(),
        "tokenizer.ggml.add_space_prefix": prefix,
    }


MARKS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<tool_call>", "[INST]", "<think>", "<unused7>", "<h1>"]


def marked_metadata(kind: str) -> dict[str, object]:
    """A vocabulary whose marks are flagged in every way that files flag them; pieces of text spell some of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "llama":
        alphabet = [*map(chr, range(33, 127)), "▁", "<h", "1>", "<think", "▁▁"]
    merges = ["h e", "< t", "<t h", "<th i", "<thi n", "<thin k", "<think >"]
    made = [merge.replace(" ", "") for merge in merges[:-1]]
    tokens = ["<unk>", *alphabet, *(piece for piece in made if piece not in alphabet), *MARKS]
    flags = [NORMAL_TYPE, NORMAL_TYPE, NORMAL_TYPE, USER_TYPE, USER_TYPE, USER_TYPE, SPECIAL_TYPE, USER_TYPE]
    types = [NORMAL_TYPE] * len(tokens)
    types[0] = UNKNOWN_TYPE
    types[-len(MARKS) :] = flags
    types = [USER_TYPE if token == "▁▁" else type_ for token, type_ in zip(tokens, types, strict=True)]
    return {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [-float(index) for index in range(len(tokens))],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.chat_template": "<|im_start|>{{ messages[0].content }}<start_of_turn>",
    }


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def marked(request, tmp_path_factory):
    """A tokenizer with marks of every kind, as it is loaded, and the ids of those."""
    folder = tmp_path_factory.mktemp(request.param)
    build_tokenizer(marked_metadata(request.param)).save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    return tokenizer, {tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}


def test_no_text_yields_a_mark(marked):
    """Every token of the vocabulary as text, between others."""
    tokenizer, marks = marked
    for piece in tokenizer.get_vocab():
        for text in (piece, f"a{piece}b", piece * 2, f"<|{piece}|>"):
            ids = encode(tokenizer, text, special=False)
            assert marks.isdisjoint(ids), text
            assert encode_words(tokenizer, text, strip=False).ids == tuple(ids)
            if piece in MARKS:
                assert tokenizer.decode(ids) == text


@settings(derandomize=True)
@given(st.lists(st.sampled_from([*MARKS, "<", "think", ">", " ", "▁▁", "h1", "|", "\n"]), max_size=8).map("".join))
def test_no_text_of_pieces_yields_a_mark(marked, text):
    tokenizer, marks = marked
    assert marks.isdisjoint(encode(tokenizer, text, special=False))


def test_a_template_yields_its_marks_and_an_answer_shows_what_it_says(marked):
    tokenizer, _ = marked
    used = ["<|im_start|>", "<start_of_turn>", "<tool_call>", "<|im_end|>"]
    ids = [tokenizer.convert_tokens_to_ids(mark) for mark in used]
    assert encode(tokenizer, "".join(used), special=True) == ids
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, ids)) == decode(tokenizer, ids) == "<tool_call>"


def test_white_space_and_words_that_were_added_stay(marked):
    tokenizer, _ = marked
    if "▁▁" in tokenizer.get_vocab():
        assert tokenizer.convert_tokens_to_ids("▁▁") in encode(tokenizer, "a  b", special=False)
