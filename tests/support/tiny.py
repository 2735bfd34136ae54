"""Tiny models with random weights, written to a folder as a user would have them, and a tokenizer of bytes.

The tiny model has a token for every byte; it says lower-case letters, never stops, and was trained, so it claims, for
4,096 tokens.
"""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

TRAINED_LENGTH = 4096
SAYABLE = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = len(SPECIAL) + len(pre_tokenizers.ByteLevel.alphabet())
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_model(directory: Path, *, sayable: str = SAYABLE, config: PreTrainedConfig | None = None) -> Path:
    """Write the tiny model, which says only these characters, in Hugging Face format; of another family by `config`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[2], additional_special_tokens=[SPECIAL[1]]
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(directory)
    torch.manual_seed(3)
    config = config or LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=TRAINED_LENGTH, initializer_range=0.2,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    said = torch.zeros(len(vocab), 1)
    said[wrapped.convert_tokens_to_ids(wrapped.tokenize(sayable))] = 1
    model.lm_head.weight.data *= said
    model.save_pretrained(directory)
    return directory


def scaled_model(tiny_model: Path, trained: int, *, folder: Path = Path("shipped"), **parameters: object) -> str:
    """The tiny model in a folder of its own, trained for `trained` tokens and shipped with a scaling."""
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((tiny_model / "config.json").read_text())
    config |= {"max_position_embeddings": trained, "rope_parameters": {"rope_theta": 10000.0, **parameters}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and one special token that ends."""
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(BYTES)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def make_character_model(directory: Path, *, layers: int, trained: int, spread: float) -> Path:
    """Write a random Llama whose tokens are characters, with two KV heads of 8 channels and four query heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2, head_dim=8, hidden_size=32,
        intermediate_size=64, vocab_size=128, max_position_embeddings=trained, initializer_range=spread,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    characters = Tokenizer(models.WordLevel({chr(code): code for code in range(128)}, unk_token="?"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=characters, unk_token="?").save_pretrained(directory)
    return directory
