"""Fixtures that several test modules share."""

from pathlib import Path

import pytest

from uncomp_cli.models.builtin import DEFAULT_MODEL
from uncomp_cli.models.catalog import ensure_local, local_path


@pytest.fixture(scope="session")
def default_model_dir() -> Path:
    """The default model in the cache directory, pulled when it is not there."""
    for _ in ensure_local(DEFAULT_MODEL):
        pass
    path = local_path(DEFAULT_MODEL)
    assert path is not None
    return path
