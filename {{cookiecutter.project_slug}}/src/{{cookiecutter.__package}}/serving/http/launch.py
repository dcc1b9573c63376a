"""What a page looks like and may do, under the names of Gradio's `launch()`."""

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

import gradio as gr
from fastapi import Request

from ..base import StartError

FooterLink = Literal["api", "gradio", "settings", "runs"]
Login = tuple[str, str]
PathOrPaths = str | Path | Sequence[str | Path]

NO_NOTEBOOK = "no notebook shows the page. Open the address that the start prints"
NO_TUNNEL = "Serve has an address of its own. Let a proxy before it be reached from elsewhere"
NO_NODE = "the page is rendered in the browser. More replicas answer more visitors: num_replicas"
IN_CONFIG = "the Serve config says it, in http_options"

REFUSED: Mapping[str, str] = {
    "inline": NO_NOTEBOOK,
    "inbrowser": NO_NOTEBOOK,
    "height": NO_NOTEBOOK,
    "width": NO_NOTEBOOK,
    "share": NO_TUNNEL,
    "share_server_address": NO_TUNNEL,
    "share_server_protocol": NO_TUNNEL,
    "share_server_tls_certificate": NO_TUNNEL,
    "debug": "Serve keeps tracebacks in its logs",
    "quiet": "the Serve config says what is logged, in logging_config",
    "prevent_thread_lock": "Serve keeps the page running",
    "server_name": f"{IN_CONFIG}: host",
    "server_port": f"{IN_CONFIG}: port",
    "ssl_keyfile": IN_CONFIG,
    "ssl_certfile": IN_CONFIG,
    "ssl_keyfile_password": IN_CONFIG,
    "ssl_verify": "nothing here asks the page over HTTPS",
    "path": "the Serve config says it, in route_prefix",
    "root_path": "the Serve config says it, in route_prefix, and args: what a proxy changes of it",
    "strict_cors": "args: in the Serve config say which other sites may call the page",
    "ssr_mode": NO_NODE,
    "node_server_name": NO_NODE,
    "node_port": NO_NODE,
    "num_workers": NO_NODE,
}
"""What `launch()` takes and makes no sense behind Serve, and what does instead."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Options of Gradio's `launch()`, with its defaults.

    Raises:
        StartError: one makes no sense behind Serve, or a path is not absolute.
    """

    theme: gr.Theme | str | None = None
    css: str | None = None
    css_paths: PathOrPaths | None = None
    js: str | Literal[True] | None = None
    head: str | None = None
    head_paths: PathOrPaths | None = None
    favicon_path: str | Path | None = None
    allowed_paths: Sequence[str | Path] = ()
    """Files and directories that every visitor may read, and the page's functions may return."""
    blocked_paths: Sequence[str | Path] = ()
    """Files and directories that no visitor reads, wherever they are."""
    max_file_size: str | int | None = None
    """Of one upload: `"20mb"`. None leaves it to the settings."""
    footer_links: Sequence[FooterLink | Mapping[str, str]] | None = None
    i18n: gr.I18n | None = None
    pwa: bool | None = None
    run_history: bool | None = None
    """Whether a browser keeps a visitor's calls."""
    show_error: bool = False
    """Whether a reader sees errors that are no gr.Error; they may tell a path."""
    auth: Login | Sequence[Login] | Callable[[str, str], bool | Awaitable[bool]] | None = None
    """Who may log in. Each replica knows it by the variable `PAGE_SECRET`."""
    auth_message: str | None = None
    auth_dependency: Callable[[Request], str | Awaitable[str | None] | None] | None = None
    """Returns the name of who asks, or None for nobody, from the request alone."""
    mcp_server: bool | None = None
    """Whether clients of the Model Context Protocol find the page's functions, as `mcp` says."""
    enable_monitoring: bool | None = None
    """Whether a replica shows at `/monitoring` how its own calls went."""
    max_threads: int = 40
    """A page of models has by itself as many as its limits need."""
    state_session_capacity: int = 10_000
    app_kwargs: Mapping[str, Any] | None = None

    def __new__(cls, **options: object) -> Self:
        for name in options:
            if name in REFUSED:
                raise StartError(f"Launch takes no {name}: {REFUSED[name]}.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        # A replica has a working directory of its own.
        for name in ("css_paths", "head_paths", "favicon_path", "allowed_paths", "blocked_paths"):
            for path in listed(getattr(self, name)):
                if not Path(path).is_absolute():
                    raise StartError(
                        f"the path {str(path)!r} is not absolute; write it from / on, or as "
                        f"Path(__file__).parent / {str(path)!r}, in {name} of Launch"
                    )
        if self.auth is not None and self.auth_dependency is not None:
            raise StartError("Launch takes auth or auth_dependency, not both.")

    def options(self) -> dict[str, Any]:
        """Returns what is given, as `launch()` takes it."""
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("allowed_paths", "blocked_paths"):
            given = listed(options[name]) or os.environ.get(f"GRADIO_{name.upper()}", "").split(",")
            options[name] = [str(path).strip() for path in given if path]
        options = {name: value for name, value in options.items() if value is not None}
        for name, kind in (("footer_links", list), ("app_kwargs", dict), ("favicon_path", str)):
            if name in options:
                options[name] = kind(options[name])
        return options


def listed(paths: PathOrPaths | None) -> list[str | Path]:
    """Takes lists in a list too, as Gradio does."""
    if paths is None:
        return []
    if isinstance(paths, str | Path):
        return [paths]
    return [path for each in paths for path in listed(each)]


def name_of(builder: object) -> str:
    return getattr(builder, "__qualname__", None) or type(builder).__name__


@contextmanager
def refusing_launch(who: str) -> Iterator[None]:
    """Raises StartError where `launch()` is called, which would start a server and wait for ever."""

    def refuse(*_: object, **__: object) -> None:
        raise StartError(
            f"{who} calls launch(), and Serve does that. Return the page instead, or put the call "
            'under `if __name__ == "__main__":`. What launch() takes, give to Launch.'
        )

    with launching(refuse):
        yield


def built(builder: Callable[..., Any], *handles: object) -> gr.Blocks | gr.Server:
    """Returns the page that a builder makes.

    Raises:
        StartError: it launches the page, or returns none.
    """
    with refusing_launch(name_of(builder)):
        page = builder(*handles)
    if not isinstance(page, gr.Blocks | gr.Server):
        what = "nothing" if page is None else f"a {type(page).__name__}"
        raise StartError(
            f"{name_of(builder)} returns {what}. Let it return the page: what you would launch(), "
            "as a gr.Blocks, gr.Interface or gr.Server."
        )
    return page


def launched(page: gr.Blocks | gr.Server, launch: Launch) -> tuple[gr.Blocks, dict[str, Any]]:
    """Returns what the page's own `launch()` starts, and with which options.

    A gr.Server makes its Blocks there, and a gr.Workflow adds to the options.
    """
    started: list[tuple[gr.Blocks, dict[str, Any]]] = []

    def remember(blocks: gr.Blocks, **options: Any) -> tuple[None, str, None]:
        started.append((blocks, options))
        return None, "", None

    with launching(remember):
        page.launch(**launch.options(), inbrowser=False, prevent_thread_lock=True, quiet=True)
    [(blocks, options)] = started
    if not getattr(blocks, "exited", True):
        # It was made and not left: launch() does that.
        blocks.__exit__()
    # What launch() itself would do: what it is given counts more than what Blocks() was given.
    for name in ("theme", "css", "css_paths", "js", "head", "head_paths"):
        if options.get(name) is None:
            options[name] = getattr(blocks, f"_deprecated_{name}")
    return blocks, options


@contextmanager
def launching(launch: Callable[..., object]) -> Iterator[None]:
    """Calls this in the place of Gradio's `launch()`."""
    own = gr.Blocks.launch
    gr.Blocks.launch = launch
    try:
        yield
    finally:
        gr.Blocks.launch = own
