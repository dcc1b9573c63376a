import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One virtual environment, which `uv sync` makes exact for each project in turn."""
    return tmp_path_factory.mktemp("environment") / "venv"


@pytest.fixture
def ray_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray's files apart, so that projects which are served at the same time do not meet."""
    # Ray's sockets are in it, and their path may have 107 characters at the most.
    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", directory)
    yield
    shutil.rmtree(directory, ignore_errors=True)
