"""Shows the page without Ray, and reloads it when a file in the package changes.

One process watches the files, and another one loads the page and serves it. If there is no page to
serve, the first process shows the reason, so that a browser always gets an answer.
"""

import faulthandler
import html
import importlib
import inspect
import os
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial, update_wrapper
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from socket import create_server, socket
from string import Template
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple, Protocol, get_type_hints, runtime_checkable

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Mount, Route
from watchfiles import DefaultFilter, watch

from .base import StartError, explain_pickling_errors

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

HOST = "127.0.0.1"
PACKAGE = Path(__file__).parents[1]
POLL_MS = 100
LOAD_SECONDS = 120
ENGINE_LOAD_SECONDS = 600
STOP_SECONDS = 3
VERSION_PATH = "/preview-version"
RELOAD_SCRIPT = Template("""<script>
    setInterval(async () => {
        const answer = await fetch("$path", {cache: "no-store"}).catch(() => null)
        if (answer?.ok && await answer.text() !== "$version") location.reload()
    }, 500)
</script>""")
NOTICE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
    :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
    body { margin: 3rem auto; max-width: 60rem; padding: 0 1.5rem }
    h1 { font-size: 1.5rem }
    pre { font: 14px/1.6 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap }
    pre:empty { display: none }
    .cause { color: light-dark(#b91c1c, #fca5a5); font-weight: 600 }
    .traceback { background: light-dark(#f3f4f6, #1f2937); border-radius: 8px; padding: 1rem }
</style>
<h1>$title</h1>
<pre class="cause">$cause</pre>
<pre class="traceback">$traceback</pre>
<p>The page reloads when you change a file in its package.</p>
$reload_script
""")


@runtime_checkable
class HasPreview(Protocol):
    """A page's builder that can build the page with stand-ins for its deployments."""

    def preview(
        self,
        deployments: "Sequence[Application]",
        handle_of: "Callable[[Application], DeploymentHandle]",
        *,
        engine: bool,
    ) -> "gr.Blocks": ...


class Failure(NamedTuple):
    """Why there is no page."""

    cause: str
    traceback: str = ""


def preview(build: str, *, engine: bool, port: int) -> None:
    """Shows the page that `build` binds until it is interrupted.

    Args:
        build: the import path `package.app:build`. It is not imported yet, because that may fail.
        engine: whether the real models answer, instead of stand-ins.

    Raises:
        StartError: the port cannot be used.
    """
    # SIGTERM works like Ctrl-C, which a background process would otherwise ignore.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with _listen(port) as listening:
        try:
            _follow_changes(build, engine, listening)
        except KeyboardInterrupt:
            print("Stopped.", flush=True)


def _follow_changes(build: str, engine: bool, listening: socket) -> None:
    host, port = listening.getsockname()
    shown: Page | Notice = Notice("Loading the page", None, listening)
    loading: Page | None = None
    told = False
    try:
        changes = watch(
            PACKAGE,
            # The other directories that it ignores by default may contain the package.
            watch_filter=DefaultFilter(ignore_dirs=["__pycache__"]),
            rust_timeout=POLL_MS,
            yield_on_timeout=True,
        )
        # This starts the watcher, so that it misses no change while the page loads.
        next(changes)
        loading = Page(build, engine, listening)
        for changed in changes:
            page = loading or shown
            if changed:
                if loading:
                    loading.stop()
                loading = Page(build, engine, listening)
            elif isinstance(page, Page) and page.has_news():
                failure = page.failure()
                if failure:
                    print(failure.traceback or failure.cause, file=sys.stderr, flush=True)
                before = shown
                shown = Notice("The page has an error", failure, listening) if failure else page
                for each in {before, page} - {shown}:
                    each.stop()
                loading = None
                if told and not failure:
                    print("The page was reloaded.", flush=True)
                if not told:
                    told = True
                    print(f"The preview is up: http://{host}:{port}/", flush=True)
                    print(f"It reloads on changes in {PACKAGE}. Press Ctrl-C to stop.", flush=True)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        shown.stop()
        if loading:
            loading.stop()


def _listen(port: int) -> socket:
    try:
        return create_server((HOST, port))
    except OverflowError as error:
        raise StartError(f"port {port} is out of range. Choose one below 65536.") from error
    except OSError as error:
        raise StartError(
            f"port {port} cannot be used: {os.strerror(error.errno or 0)}. Stop the program that uses "
            "it, or set --port to a free one."
        ) from error


class Page:
    """A process that loads the page from the current files, and serves it."""

    def __init__(self, build: str, engine: bool, listening: socket) -> None:
        spawn = get_context("spawn")
        self._news, sender = spawn.Pipe(duplex=False)
        self._process = spawn.Process(target=_serve_page, args=(build, engine, listening, sender))
        # A terminal sends Ctrl-C to both processes, but this process stops the other one.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._process.start()
        signal.signal(signal.SIGINT, handler)
        sender.close()

    def has_news(self) -> bool:
        """Returns whether the page is up, could not be loaded, or ended."""
        return self._news.poll()

    def failure(self) -> Failure | None:
        """Returns why there is no page, or None if it is up."""
        try:
            failure: Failure | None = self._news.recv()
        except EOFError:
            self._process.join(STOP_SECONDS)
            return Failure(
                f"The page's process ended with exit status {self._process.exitcode}. "
                "See its output in the terminal."
            )
        return failure

    def stop(self) -> None:
        self._process.terminate()
        self._process.join(STOP_SECONDS)
        self._process.kill()
        self._process.join()
        self._news.close()


class Notice:
    """Answers every request with a message, while there is no page."""

    def __init__(self, title: str, failure: Failure | None, listening: socket) -> None:
        version = _version()
        page = NOTICE.substitute(
            title=title,
            cause=html.escape(failure.cause if failure else ""),
            traceback=html.escape(failure.traceback if failure else ""),
            reload_script=_reload_script(version),
        )
        answer = HTMLResponse(page, 500 if failure else 503, {"cache-control": "no-store"})
        web = Starlette(
            routes=[Route(VERSION_PATH, PlainTextResponse(version)), Mount("/", answer)],
            # A traceback has source code, which other sites could otherwise read by DNS rebinding.
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        )
        self._server = uvicorn.Server(_server_config(web))
        self._thread = Thread(target=self._server.run, args=([listening.dup()],))
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


def _version() -> str:
    return f"{os.getpid()}.{time.time_ns()}"


def _reload_script(version: str) -> str:
    """Returns a script that reloads the page when another version is served."""
    return RELOAD_SCRIPT.substitute(path=VERSION_PATH, version=version)


def _server_config(web: Starlette) -> uvicorn.Config:
    return uvicorn.Config(web, lifespan="on", log_level="warning", timeout_graceful_shutdown=1)


class PageServer(uvicorn.Server):
    """A server that reports when it is up."""

    def __init__(self, config: uvicorn.Config, news: Connection) -> None:
        super().__init__(config)
        self._news = news

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._news.send(None)


def _serve_page(build: str, engine: bool, listening: socket, news: Connection) -> None:
    # A handler, because the page's child processes would inherit an ignored signal.
    signal.signal(signal.SIGINT, lambda *_: None)
    # Exits cleanly, so that resources are released.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    # If loading takes too long, this prints where it is stuck.
    faulthandler.dump_traceback_later(ENGINE_LOAD_SECONDS if engine else LOAD_SECONDS, exit=True)
    try:
        web = load_page(build, engine=engine, version=_version())
    except StartError as error:
        news.send(Failure(str(error)))
    except (Exception, SystemExit) as error:
        news.send(_failure(error))
    else:
        faulthandler.cancel_dump_traceback_later()
        PageServer(_server_config(web), news).run([listening])


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _failure(error: BaseException) -> Failure:
    """Returns the traceback, starting at the first frame in your own files."""
    machinery = {__file__, pkgutil.__file__, importlib.__file__}
    frames = error.__traceback__
    while frames:
        file = frames.tb_frame.f_code.co_filename
        if file not in machinery and not file.startswith("<frozen importlib"):
            break
        frames = frames.tb_next
    [*_, cause] = traceback.format_exception_only(error)
    text = "".join(traceback.format_exception(error.with_traceback(frames)))
    return Failure(cause.strip(), text.rstrip())


def load_page(build: str, *, engine: bool, version: str) -> "FastAPI":
    """Mounts the page as its deployment does, but without the session cookie."""
    # Imported here because the process that watches the files does not load Gradio.
    from .http.ingress import PageIngress, add_outer_middleware
    from .http.launch import built, forbid_launch
    from .http.mount import mount

    with explain_pickling_errors(), forbid_launch(build):
        bind = pkgutil.resolve_name(build)
        application: Application = bind(get_type_hints(bind)["settings"]())
    bound = application._bound_deployment
    if not (inspect.isclass(bound.func_or_class) and issubclass(bound.func_or_class, PageIngress)):
        raise StartError(
            f"the preview needs a GradioServer application, but {build} returns {bound.name}. "
            "Return GradioServer.bind(…)."
        )
    given = inspect.signature(PageIngress).bind(*bound.init_args, **bound.init_kwargs)
    given.apply_defaults()
    arguments = given.arguments
    launch, builder = arguments["launch"], arguments["builder"]
    make = update_wrapper(partial(_built, builder, arguments["models"], engine=engine), builder)
    page = built(make)
    # Without a head in Launch, the one from gr.Blocks applies.
    head = getattr(page, "_deprecated_head", None) if launch.head is None else launch.head
    web = mount(
        page,
        arguments["settings"],
        replace(launch, head=(head or "") + _reload_script(version)),
        arguments["middleware"],
        [Route(VERSION_PATH, PlainTextResponse(version)), *arguments["routes"]],
    )
    add_outer_middleware(web, builder, arguments["settings"])
    # Fails now if middleware cannot be created, rather than at each request.
    web.middleware_stack = web.build_middleware_stack()
    return web


def _built(
    builder: "Callable[..., gr.Blocks]", deployments: Sequence["Application"], *, engine: bool
) -> "gr.Blocks":
    if isinstance(builder, HasPreview):
        return builder.preview(deployments, _local_handle, engine=engine)
    return builder(*map(_local_handle, deployments))


def _local_handle(application: "Application") -> "DeploymentHandle":
    from ray import serve

    return serve.run(application, _local_testing_mode=True)
