"""The application in Serve's local testing mode: no cluster, one process."""

import subprocess
import sys
from pathlib import Path

import pytest
from gradio_client import Client
from ray import serve

from {{ cookiecutter.__package }}.app import build, page_of_handles
from {{ cookiecutter.__package }}.deployments import TextGenerationModel
from {{ cookiecutter.__package }}.settings import ModelSettings, Settings


@pytest.fixture
def settings(tiny_decoder: Path, tiny_encoder_decoder: Path) -> Settings:
    return Settings(
        models=(
            ModelSettings(name="decoder", source=str(tiny_decoder)),
            ModelSettings(name="encoder-decoder", source=str(tiny_encoder_decoder)),
        )
    )


def test_the_graph_has_the_page_for_ingress(settings: Settings) -> None:
    handle = serve.run(build(settings), name="graph", _local_testing_mode=True)
    assert handle.deployment_name == "GradioServer"


def test_as_many_wait_for_a_model_as_the_limits_say(settings: Settings) -> None:
    _, _, *models = build(settings)._bound_deployment.init_args
    waiting = [model._bound_deployment.max_queued_requests for model in models]
    assert waiting == [settings.limits.waiting_requests] * 2


def test_the_page_asks_the_deployment_of_each_model(settings: Settings) -> None:
    handles = [
        serve.run(
            TextGenerationModel.options(name=model.name).bind(model, settings.limits),
            name=model.name,
            _local_testing_mode=True,
        )
        for model in settings.models
    ]
    page = page_of_handles(settings, *handles)
    page.launch(prevent_thread_lock=True, quiet=True)
    try:
        texts = Client(page.local_url, verbose=False).predict("The whale", api_name="/generate")
    finally:
        page.close()
    assert len(texts) == 2
    assert all(texts)


def test_the_process_of_the_page_imports_no_torch() -> None:
    code = """
import {{ cookiecutter.__package }}.app
import sys
sys.exit(bool({"torch", "transformers"} & sys.modules.keys()))
"""
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
