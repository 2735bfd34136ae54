"""Files that uncomp writes and reads again, damaged: presets, profiles, sessions, saved documents, results, manifests.

Where a file has a checksum it is made anew after most changes, as somebody who means harm would: what is read behind
the checksum must hold too. Each kind is one of tests/fuzz.py.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from support.caches import signed
from support.chats import make_talk
from support.mutation import damage_bytes, damage_json, dump
from support.tiny import make_tiny_model
from uncomp_cli.budget.presets import Preset, load_preset, shipped_preset_dir, user_preset_dir
from uncomp_cli.cache.header import NO_HASH
from uncomp_cli.cache.shelf import Shelf
from uncomp_cli.calibrate.observation import ANSWERS, RiskLine
from uncomp_cli.cli.app import run
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.tokens.prompt import chat_prompt
from uncomp_cli.evals.journal import Journal, read_journal
from uncomp_cli.evals.rope.cells import CELLS, NeedleCell, TextCell
from uncomp_cli.evals.tables.outcome import OUTCOMES, Outcome
from uncomp_cli.models.conversion import describe, write_manifest
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.sources import hash_memo, models_dir
from uncomp_cli.sessions.folder import load_transcript
from uncomp_cli.sessions.transcript import Attachment, Entry, Pin, Transcript
from uncomp_cli.uncertainty.error_rates import SIGNS
from uncomp_cli.uncertainty.profile import (
    ModelFingerprint,
    SampleInfo,
    UncertaintyProfile,
    load_profile,
    save_profile,
)
from uncomp_cli.uncertainty.stability import stability

TEXT = "the lamp is lit at dusk and the keeper writes the hour in the book. " * 3


def damaged(data: Any, chance: Random) -> bytes:
    """A JSON file of this data, with other contents or other bytes."""
    if chance.random() < 0.3:
        return damage_bytes(json.dumps(data).encode(), chance)
    return dump(damage_json(data, chance)).encode("utf-8", "surrogatepass")


class Presets:
    """Preset files, shown, planned with and listed."""

    name = "preset"

    def prepare(self, folder: Path) -> None:
        """The shipped presets, and their profile beside where they are read."""
        self._folder = user_preset_dir()
        shutil.copytree(shipped_preset_dir(), self._folder, ignore=shutil.ignore_patterns("*.json"))
        self._plain = [json.loads(path.read_bytes()) for path in sorted(shipped_preset_dir().glob("*.json"))]

    def mutate(self, chance: Random) -> bytes:
        """One of them, changed."""
        plain = chance.choice(self._plain)
        self._path, self._turn = self._folder / f"{plain['name']}.json", chance.randrange(8)
        return damaged(plain, chance)

    def use(self, data: bytes) -> None:
        """`preset show`, now and then `plot` and `list`."""
        self._path.write_bytes(data)
        try:
            preset = load_preset(str(self._path))
            assert Preset.from_plain(json.loads(json.dumps(preset.to_plain()))) == preset
            run(["preset", "show", str(self._path), *(["--json"] if self._turn % 2 else [])])
            if self._turn < 2 and preset.profile is not None:
                run(["preset", "plot", str(self._path), "--json"])
        finally:
            if self._turn == 0:
                run(["preset", "list"])
            self._path.unlink()


class Profiles:
    """Profiles of uncertainty: the record, the tensors, and the bytes of both."""

    name = "profile"

    def prepare(self, folder: Path) -> None:
        """A profile of a few measures."""
        model = ModelFingerprint("tiny", "llama", 2, 4, 2, 8, "0a" * 32)
        samples = tuple(SampleInfo(f"text {n}", f"{n:064x}", 2000 + n, "plain") for n in range(3))
        widths = {"entropy/q/r1/4": 4, "entropy/k/r1/4": 2, "lmba/raw": 4, "loss": 2}
        values = {key: torch.rand(3, 2, width) for key, width in widths.items()}
        self._path = save_profile(UncertaintyProfile(model, samples, values, {"mass": 0.9}), folder / "mine")
        self._data = self._path.read_bytes()
        with safe_open(self._path, framework="pt") as file:
            self._record = json.loads(file.metadata()["uncomp_profile"])
            self._values = {key: file.get_tensor(key) for key in list(file.keys())}

    def mutate(self, chance: Random) -> bytes:
        """Other bytes, another record, other tensors; signed anew."""
        kind = chance.randrange(4)
        if kind == 0:
            return damage_bytes(self._data, chance)
        record, values = self._record, dict(self._values)
        if kind > 1:
            record = damage_json(record, chance)
        else:
            key = chance.choice(list(values))
            values[key] = _other_tensor(values[key], chance)
        if isinstance(record, dict) and chance.random() < 0.9:
            record = {**record, "sha256": _profile_hash(record, values)}
        return save(values, metadata={"uncomp_profile": dump(record)})

    def use(self, data: bytes) -> None:
        """Loaded, and compared with itself as a calibration does."""
        self._path.write_bytes(data)
        profile = load_profile(self._path)
        json.dumps(stability(profile).to_dict(), allow_nan=False)
        for key in profile.values:
            profile.as_rows(key)


def _profile_hash(record: Mapping[str, Any], values: Mapping[str, torch.Tensor]) -> str:
    described = {key: value for key, value in record.items() if key != "sha256"}
    try:
        digest = hashlib.sha256(json.dumps(json.loads(dump(described)), sort_keys=True).encode())
    except (ValueError, TypeError, RecursionError):
        return NO_HASH
    for key, value in sorted(values.items()):
        digest.update(f"{key}{list(value.shape)}".encode() + value.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _other_tensor(value: torch.Tensor, chance: Random) -> torch.Tensor:
    """Values that are no numbers, of another type, or of another shape."""
    changed = value.clone()
    worst = chance.choice((float("nan"), float("inf"), -1.0, 3e38, 0.0, 1e-40))
    if changed.is_floating_point() and changed.numel():
        changed.view(-1)[chance.randrange(changed.numel())] = worst
    types = (torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool, torch.bfloat16)
    return chance.choice(
        (changed, changed, changed[:-1].clone(), changed.flatten(), changed[None], value.to(chance.choice(types)))
    )


class Sessions:
    """Conversations, taken over by a chat and asked on."""

    name = "session"

    def prepare(self, folder: Path) -> None:
        """A chat, and a conversation with a document, an answer's tokens and a pin."""
        loaded = load_model(str(make_tiny_model(folder / "tiny")))
        self._talk, self._path = make_talk(loaded), folder / "talk.json"
        said, answer = f"[a.md]\n{TEXT}\n\nwho writes?", "the keeper"
        ids = tuple(loaded.tokenizer(answer, add_special_tokens=False)["input_ids"])
        entries = (
            Entry("user", said, parts=(said[:-12], said[-12:]), attachments=(Attachment("a.md", "0" * 64, 7, 60),)),
            Entry("assistant", answer, ids=ids),
            Entry("user", "and when?"),
            Entry("assistant", "at du", interrupted=True),
        )
        sampling = asdict(SamplingConfig(temperature=0.5))
        self._plain = json.loads(
            Transcript("tiny", "live", "20%", "Be brief.", entries, (Pin(0, 7, 20, "a.md"),), sampling).to_json()
        )

    def mutate(self, chance: Random) -> bytes:
        """The conversation, changed."""
        self._asks = chance.random() < 0.05
        return damaged(self._plain, chance)

    def use(self, data: bytes) -> None:
        """Loaded, restored, written both ways, seldom gone on with."""
        self._path.write_bytes(data)
        transcript, chat = load_transcript(self._path), self._talk.chat
        assert Transcript.from_json(transcript.to_json().encode()) == transcript
        transcript.to_markdown().encode("utf-8", "backslashreplace")
        chat.clear()
        chat.restore(transcript)
        replace(chat.transcript(), updated="").to_json()
        if self._asks:
            self._talk.ask("who?")


class SavedDocuments:
    """Saved documents, listed, shown, verified, opened and asked."""

    name = "saved"

    def prepare(self, folder: Path) -> None:
        """Documents saved by a tiny model in 16 and in 4 bits."""
        loaded = load_model(str(make_tiny_model(folder / "tiny")))
        self._engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=2))
        self._prompt = chat_prompt(loaded.tokenizer, TEXT, ["who writes?"], system=None, sinks=4)
        self._shelf, self._files, self._presets = Shelf(folder / "uncomp_cache_dir" / "documents"), [], []
        about = {"documents": (), "system": None}
        for bits in (16, 4):
            preset = replace(load_preset("live"), budget="60%", policy="uniform", kv_bits=bits, thinning="none")
            context = self._engine.read(self._prompt, preset, for_any=True).finish()
            entry = self._engine.save(context, self._shelf, "book", **about)[0]
            self._files.append(entry.path.read_bytes())
            self._presets.append(preset)
        self._path = entry.path

    def mutate(self, chance: Random) -> bytes:
        """Other bytes, another manifest, another header, other tensors; signed anew."""
        self._which, self._turn = chance.randrange(2), chance.randrange(4)
        data, kind = self._files[self._which], chance.randrange(5)
        if kind == 0:
            return damage_bytes(data, chance)
        size = 8 + int.from_bytes(data[:8], "little")
        header, tensors = json.loads(data[8:size]), data[size:]
        manifest = json.loads(header.pop("__metadata__")["uncomp_cache"])
        if kind == 1:
            header = damage_json(header, chance)
        elif kind == 2:
            tensors = damage_bytes(tensors, chance)
        else:
            manifest = damage_json(manifest, chance)
        if isinstance(manifest, dict):
            manifest = {"schema_version": manifest.pop("schema_version", 1), "sha256": NO_HASH, **manifest}
            manifest["sha256"] = NO_HASH
            if kind == 2 and chance.random() < 0.8:
                manifest["tensor_bytes"] = len(tensors)
        header = header if isinstance(header, dict) else {"x": header}
        text = dump({"__metadata__": {"uncomp_cache": dump(manifest)}, **header})
        return signed(text.encode("utf-8", "surrogatepass"), tensors)

    def use(self, data: bytes) -> None:
        """What `uncomp cache` says of it, then what `ask --reuse` does with it."""
        self._path.write_bytes(data)
        try:
            run(["cache", "list", *(["--json"] if self._turn == 0 else [])])
            self._path.write_bytes(data)
            if self._turn == 1:
                run(["cache", "show", "book"])
            if self._turn == 2:
                run(["cache", "verify"])
                self._path.write_bytes(data)
            entry, prompt = self._shelf.find("book"), replace(self._prompt, context=self._prompt.context[:0])
            context = self._engine.open(self._shelf, entry, prompt, self._presets[self._which], as_saved=True)
            (asked,) = self._engine.asked(context)
            for _ in self._engine.writer([asked]).write():
                pass
        finally:
            for left in self._shelf.folder.glob("book*"):
                left.unlink()


class Results:
    """Results of `eval`, `rope` and a calibration, shown and gone on with."""

    name = "results"

    def prepare(self, folder: Path) -> None:
        """A file of each."""
        self._path = folder / "run.jsonl"
        outcomes = [
            Outcome(
                subtask, index, regime, f"{contestant} 20%", contestant, "20%", tokens, 0.5, 0.2, 100,
                {"match": float(index % 2), "nll": 0.5 + index}, [[0.5, 0.25], [1.0, 0.0]], "answer",
            )
            for subtask in ("needle/uuid", "ruler/niah") for regime in ("aware", "agnostic")
            for contestant in ("full", "uniform/window") for index in range(2) for tokens in (1000, 2000)
        ]  # fmt: skip
        texts = [
            TextCell(
                arm,
                2048,
                [(513, 2.0), (1025, 3.0), (2017, 7.0)],
                {"1024": [[[1.0, 0.0]], []], "2048": [[near], []]},
                512,
                9,
                1.0,
            )
            for arm, near in (("plain", [0.0, 1.0]), ("yarn:2", [0.5, 0.5]))
        ]
        needles = [
            NeedleCell(arm, 2048, depth, 0, 0.2, found, "1", 0.5, 3.0, None, [[0.5]], 100, 0.1, 1.0)
            for arm, found in (("plain", 0.0), ("yarn:2", 1.0)) for depth in (0.0, 0.5)
        ]  # fmt: skip
        lines = [
            RiskLine(f"{n:064x}", "needle/uuid", 400, None, n % 2 == 0, n == 0, "x", dict.fromkeys(SIGNS, 0.5))
            for n in range(4)
        ]
        self._files = []
        for kind, records, settings in (
            (OUTCOMES, outcomes, {"model": "tiny", "tokens": [1000], "seed": 7}),
            (CELLS, [*texts, *needles], {"trained_length": 1024, "model": {"name": "tiny"}}),
            (ANSWERS, lines, {"rope": "none"}),
        ):
            with Journal.open(self._path, kind, settings) as journal:
                journal.append(records)
            self._files.append((kind, self._path.read_bytes(), settings))
            self._path.unlink()

    def mutate(self, chance: Random) -> bytes:
        """One of them with one line changed, seldom two."""
        self._kind, data, self._settings = chance.choice(self._files)
        self._json = chance.random() < 0.3
        if chance.random() < 0.2:
            return damage_bytes(data, chance)
        lines = data.splitlines()
        for at in {chance.choice((0, chance.randrange(len(lines)))) for _ in range(chance.choice((1, 1, 2)))}:
            lines[at] = damaged(json.loads(lines[at]), chance)
        return b"\n".join(lines) + b"\n"

    def use(self, data: bytes) -> None:
        """Shown from the file alone, or gone on with."""
        self._path.write_bytes(data)
        flags = ["--json"] if self._json else []
        try:
            if self._kind is OUTCOMES:
                run(["eval", "--show", "--out", str(self._path), *flags])
            elif self._kind is CELLS:
                run(["rope", "--from", str(self._path), *flags])
            else:
                for line in read_journal(self._path, ANSWERS)[1]:
                    line.answer()
            with Journal.open(self._path, self._kind, self._settings):
                pass
        finally:
            self._path.unlink()


class Manifests:
    """The notes beside converted models, their configurations, and the memo of hashes."""

    name = "manifest"

    def prepare(self, folder: Path) -> None:
        """A converted model."""
        self._model = make_tiny_model(models_dir() / "tiny")
        write_manifest(self._model, describe(self._model, "gguf tiny.gguf", "apache-2.0"))
        hash_memo().write_text(json.dumps({f"{self._model}|1|2": "0" * 64}))
        paths = (self._model / "uncomp.json", self._model / "config.json", hash_memo())
        self._files = {path: path.read_bytes() for path in paths}

    def mutate(self, chance: Random) -> bytes:
        """The note, more seldom the configuration or the memo."""
        note, config, memo = self._files
        self._path, self._lists = chance.choice((note, note, config, memo)), chance.random() < 0.3
        return damaged(json.loads(self._files[self._path]), chance)

    def use(self, data: bytes) -> None:
        """`model show` and `model list`; without a note the weights are hashed and remembered."""
        self._path.write_bytes(data)
        note = self._model / "uncomp.json"
        try:
            if self._path == hash_memo():
                note.unlink()
            if self._lists:
                run(["model", "list"])
            run(["model", "show", str(self._model)])
            run(["model", "show", "tiny"])
        finally:
            for path, whole in self._files.items():
                path.write_bytes(whole)
