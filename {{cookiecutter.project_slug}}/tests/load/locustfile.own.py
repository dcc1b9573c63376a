"""What visitors of the page ask in the load test. docs/operations.md says how to run it.

This asks the example. Name a function of your own, and its arguments, in its place.
"""

from typing import Any

from locust_users import PageUser, Steps

__all__ = ["Steps", "Visitor"]

TEXT = b"The whale\ncame up,\nand looked around.\n"


class Visitor(PageUser):
    endpoint = "/number_lines"
    begins_with = "start"

    def arguments(self) -> dict[str, Any]:
        return {"text": self.upload("whales.txt", TEXT)}
