"""The OpenAI-compatible API, at `/v1/models` and `/v1/chat/completions`, for any `Model`."""

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from ipaddress import ip_address
from secrets import token_hex
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from ..answers import explain
from ..base import ALLOWANCE, Allowance
from ..protocol import (
    BusyError,
    End,
    GenerationOptions,
    InterruptionError,
    Message,
    Model,
    Piece,
    PromptError,
    on_model_start,
    read_tokens,
)
from ..telemetry.logs import keep_request_id, logger, request_id
from .guard import RETRY_SECONDS, UNBUFFERED, guard
from .hosts import is_loopback
from .login import BY_KEY, USER, ApiKeys, inner_path, invalid_key_response
from .settings import HttpSettings

PREFIX = "/v1"
MODELS = f"{PREFIX}/models"
MAX_MESSAGES = 2048
MAX_STOPS = 4
MIN_TOP_P = 1e-6
"""Replaces a `top_p` of 0, and selects only the likeliest token."""
REASONS = {"stop": "stop", "length": "length", "filtered": "content_filter"}
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
KIND = re.compile(r"str$|list\[")
"""What pydantic adds to an error's location for each type of a union."""
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host")
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}
"""Parameters that are not supported, with the values that have no effect and are accepted."""

Chunk = dict[str, Any]


class AnswerLimits(Protocol):
    """Limits of one request."""

    @property
    def new_tokens(self) -> int: ...

    @property
    def prompt_characters(self) -> int: ...

    @property
    def answer_seconds(self) -> float: ...


class ApiError(Exception):
    """A request is refused. The message says what to change."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, object]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self), "type": KINDS.get(self.status, kind)}
        return {"error": {**error, "param": self.param, "code": self.code}}

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        added = {"retry-after": str(RETRY_SECONDS)} if self.status in (429, 503) else {}
        return JSONResponse(self.body, self.status, {**added, **(headers or {})})


class Asked(BaseModel):
    """Input from a client, checked by type. Optional fields may also be null."""

    model_config = ConfigDict(strict=True)


class Part(Asked):
    type: str
    text: str | None = None


class Turn(Asked):
    role: str
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None


class StreamOptions(Asked):
    include_usage: bool | None = None


class ChatRequest(Asked):
    model: str
    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stop: str | list[str] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)

    def options(self, limits: AnswerLimits) -> GenerationOptions:
        """Returns the options for the model.

        Raises:
            ApiError: they are over the limits.
        """
        named = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            reason = (
                "max_tokens and max_completion_tokens mean the same thing. Send only one of them."
            )
            raise ApiError(400, reason, "max_tokens")
        if most is not None and most > limits.new_tokens:
            reason = (
                f"{named} is {most}, but an answer may have at most {limits.new_tokens} tokens."
            )
            raise ApiError(400, f"{reason} Ask for fewer.", named)
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > MAX_STOPS or "" in stop:
            reason = (
                f"stop contains an empty string, or more than {MAX_STOPS} strings. Send at most "
                f"{MAX_STOPS}, none of them empty."
            )
            raise ApiError(400, reason, "stop")
        return GenerationOptions(
            max_new_tokens=limits.new_tokens if most is None else most,
            temperature=self.temperature,
            top_p=None if self.top_p is None else max(self.top_p, MIN_TOP_P),
            stop=tuple(stop),
            seed=self.seed,
        )


class OpenAIApi:
    """ASGI middleware that answers requests below `/v1`, and passes the others to the page.

    Args:
        keys: the API keys. If None, only requests from this machine are answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        models: Sequence[Model],
        settings: HttpSettings,
        limits: AnswerLimits,
        keys: ApiKeys | None,
    ) -> None:
        self._app = app
        api = Api(models, limits)
        self._api = Starlette(
            routes=[
                Route(MODELS, api.list_models),
                Route(MODELS + "/{name}", api.get_model),
                Route(f"{PREFIX}/chat/completions", api.complete, methods=["POST"]),
            ],
            exception_handlers={ApiError: refuse, HTTPException: refuse, Exception: _fail},
        )
        self._api.add_middleware(ApiKeyMiddleware, keys=keys)
        guard(self._api, settings, takes_files=False, asks_login=False)
        self._api.add_middleware(OpenAIErrorMiddleware)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = scope["type"] == "http" and f"{inner_path(scope)}/".startswith(f"{PREFIX}/")
        await (self._api if own else self._app)(scope, receive, send)


class ApiKeyMiddleware:
    """Requires an API key, or if there are no keys, that the request comes from this machine."""

    def __init__(self, app: ASGIApp, keys: ApiKeys | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._keys is None:
            reason = (
                "This API has no keys, so it only answers requests from its own machine. "
                "Ask its admin to set up keys."
            )
            here = _is_from_here(scope)
            await (self._app if here else ApiError(403, reason).response())(scope, receive, send)
        else:
            name = self._keys.name_of(Headers(scope=scope).get("authorization", ""))
            own = {**scope, USER: name, BY_KEY: True}
            await (invalid_key_response() if name is None else self._app)(own, receive, send)


def _is_from_here(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    address, _ = scope.get("client") or ("", 0)
    name, _, port = headers.get("host", "").rpartition(":")
    host = name if port.isdecimal() and name else headers.get("host", "")
    return _is_own_address(address) and is_loopback(host) and not any(map(headers.get, FORWARDED))


def _is_own_address(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


class OpenAIErrorMiddleware:
    """Turns the guards' refusals into OpenAI's error format."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal: Event | None = None
        body = b""

        async def send_in_form(event: Event) -> None:
            nonlocal refusal, body
            if event["type"] == "http.response.start" and event["status"] >= 400:
                refusal = event
            elif refusal is None:
                await send(event)
            else:
                body += event.get("body", b"")
                if not event.get("more_body", False):
                    said = _in_form(body, refusal["status"])
                    MutableHeaders(scope=refusal)["content-length"] = str(len(said))
                    await send(refusal)
                    await send({"type": "http.response.body", "body": said})

        await self._app(scope, receive, send_in_form)


def _in_form(body: bytes, status: int) -> bytes:
    try:
        said = json.loads(body)
    except ValueError:
        return body
    if not isinstance(said, dict) or "detail" not in said:
        return body
    return json.dumps(ApiError(status, str(said["detail"])).body).encode()


class Api:
    """The endpoints of the API."""

    def __init__(self, models: Sequence[Model], limits: AnswerLimits) -> None:
        self._models = {model.name: model for model in models}
        self._limits = limits
        self._since = int(time.time())

    async def list_models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [*map(self._about, self._models)]})

    async def get_model(self, request: Request) -> Response:
        return JSONResponse(self._about(self._model(request.path_params["name"]).name))

    async def complete(self, request: Request) -> ASGIApp:
        keep_request_id(request.headers)
        body = await _read(request)
        for name, harmless in UNSUPPORTED.items():
            if body.get(name) is not None and body[name] not in harmless:
                reason = f"{name} is not supported. Leave it out."
                raise ApiError(400, reason, name, "unsupported_parameter")
        asked = _checked(body)
        model = self._model(asked.model)
        messages = self._messages(asked.messages)
        options = asked.options(self._limits)
        allowance: Allowance | None = request.scope.get(ALLOWANCE)
        if allowance is not None:
            await allowance.take(request.scope)
        facts = {
            "request": request_id.get(),
            "key": request.scope.get(USER),
            "characters": sum(len(message.content) for message in messages),
        }
        logger.info("asked", extra=facts)
        seconds = self._limits.answer_seconds
        return Completion(model, messages, options, asked, seconds, allowance)

    def _about(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._since, "owned_by": "ray-serve"}

    def _model(self, name: str) -> Model:
        if name not in self._models:
            reason = f"There is no model {name[:100]!r}. Choose one of: {', '.join(self._models)}."
            raise ApiError(404, reason, "model", "model_not_found")
        return self._models[name]

    def _messages(self, turns: Sequence[Turn]) -> list[Message]:
        most = self._limits.prompt_characters
        messages = []
        for number, turn in enumerate(turns):
            where = f"messages[{number}]"
            role = "system" if turn.role == "developer" else turn.role
            if turn.tool_calls:
                reason = f"{where} calls tools, which are not supported. Leave them out."
                raise ApiError(400, reason, "messages")
            try:
                message = Message(role, _text(turn))  # type: ignore[arg-type]
            except PromptError as error:
                raise ApiError(400, f"{where}: {error}", "messages") from None
            if len(message.content) > most:
                reason = (
                    f"{where} has {len(message.content):,} characters, but at most {most:,} fit."
                )
                raise ApiError(400, f"{reason} Shorten it.", "messages", "string_above_max_length")
            messages.append(message)
        return messages


def _text(turn: Turn) -> str:
    if isinstance(turn.content, str):
        return turn.content
    if turn.content is None or any(part.type != "text" for part in turn.content):
        raise PromptError("A message may contain only text. Leave out images, files and the like.")
    return "".join(part.text or "" for part in turn.content)


async def _read(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON. Send a JSON object.") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object. Send one.")
    return body


def _checked(body: dict[str, Any]) -> ChatRequest:
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        # For a union, the error of the type that was tried last says the most.
        detail = error.errors(include_input=False, include_url=False)[-1]
        name, *rest = [each for each in detail["loc"] if not KIND.match(str(each))]
        where = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in rest)
        reason = f"{name}{where}: {detail['msg']}. Correct it."
        raise ApiError(400, reason, f"{name}{where}") from None


@dataclass
class Completion:
    """A model's answer, at once or as a stream. It stops when the client disconnects."""

    model: Model
    messages: Sequence[Message]
    options: GenerationOptions
    asked: ChatRequest
    seconds: float
    allowance: Allowance | None = None
    name: str = field(default_factory=lambda: f"chatcmpl-{token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    text: str = ""
    thoughts: str = ""
    tokens: int = 0
    thought_tokens: int = 0
    end: End | None = None
    begun: bool = False
    """Whether the stream has begun."""
    starting: bool = False
    """Whether the answer waits for its model to start."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = asyncio.create_task(self._answer(scope, receive, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when="FIRST_COMPLETED")
            if answering.done():
                answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        on_model_start.set(self._start)
        try:
            async with asyncio.timeout(self.seconds):
                if self.asked.stream:
                    await self._stream(send)
                    return
                async with aclosing(self._pieces()) as pieces:
                    async for _ in pieces:
                        pass
        except (ApiError, TimeoutError) as error:
            failure = error if isinstance(error, ApiError) else self._explained(error)
            if not self.begun:
                # Nothing is sent yet, so the error can have its own status.
                raise failure from error
            await self._write(send, failure.body)
            await send({"type": "http.response.body", "body": b""})
        else:
            await JSONResponse(self._whole())(scope, receive, send)
        finally:
            if self.allowance is not None and (self.tokens or self.end):
                tokens = read_tokens(self.messages, self.end) + self.tokens
                self.allowance.spend(scope, tokens)

    async def _stream(self, send: Send) -> None:
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                said = []
                if isinstance(piece, Piece) and piece.text:
                    kind = "reasoning_content" if piece.thought else "content"
                    said.append(self._chunk({kind: piece.text}))
                await self._write(send, *said)
        rest = [self._chunk({}, self._reason()) | self._dropped()]
        if self._includes_usage():
            rest.append(self._chunk() | {"usage": self._usage()})
        await self._write(send, *rest)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _write(self, send: Send, *chunks: Chunk) -> None:
        """Sends several events as one message through Serve's proxy."""
        if not self.begun:
            self.begun = True
            headers = {"content-type": "text/event-stream; charset=utf-8", **UNBUFFERED}
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            chunks = (self._chunk({"role": "assistant", "content": ""}), *chunks)
        said = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
        body = "".join(said).encode()
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _pieces(self) -> AsyncGenerator[Piece | End, None]:
        """Yields the model's answer, and collects it.

        Raises:
            ApiError: the model fails.
        """
        try:
            async with aclosing(self.model.stream(self.messages, self.options)) as pieces:
                async for piece in pieces:
                    self._keep(piece)
                    yield piece
        except Exception as error:
            raise self._explained(error) from error

    def _start(self) -> None:
        self.starting = True

    def _explained(self, error: Exception) -> ApiError:
        reason = explain(self.model, error, starting=self.starting)
        match error:
            case PromptError():
                return ApiError(400, reason, "messages")
            case BusyError():
                return ApiError(429, reason, code="rate_limit_exceeded")
            case InterruptionError():
                return ApiError(503, reason)
            case TimeoutError():
                return ApiError(503 if self.starting else 504, reason)
            case _:
                return ApiError(500, reason)

    def _whole(self) -> Chunk:
        message = {"role": "assistant", "content": self.text, "refusal": None}
        if self.thoughts:
            message["reasoning_content"] = self.thoughts
        choice = {"index": 0, "message": message, "logprobs": None}
        body = {
            **self._head("chat.completion"),
            "choices": [{**choice, "finish_reason": self._reason()}],
            "usage": self._usage(),
        }
        return body | self._dropped()

    def _keep(self, piece: Piece | End) -> None:
        self.starting = False
        if isinstance(piece, End):
            self.end = piece
            return
        self.tokens += piece.tokens
        if piece.thought:
            self.thoughts += piece.text
            self.thought_tokens += piece.tokens
        else:
            self.text += piece.text

    def _head(self, kind: str) -> Chunk:
        head = {"id": self.name, "object": kind, "created": self.created}
        return {**head, "model": self.model.name}

    def _chunk(self, delta: Chunk | None = None, reason: str | None = None) -> Chunk:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk = self._head("chat.completion.chunk") | {"choices": [] if delta is None else [choice]}
        return {**chunk, "usage": None} if self._includes_usage() else chunk

    def _includes_usage(self) -> bool:
        return bool(self.asked.stream_options and self.asked.stream_options.include_usage)

    def _reason(self) -> str:
        return REASONS[self.end.reason] if self.end else "stop"

    def _usage(self) -> Chunk | None:
        """Returns the numbers of tokens, or None if the model does not report them."""
        read = self.end.prompt_tokens if self.end else None
        if read is None:
            return None
        return {
            "prompt_tokens": read,
            "completion_tokens": self.tokens,
            "total_tokens": read + self.tokens,
            "completion_tokens_details": {"reasoning_tokens": self.thought_tokens},
        }

    def _dropped(self) -> Chunk:
        """Returns how many of the oldest messages were left out of the prompt."""
        dropped = self.end.dropped_messages if self.end else 0
        return {"dropped_messages": dropped} if dropped else {}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, ApiError):
        return error.response()
    if not isinstance(error, HTTPException):
        raise error
    reasons = {
        404: "There is nothing at this address. Check the path.",
        405: "This address does not accept this method. Use another one.",
    }
    reason = reasons.get(error.status_code, error.detail)
    code = "rate_limit_exceeded" if error.status_code == 429 else None
    return ApiError(error.status_code, reason, code=code).response(error.headers)


async def _fail(*_: object) -> Response:
    # Starlette raises the error again, so Serve logs it.
    return ApiError(500, "The server failed. See its log for the reason.").response()
