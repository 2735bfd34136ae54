"""Packages that read a format: of the extra `documents`, imported on first use, their logs kept off the terminal."""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from uncomp_cli.errors import DocumentError


def package(name: str) -> Any:
    """A package of the extra. Raises DocumentError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"it needs the package {name}, of the extra 'documents' ({error})"
        raise DocumentError(message, hint="pip install 'uncomp[documents]'") from error


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Keep a package's log off the terminal: what it could mend needs no report, and the rest is raised."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
