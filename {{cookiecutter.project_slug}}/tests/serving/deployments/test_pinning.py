"""Replicas of a deployment all run the same commit of a model."""

import pickle
from collections.abc import Sequence

import pytest
import ray
from ray import serve
from ray.serve import Application
from ray.serve._private.build_app import build_app

from {{ cookiecutter.__package }}.serving.deployments import pinning
from {{ cookiecutter.__package }}.serving.deployments.builders import (
    PageOfModels,
)
from {{ cookiecutter.__package }}.serving.deployments.deployment import (
    deployments_of,
)
from {{ cookiecutter.__package }}.serving.deployments.settings import (
    ModelSettings,
    ModelsSettings,
)
from {{ cookiecutter.__package }}.serving.engine import weights
from {{ cookiecutter.__package }}.serving.protocol import Model

from ...support.loopback_hub import COMMIT

OURS = ModelSettings(name="ours", source="org/ours")
THEIRS = ModelSettings(name="theirs", source="org/theirs", revision="v2")
ELSEWHERE = ModelSettings(name="elsewhere", source="large", base_url="http://llm.example.org/v1")
SETTINGS = ModelsSettings(models=(OURS, THEIRS, ELSEWHERE))


def page_of(settings: ModelsSettings, models: Sequence[Model]) -> list[Model]:  # noqa: ARG001
    return list(models)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests to the hub, which does not know v2."""
    asked: list[str] = []

    def commit_of(model: ModelSettings) -> str | None:
        asked.append(model.source)
        return None if model.revision else COMMIT

    monkeypatch.setattr(weights, "commit_of", commit_of)
    return asked


def bound(application: Application) -> ModelSettings:
    """Returns the model that Serve passes to each replica."""
    [deployment] = build_app(application, name="app").deployments
    # Serve pickles it once and unpickles it for each replica.
    model: ModelSettings = pickle.loads(pickle.dumps(deployment.init_args))[0]  # noqa: S301
    return model


def test_a_deployment_pins_the_commit_of_the_branch_when_it_is_built(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "is_deploying", lambda: True)
    ours, theirs = deployments_of(SETTINGS)
    assert bound(ours) == OURS.model_copy(update={"revision": COMMIT})
    # A revision that the hub does not know stays unchanged.
    assert bound(theirs) == THEIRS
    assert asked.count("org/ours") == 1


def test_inspecting_the_graph_sends_no_request_to_the_hub(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    ours, theirs = deployments_of(SETTINGS)
    assert [bound(ours), bound(theirs)] == [OURS, THEIRS]
    assert asked == []


def test_models_in_the_page_process_keep_their_commit(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinning, "is_deploying", lambda: True)
    page = PageOfModels[ModelsSettings, list[Model]](SETTINGS, page_of)
    replica = pickle.loads(pickle.dumps(page))  # noqa: S301
    assert [model.revision for model in replica.settings.models] == [COMMIT, "v2", None]
    assert asked == ["org/ours", "org/theirs"]
    once_more = pickle.loads(pickle.dumps(replica))  # noqa: S301
    assert once_more.settings.models[0].revision == COMMIT


def test_a_local_test_uses_the_revision_of_the_settings(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    class Replica:
        def __init__(self, model: ModelSettings) -> None:
            self._model = model

        def revision(self) -> str | None:
            return self._model.revision

    [ours, _] = deployments_of(SETTINGS)
    application = serve.deployment(Replica, name="ours").bind(ours._bound_deployment.init_args[0])
    handle = serve.run(application, name="ours", _local_testing_mode=True)
    assert handle.revision.remote().result() is None
    handle.shutdown()
    assert asked == []
