"""Serve's logger, and the request ID that connects the lines of one request."""

import logging
import re
import traceback
from collections.abc import Mapping
from contextvars import ContextVar

# Serve formats and stores what goes to its logger, as JSON if the config says so.
logger = logging.getLogger("ray.serve")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The `x-request-id` of the request that began an answer. Serve's proxy adds one if it is
missing."""

MAX_NAME_LENGTH = 64


def keep_request_id(headers: Mapping[str, str]) -> None:
    """Sets the request ID from the headers, for the log lines of the answer."""
    request_id.set(clean(headers.get("x-request-id", "")))


def clean(name: str) -> str:
    """Removes what is not safe in a log from an ID that a client chose."""
    return re.sub(r"[^\w.:-]", "", name[:MAX_NAME_LENGTH], flags=re.ASCII)


class RequestIdFilter(logging.Filter):
    """Cleans the request ID that Serve adds to each line of a replica."""

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "request_id"):
            record.request_id = clean(str(record.request_id))
        return True


def clean_request_ids() -> None:
    """Adds the filter to Serve's log. Call it in a replica, where the log is set up."""
    for handler in logger.handlers:
        # After Serve's own filter, which adds the ID to a line.
        handler.addFilter(RequestIdFilter())


def where(error: BaseException) -> str:
    """Returns the type of an error and the line that raised it, without data from the request."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {frame.filename}:{frame.lineno}"
