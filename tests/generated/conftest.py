from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--newest", action="store_true", help="beyond the versions that are declared")


@pytest.fixture(scope="session")
def newest(pytestconfig: pytest.Config) -> bool:
    """Whether to use the newest release of each library, without its upper bound."""
    return bool(pytestconfig.getoption("--newest"))


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One virtual environment, which `uv sync` adjusts for each project in turn."""
    return tmp_path_factory.mktemp("environment") / "venv"
