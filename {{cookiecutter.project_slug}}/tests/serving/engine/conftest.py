from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from {{ cookiecutter.__package }}.serving.deployments.settings import (
    ModelSettings,
)
from {{ cookiecutter.__package }}.serving.engine import graph_paths
from {{ cookiecutter.__package }}.serving.engine.engine import Engine
from {{ cookiecutter.__package }}.serving.engine.plain import PlainModel
from {{ cookiecutter.__package }}.serving.pages.settings import Limits

EngineOf = Callable[..., Engine]


@pytest.fixture(autouse=True)
def hf_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate folder of graphs for each test."""
    directory = tmp_path_factory.mktemp("hf-home")
    monkeypatch.setattr(graph_paths, "HF_HOME", str(directory))
    return directory


@pytest.fixture
def engine_of() -> Iterator[EngineOf]:
    """Creates engines, and stops them after the test."""
    engines: list[Engine] = []

    def make(directory: Path, limits: Limits | None = None, **settings: object) -> Engine:
        model = {"name": "tiny", "source": str(directory), "dtype": "float32", **settings}
        # By default, send a piece for each token.
        limits = limits or Limits(update_seconds=0)
        engines.append(Engine(ModelSettings.model_validate(model), limits))
        return engines[-1]

    yield make
    for engine in engines:
        engine.stop()


def plain(engine: Engine) -> PlainModel:
    """Returns the PyTorch model that an engine runs, or that checked its graph."""
    found = getattr(engine._rules, "__self__", None)
    assert isinstance(found, PlainModel)
    return found
