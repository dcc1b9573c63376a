"""One line for each answer, where Serve keeps its logs, and the name by which to follow it."""

import logging
from contextvars import ContextVar

# Serve formats and keeps what goes to its own logger, as JSON where a config says so.
logger = logging.getLogger("ray.serve")

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The `x-request-id` of the request that began an answer; Serve's proxy gives it one."""
