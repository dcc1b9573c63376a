"""What an app of these tests is, and what is asked of it."""

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
    """In the place of a value: a file of `files.py`, which is uploaded first."""

    name: str


@dataclass(frozen=True)
class Ask:
    """A call of a function by its name in the API. The calls of an app share a session."""

    endpoint: str
    values: tuple[Any, ...]
    """Of each input that the API tells of."""
    refused: bool = False
    """Whether a component takes no such value, which is 422 on Serve and 500 elsewhere."""


def ask(endpoint: str, *values: Any) -> Ask:
    return Ask(endpoint, values)


def refused(endpoint: str, *values: Any) -> Ask:
    return Ask(endpoint, values, refused=True)


@dataclass(frozen=True)
class App:
    make: Callable[[], Any]
    """Returns what a person would `launch()`."""
    asks: tuple[Ask, ...] = ()
    use: Callable[[Page], object] | None = None
    """What a visitor does in a browser; without it, none opens the app."""
    launch: Mapping[str, Any] | None = None

    def build(self) -> Any:
        # Components are numbered as in a process of their own, and so are the folders of examples.
        Context.id = 0
        examples = Path(os.environ["GRADIO_TEMP_DIR"]) / "examples" / self.make.__name__
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(examples)
        return self.make()


APPS: dict[str, App] = {}


def app(
    *asks: Ask, use: Callable[[Page], object] | None = None, **launch: Any
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Puts the function below among the apps."""

    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        APPS[make.__name__] = App(make, asks, use, launch)
        return make

    return add


def all_apps() -> dict[str, App]:
    for module in ("components", "events", "options", "pages"):
        pkgutil.resolve_name(f"{__package__}.{module}")
    return APPS
