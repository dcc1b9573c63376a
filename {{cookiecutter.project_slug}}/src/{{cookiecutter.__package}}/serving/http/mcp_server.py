"""The page's functions as tools of the Model Context Protocol, at `/mcp`, if the settings say so.

Gradio has a server of its own for it, which asks the page over HTTP for every caller, at the
address that the first one names in its Host header. This one calls the functions themselves.
"""

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.components import Component
from gradio_client.utils import value_is_file
from jsonschema import ValidationError, validate
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.types import CallToolRequestParams, CallToolResult, ListToolsResult, TextContent, Tool
from starlette.routing import Route

from ..telemetry.logs import keep_request_id, logger
from .guard import QUEUE_IS_FULL

PATH = "/mcp"


@dataclass(frozen=True)
class Offer:
    """A function of the page, and what clients are told of it."""

    function: Callable[..., AsyncGenerator[object, None]]
    tool: Tool
    turns: "Turns"


class Turns:
    """Lets as many calls run at a time as the page's queue does, and as many wait.

    They are counted apart from those of the page.
    """

    def __init__(self, running: int | None, waiting: int | None) -> None:
        self._running = None if running is None else asyncio.Semaphore(running)
        self._most_waiting = waiting
        self._waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """Waits for a turn.

        Raises:
            gr.Error: as many wait already as may.
        """
        if self._running is None:
            yield
            return
        full = self._most_waiting is not None and self._waiting >= self._most_waiting
        if full and self._running.locked():
            raise gr.Error(QUEUE_IS_FULL, print_exception=False)
        self._waiting += 1
        try:
            await self._running.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._running.release()


def offer_tools(web: FastAPI, page: gr.Blocks) -> None:
    """Puts the tools before the page, which is to be mounted afterwards.

    No session is kept between requests, so that any replica of the page can answer.
    """
    server = _server(page.title or "Gradio", {offer.tool.name: offer for offer in offers_of(page)})
    sessions = StreamableHTTPSessionManager(server, stateless=True)
    web.router.routes.append(Route(PATH, StreamableHTTPASGIApp(sessions)))
    web.router.lifespan_context = lambda _: sessions.run()


def offers_of(page: gr.Blocks) -> Iterator[Offer]:
    """Yields each function that has a name in the page's API.

    Raises:
        TypeError: it is no asynchronous generator, or takes the state of a session, a button or a
            file.
    """
    endpoints = page.get_api_info()["named_endpoints"]
    queue = page._queue
    # Functions share the turns of one `concurrency_id`.
    turns: dict[str, Turns] = {}
    for each in page.fns.values():
        endpoint = endpoints.get(f"/{each.api_name}")
        if endpoint is None:
            continue
        # Gradio puts the value of a state or a button in itself.
        hidden = any(component.skip_api for component in each.inputs)
        # A tool's arguments go past Gradio, which checks what a caller names as a file.
        files = any(value_is_file(parameter["type"]) for parameter in endpoint["parameters"])
        if hidden or files or not inspect.isasyncgenfunction(each.fn):
            raise TypeError(
                f"The page's function {each.api_name} cannot be a tool: it takes a gr.State, "
                "a button or a file, or is no asynchronous generator. Change it, or leave mcp out "
                "of the settings."
            )
        returned = ", ".join(value["label"] for value in endpoint["returns"])
        tool = Tool(
            name=each.api_name,
            description=f"{inspect.getdoc(each.fn) or each.api_name} Returns: {returned}.",
            input_schema=_schema(each.inputs, endpoint["parameters"]),
        )
        limit = each.concurrency_limit
        running = queue.default_concurrency_limit if limit == "default" else limit
        own = turns.setdefault(each.concurrency_id, Turns(running, queue.max_size))
        yield Offer(each.fn, tool, own)


def _schema(inputs: Sequence[Component], parameters: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the JSON schema of a function's arguments, from what Gradio's API tells of them."""
    properties = {}
    for component, parameter in zip(inputs, parameters, strict=True):
        described = dict(parameter["type"])
        if isinstance(component, gr.Slider):
            described |= {"minimum": component.minimum, "maximum": component.maximum}
        elif isinstance(component, gr.Dropdown) and component.allow_custom_value:
            # Of several values, each one is described.
            one = described.get("items", described)
            free = {"type": ["string", "number"], "examples": one["enum"]}
            described = {**described, "items": free} if component.multiselect else free
        properties[parameter["parameter_name"]] = {
            **described,
            "title": parameter["label"],
            "default": parameter["parameter_default"],
        }
    return {
        "type": "object",
        "properties": properties,
        "required": [
            parameter["parameter_name"]
            for parameter in parameters
            if not parameter["parameter_has_default"]
        ],
        "additionalProperties": False,
    }


def _server(title: str, offers: dict[str, Offer]) -> Server:
    async def list_tools(*_: object) -> ListToolsResult:
        return ListToolsResult(tools=[offer.tool for offer in offers.values()])

    async def call_tool(
        context: ServerRequestContext, called: CallToolRequestParams
    ) -> CallToolResult:
        if called.name not in offers:
            return _failure(f"There is no tool {called.name}. There are: {', '.join(offers)}.")
        offer, arguments = offers[called.name], called.arguments or {}
        keep_request_id(context.request.headers)
        texts: list[object] = []
        progress = 0
        try:
            validate(arguments, offer.tool.input_schema)
            async with offer.turns.turn(), aclosing(offer.function(**arguments)) as results:
                async for result in results:
                    texts = [*result] if isinstance(result, list | tuple) else [result]
                    progress += 1
                    await context.session.report_progress(progress)
        except ValidationError as error:
            return _failure(error.message)
        except gr.Error as error:
            return _failure(error.message)
        except Exception:
            logger.exception("%s failed", called.name)
            return _failure(
                f"{called.name} failed. Call again; if it stays so, look at the server's log."
            )
        return CallToolResult(content=[TextContent(text=str(each)) for each in texts])

    return Server(title, on_list_tools=list_tools, on_call_tool=call_tool)


def _failure(reason: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=reason)], is_error=True)
