"""A GGUF file in another 4-bit type, in llama-cpp-python's environment: llama.cpp has faster kernels for Q4_0.

    python benchmarks/peers/requantize.py Model.Q4_1.gguf Model.Q4_0.gguf

It is for timing alone: quantising what is quantised already loses quality.
"""

import argparse
import sys
from pathlib import Path

import llama_cpp


def requantize(source: Path, target: Path) -> int:
    """llama.cpp's own return code, 0 when `target` was written."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    parameters.allow_requantize = True
    return int(llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="the file to write")
    paths = parser.parse_args()
    sys.exit(requantize(paths.source, paths.target))
