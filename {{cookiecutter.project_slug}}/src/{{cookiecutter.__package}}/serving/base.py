"""What every part of the machinery builds on: strict settings, and errors that a person reads.

Knows neither Ray nor Gradio.
"""

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import wraps
from hashlib import blake2b
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from traceback import walk_stack
from types import ModuleType
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

SESSION_LOST = "x-session-lost"
"""Header that the page finds in a request whose session went with a replica that is gone."""

HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
PAGE_DEPLOYMENT = "GradioServer"


ALLOWANCE = "page.allowance"
"""Where a request has an `Allowance`, if the settings limit what callers may ask for."""


class Allowance(Protocol):
    """What callers may ask for. A user is one whom Gradio's own login knows."""

    async def take(self, scope: MutableMapping[str, Any], user: str | None = None) -> None:
        """Counts a request of whoever sent it.

        Raises:
            HTTPException: it is over a limit; the message says which, and when to come again.
        """

    def spend(self, scope: MutableMapping[str, Any], tokens: int, user: str | None = None) -> None:
        """Counts tokens that an answer took."""


def behind_haproxy() -> bool:
    """Whether Serve's HAProxy stands in the place of its own proxy."""
    return os.environ.get(HAPROXY) == "1"


class Strict(BaseModel):
    """Refuses names it does not know, so that a misspelt argument is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StartError(RuntimeError):
    """The application cannot start; the message says why and what to do."""


class LoginError(StartError):
    """The login cannot be offered; the message says why and what to do."""


def chosen_by_hash(key: str, names: Iterable[str]) -> str:
    """Rendezvous hashing: every process chooses the same name, and few keys change it with one."""
    return max(names, key=lambda name: blake2b(f"{key} {name}".encode()).digest())


@contextmanager
def explained() -> Iterator[None]:
    """Says in one line what Ray says in thirty where an application cannot be pickled."""
    try:
        yield
    except TypeError as error:
        if not str(error).startswith("Could not serialize the deployment"):
            raise
        raise StartError(
            "a deployment is bound with something that cannot be sent to its replicas. A Gradio "
            "page cannot: import it inside of the function that you bind, as in "
            "def build_page(): from .my_demo import demo; return demo"
        ) from error


@contextmanager
def from_extra(extra: str, setting: str, libraries: Collection[str]) -> Iterator[None]:
    """Says what to install where a setting's own module is imported without its libraries.

    Raises:
        StartError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in libraries:
            raise
        raise StartError(
            f"the setting {setting} needs {error.name}, which is an extra of the project. Install "
            f"it: uv sync --extra {extra}"
        ) from error


def refuse_launch_on_import(package: str) -> None:
    """Has Gradio's `launch()` fail where a module of the package calls it on import.

    It would start a server and wait for ever. `serve run` imports the application by itself, so
    nothing else of the package is there to say so.
    """
    _change_on_import("gradio.blocks", lambda blocks: _refuse_launch(blocks, package))


def skip_stubs_of_gradio() -> None:
    """Has Gradio not write type stubs for its components, and yours, each time it is imported.

    It takes a third of the import, and Gradio's package has the stubs of its own.
    """

    def skip(component_meta: ModuleType) -> None:
        component_meta.create_or_modify_pyi = lambda *_: None  # type: ignore[attr-defined]

    _change_on_import("gradio.component_meta", skip)


def _change_on_import(name: str, change: Callable[[ModuleType], None]) -> None:
    """Changes a module now, or once it is imported, without an import of its own."""
    if module := sys.modules.get(name):
        change(module)
    else:
        sys.meta_path.insert(0, _ChangeOnImport(name, change))


class _ChangeOnImport(MetaPathFinder):
    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._change = change

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self._change(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _refuse_launch(blocks: ModuleType, package: str) -> None:
    launch = blocks.Blocks.launch

    @wraps(launch)
    def launch_unless_imported(*args: Any, **options: Any) -> Any:
        for frame, _ in walk_stack(sys._getframe()):
            module = frame.f_globals.get("__name__", "")
            if frame.f_code.co_name == "<module>" and module.startswith(f"{package}."):
                raise StartError(
                    f"{module} calls launch() when it is imported, and Serve does that. Put the "
                    'call under `if __name__ == "__main__":`. What launch() takes, give to Launch.'
                )
        return launch(*args, **options)

    blocks.Blocks.launch = launch_unless_imported
