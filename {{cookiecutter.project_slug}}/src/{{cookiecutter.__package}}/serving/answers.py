"""Asks several models at once, and keeps the progress of each answer.

It imports neither Ray nor Gradio nor torch.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from enum import StrEnum

from .protocol import (
    BusyError,
    End,
    GenerationOptions,
    InterruptionError,
    Message,
    Model,
    Piece,
    PromptError,
    on_model_start,
)
from .telemetry.logs import logger, request_id


class State(StrEnum):
    WAITING = "waiting"
    WRITING = "writing"
    DONE = "done"
    FAILED = "failed"


@dataclass
class Answer:
    """One model's answer so far."""

    text: str = ""
    thoughts: str = ""
    """The model's reasoning before its answer."""
    tokens: int = 0
    state: State = State.WAITING
    starting: bool = False
    """Whether the answer is waiting for its model to start."""
    failure: str = ""
    """Why it failed, as a message for the visitor."""
    end: End | None = None
    _asked: float = field(default_factory=time.monotonic)
    _first: tuple[float, int] | None = None
    """When the first piece arrived, and its number of tokens."""
    _last: float = 0

    @property
    def first_text_seconds(self) -> float | None:
        return None if self._first is None else self._first[0] - self._asked

    @property
    def tokens_per_second(self) -> float | None:
        """The speed of the tokens after the first piece."""
        if self._first is None or self._last <= self._first[0]:
            return None
        return (self.tokens - self._first[1]) / (self._last - self._first[0])

    @property
    def seconds(self) -> float:
        """The time until the last piece arrived."""
        return max(self._last - self._asked, 0)

    @property
    def cut_off(self) -> bool:
        """Whether the answer reached the token limit before the model was done."""
        return self.end is not None and self.end.reason == "length"

    @property
    def whole(self) -> str:
        """The text, and the failure in a separate paragraph."""
        return f"{self.text}\n\n⚠ {self.failure}".lstrip() if self.failure else self.text

    def add(self, piece: Piece | End) -> None:
        self.starting = False
        if isinstance(piece, End):
            self.end = piece
            return
        self._last = time.monotonic()
        if self._first is None:
            self._first = (self._last, piece.tokens)
        if piece.thought:
            self.thoughts += piece.text
        else:
            self.text += piece.text
        self.tokens += piece.tokens
        self.state = State.WRITING

    def fail(self, reason: str) -> None:
        self.failure = reason
        self.state, self.starting = State.FAILED, False


def fan_out(
    models: Sequence[Model],
    messages: Sequence[Message],
    options: GenerationOptions,
    pause: Callable[[], float],
    answer_seconds: float,
) -> AsyncGenerator[list[Answer], None]:
    """Asks all models at once, and yields all answers so far whenever one of them changes.

    After each update, it pauses and collects further changes, because nobody can read faster. If a
    model fails, its answer gives the reason. Closing the iterator stops all models.
    """
    return fan_out_each(models, [messages] * len(models), options, pause, answer_seconds)


async def fan_out_each(
    models: Sequence[Model],
    conversations: Sequence[Sequence[Message]],
    options: GenerationOptions,
    pause: Callable[[], float],
    answer_seconds: float,
) -> AsyncGenerator[list[Answer], None]:
    """Works like `fan_out`, but with a separate conversation for each model."""
    answers = [Answer() for _ in models]
    changed, all_ended = asyncio.Event(), asyncio.Event()
    running = len(models)

    async def read(answer: Answer, model: Model, messages: Sequence[Message]) -> None:
        nonlocal running

        def starts() -> None:
            answer.starting = True
            changed.set()

        on_model_start.set(starts)
        try:
            async with (
                asyncio.timeout(answer_seconds),
                aclosing(model.stream(messages, options)) as pieces,
            ):
                async for piece in pieces:
                    answer.add(piece)
                    changed.set()
            answer.state = State.DONE
        except Exception as error:
            answer.fail(explain(model, error, starting=answer.starting))
        finally:
            running -= 1
            changed.set()
            if not running:
                all_ended.set()

    readers = [
        asyncio.create_task(read(*each))
        for each in zip(answers, models, conversations, strict=True)
    ]
    try:
        while running or changed.is_set():
            await changed.wait()
            changed.clear()
            yield answers
            with suppress(TimeoutError):
                async with asyncio.timeout(pause()):
                    await all_ended.wait()
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


def explain(model: Model, error: Exception, *, starting: bool = False) -> str:
    """Returns why a model failed, for the visitor, and logs unexpected errors.

    Args:
        starting: whether the model had not started yet when it failed.
    """
    if isinstance(error, PromptError | BusyError | InterruptionError):
        return str(error)
    if isinstance(error, TimeoutError):
        if starting:
            return f"{model.name} is still starting. Try again in a moment."
        return f"{model.name} was stopped because it took too long. Ask for fewer tokens."
    facts = {"request": request_id.get(), "model": model.name}
    logger.error("%s failed", model.name, exc_info=error, extra=facts)
    return f"{model.name} failed to answer. Try again. If it keeps failing, see the server's log."
