"""Faults that the tests must find: each is put into a copy of the tree, and its tests have to fail there.

    python tests/mutants.py              all of them: some minutes; `-k eviction` those whose file has the word

A mutant is found by its text, so that it moves with its line; where the text is gone, or there twice, it is `stale` and
wants another. `survived` is a hole in the tests. The tests must pass without a mutant: that is tried first, once for
all files.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).parent.parent
COPIED = ("uncomp_cli", "tests", "presets", "benchmarks", "docs", "man", "pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True)
class Mutant:
    """A fault: `old` becomes `new` in a file of the package, which the files of `tests` must notice."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def of(file: str, tests: str, *changes: tuple[str, str]) -> list[Mutant]:
    """Mutants of one file that the same tests must kill."""
    return [Mutant(file, old, new, tuple(f"tests/test_{name}.py" for name in tests.split())) for old, new in changes]


MUTANTS = [
    *of(
        "budget/plan.py", "budget_plan budget_caps",
        ("sum(self.floor if window is None else count for", "sum(0 if window is None else count for"),
        ("even = [min(level, room) for room in rooms]", "even = [0.0 for _ in rooms]"),
        ("key=lambda i: (whole[i] - shares[i], i)", "key=lambda i: (shares[i] - whole[i], i)"),
        ("return min(self.protected, self.seq_len)", "return 0"),
        ("[min(window, max(cap, least)) for", "[min(window, cap) for"),
        ("for count in wanted.most_a_head())\n", "for count in [wanted.seq_len] * wanted.spec.num_layers)\n"),
    ),
    *of("budget/baselines.py", "budget_policies", ("(steps / 2 - order)", "(order - steps / 2)")),
    *of(
        "budget/uncomp.py", "budget_stages budget_uncertainty",
        ("sums[layer] - sums[layer - 1] < -threshold", "sums[layer] - sums[layer - 1] > threshold"),
        ("slope = (last - first) /", "slope = (first - last) /"),
        ("order = sorted(values, reverse=reverse)", "order = sorted(values, reverse=not reverse)"),
    ),
    *of(
        "budget/uncertain.py", "budget_uncertainty",
        ("return -power if self.reverse else power", "return power"),
        ('own = {"lmba-free": -1.0,', 'own = {"lmba-free": 1.0,'),
    ),
    *of(
        "cache/eviction.py", "cache_eviction engine_adaptive engine_streamed",
        ('free = scores.masked_fill(protected, float("-inf"))', "free = scores"),
        ("torch.bincount(order % num_heads,", "torch.bincount(order // num_heads,"),
        ("floor * own + (1 - floor) * best", "floor * best + (1 - floor) * own"),
        ("last <= REACH_TOKENS and", "last <= 0 and"),
        ("must, protected[at], numbers)", "must, torch.zeros_like(protected[at]), numbers)"),
    ),
    *of(
        "cache/coherence.py", "cache_coherence",
        ('if all(char.isdigit() or char in ".,"', 'if any(char.isdigit() or char in ".,"'),
        ("count_include_pad=False", "count_include_pad=True"),
    ),
    *of(
        "cache/window.py", "cache_agreement cache_scoring",
        ("(1 - shared) * own + shared * agreed", "shared * own + (1 - shared) * agreed"),
        ("stacked.amax(dim=(0, 1))", "stacked.mean(dim=(0, 1))"),
        ("column[None, :] > column[own_len - rows :, None]", "column[None, :] >= column[own_len - rows :, None]"),
        ("context[..., : self.config.sinks] = 0", "context[..., :0] = 0"),
    ),
    *of(
        "cache/ragged.py", "cache_ragged cache_quantized",
        ("late = rows[rows >= cut] - cut", "late = rows[rows >= cut]"),
        ("int(torch.searchsorted(positions, position)) for", "int(torch.searchsorted(positions, position + 1)) for"),
    ),
    *of(
        "cache/quantized.py", "cache_quantized",
        ("levels = 2**bits - 1", "levels = 2**bits"),
        ("torch.arange(0, 8, width,", "torch.arange(0, 8, 1,"),
    ),
    *of(
        "engine/read/overkeep.py", "engine_overkeep engine_eviction",
        ("[count - self.prompt.longest_question for", "[count for"),
        ("[max(part, count + MARGIN_TOKENS) for", "[max(part, count) for"),
    ),
    *of(
        "engine/read/distances.py", "engine_rereading engine_repacked",
        ("max(1, most // PASSAGE_TOKENS)", "max(1, most // PASSAGE_TOKENS + 1)"),
        ("ahead = first - len(positions) + torch", "ahead = first - len(positions) + 1 + torch"),
    ),
    *of(
        "engine/write/writer.py", "engine_generate engine_batch",
        ("self.generated.shape[1] == self.asked.max_new_tokens", "self.generated.shape[1] > self.asked.max_new_tokens"),
        ("self.prompt_tokens + self.generated.shape[1] - 1", "self.prompt_tokens + self.generated.shape[1]"),
        ("yield self._take(row, logits[at], scores[at])", "yield self._take(row, logits[at], scores[0])"),
    ),
    *of(
        "engine/forward/program.py", "engine_program",
        ("window=spec.sliding_windows[index] or 0,", "window=0,"),
        ('"norm_width": wide if wide == self.spec.head_dim else 0,', '"norm_width": 0,'),
        ("cols=self.spec.hidden_size, scale=float(scale))", "cols=self.spec.hidden_size, scale=1.0)"),
        ('1.0 / getattr(self.config, "logits_scaling", 1.0)', "1.0"),
        ("int(ids.min()) >= 0 and int(ids.max()) < self._tokens", "int(ids.min()) >= 0"),
        ("torch.arange(rows + 1) * new", "torch.arange(rows + 1)"),
    ),
    *of(
        "engine/forward/products.py", "engine_program engine_linear",
        ("torch.equal(part.copy_(own).float(), own)", "torch.allclose(part.copy_(own).float(), own, rtol=1e-2)"),
    ),
    *of("documents/grid.py", "documents_html", ("(again, cell.rows - 1)", "(again, cell.rows)")),
    *of("documents/superscripts.py", "documents_html", ('else "^" + grouped(content, after)', "else content")),
    *of(
        "documents/walk.py", "documents_html",
        ("self.lost[self._skip_reason] += 1", "pass"),
    ),
    *of("documents/encoding.py", "documents_html", ("else decode_declared(data, declared)", "else decode(data)")),
    *of("documents/mail.py", "documents_mail", ("yield _decoded(text)", "yield text")),
    *of(
        "documents/word/tabular.py", "documents_word",
        ('if not self._open or not self._open[-1][0].endswith("Pr"):', "if True:"),
    ),
    *of("kernels/matrix.py", "kernels", ("torch.float32 or count > MOST_ROWS:", "torch.float32:")),
    *of(
        "kernels/step.c", "kernels engine_program",
        ("y[i] = a * cosines[i] - b * sines[i];", "y[i] = a * cosines[i] + b * sines[i];"),
        ("found[1] = found[1] * keep + sum(total);", "found[1] = found[1] + sum(total);"),
        ("total - op->window - of->before)", "total - op->window - 1 - of->before)"),
        ("*high = of->fresh ? of->old + behind : of->old;", "*high = of->fresh ? of->old + 1 : of->old;"),
        ("total += weight[0] * part[width + 1];", "total += part[width + 1];"),
        ("(row + k < last ? row + k : last - 1) * size", "(row + k < last ? row + k : last) * size"),
        ("if (of.fresh) put_fresh(", "if (of.fresh && thread == 0) put_fresh("),
    ),
    # These five survived once.
    *of("engine/tokens/prompt.py", "engine_prompt", ('"middle": (document - cut) // 2', '"middle": 0')),
    *of("engine/spend/allocation.py", "engine_allocation", ("(old * before + value) / (before + 1)", "value")),
    *of("engine/context/allowance.py", "engine_kept", ("max(self.guard_from,", "min(self.guard_from,")),
    *of("engine/spend/compression.py", "engine_planning", ("_BUDGET_SHARE = 0.5", "_BUDGET_SHARE = 0.1")),
    *of("engine/engine.py", "reused", ("min(most, limit - context.prompt_tokens(n))", "most")),
]  # fmt: skip


def passes(tree: Path, tests: list[str]) -> bool:
    """Whether these test files pass in a tree."""
    words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not gpu and not model", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=tree, env=environment, capture_output=True, check=False)
    if done.returncode not in (0, 1, 2):  # 2: a test module could not even be imported
        raise SystemExit(done.stdout.decode() + done.stderr.decode())
    return done.returncode == 0


def fate(mutant: Mutant, tree: Path) -> str:
    """`killed`, `survived` or `stale`; the tree is as it was afterwards."""
    path = tree / "uncomp_cli" / mutant.file
    text = path.read_text() if path.is_file() else ""
    if text.count(mutant.old) != 1:
        return "stale"
    write(path, text.replace(mutant.old, mutant.new), tree)
    try:
        return "survived" if passes(tree, list(mutant.tests)) else "killed"
    finally:
        write(path, text, tree)


def write(path: Path, text: str, tree: Path) -> None:
    """Give a file another text; of C, build the library of the tree anew."""
    path.write_text(text)
    if path.suffix in (".c", ".h"):
        words = [sys.executable, "-P", "-m", "uncomp_cli.kernels.compiler"]
        subprocess.run(words, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True)


def copy_tree(target: Path) -> None:
    """What the tests need of the tree."""
    for name in COPIED:
        source = TREE / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, target / name)


def main() -> int:
    """Print what became of each mutant; 1 when one survived or is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", metavar="WORD", help="only mutants in whose file name this is")
    chosen = [mutant for mutant in MUTANTS if parser.parse_args().k in mutant.file]
    fates: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        if not passes(tree, sorted({name for mutant in chosen for name in mutant.tests})):
            print("the tests fail without any mutant")
            return 1
        for mutant in chosen:
            fates[became := fate(mutant, tree)] += 1
            print(f"{became:9}{mutant.file}: {mutant.old.strip()}  ->  {mutant.new.strip()}", flush=True)
    print(", ".join(f"{count} {became}" for became, count in fates.items()))
    return 0 if set(fates) <= {"killed"} else 1


if __name__ == "__main__":
    sys.exit(main())
