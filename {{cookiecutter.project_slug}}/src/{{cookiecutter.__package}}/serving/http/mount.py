"""Mounts a page behind its guards, the same way on Ray and in the preview."""

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, wraps
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio import routes as gradio_routes
from gradio.state_holder import SessionState, StateHolder
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from ..telemetry.calls import meter_calls
from ..telemetry.logs import logger
from .files import check_files, remove_old_files
from .guard import explain_refusals, guard, refuse_files, takes_files
from .launch import Launch, launched
from .login import logged_in, rate_limits, share_browser_states, share_logins
from .settings import HttpSettings

IDLE_SECONDS = 0.005

if find_spec("matplotlib") is None:
    # Gradio searches the disk for matplotlib before and after each update of a page.
    gr.utils.MatplotlibBackendMananger = nullcontext


def mount(
    page: gr.Blocks | gr.Server,
    settings: HttpSettings,
    launch: Launch = Launch(),  # noqa: B008 - it is frozen
    middleware: Sequence[Middleware] = (),
    routes: Sequence[BaseRoute] = (),
    name: str = "page",
) -> FastAPI:
    """Returns the application that serves the page behind its guards.

    Args:
        middleware: runs after the guards, the first one outermost.
        routes: matched before the page's own routes.
        name: the application's name, which keeps its logins and states in a browser apart from
            those of other applications.

    Raises:
        LoginError: the settings need a login, but its password or secret is not set.
    """
    web = FastAPI(openapi_url=None)
    for each in reversed(middleware):
        web.add_middleware(each.cls, *each.args, **each.kwargs)
    blocks, options = launched(page, launch)
    if launch.max_file_size is not None:
        given = {"file_bytes": gr.utils._parse_file_size(launch.max_file_size)}
        limits = settings.limits.model_copy(update=given)
        settings = settings.model_copy(update={"limits": limits})
    files_are_taken = takes_files(blocks, launch)
    offers_tools = settings.mcp or _wants_tools(launch)
    guard(web, settings, takes_files=files_are_taken, offers_tools=offers_tools)
    web.router.routes.extend(routes)
    refuse_files(web, takes_files=files_are_taken)
    share_browser_states(blocks, settings, launch, name)
    check_files(blocks)
    log_failures(blocks)
    if settings.rate_limits is not None:
        rate_limits().limit_calls(blocks, settings)
    meter_calls(blocks)
    if launch.max_threads != Launch.max_threads:
        blocks.max_threads = blocks._queue.max_thread_count = launch.max_threads
    # By default, Gradio's queue looks for calls every millisecond, and uses 7% of a core when idle.
    blocks._queue.sleep_when_free = IDLE_SECONDS
    blocks.state_session_capacity = launch.state_session_capacity
    # The page's API documentation then mentions it.
    blocks.mcp_server = offers_tools
    taken = inspect.signature(gr.mount_gradio_app).parameters
    options = {option: value for option, value in options.items() if option in taken} | {
        "ssr_mode": False,
        "mcp_server": False,
        "max_file_size": settings.limits.file_bytes,
    }
    asks = any(options.get(name) is not None for name in ("auth", "auth_dependency"))
    if settings.asks_login and not asks:
        options["auth_dependency"] = logged_in
    with _in_place_of_an_app(page):
        gr.mount_gradio_app(web, blocks, path="/", **options)
    app = getattr(web.router.routes[-1], "app")  # noqa: B009 - a Mount has one
    if not _offers_deep_links(blocks):
        app.state_holder = _SmallStateHolder()
        app.state_holder.set_blocks(blocks)
    if launch.auth is not None:
        share_logins(app, name)
    if settings.rate_limits is not None and blocks.api_open:
        mounted = web.router.routes[-1]
        mounted.app = rate_limits().DirectCallMiddleware(app, app)  # type: ignore[attr-defined]
    if offers_tools:
        # Imported here because that takes a second.
        from .mcp_server import offer_tools

        offer_tools(web, app)
    explain_refusals(web)
    remove_old_files(web, blocks, settings.keep_files_seconds)
    return web


class _SmallSessionState(SessionState):
    """A session that does not keep the components' values, which only deep links need.

    Gradio keeps the config and the last value of each component, whatever its size, for up to
    10,000 sessions.
    """

    def __init__(self, blocks: gr.Blocks) -> None:
        super().__init__(SimpleNamespace(default_config=blocks.default_config, blocks={}))

    def _update_config(self, key: int) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


class _SmallStateHolder(StateHolder):
    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = _SmallSessionState(self.blocks)
        return super().__getitem__(session_id)


def _offers_deep_links(blocks: gr.Blocks) -> bool:
    # A page that renders again can add the button later.
    renders = blocks.default_config.renderables
    return bool(renders) or any(
        isinstance(each, gr.DeepLinkButton) for each in blocks.blocks.values()
    )


def _wants_tools(launch: Launch) -> bool:
    if launch.mcp_server is None:
        return os.environ.get("GRADIO_MCP_SERVER", "").lower() == "true"
    return launch.mcp_server


@contextmanager
def _in_place_of_an_app(page: gr.Blocks | gr.Server) -> Iterator[None]:
    """Makes Gradio put the page's routes behind those of a gr.Server, as its `launch()` does."""
    create_app = gradio_routes.App.create_app
    if isinstance(page, gr.Server):
        gradio_routes.App.create_app = staticmethod(partial(create_app, app=page))
    try:
        yield
    finally:
        gradio_routes.App.create_app = staticmethod(create_app)


def log_failures(page: gr.Blocks) -> None:
    """Logs the traceback of a function that raises to Serve's log. Gradio only prints it."""
    call = page.call_function

    @wraps(call)
    async def call_and_log(function: Any, *args: Any, **options: Any) -> Any:
        try:
            return await call(function, *args, **options)
        except Exception as error:
            if not isinstance(error, gr.Error) or error.print_exception:
                logger.exception("%s failed", getattr(function, "api_name", None) or "A function")
            raise

    page.call_function = call_and_log
