"""Offers the page's functions as tools of the Model Context Protocol, at `/mcp`.

Gradio's own MCP server needs an older version of the protocol's library. It calls the page over
HTTP for every caller, at the address in the first caller's Host header. This server puts calls
directly into the page's queue, where they are handled like those of a browser.
"""

import base64
import json
import mimetypes
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

import anyio
import gradio as gr
from fastapi import FastAPI, Request
from gradio import server_messages as says
from gradio.data_classes import PredictBodyInternal
from gradio.mcp import GradioMCPServer
from gradio.processing_utils import save_base64_to_cache
from gradio.utils import cancel_tasks, get_function_description, get_upload_folder
from gradio_client import handle_file
from gradio_client.utils import construct_args, is_file_obj_with_meta
from jsonschema import Draft202012Validator, ValidationError, validate
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    BlobResourceContents,
    CallToolRequestParams,
    CallToolResult,
    GetPromptRequestParams,
    GetPromptResult,
    ImageContent,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    Prompt,
    PromptArgument,
    PromptMessage,
    ReadResourceRequestParams,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextContent,
    TextResourceContents,
    Tool,
)
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..telemetry.logs import keep_request_id, logger
from .guard import QUEUE_IS_FULL
from .login import GRADIO_TOOLS, TOOLS, user_of

USER = "page.mcp-user"
MAX_NAME_LENGTH = 64
FILE = "Gradio File Input"
"""How the format of a string starts in Gradio's schema if the string is a file's address."""
TEMPLATE = re.compile(r"\{([^}]+)\}")

Kind = Literal["tool", "resource", "prompt"]


class CallError(Exception):
    """A call failed. The message is for the client."""


@dataclass(frozen=True)
class Offer:
    """A function of the page, with its description for clients."""

    kind: Kind
    name: str
    function: Any
    description: str
    parameters: list[dict[str, Any]]
    schema: dict[str, Any]
    takes_files: bool

    @property
    def uri(self) -> str:
        return str(self.function.fn._mcp_uri_template)

    @property
    def mime_type(self) -> str:
        return str(self.function.fn._mcp_mime_type)

    def parts_of(self, uri: str) -> dict[str, str] | None:
        """Returns the arguments in the URI, or None if it belongs to another resource."""
        pieces = TEMPLATE.split(self.uri)
        pattern = "".join(
            f"(?P<{piece}>[^/]+)" if number % 2 else re.escape(piece)
            for number, piece in enumerate(pieces)
        )
        found = re.fullmatch(pattern, uri)
        return None if found is None else found.groupdict()


class Answer:
    """Answers only users who are logged in, if the page uses Gradio's login."""

    def __init__(self, answer: ASGIApp, app: Any) -> None:
        self._answer = answer
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user, app = await user_of(self._app, Request(scope)), self._app
        if user is None and not (app.auth is None and app.auth_dependency is None):
            refusal = PlainTextResponse("Log in first.", 401, {"www-authenticate": "Basic"})
            await refusal(scope, receive, send)
        else:
            await self._answer({**scope, USER: user}, receive, send)


def offer_tools(web: FastAPI, app: Any) -> None:
    """Adds the tools' routes in front of Gradio's app.

    The server keeps no session between requests, so any replica of the page can answer.
    """
    page = app.get_blocks()
    offers = {(offer.kind, offer.name): offer for offer in offers_of(page)}
    sessions = StreamableHTTPSessionManager(_server(app, offers), stateless=True)
    answer = Answer(StreamableHTTPASGIApp(sessions), app)
    # The page shows this schema to users of its tools.
    schema = [
        {
            "name": offer.name,
            "description": offer.description,
            "inputSchema": offer.schema,
            "meta": {"mcp_type": offer.kind, "endpoint_name": offer.function.api_name}
            | {"file_data_present": offer.takes_files},
        }
        for offer in offers.values()
    ]

    async def tell_schema(_: Request) -> JSONResponse:
        return JSONResponse(schema)

    mounted = len(web.router.routes) - 1
    web.router.routes[mounted:mounted] = [
        *(Route(path, answer) for path in TOOLS),
        Route(f"{GRADIO_TOOLS}/schema", tell_schema),
    ]
    lifespan = web.router.lifespan_context

    @asynccontextmanager
    async def live(outer: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(outer) as state, sessions.run():
            yield state

    web.router.lifespan_context = live


def offers_of(page: gr.Blocks) -> Iterator[Offer]:
    """Yields the functions that have a name in the page's API and that clients can call."""
    endpoints = page.get_api_info()["named_endpoints"]
    names: set[str] = set()
    for each in page.fns.values():
        endpoint = endpoints.get(f"/{each.api_name}")
        if endpoint is None or each.fn is None:
            continue
        try:
            offer = _offer(each, endpoint, names)
        except Exception as error:
            logger.warning("%s cannot be offered to MCP clients: %s", each.api_name, error)
            continue
        names.add(offer.name)
        yield offer


def _offer(function: Any, endpoint: dict[str, Any], taken: set[str]) -> Offer:
    if function.connection == "stream":
        raise ValueError("it takes a stream")
    parameters = endpoint["parameters"]
    inputs = [component for component in function.inputs if not component.skip_api]
    description, about, _ = get_function_description(function.fn)
    # Clients pass a file as a URL.
    schema, files = GradioMCPServer.simplify_filedata_schema(
        None, _schema(inputs, parameters, about)
    )
    Draft202012Validator.check_schema(schema)
    if function.api_description is not None:
        description = function.api_description or ""
    else:
        description = getattr(function.fn, "_mcp_description", None) or description
        returned = ", ".join(value["label"] for value in endpoint["returns"])
        description = f"{description or function.api_name} Returns: {returned}."
    return Offer(
        getattr(function.fn, "_mcp_type", "tool"),
        _unique(getattr(function.fn, "_mcp_name", None) or function.api_name, taken),
        function,
        description,
        parameters,
        schema,
        bool(files),
    )


def _unique(name: str, taken: set[str]) -> str:
    """Returns a name that is not taken. Clients limit its characters and its length."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:MAX_NAME_LENGTH]
    number = 1
    unique = name
    while unique in taken:
        unique = f"{name[: MAX_NAME_LENGTH - 4]}_{number}"
        number += 1
    return unique


def _schema(
    inputs: Sequence[Any], parameters: list[dict[str, Any]], about: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the JSON schema of a function's arguments, from Gradio's API description."""
    properties, definitions = {}, dict[str, Any]()
    for component, parameter in zip(inputs, parameters, strict=True):
        name, described = parameter["parameter_name"], dict(parameter["type"])
        definitions |= described.pop("$defs", {})
        if not isinstance(described.get("type"), str | list):
            # A component that takes any JSON has `{}`, which is not a type.
            described.pop("type", None)
        if isinstance(component, gr.Slider):
            described |= {"minimum": component.minimum, "maximum": component.maximum}
        elif isinstance(component, gr.Dropdown) and component.allow_custom_value:
            # With several values, the schema describes each item.
            one = described.get("items", described)
            free = {"type": ["string", "number"], "examples": one["enum"]}
            described = {**described, "items": free} if component.multiselect else free
        if about.get(name):
            described["description"] = about[name]
        properties[name] = {**described, "title": parameter["label"]}
        if parameter["parameter_has_default"]:
            properties[name]["default"] = parameter["parameter_default"]
    return {
        **({"$defs": definitions} if definitions else {}),
        "type": "object",
        "properties": properties,
        "required": [
            parameter["parameter_name"]
            for parameter in parameters
            if not parameter["parameter_has_default"]
        ],
        "additionalProperties": False,
    }


def _with_files(value: Any, schema: dict[str, Any], definitions: Mapping[str, Any]) -> Any:
    """Returns the value with Gradio's file data instead of each file's URL.

    Raises:
        ValueError: a file is not given as a URL.
    """
    if "$ref" in schema:
        schema = definitions.get(schema["$ref"].rpartition("/")[2], {})
    for option in schema.get("anyOf", ()):
        value = _with_files(value, option, definitions)
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return {
            name: _with_files(each, known.get(name, {}), definitions)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [_with_files(each, schema.get("items", {}), definitions) for each in value]
    if not isinstance(value, str) or not schema.get("format", "").startswith(FILE):
        return value
    if value.startswith("data:"):
        return handle_file(save_base64_to_cache(value, get_upload_folder()))
    if value.startswith(("http://", "https://")):
        return handle_file(value)
    raise ValueError("A file must be a URL. Start it with https:, http: or data:.")


async def _updates(
    app: Any, offer: Offer, arguments: Mapping[str, Any], request: Request
) -> AsyncGenerator[Any, None]:
    """Puts a call into the page's queue, and yields its updates. The last one is the result.

    Raises:
        CallError: the arguments are not valid, or the queue is full.
    """
    page, function = app.get_blocks(), offer.function
    queue, session = page._queue, token_hex(16)
    try:
        definitions = offer.schema.get("$defs", {})
        filled = _with_files(dict(arguments), offer.schema, definitions)
        given = iter(construct_args(offer.parameters, (), filled))
    except (TypeError, ValueError) as error:
        raise CallError(str(error)) from error
    # Gradio fills in the values of states and buttons.
    data = [None if component.skip_api else next(given) for component in function.inputs]
    # Gradio derives the page's address from the path, for the URLs of files.
    path = f"{request.scope.get('root_path', '').rstrip('/')}/gradio_api/call/{function.api_name}"
    asked = Request({**request.scope, "path": path, "raw_path": path.encode()})
    body = PredictBodyInternal(
        session_hash=session, data=data, fn_index=function._id, simple_format=True, request=asked
    )
    queue.set_server_app(app)
    try:
        try:
            taken, said, state = await queue.push(body, asked, request.scope[USER])
        except HTTPException as refused:
            # The caller is over one of the rate limits.
            raise CallError(refused.detail) from refused
        if not taken:
            raise CallError(QUEUE_IS_FULL if state == "queue_full" else _reasons(said))
        while True:
            update = await queue.pending_messages_per_session[session].get()
            yield update
            if isinstance(update, says.ProcessCompletedMessage):
                return
    finally:
        # If the client disconnects, this task is cancelled, and only shielded code still runs.
        with anyio.CancelScope(shield=True):
            await cancel_tasks({f"{session}_{function._id}"})
            await queue.clean_events(session_hash=session)
            queue.pending_messages_per_session.pop(session, None)
            queue.pending_event_ids_session.pop(session, None)


def _reasons(said: str | list[dict[str, Any]] | None) -> str:
    """Returns why the queue refuses a call: its message, or those of a validator."""
    if isinstance(said, str):
        return said
    reasons = [each.get("message") for each in said or ()]
    return " ".join(reason for reason in reasons if reason) or "The arguments are not valid."


async def _result(
    app: Any,
    offer: Offer,
    arguments: Mapping[str, Any],
    context: ServerRequestContext,
) -> list[Any]:
    """Returns the function's result, and reports its progress until then.

    Raises:
        CallError: the function fails, or does not accept the call.
    """
    keep_request_id(context.request.headers)
    progress = 0
    async with aclosing(_updates(app, offer, arguments, context.request)) as updates:
        async for update in updates:
            if isinstance(update, says.ProcessCompletedMessage):
                if not update.success:
                    raise CallError(
                        update.output.get("error")
                        or f"{offer.name} failed. Call it again. If it keeps failing, see the "
                        "server's log."
                    )
                values = update.output["data"]
                outputs = offer.function.outputs
                return [
                    value
                    for component, value in zip(outputs, values, strict=True)
                    if not component.skip_api
                ]
            if isinstance(update, says.ProcessGeneratingMessage | says.ProgressMessage):
                progress += 1
                await context.session.report_progress(progress, message=_progress_of(update))
    raise CallError(f"{offer.name} was stopped. Call it again.")


def _progress_of(update: Any) -> str | None:
    for unit in getattr(update, "progress_data", None) or ():
        steps = unit.index if unit.length is None else f"{unit.index} of {unit.length}"
        return f"{unit.desc or 'Progress'}: {steps if unit.index is not None else unit.progress}"
    return None


def _contents(value: Any) -> Iterator[TextContent | ImageContent]:
    """Yields a value as text. A picture becomes an image and its address."""
    if not is_file_obj_with_meta(value):
        yield TextContent(text=value if isinstance(value, str) else json.dumps(value, default=str))
        return
    url, path = value.get("url") or value["path"], Path(value["path"])
    kind = mimetypes.guess_type(path.name)[0] or ""
    if url.startswith("data:image/svg"):
        yield ImageContent(
            data=base64.b64encode(url.partition(",")[2].encode()).decode(),
            mime_type="image/svg+xml",
        )
    elif kind.startswith("image/") and path.is_file():
        yield ImageContent(data=base64.b64encode(path.read_bytes()).decode(), mime_type=kind)
        yield TextContent(text=f"Image URL: {url}")
    else:
        yield TextContent(text=url)


def _server(app: Any, every: dict[tuple[Kind, str], Offer]) -> Server:
    def offered(kind: Kind) -> list[Offer]:
        return [offer for offer in every.values() if offer.kind == kind]

    async def list_tools(*_: object) -> ListToolsResult:
        return ListToolsResult(
            tools=[
                Tool(
                    name=offer.name,
                    description=offer.description,
                    input_schema=offer.schema,
                    _meta=getattr(offer.function.fn, "_mcp_meta", None),
                )
                for offer in offered("tool")
            ]
        )

    async def call_tool(
        context: ServerRequestContext, called: CallToolRequestParams
    ) -> CallToolResult:
        offer = every.get(("tool", called.name))
        if offer is None:
            names = ", ".join(each.name for each in offered("tool"))
            return _failure(f"There is no tool {called.name}. Call one of: {names}.")
        arguments = called.arguments or {}
        try:
            validate(arguments, offer.schema)
            values = await _result(app, offer, arguments, context)
        except ValidationError as error:
            return _failure(error.message)
        except CallError as error:
            return _failure(str(error))
        content = [part for value in values for part in _contents(value)]
        structured = getattr(offer.function.fn, "_mcp_structured_output", False)
        return CallToolResult(
            content=content,
            structured_content={"result": values[0] if len(values) == 1 else values}
            if structured
            else None,
            _meta=getattr(offer.function.fn, "_mcp_meta", None),
        )

    async def list_resources(*_: object) -> ListResourcesResult:
        return ListResourcesResult(
            resources=[
                Resource(
                    uri=offer.uri,
                    name=offer.name,
                    description=offer.description,
                    mime_type=offer.mime_type,
                )
                for offer in offered("resource")
                if not TEMPLATE.search(offer.uri)
            ]
        )

    async def list_templates(*_: object) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(
            resource_templates=[
                ResourceTemplate(
                    uri_template=offer.uri,
                    name=offer.name,
                    description=offer.description,
                    mime_type=offer.mime_type,
                )
                for offer in offered("resource")
                if TEMPLATE.search(offer.uri)
            ]
        )

    async def read_resource(
        context: ServerRequestContext, asked: ReadResourceRequestParams
    ) -> ReadResourceResult:
        uri = str(asked.uri)
        for offer in offered("resource"):
            arguments = offer.parts_of(uri)
            if arguments is None:
                continue
            value = str(await _only_value(app, offer, arguments, context))
            told = {"uri": uri, "mime_type": offer.mime_type}
            if offer.mime_type.startswith("text/"):
                return ReadResourceResult(contents=[TextResourceContents(text=value, **told)])
            # As Gradio requires, the function returns it as base64.
            return ReadResourceResult(contents=[BlobResourceContents(blob=value, **told)])
        raise MCPError(INVALID_PARAMS, f"There is no resource {uri}.")

    async def list_prompts(*_: object) -> ListPromptsResult:
        return ListPromptsResult(
            prompts=[
                Prompt(
                    name=offer.name,
                    description=offer.description,
                    arguments=[
                        PromptArgument(
                            name=name,
                            description=described.get("description"),
                            required=name in offer.schema["required"],
                        )
                        for name, described in offer.schema["properties"].items()
                    ],
                )
                for offer in offered("prompt")
            ]
        )

    async def get_prompt(
        context: ServerRequestContext, asked: GetPromptRequestParams
    ) -> GetPromptResult:
        offer = every.get(("prompt", asked.name))
        if offer is None:
            raise MCPError(INVALID_PARAMS, f"There is no prompt {asked.name}.")
        text = str(await _only_value(app, offer, asked.arguments or {}, context))
        return GetPromptResult(
            messages=[PromptMessage(role="user", content=TextContent(text=text))]
        )

    return Server(
        app.get_blocks().title or "Gradio",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
    )


async def _only_value(
    app: Any, offer: Offer, arguments: Mapping[str, Any], context: ServerRequestContext
) -> Any:
    try:
        value, *_ = await _result(app, offer, arguments, context)
    except CallError as error:
        raise MCPError(INVALID_PARAMS, str(error)) from error
    return value


def _failure(reason: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=reason)], is_error=True)
