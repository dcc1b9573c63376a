"""The base of all other modules: strict settings, and errors with readable messages.

It imports neither Ray nor Gradio.
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
"""The header of a request whose session was lost with its replica. The page reads it."""

HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
PAGE_DEPLOYMENT = "GradioServer"
API_DEPLOYMENT = "ApiServer"


ALLOWANCE = "page.allowance"
"""The key in the ASGI scope for a request's `Allowance`, if the settings have rate limits."""


class Allowance(Protocol):
    """The rate limits of callers. `user` is the name from Gradio's own login."""

    async def take(self, scope: MutableMapping[str, Any], user: str | None = None) -> None:
        """Counts a request by its caller.

        Raises:
            HTTPException: it is over a limit. The message says which one, and when to try again.
        """

    def spend(self, scope: MutableMapping[str, Any], tokens: int, user: str | None = None) -> None:
        """Counts the tokens of an answer."""


def behind_haproxy() -> bool:
    """Returns whether Serve uses HAProxy instead of its own proxy."""
    return os.environ.get(HAPROXY) == "1"


class Strict(BaseModel):
    """Refuses unknown names, so that a misspelled setting is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StartError(RuntimeError):
    """The application cannot start. The message says why, and what to do."""


class LoginError(StartError):
    """The login is not set up. The message says why, and what to do."""


def rendezvous_hash(key: str, names: Iterable[str]) -> str:
    """Chooses a name by rendezvous hashing.

    Every process chooses the same one. If a name is added or removed, few keys move.
    """
    return max(names, key=lambda name: blake2b(f"{key} {name}".encode()).digest())


@contextmanager
def explain_pickling_errors() -> Iterator[None]:
    """Turns Ray's long error for an application that cannot be pickled into a short one."""
    try:
        yield
    except TypeError as error:
        if not str(error).startswith("Could not serialize the deployment"):
            raise
        raise StartError(
            "a deployment is bound with an object that cannot be sent to its replicas, such as a "
            "Gradio page. Import the page inside the function that you bind: "
            "def build_page(): from .my_demo import demo; return demo"
        ) from error


@contextmanager
def require_extra(extra: str, setting: str, libraries: Collection[str]) -> Iterator[None]:
    """Explains what to install if a setting needs libraries that are not installed.

    Raises:
        StartError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in libraries:
            raise
        raise StartError(
            f"the setting {setting} needs {error.name}, which is not installed. Install the extra: "
            f"uv sync --extra {extra}"
        ) from error


def refuse_launch_on_import(package: str) -> None:
    """Makes Gradio's `launch()` fail if a module of the package calls it on import.

    Otherwise, it would start a server and block. `serve run` imports the application itself, so no
    other code of the package can catch this.
    """
    call_on_import("gradio.blocks", lambda blocks: _refuse_launch(blocks, package))


def skip_stubs_of_gradio() -> None:
    """Stops Gradio from writing type stubs for components, its own and yours, at each import.

    This takes a third of the import time, and Gradio's package already contains its stubs.
    """

    def skip(component_meta: ModuleType) -> None:
        component_meta.create_or_modify_pyi = lambda *_: None  # type: ignore[attr-defined]

    call_on_import("gradio.component_meta", skip)


def call_on_import(name: str, change: Callable[[ModuleType], None]) -> None:
    """Calls `change` with a module now, or as soon as it is imported. Does not import it."""
    if module := sys.modules.get(name):
        change(module)
    else:
        sys.meta_path.insert(0, _ImportHook(name, change))


class _ImportHook(MetaPathFinder):
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
                    f"{module} calls launch() when it is imported, but Serve starts the page. Move "
                    'the call under `if __name__ == "__main__":`. Pass the options of launch() to '
                    "Launch."
                )
        return launch(*args, **options)

    blocks.Blocks.launch = launch_unless_imported
