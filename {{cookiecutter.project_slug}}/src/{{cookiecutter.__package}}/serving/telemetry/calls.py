"""Counts, times and logs the calls of a page's functions, with Ray's metrics.

A call comes through Gradio's queue, like most events and `/call`, or directly, like `queue=False`
and `/run`. Each call ends with an outcome:

- `done`
- `cancelled`: the caller disconnected, or stopped it.
- `refused`: the queue was full.
- `limited`: the caller is over one of `rate_limits`.
- `invalid`: the page could not read the input, or the function raised a `gr.Error`.
- `failed`: the function raised another error.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.queueing import Event
from ray.serve.metrics import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import Request

from .logs import keep_request_id, logger, request_id, where
from .traces import Step, add_ended_step, step, step_of

ENDPOINT = ("endpoint",)
SECONDS = [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]

AUTOMATIC_EVENTS = {"load", "tick", "unload"}
"""Events that an open page sends by itself."""

Outcome = Literal["done", "cancelled", "refused", "limited", "invalid", "failed"]
Method = Callable[..., Awaitable[Any]]

REFUSALS: dict[str, Outcome] = {"queue_full": "refused", "validator_error": "invalid"}
"""Outcomes of calls that the queue refuses, by the queue's states."""


def meter_calls(page: gr.Blocks) -> None:
    """Counts each call of the page's functions, including those that `gr.render` makes."""
    calls, queue = Calls(page), page._queue
    page.process_api = calls.wrap_process_api(page.process_api)
    page.call_function = calls.wrap_call_function(page.call_function)
    queue.push = calls.wrap_push(queue.push)
    queue.process_events = calls.wrap_process_events(queue.process_events)
    # These remove calls from the queue when the caller disconnects or cancels.
    queue.clean_events = calls.wrap_removal(queue.clean_events)
    queue.remove_from_queue = calls.wrap_removal(queue.remove_from_queue)


def endpoint_of(function: BlockFunction) -> str:
    """Returns a name from the page's code. A visitor cannot add new ones to the metrics."""
    if function.renderable is not None:
        return str(function.renderable.fn.__name__)
    # Inside gr.render, Gradio numbers functions with the same name.
    return str(function.api_name if function.rendered_in is None else function.name)


def is_automatic(function: BlockFunction) -> bool:
    return function.renderable is not None or AUTOMATIC_EVENTS.issuperset(
        event for _, event in function.targets
    )


def function_of(page: gr.Blocks, body: Any) -> BlockFunction | None:
    """Returns the function that a call names, or None if there is no such function."""
    sessions, session = page.state_holder, body.session_hash
    fns = sessions[session].blocks_config.fns if session in sessions else page.fns
    return fns.get(body.fn_index)


def trace_waiting(event: Event, outcome: Outcome = "done") -> None:
    asked = step_of(event.request.scope)
    if asked.is_sent:
        waited = time.monotonic() - event.enqueue_time
        add_ended_step(
            "queue", time.time_ns() - int(waited * 1e9), below=asked.span, outcome=outcome
        )


def tracing(event: Event) -> AbstractContextManager[Step]:
    """Begins a step below the request of an event, which has ended already."""
    asked = step_of(event.request.scope)
    name = f"call {endpoint_of(event.fn)}"
    return step(name, below=asked.span) if asked.is_sent else nullcontext(Step())


@dataclass
class Run:
    """The state of a call."""

    outcome: Outcome = "cancelled"
    error: Exception | None = None
    has_input: bool = False
    """Whether the page could read the input."""

    @contextmanager
    def step(self) -> Iterator[None]:
        """Runs one step of the call. A generator takes a step for each of its values."""
        self.outcome = "cancelled"
        try:
            yield
        except Exception as error:
            invalid = isinstance(error, gr.Error) or not self.has_input
            self.outcome, self.error = "invalid" if invalid else "failed", error
            raise
        self.outcome = "done"


running: ContextVar[Run | None] = ContextVar("running", default=None)


@contextmanager
def new_run() -> Iterator[Run]:
    token = running.set(run := Run())
    try:
        yield run
    finally:
        running.reset(token)


class Calls:
    """Wraps methods of a page and its queue to meter calls."""

    def __init__(self, page: gr.Blocks) -> None:
        self._page = page
        self._waiting: dict[str, Event] = {}
        self._calls = Counter(
            "page_calls", "Finished calls to a page's functions.", ("endpoint", "outcome")
        )
        self._seconds = Histogram(
            "page_call_seconds", "How long a call ran, in seconds.", SECONDS, ENDPOINT
        )
        self._waited = Histogram(
            "page_call_waiting_seconds", "How long a call waited, in seconds.", SECONDS, ENDPOINT
        )

    def wrap_process_api(self, process_api: Method) -> Method:
        async def process(
            block_fn: BlockFunction | int, *args: Any, iterator: object = None, **options: Any
        ) -> Any:
            function = self._page.fns[block_fn] if isinstance(block_fn, int) else block_fn
            if run := running.get():
                with run.step():
                    output = await process_api(function, *args, iterator=iterator, **options)
                if function.is_validator_function or output["is_generating"]:
                    run.outcome = "cancelled"
                return output
            if iterator is not None:
                # The call was counted with its first value.
                return await process_api(function, *args, iterator=iterator, **options)
            request, began = options.get("request"), time.monotonic()
            if isinstance(request, gr.Request):
                keep_request_id(request.headers)
            with step(f"call {endpoint_of(function)}") as traced, new_run() as run:
                try:
                    with run.step():
                        return await process_api(function, *args, **options)
                finally:
                    traced.ends(run.outcome, run.error)
                    self._record(function, run, ran=time.monotonic() - began)

        return process

    def wrap_call_function(self, call_function: Method) -> Method:
        async def call(*args: Any, **options: Any) -> Any:
            if run := running.get():
                run.has_input = True
            return await call_function(*args, **options)

        return call

    def wrap_push(self, push: Method) -> Method:
        """Meters calls that end before they wait: refused ones, and those from a cache."""

        async def enter(body: Any, request: Any, username: str | None) -> Any:
            keep_request_id(request.headers)
            began, state, name = time.monotonic(), "error", ""
            self._leave_out(request, body)
            with new_run() as run:
                try:
                    taken, name, state = await push(body, request, username)
                except HTTPException:
                    # The caller is over a rate limit.
                    run.outcome = "limited"
                    raise
                finally:
                    run.outcome = REFUSALS.get(state, run.outcome)
                    if state == "success" and run.outcome != "done":
                        self._waiting[name] = self._page._queue.event_ids_to_events[name]
                    elif function := function_of(self._page, body):
                        self._record(function, run, ran=time.monotonic() - began)
            return taken, name, state

        return enter

    def wrap_process_events(self, process_events: Method) -> Method:
        async def leave(events: Sequence[Event], *args: Any) -> None:
            began = time.monotonic()
            keep_request_id(events[0].request.headers)
            for event in events:
                self._waiting.pop(event._id, None)
                trace_waiting(event)
            with tracing(events[0]) as traced, new_run() as run:
                try:
                    await process_events(events, *args)
                finally:
                    ended = time.monotonic()
                    alive = run.outcome != "done" or events[0].alive
                    traced.ends(run.outcome if alive else "cancelled", run.error)
                    for event in events:
                        keep_request_id(event.request.headers)
                        left = run.outcome == "done" and not event.alive
                        self._record(
                            event.fn,
                            Run("cancelled") if left else run,
                            ran=ended - began,
                            waited=began - event.enqueue_time,
                        )

        return leave

    def wrap_removal(self, forget: Method) -> Method:
        async def give_up(*args: Any, **options: Any) -> None:
            await forget(*args, **options)
            known = self._page._queue.event_ids_to_events
            for name in [name for name in self._waiting if name not in known]:
                event = self._waiting.pop(name)
                trace_waiting(event, "cancelled")
                keep_request_id(event.request.headers)
                self._record(event.fn, Run(), waited=time.monotonic() - event.enqueue_time)

        return give_up

    def _leave_out(self, request: Request, body: Any) -> None:
        """Excludes events that an open page sends by itself from the traces."""
        asked = step_of(request.scope)
        if asked.span is not None and (function := function_of(self._page, body)):
            asked.is_sent = not is_automatic(function)

    def _record(
        self,
        function: BlockFunction,
        run: Run,
        *,
        ran: float | None = None,
        waited: float | None = None,
    ) -> None:
        tags = {"endpoint": endpoint_of(function)}
        self._calls.inc(tags={**tags, "outcome": run.outcome})
        if ran is not None:
            self._seconds.observe(ran, tags)
        if waited is not None:
            self._waited.observe(waited, tags)
        if run.outcome == "done" and is_automatic(function):
            # Otherwise, every open tab would log a line each time its timer ticks.
            return
        facts: dict[str, object] = {
            "request": request_id.get(),
            **tags,
            "outcome": run.outcome,
            "seconds": None if ran is None else round(ran, 3),
            "waited_seconds": None if waited is None else round(waited, 3),
        }
        level = logging.INFO
        if run.outcome == "failed" and run.error is not None:
            # Gradio prints the traceback.
            level, facts["error"] = logging.ERROR, where(run.error)
        logger.log(level, "call", extra=facts)
