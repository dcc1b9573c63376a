"""What API clients ask in the load test, one model at a time."""

import json
import os
import random
from collections.abc import Callable
from typing import ClassVar

from locust_users import REASON_CHARACTERS, Asker, BadAnswerError, Steps
from locustfile import PROMPTS

__all__ = ["Program", "Steps"]


class Program(Asker):
    models: ClassVar[list[str]]

    def prepare(self) -> None:
        self.open()
        offered = self.request("GET", "/v1/models").json()["data"]
        type(self).models = [each["id"] for each in offered]

    def open(self) -> None:
        if key := os.environ.get("API_KEY"):
            self.session.headers["Authorization"] = f"Bearer {key}"

    def read_answer(self, begin: Callable[[], None]) -> None:
        question = {
            "model": random.choice(self.models),
            "messages": [{"role": "user", "content": random.choice(PROMPTS)}],
            "stream": True,
        }
        with self.request("POST", "/v1/chat/completions", json=question, stream=True) as stream:
            for line in stream.iter_lines(decode_unicode=True):
                said = line.removeprefix("data:").strip()
                if said == "[DONE]":
                    return
                if not line.startswith("data:"):
                    continue
                chunk = json.loads(said)
                if "error" in chunk:
                    raise BadAnswerError(str(chunk["error"])[:REASON_CHARACTERS])
                deltas = [each["delta"] for each in chunk["choices"]]
                if any(each.get("content") or each.get("reasoning_content") for each in deltas):
                    begin()
        raise BadAnswerError("the stream ended before the answer did")
