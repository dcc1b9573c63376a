"""Traces the steps of an answer as spans, from the request to the batch that generates it.

OpenTelemetry is loaded only if the settings name a collector. A step becomes a span only below a
traced request. Without the setting, a step only costs the lookup of a variable.
"""

import asyncio
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StringConstraints
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..base import Strict, require_extra
from .logs import clean, where

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from .otlp import TraceExporter

CollectorUrl = Annotated[str, StringConstraints(pattern=r"^https?://[!-~]+$")]
Attributes = Mapping[str, str | int | float | Sequence[str]]
Kind = Literal["internal", "server", "client"]

ASKS = re.compile(
    r"(/gradio_api/(?:queue/join|(?:call|run|api)(?=/))|/v1/chat/completions|/mcp)/?(?:/.*)?$"
)
"""Paths of requests for an answer. The group leaves out the part that a visitor can choose."""
STEP = "page.step"
"""The key in the ASGI scope for a request's step, which later code continues. No header can set
it."""
LIBRARY = "opentelemetry"
TRACEPARENT = "traceparent"


class Traces(Strict):
    """Where to send spans, and how many."""

    endpoint: CollectorUrl
    """The collector's address for OTLP over HTTP, including the path:
    `http://127.0.0.1:4318/v1/traces`."""
    sampling_ratio: float = Field(default=1, ge=0, le=1)
    """The share of requests to trace, from 0 to 1. Clients cannot change it."""


class TracedSettings(Strict):
    """Settings of traces."""

    traces: Traces | None = None
    """Sends the spans of each answer to an OpenTelemetry collector."""


_exporter: "TraceExporter | None" = None
_here: ContextVar["Span | None"] = ContextVar("here", default=None)
"""The parent of the next span."""


def check_traces() -> None:
    """Checks that the libraries are installed.

    Raises:
        StartError: they are not.
    """
    with require_extra("traces", "traces", {LIBRARY}):
        from .otlp import TraceExporter  # noqa: F401


def start_traces(settings: Traces | None) -> None:
    """Makes this process send its spans. With the same settings, further calls do nothing.

    Raises:
        StartError: the libraries are not installed.
    """
    global _exporter
    if settings is None or (_exporter is not None and _exporter.settings == settings):
        return
    check_traces()
    from .otlp import TraceExporter

    stop_traces()
    _exporter = TraceExporter(settings)


def stop_traces() -> None:
    """Sends the remaining spans, within a time limit."""
    global _exporter
    if _exporter is not None:
        _exporter.stop()
        _exporter = None


@dataclass
class Step:
    """A step of an answer. It has a span if the request is traced."""

    span: "Span | None" = None
    outcome: str = ""
    is_sent: bool = True
    """If False, the span never ends, so it is not sent."""

    def say(self, attributes: Attributes) -> None:
        if self.span is not None:
            self.span.set_attributes(attributes)

    def ends(self, outcome: str, error: BaseException | None = None, kind: str = "") -> None:
        """Records the outcome, with the same words as metrics and logs, without request data."""
        self.outcome = outcome
        if self.span is None or _exporter is None:
            return
        self.say({"outcome": outcome})
        if outcome not in ("done", "cancelled"):
            self.say({"error.type": kind or (type(error).__qualname__ if error else outcome)})
            _exporter.fail(self.span, where(error) if error and error.__traceback__ else None)


def current_span() -> "Span | None":
    return _here.get()


@contextmanager
def step(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: Kind = "internal",
    below: "Span | None" = None,
) -> Iterator[Step]:
    """Makes the block a step below the current span, or below another one.

    If the block is cancelled or its generator is closed, the outcome is `cancelled`.
    """
    before = _here.get()
    above = below or before
    if above is None or _exporter is None:
        yield Step()
        return
    with _running(_exporter.begin(name, kind, attributes, above=above), before) as begun:
        yield begun


@contextmanager
def _running(span: "Span", before: "Span | None") -> Iterator[Step]:
    # Without a token, because a generator may be closed in another context, where a token cannot
    # be reset.
    _here.set(span)
    begun = Step(span)
    try:
        yield begun
    except (asyncio.CancelledError, GeneratorExit):
        begun.ends(begun.outcome or "cancelled")
        raise
    except Exception as error:
        if not begun.outcome:
            begun.ends("failed", error)
        raise
    else:
        if not begun.outcome:
            begun.ends("done")
    finally:
        _here.set(before)
        if begun.is_sent:
            span.end()


def add_ended_step(
    name: str,
    began: int,
    ended: int | None = None,
    *,
    below: "Span | None",
    outcome: str = "done",
) -> None:
    """Adds a step that has ended already. Times are nanoseconds since 1970, by default until
    now."""
    if below is not None and _exporter is not None:
        span = _exporter.begin(name, "internal", {"outcome": outcome}, above=below, began=began)
        span.end(ended or time.time_ns())


class TracedRequestId(str):
    """A request ID with the parent span for another process."""

    traceparent: str


def traceparent() -> str:
    """Returns the `traceparent` header for another server, or an empty string."""
    span = _here.get()
    return "" if span is None or _exporter is None else _exporter.traceparent(span)


def with_traceparent(request: str) -> str:
    """Returns the request ID for another process, with the current span if it is traced."""
    if not (header := traceparent()):
        return request
    named = TracedRequestId(request)
    named.traceparent = header
    return named


def continue_trace(request: str) -> None:
    """Continues below the span that came with another process's request ID."""
    header = request.traceparent if isinstance(request, TracedRequestId) else ""
    _here.set(_exporter.parent_span(header) if header and _exporter is not None else None)


class TracingMiddleware:
    """ASGI middleware that begins a trace for each request for an answer.

    A client's `traceparent` only sets the parent span. The client does not decide whether the
    request is traced, and its `tracestate` and baggage are ignored.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                await asyncio.to_thread(stop_traces)
            return
        asks = _exporter is not None and scope["type"] == "http" and scope["method"] == "POST"
        found = ASKS.search(scope["path"]) if asks else None
        if found is None or _exporter is None or not _exporter.samples():
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # If there are two, neither can be trusted.
        given = headers.getlist(TRACEPARENT)
        above = _exporter.parent_span(given[0]) if len(given) == 1 else None
        attributes = {
            "http.request.method": "POST",
            "http.route": found[1],
            "http.request.header.x-request-id": [clean(headers.get("x-request-id", ""))],
        }
        span = _exporter.begin(f"POST {found[1]}", "server", attributes, above=above)
        status, complete = 0, False

        async def send_and_see(message: Message) -> None:
            nonlocal status, complete
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                complete = not message.get("more_body", False)

        with _running(span, None) as begun:
            await self._app({**scope, STEP: begun}, receive, send_and_see)
            if status:
                begun.say({"http.response.status_code": status})
            if status >= 500:
                begun.ends("failed", kind=str(status))
            else:
                begun.ends("done" if complete else "cancelled")


def step_of(scope: Scope) -> Step:
    """Returns the step that the request began, or an empty one."""
    begun: Step = scope.get(STEP) or Step()
    return begun
