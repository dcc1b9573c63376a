"""The served application when a process of it dies."""

import pytest
from gradio_client import Client

from ...support.compare_page import MODELS
from ...support.processes import replicas_of

pytestmark = pytest.mark.served


def test_a_call_after_the_only_replica_of_a_model_died_waits_for_the_next(words: str) -> None:
    client = Client(words, verbose=False)
    [replica] = replicas_of(MODELS[0])
    replica.kill()
    texts = client.submit("The whale", 5, 10, api_name="/generate").result(timeout=60)
    assert len(texts) == len(MODELS)
    assert all(text and "⚠" not in text for text in texts)
