"""The interface between the engine and a model's batch."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from ..protocol import GenerationError
from .sampling import Sampling, choose
from .scores import Scores

if TYPE_CHECKING:
    import torch

Processor = Callable[[list[int], "torch.Tensor"], "torch.Tensor"]
"""Changes the scores, of shape [1, vocabulary], for the token after the given ones."""
NOT_FINITE = "the model's scores for this text are not finite numbers"


class Request:
    """One prompt in a batch, and the tokens so far. The batch's thread adds them."""

    def __init__(
        self, prompt: list[int], sampling: Sampling, process: Processor | None = None
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.process = process
        self.left = False
        """Whether the reader has left and needs no more tokens."""
        self.text: list[int] = []
        self.asked = time.time_ns()
        self.admitted: int | None = None
        """When the batch started it, in nanoseconds since 1970."""
        self.first: int | None = None
        """When its first token arrived, in nanoseconds since 1970."""

    def __deepcopy__(self, memo: dict[int, object]) -> "Request":
        # transformers copies a request that it restarts when the cache was full.
        return self

    def add(self, tokens: list[int], *, ended: bool = False, failure: str | None = None) -> None:  # noqa: ARG002
        """Adds tokens, and ends the request if it has ended or failed."""
        if tokens and self.first is None:
            self.first = time.time_ns()
        self.text += tokens

    def admit(self) -> None:
        """Called when the batch starts it, and again if it had to restart for lack of space."""
        if self.admitted is None:
            self.admitted = time.time_ns()

    def see(self, scores: Scores, row: int) -> None:
        """Called with the scores for the next token. Those of this request are in `row`."""

    @property
    def received(self) -> int:
        return len(self.text)


class StreamedRequest(Request):
    """A request that is made and read in an event loop.

    `read` is called with the tokens as they arrive, and returns True to stop.
    """

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        read: Callable[[list[int]], bool],
        process: Processor | None = None,
    ) -> None:
        super().__init__(prompt, sampling, process)
        self._loop = asyncio.get_running_loop()
        self._read = read
        self._arrived = asyncio.Event()
        self._over = asyncio.Event()
        self._failure: str | None = None

    def add(self, tokens: list[int], *, ended: bool = False, failure: str | None = None) -> None:
        super().add(tokens)
        try:
            self._loop.call_soon_threadsafe(self._receive, tokens, ended, failure)
        except RuntimeError:
            # The event loop is closed, so nobody reads any more.
            self.left = True

    async def arrivals(self, pause: Callable[[], float]) -> AsyncGenerator[None, None]:
        """Yields after new tokens: at once for the first ones, then after each pause.

        Raises:
            GenerationError: the generation failed.
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
        except Exception as error:  # Otherwise the reader would wait forever.
            complete, failure = True, failure or f"{type(error).__name__}: {error}"
        self._failure = failure
        if complete or ended or failure is not None:
            self._over.set()
        self._arrived.set()


def pick(requests: Sequence[Request], scores: Scores, end: Sequence[int]) -> list[int | None]:
    """Returns the next token of each request. Row `n` of the scores belongs to request `n`.

    A request whose scores are not finite fails, and its token is None.
    """
    for row, request in enumerate(requests):
        request.see(scores, row)
    early = [
        row
        for row, request in enumerate(requests)
        if request.received < request.sampling.min_new_tokens
    ]
    # Before the processors, because a config may force the last token.
    scores.forbid(end, early)
    for row, request in enumerate(requests):
        if request.process is not None:
            before = scores.tensor(row)
            before.copy_(request.process(request.text, before))
    numbers = [request.sampling.numbers(request.received) for request in requests]
    picked: list[int | None] = []
    for request, token in zip(requests, choose(*scores.likeliest(), numbers), strict=True):
        if token < 0:
            request.add([], failure=NOT_FINITE)
        picked.append(None if token < 0 else token)
    return picked


class Batch(Protocol):
    """Generates for many requests at a time, in its own thread."""

    def start(self, request: Request) -> None:
        """Adds the request. Its tokens arrive until it ends or its reader leaves."""

    def cancel(self, request: Request) -> None:
        """Removes the request within one step."""

    def is_running(self) -> bool:
        """Whether the thread is alive."""

    def stop(self) -> None:
        """Ends the thread, and all requests that are still running."""
