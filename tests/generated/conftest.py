from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One virtual environment, which `uv sync` makes exact for each project in turn."""
    return tmp_path_factory.mktemp("environment") / "venv"
