"""The served application when a process of it dies."""

import psutil
import pytest
from gradio_client import Client

from ...support.servers import local_models

pytestmark = pytest.mark.served


def replicas_of(deployment: str) -> list[psutil.Process]:
    """Of this run alone: other clusters on the machine may have replicas of that name, too."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        # Serve names a replica's process after its application and deployment, and Ray after
        # the method that it runs.
        if process.name().startswith("ray::ServeRepl") and f":{deployment}." in title_of(process)
    ]


def title_of(process: psutil.Process) -> str:
    return f"{process.cmdline()[0]}."


def test_a_call_after_the_only_replica_of_a_model_died_waits_for_the_next(words: str) -> None:
    client = Client(words, verbose=False)
    [replica] = replicas_of(local_models()[0].name)
    replica.kill()
    texts = client.submit("The whale", 5, 10, api_name="/generate").result(timeout=60)
    assert len(texts) == len(local_models())
    assert all(text and "⚠" not in text for text in texts)
