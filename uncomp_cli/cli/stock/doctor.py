"""`uncomp doctor`: what this installation runs on and with; a value that cannot be read says so."""

import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from uncomp_cli import __version__
from uncomp_cli.cli.declare.options import Json, terminal_of
from uncomp_cli.cli.declare.settings import config_path, read_settings
from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.numerals import format_value
from uncomp_cli.table import Table

_TIGHT_BYTES, _ROOMY_BYTES = 2 * 2**30, 8 * 2**30
_READERS = {".pdf": "pypdfium2", ".html": "lxml"}


def doctor(ctx: typer.Context, as_json: Json = False) -> None:
    """Report versions, devices, memory, readers and paths."""
    from uncomp_cli.ui.meter import loading

    terminal = terminal_of(ctx)
    with loading(terminal, "looking at this machine…"):
        report = {name: _read(probe) for name, probe in _PROBES.items()}
    advice = [*recommended(report)]
    if as_json:
        terminal.write_json({"schema_version": 1, **report, "recommendations": advice})
    else:
        rows = [(name.removesuffix("_bytes").replace("_", " "), _shown(name, value)) for name, value in report.items()]
        terminal.write_tables([Table(("WHAT", "VALUE"), rows, notes=advice)])


def recommended(report: dict[str, Any]) -> Iterator[str]:
    """What to do on a machine that reports this, a sentence each, the next step first."""
    free, cores, threads = (report.get(key) for key in ("memory_free_bytes", "cores", "threads"))
    if "is not here" in str(report.get("default_model")):
        yield f"begin with the model: uncomp model pull {DEFAULT_MODEL}"
    if isinstance(free, int):
        yield _advice_on_memory(free)
    if isinstance(cores, int) and isinstance(threads, int) and threads < cores:
        yield f"{threads} of {cores} cores are used: export OMP_NUM_THREADS={cores} reads faster"
    missing = [suffix for suffix, state in (report.get("readers") or {}).items() if str(state).startswith("missing")]
    if missing:
        yield f"{', '.join(missing)} cannot be read yet: pip install 'uncomp[documents]'"


def _advice_on_memory(free_bytes: int) -> str:
    """A preset for the memory that is free: weights of the default model and its cache, or a model of some billions."""
    free = format_value("bytes", free_bytes)
    if free_bytes < _TIGHT_BYTES:
        return f"{free} are free: uncomp ask --preset tiny --quantize int8, and close what you can"
    from uncomp_cli.engine.spend.fitting import best_known

    best = best_known(available=free_bytes)
    larger = "" if best is None else f"; a larger model fits too: uncomp model pull {best.alias}, then -m {best.alias}"
    if free_bytes < _ROOMY_BYTES:
        return f"{free} are free: uncomp ask --preset small for long documents, balanced for short ones{larger}"
    return f"{free} are free: uncomp ask --preset balanced{larger}"


def _read(probe: Callable[[], Any]) -> Any:
    """The value, or the reason why there is none: one broken part must not hide the others."""
    try:
        return probe()
    except Exception as error:
        return {"unreadable": f"{type(error).__name__}: {error}".splitlines()[0]}


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _devices() -> list[str]:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ["cpu", *(f"cuda:{index} {name}" for index, name in enumerate(names))]


def _device_memory() -> list[dict[str, int]]:
    import torch

    pairs = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
    return [{"free_bytes": free, "total_bytes": total} for free, total in pairs]


def _memory() -> Any:
    import psutil

    return psutil.virtual_memory()


def _quantization() -> str:
    import torch

    from uncomp_cli.models.loading import check_quantization

    check_quantization("int8", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return f"bitsandbytes {version('bitsandbytes')}"


def _native() -> str:
    from uncomp_cli.kernels.library import state

    return state()


def _decode_kernel() -> str:
    from uncomp_cli.kernels.launch import state

    return state()


def _readers() -> dict[str, str]:
    return {suffix: _reader_state(package) for suffix, package in _READERS.items()}


def _reader_state(package: str) -> str:
    return f"{package} {version(package)}" if find_spec(package) else "missing: pip install 'uncomp[documents]'"


def _cache_dir() -> str:
    from uncomp_cli.models.sources import cache_dir

    return str(cache_dir())


def _cache_bytes() -> int:
    return sum(
        file.lstat().st_size for file in Path(_cache_dir()).rglob("*") if file.is_file() and not file.is_symlink()
    )


def _config_file() -> str:
    path = config_path()
    if not path.exists():
        return f"{path} (absent)"
    read_settings(path)
    return str(path)


def _default_model() -> str:
    from uncomp_cli.models.catalog import local_path

    path = local_path(DEFAULT_MODEL)
    return f"{DEFAULT_MODEL} at {path}" if path else f"{DEFAULT_MODEL} is not here: uncomp model pull {DEFAULT_MODEL}"


_PROBES: dict[str, Callable[[], Any]] = {
    "uncomp": lambda: __version__,
    "python": platform.python_version,
    "platform": platform.platform,
    "torch": lambda: version("torch"),
    "transformers": lambda: version("transformers"),
    "cores": os.cpu_count,
    "threads": _threads,
    "devices": _devices,
    "memory_free_bytes": lambda: _memory().available,
    "memory_total_bytes": lambda: _memory().total,
    "device_memory": _device_memory,
    "quantization": _quantization,
    "native": _native,
    "decode_kernel": _decode_kernel,
    "readers": _readers,
    "cache_dir": _cache_dir,
    "cache_size_bytes": _cache_bytes,
    "config_file": _config_file,
    "default_model": _default_model,
}


def _shown(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(str(key), item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(_shown(name, item) for item in value) or "none"
    return format_value(name, value)
