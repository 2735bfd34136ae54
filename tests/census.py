"""A census of the families: every model type that transformers has for text, tiny and with random weights.

    python tests/census.py      all of them: uncomp_cli/models/families.toml, which the package reads,
                                docs/families.md, and the number in the README. `-k gemma`: only those whose name
                                has the word; of others the table stays

The engine is held against the stock model (1e-4, float32; 3e-4 with states) in one pass, in tokens that are put
behind it one at a time and several at once, in chunks, in rows of one batch, and behind a cache that was saved and
opened. A family that passes all is supported; one whose loop over layers is the stock forward too may be thinned.
Of a model that takes pictures as well the text part is loaded alone, and must say what the whole does. Every number
of a model is random, so that a norm's weight or a bias that is left out shows, and every size that is a distance in
the text (a window, a chunk of attention) is shorter than the texts. Layers with a state of their own are in all of
it, and their size is held against what a plan counts. Each family runs in a process of its own, with a time limit.
"""

import argparse
import copy
import json
import os
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from support.caches import make_record
from support.families import Rows, assert_same, decode, full_plan, make_prompt, next_positions, read, tokens
from support.oracle import DenseOracle, Leaving, masked_logits
from uncomp_cli.cache.cache_file import load_cache, save_cache
from uncomp_cli.engine.context.context import Asked
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.write.stores import SharedRows
from uncomp_cli.errors import UncompError
from uncomp_cli.kernels.library import find
from uncomp_cli.models.checkpoint import load_weights
from uncomp_cli.models.families import TABLE, Families, load_families
from uncomp_cli.models.loading import load_config
from uncomp_cli.models.recurrent import carries_states
from uncomp_cli.models.shape import spec_from_config
from uncomp_cli.spec import ModelSpec

SECONDS, MOST_PARAMETERS = 60, 20_000_000
DOCS = Path(__file__).parent.parent / "docs" / "families.md"
README = DOCS.parent.parent / "README.md"
SIZES: dict[str, int | float] = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "intermediate_size_mlp", "dense_intermediate_size"), 48),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 61),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 256),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "keep_window_size", "floor_scale"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "moe_ffn_hidden_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_dense_layers", "first_k_dense_replace", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim", "index_topk"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "index_n_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_d_head", "mamba_head_dim", "mamba_d_state"), 8),
    **dict.fromkeys(("ssm_state_size", "state_size", "mamba_chunk_size", "chunk_size"), 8),
    "mamba_d_ssm": 64,
    "query_pre_attn_scalar": 9,
    "attn_logit_softcapping": 2.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PICTURES = {
    **dict.fromkeys(("image_token_index", "image_token_id"), 5),
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
    "mm_tokens_per_image": 4,
    "projector_hidden_size": 32,
    "boi_token_index": 6,
    "eoi_token_index": 7,
}
OTHERS = ("gemma3n_vision", "timm_wrapper")
HALF_AND_HALF = ["sliding_attention", "full_attention"] * 2
OWN: dict[str, dict[str, Any]] = {
    **{key: {"head_dim": 16} for key in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    **{key: {"layer_types": ["conv", "full_attention"] * 2} for key in ("lfm2", "lfm2_moe")},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention", "mlp", "linear_attention", "moe"]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "helium": {"head_dim": 8},
    "gemma3n_text": {"num_kv_shared_layers": 2, "activation_sparsity_pattern": [0.8, 0.0, 0.8, 0.0]},
    "gemma4_text": {"num_kv_shared_layers": 2, "global_head_dim": 32},
    **{key: {"rotary_dim": 4} for key in ("gptj", "codegen")},
    "minimax_m3_vl_text": {
        "rotary_dim": 8,
        "index_block_size": 4,
        "index_topk_blocks": 2,
        "layer_types": ["minimax_m3_sparse"] * 4,
    },
    "modernbert-decoder": {"local_attention": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
}
"""What a family needs beside, to be built so small or to show what is its own."""
SWITCHES = (
    "attention_bias", "attention_out_bias", "decoder_bias", "do_layer_norm_before", "enable_bias", "gating",
    "lm_head_bias", "mlp_bias", "multi_query", "mup_enabled", "norm_bias", "norm_topk_prob", "qk_layernorm", "qkv_bias",
    "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "tie_word_embeddings", "use_bias", "use_parallel_residual",
    "use_post_norm", "use_qk_norm", "use_qkv_bias",
)  # fmt: skip


def families() -> list[str]:
    """Every model type that has a causal language model, or takes pictures and text and gives text."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A configuration in which whatever has a size is small."""
    kind = CONFIG_MAPPING[model_type]
    known = {each.name for each in fields(kind)} if is_dataclass(kind) else set()
    aliases, usual = kind.attribute_map, kind()
    given = {key: size for key, size in SIZES.items() if key in known or aliases.get(key) in known}
    given = {key: size for key, size in given.items() if aliases.get(key) not in given}
    always = {"num_key_value_heads", "num_kv_heads"}
    given = {key: size for key, size in given.items() if key in always or plain(usual, key) is not None}
    if "head_dim" in known and plain(usual, "head_dim") is not None:
        given["head_dim"] = 16
    for key in known:
        if plain(usual, key) == 1.0 and re.search("multiplier|scale|scaling|scalar", key):
            given[key] = 1.5
    kinds = getattr(usual, "layer_types", None)
    if "layer_types" in known and set(kinds or ("",)) <= set(HALF_AND_HALF) and plain(usual, "sliding_window"):
        given["layer_types"] = HALF_AND_HALF
    return shortened(kind(**{**given, **OWN.get(model_type, {}), **changes}))


def shortened(config: Any) -> Any:
    """The same as if it had been trained for few tokens, as far as its frequencies and scores go by that."""
    turns = getattr(config, "rope_parameters", None) or {}
    for each in (turns, *(value for value in turns.values() if isinstance(value, dict))):
        if "original_max_position_embeddings" in each:
            each["original_max_position_embeddings"] = 32
    return config


def tiny_whole(model_type: str) -> Any:
    """A small configuration of a model that takes pictures as well: its text part is that of its own family."""
    kind = CONFIG_MAPPING[model_type]
    usual, known = kind(), {each.name for each in fields(kind)}
    given: dict[str, Any] = {key: value for key, value in PICTURES.items() if key in known}
    for name in kind.sub_configs:
        optional = getattr(getattr(kind, "sub_configs_defaults", {}).get(name), "config_class", None)
        part = getattr(usual, name, None) or (optional and optional())
        if part is not None:
            sizes = {each.name for each in fields(type(part))} & {*SIZES, *PICTURES} - {"initializer_range"}
            given[name] = type(part)(**{key: {**SIZES, **PICTURES}[key] for key in sizes})
    return kind(**given | {"text_config": tiny_config(usual.text_config.model_type)})


def windowless(model_type: str) -> Any:
    """The same without sliding windows."""
    usual = tiny_config(model_type)
    if not plain(usual, "sliding_window"):
        return usual
    changes = {"layer_types": ["full_attention"] * 4} if getattr(usual, "layer_types", None) else {}
    return tiny_config(model_type, **(changes or {"sliding_window": None}))


def switched(model_type: str) -> Any:
    """The same with every switch of its layers turned, with windows where they are off, and as many KV heads."""
    usual = tiny_config(model_type)
    changes = {key: not getattr(usual, key) for key in SWITCHES if isinstance(getattr(usual, key, None), bool)}
    if getattr(usual, "use_sliding_window", True) is False:
        changes |= {"use_sliding_window": True, "sliding_window": 8, "layer_types": HALF_AND_HALF}
    if plain(usual, "num_key_value_heads") == 2:
        changes["num_key_value_heads"] = 4
    return tiny_config(model_type, **changes)


def plain(config: Any, key: str) -> Any:
    """A field, if it is no switch; None where it is, or layers have their own."""
    try:
        value = getattr(config, key, None)
    except Exception:  # transformers' own, for what differs from layer to layer
        return 0
    return None if isinstance(value, bool) else value


def tiny_model(config: Any, auto: Any = transformers.AutoModelForCausalLM) -> Any:
    """A stock model whose every number is random."""
    with torch.device("meta"):
        count = sum(each.numel() for each in auto.from_config(config).parameters())
    if count > MOST_PARAMETERS:
        raise UncompError(f"no tiny model of it can be made: {count:,} parameters", hint="name its sizes in OWN")
    torch.manual_seed(0)
    model = auto.from_config(config).float().eval().requires_grad_(False)
    for each in model.parameters():
        if each.dim() > 1:
            each.normal_(0, 0.2)
        else:
            each.add_(torch.randn_like(each), alpha=0.1)
    model.set_attn_implementation("eager")
    return model


class Case:
    """A stock model, the engine over a copy of it, and what trials share; with `program` it steps in one call."""

    def __init__(self, config: Any, *, program: bool = False) -> None:
        self.stock = tiny_model(config)
        self.spec: ModelSpec = spec_from_config(config, "float32")
        stored = json.loads(json.dumps(config.to_dict()), object_hook=lambda fields: SimpleNamespace(**fields))
        known = replace(
            load_families(),
            recurrent=(config.model_type,) if self.spec.recurrent else (),
            stepped=(config.model_type,) if program else (),
        )
        with mock.patch("uncomp_cli.models.shape.load_families", return_value=known):
            assert spec_from_config(stored, "float32") == self.spec, "config.json says another shape"
        with (
            mock.patch("uncomp_cli.engine.forward.decoder.check_family"),
            mock.patch("uncomp_cli.engine.forward.program.load_families", return_value=known),
        ):
            self.decoder = Decoder(copy.deepcopy(self.stock), self.spec)
        assert self.decoder.new_states().nbytes == self.spec.state_bytes, "its states have another size"

    def same(self, actual: Tensor, expected: Tensor) -> None:
        """States sum in another order a token at a time: as much as its weights' last bits make of stock's."""
        assert_same(actual, expected, atol=3e-4 if self.spec.recurrent else 1e-4)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """Stock logits [S, vocab]."""
        found: Tensor = self.stock(torch.tensor([list(ids)]), use_cache=False).logits[0]
        return found

    def read(self, context: int, question: int, *, seed: int = 1, chunk: int | None = None) -> Any:
        """A context that was read whole, with its prompt."""
        prompt = make_prompt(context, [question], seed=seed)
        return prompt, read(self.decoder, prompt, full_plan(self.spec, prompt), chunk=chunk)[1]

    def check(self, context: int, question: int, *, chunk: int | None = None, decoded: int = 8) -> None:
        """What was read, and what is put behind it a token at a time, is the stock model's."""
        prompt, done = self.read(context, question, chunk=chunk)
        ids, forced = (*prompt.context, *prompt.questions[0]), tokens(decoded, 7)
        expected = self.logits(ids + forced)
        if expected.abs().max() < 0.1:
            raise AssertionError("the logits are too small to show anything")
        self.same(done.questions.logits[0], expected[len(ids) - 1])
        if decoded:
            self.same(decode(self.decoder, done, torch.tensor([forced]))[0], expected[len(ids) :])


def one_pass(case: Case) -> None:
    """A prompt within the windows, and one beyond them."""
    case.check(3, 2, decoded=0)
    case.check(40, 3, decoded=0)


def token_by_token(case: Case) -> None:
    case.check(3, 2)
    case.check(40, 3)


def several_at_once(case: Case) -> None:
    """A turn of a chat: tokens that see the cache and, causally, each other."""
    prompt, done = case.read(20, 4)
    done.begin()
    ids, turn = (*prompt.context, *prompt.questions[0]), tokens(11, 9)
    at = next_positions(done) + torch.arange(len(turn))
    logits = case.decoder.forward(torch.tensor([turn]), at, AppendState(done.cache, at), len(turn))
    case.same(logits[0], case.logits(ids + turn)[len(ids) :])


def in_chunks(case: Case) -> None:
    case.check(110, 5, chunk=37)


def in_rows(case: Case) -> None:
    """Contexts of other lengths, as rows of one batch."""
    read_ones = [case.read(context, 3, seed=seed) for seed, context in enumerate((20, 4, 11), 1)]
    forced = torch.tensor([tokens(6, 20 + row) for row in range(3)])
    decoded = decode(case.decoder, Rows([done for _, done in read_ones]), forced)
    for row, (prompt, _) in enumerate(read_ones):
        ids = (*prompt.context, *prompt.questions[0])
        case.same(decoded[row], case.logits(ids + tuple(forced[row].tolist()))[len(ids) :])


def several_questions(case: Case) -> None:
    """Of one document: each behind it alone, in turn and as rows; what one does changes nothing for the others."""
    prompt, forced = make_prompt(30, [4, 3]), torch.tensor([tokens(5, 7), tokens(5, 8)])
    done = read(case.decoder, prompt, full_plan(case.spec, prompt), chunk=13)[1]
    texts = [(*prompt.context, *prompt.questions[row], *forced[row].tolist()) for row in (0, 1)]
    expected = [case.logits(ids)[-6:] for ids in texts]
    for question in (0, 1, 0):
        case.same(done.questions.logits[question], expected[question][0])
        case.same(decode(case.decoder, done, forced[question : question + 1], question)[0], expected[question][1:])
    asked, store = [Asked(done, question, 8) for question in (0, 1)], SharedRows(done, case.spec)
    store.lay_out([], asked)
    at = torch.tensor([[each.prompt_tokens] for each in asked])
    for step in range(5):
        if step == 3:
            at, forced, expected = at[1:], forced[1:], expected[1:]
            store.lay_out([1], [])
        logits = case.decoder.forward(forced[:, step, None], at + step, store.state(at + step), 1)[:, 0]
        case.same(logits, torch.stack([each[1 + step] for each in expected]))


def saved_and_opened(case: Case) -> None:
    prompt, done = case.read(30, 3)
    done.begin()
    ids, forced = (*prompt.context, *prompt.questions[0]), tokens(6, 7)
    with tempfile.TemporaryDirectory() as folder:
        save_cache(Path(folder) / "cache", done.cache, tensors={}, record=make_record())
        done.cache = load_cache(Path(folder) / "cache", reserve=8).cache
    at = len(ids) + torch.arange(len(forced))[None]
    logits = case.decoder.forward(torch.tensor([forced]), at, AppendState(done.cache, at), len(forced))
    case.same(logits[0], case.logits(ids + forced)[len(ids) :])


def thinned(case: Case) -> None:
    """Tokens that left are masked in the layers behind; each that stays keeps its position."""
    prompt = make_prompt(40, [5])
    ids, count = (*prompt.context, *prompt.questions[0]), 45
    first = torch.tensor([i for i in range(40) if i % 3 != 1] + list(range(40, count)))
    second = torch.arange(len(first))[5:]
    positions, wanted = torch.arange(count)[None], torch.tensor([5, 1])
    whole = case.decoder.layer_by_layer(torch.tensor([ids]), positions, Leaving({}), wanted)[0]
    case.same(whole, case.logits(ids)[[40, -1]])
    found = case.decoder.layer_by_layer(torch.tensor([ids]), positions, Leaving({0: first, 2: second}), wanted)[0]
    everyone, stayed = set(range(40)), set(first.tolist()) & set(range(40))
    there = [everyone, stayed, stayed, set(first[second].tolist()) & everyone]
    oracle = DenseOracle([[layer] * case.spec.num_kv_heads for layer in there], context=40, masked_from=0)
    expected = masked_logits(case.stock, ids, oracle)
    case.stock.set_attn_implementation("eager")
    case.same(found, expected[[40, -1]])


def stepped(model_type: str) -> None:
    """Few tokens in one call of the C library, with windows and without, with other switches where it takes them."""
    for config, has in ((tiny_config, True), (windowless, True), (switched, False)):
        case = Case(config(model_type), program=True)
        assert case.decoder.has_program or not has
        for trial in (token_by_token, several_at_once, in_rows, several_questions):
            trial(case)


def text_part(model_type: str) -> None:
    """What is loaded of a model that takes pictures as well says of a text what the whole model does.

    A tower that another library makes is left out of the whole: no text goes through it.
    """
    tiny, made = tiny_whole(model_type), transformers.AutoModel.from_config

    def from_config(config: Any, **keywords: Any) -> Any:
        return nn.Identity() if config.model_type in OTHERS else made(config, **keywords)

    with mock.patch.object(transformers.AutoModel, "from_config", from_config):
        whole = tiny_model(tiny, transformers.AutoModelForImageTextToText)
    ids = torch.tensor([tokens(30, 3)])
    with tempfile.TemporaryDirectory() as folder, mock.patch("uncomp_cli.models.loading.check_text_only"):
        whole.save_pretrained(folder)
        stored = load_config(Path(folder), model_type)
        part = load_weights(Path(folder), model_type, torch.float32, torch.device("cpu"), None, config=stored)
    with torch.no_grad():
        assert_same(part(ids).logits, whole(ids).logits)


TRIALS: dict[str, Callable[[Case], None]] = {
    "one pass": one_pass,
    "token by token": token_by_token,
    "several at once": several_at_once,
    "chunks": in_chunks,
    "rows": in_rows,
    "questions": several_questions,
    "saved": saved_and_opened,
}


LATENT = "multi-head latent attention: one compressed state serves all heads, so there are no keys and values of a head"
STATE = "transformers computes its recurrent layers otherwise behind a state than in one text"
STATELESS = "none of its layers attends: there are no keys and values to keep"
CHOSEN = "its layers attend to tokens that an index of their own chooses"
WIDTHS = "its keys and values are of different widths"
CHUNKED = "its layers attend in chunks of the text"
BOTH_WAYS = "its attention looks in both directions: it is an encoder"
PAIR = "it is an encoder with a decoder"
PARTS = "it is no plain text model, and its text part is not one that can be read alone"
ASIDE = "its attention does not go through the interface that transformers has for it"
KINDS = {
    "index|sparse|compressed": CHOSEN,
    "chunked": CHUNKED,
}
ERRORS = {
    "looks in both directions": BOTH_WAYS,
    "no cache yet": ASIDE,
    "different numbers of KV heads": "its layers have different numbers of heads",
    "none of its layers attends|Config' object has no attribute 'num_attention_heads'": STATELESS,
    "Config' object has no attribute 'mamba_expand'|states have another size": "its layers have states of another kind",
    "SimpleNamespace' object has no|says another shape": "its config.json tells its shape by names of its own",
}


SWITCHED, RECURRENT = "other switches", "states"


@dataclass
class Finding:
    """What became of a family: the trials that it passed, and why it is refused, if it is."""

    passed: list[str] = field(default_factory=list)
    failed: str = ""
    reason: str = ""


def examine(model_type: str) -> Finding:
    """All trials of one family, up to the first that it does not pass; thinning is a thing of its own."""
    finding, config, name = Finding(), None, "built"
    try:
        if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            name = "text part"
            text_part(model_type)
            return Finding([name])
        config = tiny_config(model_type)
        if getattr(config, "text_config", None) is not None:
            raise AssertionError("a model of several parts")
        case = Case(config)
        for name, trial in TRIALS.items():
            trial(case)
            finding.passed.append(name)
        if case.spec.recurrent:
            finding.passed.append(RECURRENT)
        name = SWITCHED
        token_by_token(Case(switched(model_type)))
        finding.passed.append(name)
        with suppress(Exception):
            thinned(Case(windowless(model_type)))
            finding.passed.append("thinned")
        with suppress(Exception):
            stepped(model_type)
            finding.passed.append("stepped")
    except Exception as error:
        finding.failed = f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        with suppress(Exception):
            config = tiny_config(model_type)  # a model may have changed the other
        finding.reason = reason(config, name, finding.failed)
    return finding


def reason(config: Any, trial: str, failed: str) -> str:
    """Why a family is refused, in words: what is known of its kind, else the trial that it failed."""
    text = getattr(config, "text_config", None) or config
    kinds = " ".join(map(str, getattr(text, "layer_types", None) or ()))
    known = (
        *((re.search(pattern, kinds), said) for pattern, said in KINDS.items()),
        (trial == "text part" or getattr(config, "text_config", None) is not None, PARTS),
        (getattr(config, "is_encoder_decoder", False), PAIR),
        (plain(text, "kv_lora_rank") is not None, LATENT),
        *((re.search(pattern, failed), said) for pattern, said in ERRORS.items()),
        (plain(text, "v_head_dim") not in (None, plain(text, "head_dim")), WIDTHS),
        (trial in TRIALS and carries_states(text), STATE),
        (trial == "built", "no small model of it could be made to try"),
    )
    return next((said for holds, said in known if holds), f"it differs from the stock model, {trial}")


def examined(model_type: str) -> Finding:
    """`examine` in a process of its own, which ends in time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        os.write(writer, json.dumps(asdict(examine(model_type))).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        data = file.read()
    os.waitpid(child, 0)
    died = {"failed": "it died", "reason": f"it was not done in {SECONDS} seconds"}
    return Finding(**(json.loads(data) if data else died))


def found_before(known: Families) -> dict[str, Finding]:
    """What the table says of every family."""
    lists = {
        "supported": [],
        "thinned": ["thinned"],
        "stepped": ["stepped"],
        RECURRENT: [RECURRENT],
        "text part": ["text part"],
    }
    members = (known.supported, known.thinned, known.stepped, known.recurrent, known.parts)
    findings = {name: Finding(reason=why) for name, why in known.refused.items()}
    for trials, names in zip(lists.values(), members, strict=True):
        for name in names:
            findings.setdefault(name, Finding()).passed += trials
    return findings


def table(findings: dict[str, Finding]) -> str:
    """What the package reads (models/families.py)."""
    findings = dict(sorted(findings.items()))
    passed = {name: found.passed for name, found in findings.items() if not found.reason}
    lists = {
        "supported": [name for name, trials in passed.items() if "text part" not in trials],
        "thinned": [name for name, trials in passed.items() if "thinned" in trials],
        "stepped": [name for name, trials in passed.items() if "stepped" in trials],
        "recurrent": [name for name, trials in passed.items() if RECURRENT in trials],
        "parts": [name for name, trials in passed.items() if "text part" in trials],
    }
    return "\n".join(
        (
            "# Made by tests/census.py, which holds every family against the stock model: `make families`.",
            f'transformers = "{transformers.__version__}"',
            *(listed(key, names) for key, names in lists.items()),
            "",
            "[refused]",
            *(f"{json.dumps(name)} = {json.dumps(found.reason)}" for name, found in findings.items() if found.reason),
            "",
        )
    )


def listed(key: str, names: Sequence[str]) -> str:
    """A list of the table, a name a line."""
    return "\n".join((f"{key} = [", *(f"  {json.dumps(name)}," for name in names), "]"))


def page(known: Families) -> str:
    """docs/families.md."""
    by_reason: dict[str, list[str]] = {}
    for name, why in known.refused.items():
        by_reason.setdefault(why, []).append(name)
    whole = [name for name in known.supported if name not in known.thinned]
    thinned_ones = [name for name in known.supported if name in known.thinned]
    return PAGE.format(
        version=known.transformers,
        trials=", ".join((*TRIALS, SWITCHED)),
        supported=len(known.supported),
        thinned=len(thinned_ones),
        thinned_names=", ".join(f"`{name}`" for name in thinned_ones),
        whole=len(whole),
        whole_names=", ".join(f"`{name}`" for name in whole),
        stepped=len(known.stepped),
        stepped_names=", ".join(f"`{name}`" for name in known.stepped),
        recurrent=len(known.recurrent),
        recurrent_names=", ".join(f"`{name}`" for name in known.recurrent),
        parts=len(known.parts),
        parts_names=", ".join(f"`{name}`" for name in known.parts),
        refused=len(known.refused),
        reasons="\n".join(
            f"| {why} | {len(names)} | {', '.join(f'`{name}`' for name in names)} |"
            for why, names in sorted(by_reason.items(), key=lambda item: -len(item[1]))
        ),
    )


def counted(readme: str, known: Families) -> str:
    """The README with the number of families."""
    return re.sub(r"\[\d+ families\]", f"[{len(known.supported)} families]", readme)


PAGE = """# Families

Made by `make families` from a run over every model type that transformers {version} has a causal language model for,
or a model of pictures and text. Of each a tiny model with random weights is held against the stock model (1e-4,
float32; 3e-4 with layers that carry a state, by the order of sums): {trials}.
What passes all of it is supported; every other one is refused by name. A name here is `model_type` in a model's
config.json. Layers that share keys and values (gemma3n, gemma4) hold them once each, so that each may keep its own;
where heads of some layers are wider (gemma4), all are held as wide as those.

## Supported: {supported}

With thinning, where no layer has a sliding window ({thinned}): {thinned_names}.

Read whole ({whole}): {whole_names}.

Of these, written in one call of the C library a token, where it is there, all others by torch's operations
({stepped}): {stepped_names}.

With layers that carry a state from token to token instead of attending, recurrent or convolutional
({recurrent}): {recurrent_names}.

Of models that take pictures as well the text part alone is read and held in memory, when it is of a family above
({parts}): {parts_names}.

## Refused: {refused}

| reason | n | model types |
| --- | --- | --- |
{reasons}
"""


def main() -> int:
    """Try all families, or those whose name has a word; all: write the table and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="WORD", help="only families whose name has this; of others the table stays")
    word = parser.parse_args().k
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if find() is None:
        parser.error("the native library is needed, to try which families it writes: uncomp doctor")
    findings = {} if word is None else found_before(load_families())
    every, parts = families(), set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    for names in (set(every) - parts, parts):  # whose text part is of a family that is in the table by then
        for name in sorted(name for name in names if word is None or re.search(word, name)):
            found = findings[name] = examined(name)
            print(f"{name:26}{found.failed or ', '.join(found.passed)}", flush=True)
        TABLE.write_text(table(findings), encoding="utf-8")
        load_families.cache_clear()
    DOCS.write_text(page(load_families(TABLE)), encoding="utf-8")
    README.write_text(counted(README.read_text(encoding="utf-8"), load_families(TABLE)), encoding="utf-8")
    refused = sum(bool(found.reason) for found in findings.values())
    print(f"{len(findings) - refused} supported, {refused} refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
