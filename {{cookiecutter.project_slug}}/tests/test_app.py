"""The application: its graph, and its page on Ray. Change it with `app.py`."""

from pathlib import Path

import pytest
from gradio_client import Client
from ray import serve

from {{ cookiecutter.__package }}.app import Settings, build

from .support.servers import config_of, free_port, served


def test_requests_reach_the_page(tiny_decoder: Path) -> None:
    tiny = {"source": str(tiny_decoder)}
    settings = Settings(models=tuple(each.model_copy(update=tiny) for each in Settings().models))
    handle = serve.run(build(settings), name="graph", _local_testing_mode=True)
    assert handle.deployment_name == "GradioServer"


@pytest.mark.served
def test_on_ray_the_page_answers_with_a_text_from_each_model(
    tiny_decoder: Path, tmp_path: Path
) -> None:
    """Uses tiny models instead of those of `models.py`, which answer nonsense."""
    with served(config_of(tiny_decoder, free_port()), tmp_path) as pages:
        answer = Client(pages.addresses[0], verbose=False).predict(
            "The whale", max_new_tokens=30, api_name="/{{ "chat" if cookiecutter.page == "chat" else "generate" }}"
        )
    texts = [answer] if isinstance(answer, str) else answer
    assert len(texts) == len(Settings().models)
    assert all(texts)
