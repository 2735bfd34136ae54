"""The build hook: the C library goes into a wheel, or, for an editable install, beside its sources.

Where no compiler works the package is built without it: everything runs, by torch's operations.
"""

import importlib.util
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_KERNELS = Path("uncomp_cli/kernels")


def _compiler(root: Path) -> ModuleType:
    """uncomp_cli/kernels/compiler.py, by its path: the package cannot be imported yet."""
    spec = importlib.util.spec_from_file_location("compiler", root / _KERNELS / "compiler.py")
    if spec is None or spec.loader is None:
        raise ImportError(_KERNELS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class NativeHook(BuildHookInterface):
    """Compiles before a wheel is put together."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """zig, in a wheel of its own, where this machine has no compiler and zig has a wheel."""
        if any(_compiler(Path(self.root)).compilers()):
            return []
        return ["ziglang>=0.14; platform_system in 'Linux Darwin' and platform_machine in 'x86_64 aarch64 arm64'"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say where the library is; a wheel that holds it is for this kind of machine alone."""
        compiler = _compiler(Path(self.root))
        editable = version == "editable"
        folder = Path(self.root) / _KERNELS if editable else Path(tempfile.mkdtemp(prefix="uncomp-"))
        try:
            made = compiler.compile_library(folder)
        except compiler.CompilerError as error:
            self.app.display_warning(f"the native library was not built: {error}")
            return
        if not editable:
            build_data["force_include"][str(made)] = str(_KERNELS / made.name)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"


def _platform() -> str:
    """The platform tag of this machine."""
    tag = sysconfig.get_platform()
    if sys.platform == "darwin":
        tag = f"macosx-{platform.mac_ver()[0].split('.')[0]}-0-{platform.machine()}"
    return tag.replace("-", "_").replace(".", "_")
