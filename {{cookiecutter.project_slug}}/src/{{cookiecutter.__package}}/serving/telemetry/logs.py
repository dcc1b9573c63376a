"""One line for each answer, where Serve keeps its logs, and the name by which to follow it."""

import logging
import re
import traceback
from collections.abc import Mapping
from contextvars import ContextVar

# Serve formats and keeps what goes to its own logger, as JSON where a config says so.
logger = logging.getLogger("ray.serve")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The `x-request-id` of the request that began an answer; Serve's proxy gives it one."""

LONGEST_NAME = 64


def keep_request_id(headers: Mapping[str, str]) -> None:
    """Takes the name of a request from its headers, for the lines of its answers."""
    request_id.set(clean(headers.get("x-request-id", "")))


def clean(name: str) -> str:
    """Leaves of a name that another chose what fits into a log."""
    return re.sub(r"[^\w.:-]", "", name[:LONGEST_NAME], flags=re.ASCII)


class CleanRequestId(logging.Filter):
    """Cleans the name that Serve gives to each line of a replica."""

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "request_id"):
            record.request_id = clean(str(record.request_id))
        return True


def clean_request_ids() -> None:
    """To be called in a replica, where Serve has set up its log."""
    for handler in logger.handlers:
        # After the filter of Serve's own that gives a line its name.
        handler.addFilter(CleanRequestId())


def where(error: BaseException) -> str:
    """Returns the kind of an error and the line that raised it, and nothing of what was sent."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {frame.filename}:{frame.lineno}"
