"""The application in this process, without a cluster."""

import pickle
from pathlib import Path

import pytest
from gradio_client import Client
from ray import serve

from {{ cookiecutter.__package }}.app import PageWithModels, build
from {{ cookiecutter.__package }}.settings import ModelSettings, Settings


@pytest.fixture
def settings(tiny_decoder: Path) -> Settings:
    return Settings(models=(ModelSettings(name="tiny", source=str(tiny_decoder)),))


def test_the_graph_is_the_page_alone(settings: Settings) -> None:
    handle = serve.run(build(settings), name="graph", _local_testing_mode=True)
    assert handle.deployment_name == "GradioServer"


def test_the_page_asks_its_own_model(settings: Settings) -> None:
    builder = PageWithModels(settings)
    page = builder()
    builder.check_health()
    # Serve does it with the builder of a replica that has started.
    pickle.dumps(builder)
    page.launch(prevent_thread_lock=True, quiet=True)
    try:
        text = Client(page.local_url, verbose=False).predict("The whale", api_name="/generate")
    finally:
        page.close()
    assert isinstance(text, str)
    assert text
