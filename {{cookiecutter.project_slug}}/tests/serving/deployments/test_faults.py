"""The served application when one of its processes dies."""

import time
from pathlib import Path

import pytest
from gradio_client import Client

from ...support.compare_page import MODELS
from ...support.processes import replicas_of

pytestmark = pytest.mark.served


def test_a_call_waits_for_a_new_replica_after_the_only_one_died(words: str) -> None:
    client = Client(words, verbose=False)
    [replica] = replicas_of(f"compare:{MODELS[0]}")
    replica.kill()
    texts = client.submit("The whale", 5, 10, api_name="/generate").result(timeout=60)
    assert len(texts) == len(MODELS)
    assert all(text and "⚠" not in text for text in texts)


def test_a_model_that_fails_to_restart_gives_the_reason_and_the_other_keeps_working(
    words: str, second_model: Path
) -> None:
    client = Client(words, verbose=False)
    config, gone = second_model / "config.json", second_model / "gone"
    [replica] = replicas_of(f"compare:{MODELS[1]}")
    config.rename(gone)
    try:
        replica.kill()
        job = client.submit("The whale", 5, 10, api_name="/generate")
        first, second = job.result(timeout=120)
        assert first
        assert "⚠" not in first
        assert f"⚠ Model 'second': '…/{second_model.name}' has no config.json" in second
    finally:
        gone.rename(config)
    deadline = time.monotonic() + 180
    while "⚠" in second:
        assert time.monotonic() < deadline
        second = client.submit("The whale", 5, 10, api_name="/generate").result(timeout=120)[1]
