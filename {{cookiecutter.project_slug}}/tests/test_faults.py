"""The served application when a process of it dies."""

import psutil
import pytest
from gradio_client import Client

from {{ cookiecutter.__package }}.settings import default_models

pytestmark = pytest.mark.served


def replicas_of(deployment: str) -> list[psutil.Process]:
    """Of this run alone: other clusters on the machine have replicas of that name, too."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        # Serve gives a replica's process the names of its application and deployment.
        if process.name().startswith("ray::ServeRepl") and deployment in process.cmdline()[0]
    ]


def test_a_call_after_the_only_replica_of_a_model_died_waits_for_the_next(words: str) -> None:
    client = Client(words, verbose=False)
    [replica] = replicas_of(default_models()[0].name)
    replica.kill()
    texts = client.submit("The whale", 5, 10, api_name="/generate").result(timeout=60)
    assert len(texts) == len(default_models())
    assert all(text and "⚠" not in text for text in texts)
