import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cookiecutter.main import cookiecutter

from ..answers import TEMPLATE
from ..generated.project import Project
from .cluster import Cluster, ray_cluster


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="many users, for long")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: for `--soak` alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--soak", default=False):
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


@pytest.fixture(scope="session")
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether long runs are enabled."""
    return bool(pytestconfig.getoption("--soak"))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The default project, installed."""
    directory = tmp_path_factory.mktemp("project")
    root = cookiecutter(
        str(TEMPLATE),
        no_input=True,
        output_dir=str(directory / "output"),
        default_config={"replay_dir": str(directory), "cookiecutters_dir": str(directory)},
    )
    # Ray's sockets are in it, and their paths may have at most 107 characters.
    ray_directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    project = Project(Path(root), directory / "venv", {"RAY_TMPDIR": ray_directory})
    project.run("uv", "sync")
    yield project
    shutil.rmtree(ray_directory, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ray_cluster(project, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
