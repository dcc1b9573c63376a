"""The apps for these tests, and the calls to them."""

import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradio.context import Context
from playwright.sync_api import Page


@dataclass(frozen=True)
class File:
    """Stands for a value: a file of `files.py`, which is uploaded first."""

    name: str


@dataclass(frozen=True)
class Ask:
    """A call of a function by its name in the API. The calls of an app share a session."""

    endpoint: str
    values: tuple[Any, ...]
    """A value for each input in the API."""
    refused: bool = False
    """Whether a component refuses the value, with a 422 on Serve and a 500 elsewhere."""


def ask(endpoint: str, *values: Any) -> Ask:
    return Ask(endpoint, values)


def refused(endpoint: str, *values: Any) -> Ask:
    return Ask(endpoint, values, refused=True)


@dataclass(frozen=True)
class App:
    make: Callable[[], Any]
    """Returns the page that a user would `launch()`."""
    asks: tuple[Ask, ...] = ()
    use: Callable[[Page], object] | None = None
    """What a visitor does in a browser; None skips the browser."""
    launch: Mapping[str, Any] | None = None

    def build(self) -> Any:
        # Number components and example folders as in a separate process.
        Context.id = 0
        examples = Path(os.environ["GRADIO_TEMP_DIR"]) / "examples" / self.make.__name__
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(examples)
        return self.make()


APPS: dict[str, App] = {}


def app(
    *asks: Ask, use: Callable[[Page], object] | None = None, **launch: Any
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Registers the decorated function as an app."""

    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        APPS[make.__name__] = App(make, asks, use, launch)
        return make

    return add


def all_apps() -> dict[str, App]:
    for module in ("components", "events", "options", "pages"):
        pkgutil.resolve_name(f"{__package__}.{module}")
    return APPS
