"""What visitors ask in the load test. See docs/operations.md for how to run it."""

import random
from typing import Any

from locust_users import PageUser, Steps

__all__ = ["Steps", "Visitor"]

{% if cookiecutter.task == "text-generation" %}
PROMPTS = [
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper and a whale.",
    "Give me three tips for a good night's sleep.",
]
{% else %}
PROMPTS = [
    "The Eiffel Tower was built for the World's Fair of 1889. It is 330 metres high, and was the "
    "tallest building of the world for forty years.",
    "The Great Barrier Reef is the world's largest coral reef system. It is made of over 2,900 "
    "reefs and 900 islands, and supports a wide diversity of life.",
]
{% endif %}
FAILED_PANE = "⚠"


class Visitor(PageUser):
    endpoint = "/{{ "chat" if cookiecutter.page == "chat" else "generate" }}"
    begins_with = "text"

    def arguments(self) -> dict[str, Any]:
        return {"{{ "message" if cookiecutter.page == "chat" else "prompt" }}": random.choice(PROMPTS)}

    def failure_in(self, data: list[Any]) -> str | None:
        # A failing model shows an error in its pane while the others continue.
        return next((str(text) for text in data if FAILED_PANE in str(text)), None)
