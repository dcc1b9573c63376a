"""A model on a server that speaks OpenAI's protocol: ray.serve.llm, vLLM, a provider."""

import os
from collections.abc import AsyncGenerator, Sequence

import openai
from openai.types.chat import ChatCompletionMessageParam

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
from ..telemetry.logs import clean, logger, request_id
from .settings import ModelSettings

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""The longest that a server may take for its next piece."""
OPTIONS = ("max_tokens", "temperature", "top_p", "stop", "seed")
ENDS: dict[str, EndReason] = {"length": "length", "content_filter": "filtered"}
"""What the protocol calls the reasons for an end; any other is that the model was done."""


class OpenAIClient:
    """One model of a server, asked by the official client.

    The key is in the environment, under the name that the settings give. A server of one's own
    may need none.
    """

    def __init__(self, model: ModelSettings) -> None:
        self.name = model.name
        self._settings = model
        self._client = openai.AsyncOpenAI(
            base_url=model.base_url,
            api_key=os.environ.get(model.api_key_variable, "").strip() or "none",
            timeout=openai.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            max_retries=1,
        )

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
        own = self._settings
        reason = "stop"
        prompt_tokens: int | None = None
        try:
            async with await self._client.chat.completions.create(
                model=own.source,
                messages=[_turn(message) for message in own.conversation(messages)],
                max_tokens=options.max_new_tokens,
                temperature=own.temperature if options.temperature is None else options.temperature,
                top_p=own.top_p if options.top_p is None else options.top_p,
                stop=list(options.stop) or openai.omit,
                seed=openai.omit if options.seed is None else options.seed,
                stream=True,
            ) as chunks:
                async for chunk in chunks:
                    if chunk.usage:
                        prompt_tokens = chunk.usage.prompt_tokens
                    for choice in chunk.choices[:1]:
                        reason = choice.finish_reason or reason
                        # Servers send a chunk for each token.
                        if text := choice.delta.content:
                            yield Piece(text, 1)
            yield End(ENDS.get(reason, "stop"), prompt_tokens)
        except openai.OpenAIError as error:
            self._log(error)
            # What it came from may hold the prompt, or the key.
            raise self._explained(error) from None

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
            case openai.BadRequestError(param=str(option)) if option in OPTIONS:
                return InterruptionError(f"{name} does not take {option}. Name another server.")
            case openai.RateLimitError():
                return BusyError(f"{name} has too much to do. Try again in a moment.")
            case openai.BadRequestError() | openai.UnprocessableEntityError():
                return PromptError(f"{name} does not take this text. Shorten it, or ask for less.")
            case openai.AuthenticationError() | openai.PermissionDeniedError():
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


def _turn(message: Message) -> ChatCompletionMessageParam:
    match message.role:
        case "system":
            return {"role": "system", "content": message.content}
        case "assistant":
            return {"role": "assistant", "content": message.content}
        case "user":
            return {"role": "user", "content": message.content}
