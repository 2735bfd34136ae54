"""The layering of docs/architecture.md, held by reading every import: only downwards, each library in its own place.

Also how long a signature may be, and that no two modules have names that look alike.
"""

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

from mutants import MUTANTS
from uncomp_cli.cli.app import COMMANDS

PACKAGE = "uncomp_cli"
ROOT = Path(__file__).parent.parent / PACKAGE

# A part may import itself and what has a lower rank.
RANKS = {
    "errors": 0, "spec": 0, "files": 0, "numerals": 0, "table": 0, "child": 0,
    "config": 1, "schema": 1, "plugins": 1, "steps": 1, "share": 1,
    "uncertainty": 2, "kernels": 2, "budget": 3,
    "cache": 4, "models": 4, "documents": 4, "sessions": 4,
    "engine": 5,
    "asking": 6, "evals": 6, "bench": 6,
    "calibrate": 7, "serving": 7, "batch": 7,
    "ui": 8, "__init__": 8,
    "cli": 9,
    "__main__": 10,
}  # fmt: skip

TORCH_PARTS = {
    "kernels",
    "uncertainty",
    "budget",
    "cache",
    "models",
    "engine",
    "calibrate",
    "evals",
    "bench",
    "serving",
    "batch",
}
# Library → path prefixes that may use it at all.
OWNERS = {
    "transformers": ("models/", "engine/"),
    "bitsandbytes": ("models/",),
    "rich": ("ui/",),
    "typer": ("cli/",),
    "matplotlib": ("ui/figure.py", "ui/plots.py", "ui/roc.py"),
    "triton": ("kernels/splits.py",),
    "torch": (*(f"{part}/" for part in sorted(TORCH_PARTS)), "asking/", "cli/"),
}
# Where a library may be used, but only inside functions, so that asking for help stays quick.
LAZY = {"torch": ("asking/", "cli/")}


# What puts a file in another's place or waits for the disk: files.py alone does it, so that no crash loses anything.
REPLACING = {"os.replace", "os.rename", "os.renames", "os.fsync", "os.fdatasync", "shutil.move"}
FILES = "files.py"


@dataclass(frozen=True)
class Import:
    path: str
    line: int
    module: str
    at_top: bool
    names: tuple[str, ...] = ()


@cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    """All of a module's tree, which several tests go through; the module itself is the first."""
    return tuple(ast.walk(ast.parse(source)))


def violations(root: Path) -> list[str]:
    """Every import below the package directory `root` that breaks a rule, as `path:line: reason`."""
    found = [_judge(imported) for path in sorted(root.rglob("*.py")) for imported in _imports(path, root)]
    return [reason for reason in found if reason]


def _judge(imported: Import) -> str | None:
    library, _, rest = imported.module.partition(".")
    where = f"{imported.path}:{imported.line}"
    if library == PACKAGE:
        importer, target = _part(imported.path), rest.partition(".")[0]
        if target and target != importer and RANKS[target] >= RANKS[importer]:
            return f"{where}: {importer} must not import {target}"
    elif library in OWNERS and not imported.path.startswith(OWNERS[library]):
        return f"{where}: {library} is not allowed here"
    elif imported.at_top and imported.path.startswith(LAZY.get(library, ("\0",))):
        return f"{where}: {library} only inside functions here"
    return None


def _part(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def _imports(path: Path, root: Path) -> tuple[Import, ...]:
    return _imported(path.read_text(encoding="utf-8"), path.relative_to(root).as_posix())


@cache
def _imported(source: str, relative: str) -> tuple[Import, ...]:
    return tuple(_found(nodes(source)[0], relative))


def _found(node: ast.AST, relative: str, *, at_top: bool = True) -> Iterator[Import]:
    """Imports are statements, so that nothing else is gone into."""
    names = tuple(alias.name for alias in node.names) if isinstance(node, ast.ImportFrom) else ()
    for module in _modules(node, relative):
        yield Import(relative, node.lineno, module, at_top=at_top, names=names)
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield from _found(inner, relative, at_top=at_top and not _is_lazy(node))


def _is_lazy(node: ast.AST) -> bool:
    type_checking = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    return type_checking or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def _modules(node: ast.AST, relative: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = [PACKAGE, *relative.split("/")[:-1]]
        base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        module = ".".join(part for part in (base, node.module) if part)
        if module == PACKAGE:
            yield from (f"{PACKAGE}.{alias.name}" for alias in node.names if alias.name in RANKS)
        else:
            yield module


def test_the_package_keeps_its_layers() -> None:
    assert violations(ROOT) == []


def replacings(root: Path) -> list[str]:
    """Every call outside of files.py that replaces, renames or syncs a file, as `path:line: call`."""
    found = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).as_posix()
        for node in nodes(path.read_text(encoding="utf-8")):
            if relative != FILES and isinstance(node, ast.Call) and _replaces(node):
                found.append(f"{relative}:{node.lineno}: {ast.unparse(node.func)}")
            elif relative != FILES and isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
                names = [alias.name for alias in node.names if f"{node.module}.{alias.name}" in REPLACING]
                found += [f"{relative}:{node.lineno}: {name}" for name in names]
    return found


def _replaces(call: ast.Call) -> bool:
    """A string's `replace` has two arguments, a date's has names: that of a path has one."""
    if ast.unparse(call.func) in REPLACING:
        return True
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    return name == "rename" or (name == "replace" and len(call.args) == 1 and not call.keywords)


def test_files_alone_replaces_renames_and_syncs() -> None:
    assert replacings(ROOT) == []


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("import os\nos.replace(a, b)", "os.replace"),
        ("import os\nos.fsync(3)", "os.fsync"),
        ("from os import rename", "rename"),
        ("from shutil import move", "move"),
        ("\nfresh.replace(path)", "fresh.replace"),
        ("\npath.with_name(x).rename(y)", "path.with_name(x).rename"),
    ],
)
def test_a_planted_replacing_is_reported(tmp_path: Path, source: str, call: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "x.py").write_text(source)
    (tmp_path / "files.py").write_text(source)
    assert replacings(tmp_path) == [f"cache/x.py:{source.count(chr(10)) + 1}: {call}"]


@pytest.mark.parametrize("source", ["'a'.replace('a', 'b')", "now.replace(hour=1)", "replace(preset, name='x')"])
def test_other_replacing_is_not_reported(tmp_path: Path, source: str) -> None:
    (tmp_path / "x.py").write_text(source)
    assert replacings(tmp_path) == []


def circles(root: Path) -> list[list[str]]:
    """The modules below the package directory `root` that import each other in a ring, wherever they do."""
    files = {_module_name(path, root): path for path in root.rglob("*.py")}
    imports = {
        name: {known for found in _imports(path, root) for known in _named(found, files) if known != name}
        for name, path in files.items()
    }
    reached = {name: _reached(name, imports) for name in files}
    rings = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in files}
    return sorted(list(ring) for ring in rings if ring)


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join((PACKAGE, *parts)).removesuffix(".__init__")


def _named(imported: Import, files: dict[str, Path]) -> list[str]:
    """The modules that an import names: those out of a package, else the module itself."""
    inside = [name for name in (f"{imported.module}.{each}" for each in imported.names) if name in files]
    return inside or [imported.module] * (imported.module in files)


def _reached(start: str, imports: dict[str, set[str]]) -> set[str]:
    """All that `start` imports, and what that imports, and so on."""
    found: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imports[name]
    return found


def test_no_modules_import_each_other_in_a_ring() -> None:
    assert circles(ROOT) == []


@pytest.mark.parametrize("late", ["from {} import f", "def g():\n    import {}", "if TYPE_CHECKING:\n    import {}"])
def test_a_planted_ring_is_reported(tmp_path: Path, late: str) -> None:
    (tmp_path / "cache").mkdir()
    for name, other in (("first", "second"), ("second", "third"), ("third", "first"), ("aside", "first")):
        source = late if name == "third" else "import {}"
        (tmp_path / "cache" / f"{name}.py").write_text(source.format(f"{PACKAGE}.cache.{other}"))
    assert circles(tmp_path) == [[f"{PACKAGE}.cache.{name}" for name in ("first", "second", "third")]]


def test_a_module_out_of_a_package_is_not_the_package(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "__init__.py").write_text(f"import {PACKAGE}.cache.first")
    (tmp_path / "cache" / "first.py").write_text(f"from {PACKAGE}.cache import second")
    (tmp_path / "cache" / "second.py").write_text("")
    assert circles(tmp_path) == []


def test_every_part_has_a_rank() -> None:
    parts = {_part(path.relative_to(ROOT).as_posix()) for path in ROOT.rglob("*.py")}
    assert parts - {"__init__"} <= set(RANKS)


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("cache/cache_file.py", "from uncomp_cli.engine.records import DecodeStep", "cache must not import engine"),
        ("cache/cache_file.py", "import uncomp_cli.models.loading", "cache must not import models"),
        ("cache/cache_file.py", "from ..engine import records", "cache must not import engine"),
        ("budget/plan.py", "from uncomp_cli import cli", "budget must not import cli"),
        ("engine/x.py", "def f():\n    from uncomp_cli.ui.console import Terminal", "engine must not import ui"),
        ("cache/x.py", "import transformers", "transformers is not allowed here"),
        ("cli/x.py", "def f():\n    import transformers", "transformers is not allowed here"),
        ("cli/x.py", "from rich.table import Table", "rich is not allowed here"),
        ("sessions/x.py", "from uncomp_cli.documents.collection import Document", "sessions must not import documents"),
        ("sessions/x.py", "def f():\n    import torch", "torch is not allowed here"),
        ("ui/x.py", "import typer", "typer is not allowed here"),
        ("ui/console.py", "from matplotlib import pyplot", "matplotlib is not allowed here"),
        ("ui/x.py", "def f():\n    import torch", "torch is not allowed here"),
        ("config.py", "import torch", "torch is not allowed here"),
        ("cli/x.py", "import torch.nn", "torch only inside functions here"),
    ],
)
def test_a_planted_violation_is_reported(tmp_path: Path, path: str, source: str, reason: str) -> None:
    planted = tmp_path / path
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(source)
    line = source.count("\n") + 1
    assert violations(tmp_path) == [f"{path}:{line}: {reason}"]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/x.py", "def f():\n    import torch"),
        ("cli/x.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("cache/x.py", "from uncomp_cli.cache.ragged import RaggedKVCache\nfrom . import ragged"),
        ("engine/x.py", "import torch, transformers\nfrom uncomp_cli.budget.plan import BudgetPlan"),
        ("ui/plots.py", "import matplotlib"),
    ],
)
def test_what_is_allowed_is_not_reported(tmp_path: Path, path: str, source: str) -> None:
    allowed = tmp_path / path
    allowed.parent.mkdir(parents=True, exist_ok=True)
    allowed.write_text(source)
    assert violations(tmp_path) == []


MOST_PARAMETERS = 12


def long_signatures(root: Path) -> set[str]:
    """Functions with more parameters than one can keep in mind; the groups of options are expanded in cli/declare.

    What Triton launches is given everything: pointers, sizes and what it is compiled for.
    """
    return {
        f"{path.relative_to(root).as_posix()}: {node.name}"
        for path in root.rglob("*.py")
        if not path.relative_to(root).as_posix().startswith("cli/declare/")
        for node in nodes(path.read_text(encoding="utf-8"))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if not any(ast.unparse(each).startswith("triton.jit") for each in node.decorator_list)
        if len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) > MOST_PARAMETERS
    }


def test_signatures_are_short() -> None:
    assert long_signatures(ROOT) == set()


def test_a_planted_long_signature_is_reported(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("def f(a, b, c, d, e, f, /, g, h, i, j, k, *, l, m): ...\ndef g(a, *, b): ...")
    (tmp_path / "y.py").write_text("class C:\n    def g(self, a, b, c, d, e, f, g, h, i, j, *, l): ...")
    assert long_signatures(tmp_path) == {"x.py: f"}


def look_alikes(root: Path, commands: Collection[str]) -> set[str]:
    """Pairs of modules with one stem, or with stems that differ by a prefix or suffix alone; commands are left out."""
    paths = (path.relative_to(root).with_suffix("") for path in root.rglob("*.py"))
    modules = sorted(path.as_posix() for path in paths if not path.name.startswith("__"))
    named = [module for module in modules if module.removeprefix("cli/").replace("/", ".") not in commands]
    return {
        f"{first} {second}"
        for first, second in combinations(named, 2)
        if _are_alike(Path(first).name, Path(second).name)
    }


def _are_alike(first: str, second: str) -> bool:
    """Whether one stem is how the other begins or ends, word by word, or has the same words in other forms."""
    short, long = sorted((first.split("_"), second.split("_")), key=len)
    if short in (long[: len(short)], long[-len(short) :]):
        return True
    return len(short) == len(long) and all(_forms(a) & _forms(b) for a, b in zip(short, long, strict=True))


def _forms(word: str) -> set[str]:
    """A word, and what it may be a form of: `cutting` of `cut`, `measurer` of `measure`, `reread` of `read`."""
    found = {word}
    for form in (word, word.removeprefix("re")):
        for base in (form, *(form.removesuffix(suffix) for suffix in ("s", "es", "ing", "ed", "er"))):
            if len(base) >= 3:
                found |= {base, f"{base}e", base[:-1] if base[-1] == base[-2] else base}
    return found


def test_module_names_are_told_apart() -> None:
    assert look_alikes(ROOT, COMMANDS.values()) == set()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("row", "rows"), ("row", "chunk_row"), ("plots", "plots_heat"), ("reading", "rereading"), ("read", "reading"),
        ("cut", "cutting"), ("measure", "measurer"), ("profile", "profiles"), ("ask", "asked"), ("box", "boxes"),
        ("plan", "plan"),
    ],
)  # fmt: skip
def test_planted_look_alikes_are_reported(tmp_path: Path, first: str, second: str) -> None:
    for path in (f"cache/{first}.py", f"engine/{second}.py", f"cli/stock/{first}.py", "cache/__init__.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert look_alikes(tmp_path, [f"stock.{first}"]) == {f"cache/{first} engine/{second}"}


@pytest.mark.parametrize(("first", "second"), [("plan", "planet"), ("bed", "being"), ("rope_file", "gguf_rope")])
def test_other_names_are_no_look_alikes(tmp_path: Path, first: str, second: str) -> None:
    (tmp_path / f"{first}.py").touch()
    (tmp_path / f"{second}.py").touch()
    assert look_alikes(tmp_path, ()) == set()


@pytest.mark.parametrize(("page", "least"), [("architecture", 26), ("papers", 12)])
def test_a_page_names_files_that_are_there(page: str, least: int) -> None:
    text = (ROOT.parent / f"docs/{page}.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_/]+\.py)`", text))
    assert len(named) >= least
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_papers_page_names_functions_that_are_there() -> None:
    text = (ROOT.parent / "docs/papers.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_/]+\.py)`: ((?:`\w+`(?:, )?)+)", text)
    assert len(named) >= 8
    for file, names in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(?:def|class|    )\s*{name}\b", source, re.MULTILINE), (file, name)


def test_every_mutant_has_its_line() -> None:
    """What tests/mutants.py would call stale, seen without its minutes."""
    found = {mutant: (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) for mutant in MUTANTS}
    assert [mutant for mutant, count in found.items() if count != 1] == []
    assert all((ROOT.parent / name).is_file() for mutant in MUTANTS for name in mutant.tests)
