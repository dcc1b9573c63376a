"""A model on a server with an OpenAI-compatible API: ray.serve.llm, vLLM, a provider."""

import os
import re
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from typing import Any

import openai
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from ..protocol import (
    BusyError,
    End,
    EndReason,
    GenerationOptions,
    InterruptionError,
    Message,
    Piece,
    PromptError,
)
from ..telemetry.logs import clean, logger, request_id, where
from ..telemetry.traces import TRACEPARENT, traceparent
from .settings import ModelSettings

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""How long to wait for the server's next piece."""
MAX_TOKENS_FIELDS = ("max_completion_tokens", "max_tokens")
"""The names that servers use for the maximum number of tokens, the current name first."""
OPTIONAL_FIELDS = (*MAX_TOKENS_FIELDS, "temperature", "top_p", "stream_options")
THOUGHTS = ("reasoning_content", "reasoning")
"""The fields in which servers return the thoughts of a reasoning model."""
END_REASONS: dict[str, EndReason] = {"length": "length", "content_filter": "filtered"}
"""The API's finish reasons that mean more than "stop"; all others mean "stop"."""


class OpenAIClient:
    """One model on a server, called through the official client.

    Sends only the options that the settings or the request set. An option that the server
    refuses is left out from then on. Keys come from the environment variables that the settings
    name.
    """

    def __init__(self, model: ModelSettings) -> None:
        self.name = model.name
        self._settings = model
        key = _variable(model.api_key_variable)
        self._headers = {} if key else {"authorization": openai.omit}
        self._client = openai.AsyncOpenAI(
            base_url=model.base_url,
            api_key=key or "none",
            timeout=openai.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            max_retries=1,
        )
        # Otherwise the client reads variables that the settings do not name.
        self._client.organization = _variable(model.organization_variable)
        self._client.project = None
        self._refused: frozenset[str] = frozenset()

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        """Yields the answer piece by piece; leaving the loop closes the connection.

        A trailing assistant message is sent unchanged; some servers continue it. The protocol
        has no `min_new_tokens` and no `top_k`, so these have no effect.

        Raises:
            PromptError: the server rejects this conversation.
            BusyError: the server is busy.
            InterruptionError: the server cannot be reached, or does not answer.
        """
        turns = [_message_param(message) for message in self._settings.conversation(messages)]
        reason, counted, usage = "stop", 0, None
        try:
            async with await self._open_stream(turns, options) as chunks:
                async for chunk in chunks:
                    usage = chunk.usage or usage
                    for choice in chunk.choices[:1]:
                        reason = choice.finish_reason or reason
                        for piece in _pieces(choice.delta):
                            counted += piece.tokens
                            yield piece
                    if counted > options.max_new_tokens:
                        # Each chunk has at least one token, so the server ignores the maximum.
                        reason = "length"
                        break
        except openai.OpenAIError as error:
            self._log(error)
            # The cause may contain the prompt or the key.
            raise self._error_for_visitor(error) from None
        except (ValueError, TypeError, AttributeError) as error:
            logger.warning("%s: its server sent an invalid chunk: %s", self.name, where(error))
            reason = f"{self.name}'s server sent an invalid answer. Try again."
            raise InterruptionError(reason) from None
        if usage and usage.completion_tokens and usage.completion_tokens != counted:
            # A chunk may contain more than one token.
            yield Piece("", usage.completion_tokens - counted)
        yield End(END_REASONS.get(reason, "stop"), usage.prompt_tokens if usage else None)

    async def _open_stream(
        self, turns: list[ChatCompletionMessageParam], options: GenerationOptions
    ) -> openai.AsyncStream[ChatCompletionChunk]:
        """Sends the request, again without each optional setting that the server refuses."""
        refused = self._refused
        told = traceparent()
        headers = self._headers | ({TRACEPARENT: told} if told else {})
        while True:
            sent = self._fields_of(options, refused)
            try:
                stream: openai.AsyncStream[ChatCompletionChunk]
                stream = await self._client.chat.completions.create(
                    model=self._settings.source,
                    messages=turns,
                    stream=True,
                    extra_headers=headers,
                    **sent,
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                named = _refused(error, sent)
                refused |= named
                if not named or refused.issuperset(MAX_TOKENS_FIELDS):
                    raise
                continue
            if refused != self._refused:
                self._refused = refused
                names = ", ".join(sorted(refused))
                logger.warning("%s: its server does not accept %s.", self.name, names)
            return stream

    def _fields_of(self, options: GenerationOptions, refused: Collection[str]) -> dict[str, Any]:
        said, own = self._settings.model_fields_set, self._settings
        most = [name for name in MAX_TOKENS_FIELDS if name not in refused]
        sent = {
            **dict.fromkeys(most[:1], options.max_new_tokens),
            "temperature": own.temperature if "temperature" in said else None,
            "top_p": own.top_p if "top_p" in said else None,
            "stop": [*options.stop] or None,
            "seed": options.seed,
            "stream_options": {"include_usage": True},
        }
        asked = {"temperature": options.temperature, "top_p": options.top_p}
        sent |= {name: value for name, value in asked.items() if value is not None}
        return {
            name: value for name, value in sent.items() if value is not None and name not in refused
        }

    def _log(self, error: openai.OpenAIError) -> None:
        # The server's message may repeat the prompt, and a connection error may contain the key.
        match error:
            case openai.APIConnectionError():
                reason = type(error.__cause__).__name__
            case openai.APIError():
                status = getattr(error, "status_code", None)
                reason = f"{status}, {clean(str(error.code))}, {clean(str(error.param))}"
            case _:
                reason = "the client gave up"
        facts = {"request": request_id.get(), "model": self.name}
        logger.warning("%s: %s: %s", self.name, type(error).__name__, reason, extra=facts)

    def _error_for_visitor(self, error: openai.OpenAIError) -> Exception:
        name, own = self.name, self._settings
        match error:
            case openai.BadRequestError(param=str(option)) if option in MAX_TOKENS_FIELDS:
                return PromptError(f"{name} cannot write that many tokens. Ask for fewer.")
            case openai.BadRequestError(param="stop" | "seed" as option):
                return PromptError(f"{name} does not support {option}. Leave it out.")
            case openai.RateLimitError():
                return BusyError(f"{name} is busy. Try again in a moment.")
            case openai.BadRequestError() | openai.UnprocessableEntityError():
                return PromptError(
                    f"{name} rejected this text. Shorten it, or ask for fewer tokens."
                )
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                remedy = "Set api_key_variable to the name of the variable that contains a key."
                if own.api_key_variable:
                    remedy = (
                        f"Set {own.api_key_variable} correctly in the environment that starts Ray."
                    )
                return InterruptionError(f"{name}'s server rejected the API key. {remedy}")
            case openai.NotFoundError():
                reason = f"{name}'s server has no model {own.source}. Correct its source."
                return InterruptionError(reason)
            case openai.APITimeoutError():
                return InterruptionError(f"{name} did not answer in time. Try again.")
            case openai.APIConnectionError():
                reason = f"{name} cannot be reached. Check that its server is running."
                return InterruptionError(reason)
            case _:
                return InterruptionError(f"{name}'s server ended the answer early. Try again.")


def _variable(name: str | None) -> str | None:
    return (os.environ.get(name, "").strip() or None) if name else None


def _pieces(delta: ChoiceDelta) -> Iterator[Piece]:
    for field in THOUGHTS:
        if thought := getattr(delta, field, None):
            yield Piece(str(thought), 1, thought=True)
            break
    if text := delta.content or delta.refusal:
        yield Piece(str(text), 1)


def _refused(error: openai.APIStatusError, sent: Collection[str]) -> set[str]:
    """Returns the sent options that the server refuses and that the request can omit."""
    # Some servers name the option only in the message.
    said = {error.param} if error.param else {*re.findall(r"\w+", str(error.body))}
    if said.intersection(MAX_TOKENS_FIELDS):
        said.update(MAX_TOKENS_FIELDS)
    return said & set(sent) & set(OPTIONAL_FIELDS)


def _message_param(message: Message) -> ChatCompletionMessageParam:
    match message.role:
        case "system":
            return {"role": "system", "content": message.content}
        case "assistant":
            return {"role": "assistant", "content": message.content}
        case "user":
            return {"role": "user", "content": message.content}
