"""What visitors ask in the load test. See docs/operations.md for how to run it.

It calls the example. Replace it with your own function and its arguments.
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
