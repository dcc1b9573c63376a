"""What the engine asks of a model's batch, and what comes back."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Protocol

from ..protocol import GenerationError
from .sampling import Sampling


class Request:
    """One prompt in a batch. Made and read in an event loop, filled by the batch's thread.

    `read` gets the tokens as they come, and returns whether no more are wanted.
    """

    def __init__(
        self, prompt: list[int], sampling: Sampling, read: Callable[[list[int]], bool]
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.left = False
        """Whether the reader has left, so that the rest is not wanted."""
        self.received = 0
        """How many tokens have come."""
        self._loop = asyncio.get_running_loop()
        self._read = read
        self._arrived = asyncio.Event()
        self._over = asyncio.Event()
        self._failure: str | None = None

    def add(self, tokens: list[int], *, ended: bool = False, failure: str | None = None) -> None:
        """Called by any thread: adds tokens, and ends the request where nothing follows."""
        self.received += len(tokens)
        try:
            self._loop.call_soon_threadsafe(self._receive, tokens, ended, failure)
        except RuntimeError:
            # The event loop is closed, and its reader with it.
            self.left = True

    async def arrivals(self, pause: Callable[[], float]) -> AsyncGenerator[None, None]:
        """Yields when tokens have been read: the first at once, then all of a pause together.

        Raises:
            GenerationError: the batch gave the request up.
        """
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                yield
                if self._failure is not None:
                    raise GenerationError(self._failure)
                if self._over.is_set():
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), pause())
        finally:
            self.left = True

    def _receive(self, tokens: list[int], ended: bool, failure: str | None) -> None:
        if self._over.is_set():
            return
        try:
            complete = self._read(tokens)
        except Exception as error:  # Else its reader would wait for ever.
            complete, failure = True, failure or f"{type(error).__name__}: {error}"
        self._failure = failure
        if complete or ended or failure is not None:
            self._over.set()
        self._arrived.set()


class Batch(Protocol):
    """Generates for many requests at a time, in a thread of its own."""

    def start(self, request: Request) -> None:
        """Lets the request join. Its tokens arrive until it ends or its reader has left."""

    def cancel(self, request: Request) -> None:
        """Takes the request out, within a step."""

    def is_running(self) -> bool:
        """Whether the thread lives."""

    def stop(self) -> None:
        """Ends the thread, and with it what is still running."""
