"""Stand-ins for models, and pages with them, without Ray."""

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.types import ASGIApp

from {{ cookiecutter.__package }}.serving import (
    Limits,
    ModelSettings,
    PageSettings,
)
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.protocol import (
    End,
    GenerationOptions,
    Message,
    Piece,
    on_model_start,
)

from .compare_page import LAUNCH, build_page


@dataclass
class StandIn:
    """Yields pieces with a pause before each, then raises its failure if set."""

    name: str
    pieces: list[str]
    pause: float = 0.0
    failure: Exception | None = None
    asked: list[tuple[Sequence[Message], GenerationOptions]] = field(default_factory=list)
    left: int = 0

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        self.asked.append((messages, options))
        try:
            for piece in self.pieces:
                await asyncio.sleep(self.pause)
                yield Piece(piece, 1)
            if self.failure:
                raise self.failure
            yield End("stop")
        finally:
            self.left += 1


@dataclass
class Asleep(StandIn):
    """Reports that it is starting, a while before its first piece."""

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        on_model_start.get()()
        async with aclosing(super().stream(messages, options)) as pieces:
            async for piece in pieces:
                yield piece


@dataclass
class CutOff(StandIn):
    """Is truncated once, and completes when it is continued."""

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        self.asked.append((messages, options))
        goes_on = messages[-1].role == "assistant"
        yield Piece(" end" if goes_on else "The", 1)
        yield End("stop" if goes_on else "length")


def user(text: str) -> list[Message]:
    """A conversation with one question."""
    return [Message("user", text)]


async def pieces_of(stream: AsyncGenerator[Piece | End, None]) -> list[Piece]:
    return [each async for each in stream if isinstance(each, Piece)]


def fast() -> StandIn:
    return StandIn("fast", ["one ", "two ", "three"])


def slow() -> StandIn:
    """Writes slowly enough for a test on a busy machine to see it."""
    return StandIn("slow", [f"{number} " for number in range(3000)], pause=0.1)


def broken() -> StandIn:
    return StandIn("broken", ["half "], failure=RuntimeError("secret path /srv/model"))


async def until(happened: Callable[[], bool]) -> None:
    """Waits for a minute at most."""
    for _ in range(600):
        if happened():
            return
        await asyncio.sleep(0.1)
    raise TimeoutError


def settings_of(title: str = "Words", running_requests: int = 32) -> PageSettings:
    return PageSettings(
        title=title,
        description="",
        models=(ModelSettings(name="unused", source="unused"),),
        limits=Limits(prompt_characters=1000, running_requests=running_requests),
    )


@contextmanager
def page_of(
    *models: StandIn,
    running_requests: int = 32,
    options: GenerationOptions = GenerationOptions(),  # noqa: B008 - it is frozen
) -> Iterator[str]:
    """Yields the URL of a page of `serving` with these models."""
    settings = settings_of(running_requests=running_requests)
    settings = settings.model_copy(update={"options": options})
    with in_thread(mount(build_page(settings, models), settings, LAUNCH)) as url:
        yield f"{url}/"


@contextmanager
def in_thread(web: ASGIApp) -> Iterator[str]:
    """Serves on a free loopback port and yields the URL, without a trailing slash."""
    config = uvicorn.Config(web, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()
