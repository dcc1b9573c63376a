"""A model on a server that speaks OpenAI's protocol: ray.serve.llm, vLLM, a provider."""

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
"""The longest that a server may take for its next piece."""
MOST_TOKENS = ("max_completion_tokens", "max_tokens")
"""What servers call the most tokens of an answer: the name of today first."""
CAN_DO_WITHOUT = (*MOST_TOKENS, "temperature", "top_p", "stream_options")
THOUGHTS = ("reasoning_content", "reasoning")
"""Where servers put what a reasoning model says to itself."""
ENDS: dict[str, EndReason] = {"length": "length", "content_filter": "filtered"}
"""What the protocol calls the reasons for an end; any other is that the model was done."""


class OpenAIClient:
    """One model of a server, asked by the official client.

    It sends what the settings or the request say, and no more. What the server refuses it leaves
    out from then on. Keys are in the environment, under the names that the settings give.
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
        # Else it sends those of variables that nobody named.
        self._client.organization = _variable(model.organization_variable)
        self._client.project = None
        self._refused: frozenset[str] = frozenset()

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        """Yields the answer piece by piece; leaving the loop closes the connection.

        A trailing message of the assistant is sent as it is; a server that can, continues it.
        The protocol knows no `min_new_tokens` and no `top_k`, so these have no effect.

        Raises:
            PromptError: the server does not take this conversation.
            BusyError: it has too much to do.
            InterruptionError: it cannot be reached, or does not answer.
        """
        turns = [_turn(message) for message in self._settings.conversation(messages)]
        reason, counted, usage = "stop", 0, None
        try:
            async with await self._asked(turns, options) as chunks:
                async for chunk in chunks:
                    usage = chunk.usage or usage
                    for choice in chunk.choices[:1]:
                        reason = choice.finish_reason or reason
                        for piece in _pieces(choice.delta):
                            counted += piece.tokens
                            yield piece
                    if counted > options.max_new_tokens:
                        # A chunk has a token at least, and the server knows no bound.
                        reason = "length"
                        break
        except openai.OpenAIError as error:
            self._log(error)
            # What it came from may hold the prompt, or the key.
            raise self._explained(error) from None
        except (ValueError, TypeError, AttributeError) as error:
            logger.warning("%s: a line of its stream makes no sense: %s", self.name, where(error))
            reason = f"{self.name}'s server sent what is no part of an answer. Run again."
            raise InterruptionError(reason) from None
        if usage and usage.completion_tokens and usage.completion_tokens != counted:
            # Servers send a chunk for each token, or for several.
            yield Piece("", usage.completion_tokens - counted)
        yield End(ENDS.get(reason, "stop"), usage.prompt_tokens if usage else None)

    async def _asked(
        self, turns: list[ChatCompletionMessageParam], options: GenerationOptions
    ) -> openai.AsyncStream[ChatCompletionChunk]:
        """Asks until the server has refused nothing that can be left out."""
        refused = self._refused
        told = traceparent()
        headers = self._headers | ({TRACEPARENT: told} if told else {})
        while True:
            sent = self._sent(options, refused)
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
                if not named or refused.issuperset(MOST_TOKENS):
                    raise
                continue
            if refused != self._refused:
                self._refused = refused
                names = ", ".join(sorted(refused))
                logger.warning("%s: its server does not take %s.", self.name, names)
            return stream

    def _sent(self, options: GenerationOptions, refused: Collection[str]) -> dict[str, Any]:
        said, own = self._settings.model_fields_set, self._settings
        most = [name for name in MOST_TOKENS if name not in refused]
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
        # What a server says of it may repeat the prompt, and what a connection does, the key.
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

    def _explained(self, error: openai.OpenAIError) -> Exception:
        name, own = self.name, self._settings
        match error:
            case openai.BadRequestError(param=str(option)) if option in MOST_TOKENS:
                return PromptError(f"{name} does not write so many tokens. Ask for fewer.")
            case openai.BadRequestError(param="stop" | "seed" as option):
                return PromptError(f"{name} does not take {option}. Leave it out.")
            case openai.RateLimitError():
                return BusyError(f"{name} has too much to do. Try again in a moment.")
            case openai.BadRequestError() | openai.UnprocessableEntityError():
                return PromptError(f"{name} does not take this text. Shorten it, or ask for less.")
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                remedy = "Name the variable that holds one in api_key_variable."
                if own.api_key_variable:
                    remedy = f"Set {own.api_key_variable} where Ray starts."
                return InterruptionError(f"{name} does not accept its key. {remedy}")
            case openai.NotFoundError():
                return InterruptionError(f"{name}'s server has no {own.source}. Correct it.")
            case openai.APITimeoutError():
                return InterruptionError(f"{name} did not answer in time. Run again.")
            case openai.APIConnectionError():
                return InterruptionError(f"{name} cannot be reached. See whether its server runs.")
            case _:
                return InterruptionError(f"{name} was interrupted by its server. Run again.")


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
    """Returns which of the options that were sent the server does not take, and may go without."""
    # Some say it in a text alone.
    said = {error.param} if error.param else {*re.findall(r"\w+", str(error.body))}
    if said.intersection(MOST_TOKENS):
        said.update(MOST_TOKENS)
    return said & set(sent) & set(CAN_DO_WITHOUT)


def _turn(message: Message) -> ChatCompletionMessageParam:
    match message.role:
        case "system":
            return {"role": "system", "content": message.content}
        case "assistant":
            return {"role": "assistant", "content": message.content}
        case "user":
            return {"role": "user", "content": message.content}
