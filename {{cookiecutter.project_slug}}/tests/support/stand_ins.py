"""Models that answer as a test needs, and the page before them, without Ray."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from {{ cookiecutter.__package }}.app import Settings
from {{ cookiecutter.__package }}.page import LAUNCH, build_page
from {{ cookiecutter.__package }}.serving.pages.settings import Limits
from {{ cookiecutter.__package }}.serving.protocol import End, GenerationOptions, Message, Piece


@dataclass
class StandIn:
    """Yields its pieces with a pause before each, and then fails if it has a failure."""

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


def user(text: str) -> list[Message]:
    """A conversation that has just begun."""
    return [Message("user", text)]


async def pieces_of(stream: AsyncGenerator[Piece | End, None]) -> list[Piece]:
    return [each async for each in stream if isinstance(each, Piece)]


def fast() -> StandIn:
    return StandIn("fast", ["one ", "two ", "three"])


def slow() -> StandIn:
    return StandIn("slow", [f"{number} " for number in range(300)], pause=0.1)


def broken() -> StandIn:
    return StandIn("broken", ["half "], failure=RuntimeError("secret path /srv/model"))


async def until(happened: Callable[[], bool]) -> None:
    """Waits for a minute at most."""
    for _ in range(600):
        if happened():
            return
        await asyncio.sleep(0.1)
    raise TimeoutError


@contextmanager
def page_of(*models: StandIn, title: str = "Words", running_requests: int = 32) -> Iterator[str]:
    """Yields the address of the page before these models."""
    limits = Limits(prompt_characters=1000, running_requests=running_requests)
    settings = Settings(title=title, limits=limits)
    page = build_page(settings, models)
    page.launch(prevent_thread_lock=True, quiet=True, **LAUNCH.options())
    try:
        yield page.local_url
    finally:
        page.close()
