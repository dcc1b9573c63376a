"""Launch options of a page, with the names that Gradio's `launch()` uses."""

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

NO_NOTEBOOK = "the page is not shown in a notebook. Open the address that the start command prints"
NO_TUNNEL = "Serve listens on its own address. To publish the page, put a proxy in front of it"
NO_NODE = "the page is rendered in the browser. For more visitors, raise num_replicas"
IN_CONFIG = "set it in the Serve config, under http_options"

REFUSED: Mapping[str, str] = {
    "inline": NO_NOTEBOOK,
    "inbrowser": NO_NOTEBOOK,
    "height": NO_NOTEBOOK,
    "width": NO_NOTEBOOK,
    "share": NO_TUNNEL,
    "share_server_address": NO_TUNNEL,
    "share_server_protocol": NO_TUNNEL,
    "share_server_tls_certificate": NO_TUNNEL,
    "debug": "Serve writes tracebacks to its logs",
    "quiet": "configure logging in the Serve config, under logging_config",
    "prevent_thread_lock": "Serve keeps the page running",
    "server_name": f"{IN_CONFIG}, as host",
    "server_port": f"{IN_CONFIG}, as port",
    "ssl_keyfile": IN_CONFIG,
    "ssl_certfile": IN_CONFIG,
    "ssl_keyfile_password": IN_CONFIG,
    "ssl_verify": "nothing here calls the page over HTTPS",
    "path": "set it in the Serve config, as route_prefix",
    "root_path": "set route_prefix in the Serve config, and public_url under args if a proxy changes it",
    "strict_cors": (
        "in the Serve config, list the sites that may call the page, as origins under args"
    ),
    "ssr_mode": NO_NODE,
    "node_server_name": NO_NODE,
    "node_port": NO_NODE,
    "num_workers": NO_NODE,
}
"""Options of `launch()` that make no sense behind Serve, and what to use instead."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Options of Gradio's `launch()`, with its defaults.

    Raises:
        StartError: an option makes no sense behind Serve, or a path is not absolute.
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
    """Files and directories that no visitor may read, even inside an allowed path."""
    max_file_size: str | int | None = None
    """The maximum size of one upload, such as `"20mb"`. If None, the settings decide."""
    footer_links: Sequence[FooterLink | Mapping[str, str]] | None = None
    i18n: gr.I18n | None = None
    pwa: bool | None = None
    run_history: bool | None = None
    """Whether the browser keeps a history of a visitor's calls."""
    show_error: bool = False
    """Whether visitors see errors other than gr.Error. Such errors may contain paths."""
    auth: Login | Sequence[Login] | Callable[[str, str], bool | Awaitable[bool]] | None = None
    """Who may log in. Set the variable `PAGE_SECRET`, so that every replica accepts the login."""
    auth_message: str | None = None
    auth_dependency: Callable[[Request], str | Awaitable[str | None] | None] | None = None
    """Returns the user's name from a request, or None if nobody is logged in."""
    mcp_server: bool | None = None
    """Whether to offer the page's functions to MCP clients, like the setting `mcp`."""
    enable_monitoring: bool | None = None
    """Whether a replica shows statistics of its own calls at `/monitoring`."""
    max_threads: int = 40
    """A page of models raises this itself to what its limits need."""
    state_session_capacity: int = 10_000
    app_kwargs: Mapping[str, Any] | None = None

    def __new__(cls, **options: object) -> Self:
        for name in options:
            if name in REFUSED:
                raise StartError(f"Launch does not accept {name}: {REFUSED[name]}.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        # A replica has its own working directory, so a relative path would point elsewhere.
        for name in ("css_paths", "head_paths", "favicon_path", "allowed_paths", "blocked_paths"):
            for path in listed(getattr(self, name)):
                if not Path(path).is_absolute():
                    raise StartError(
                        f"{name} in Launch: the path {str(path)!r} is not absolute. Start it with "
                        f"/, or write it as Path(__file__).parent / {str(path)!r}"
                    )
        if self.auth is not None and self.auth_dependency is not None:
            raise StartError("Launch takes auth or auth_dependency, not both. Remove one of them.")

    def options(self) -> dict[str, Any]:
        """Returns the options that are set, as `launch()` takes them."""
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
    """Returns paths as a flat list. Like Gradio, it accepts nested lists."""
    if paths is None:
        return []
    if isinstance(paths, str | Path):
        return [paths]
    return [path for each in paths for path in listed(each)]


def name_of(builder: object) -> str:
    return getattr(builder, "__qualname__", None) or type(builder).__name__


@contextmanager
def forbid_launch(who: str) -> Iterator[None]:
    """Raises StartError if `launch()` is called, because that would start a server and block."""

    def refuse(*_: object, **__: object) -> None:
        raise StartError(
            f"{who} calls launch(), but Serve starts the page. Return the page instead, or move the "
            'call under `if __name__ == "__main__":`. Pass the options of launch() to Launch.'
        )

    with replace_launch(refuse):
        yield


def built(builder: Callable[..., Any], *handles: object) -> gr.Blocks | gr.Server:
    """Returns the page that a builder makes.

    Raises:
        StartError: the builder launches the page, or does not return one.
    """
    with forbid_launch(name_of(builder)):
        page = builder(*handles)
    if not isinstance(page, gr.Blocks | gr.Server):
        what = "nothing" if page is None else f"a {type(page).__name__}"
        raise StartError(
            f"{name_of(builder)} returns {what}, not a page. Return what you would launch(): a "
            "gr.Blocks, gr.Interface or gr.Server."
        )
    return page


def launched(page: gr.Blocks | gr.Server, launch: Launch) -> tuple[gr.Blocks, dict[str, Any]]:
    """Returns the Blocks that the page's `launch()` would start, and the options for it.

    In `launch()`, a gr.Server makes its Blocks, and a gr.Workflow adds options.
    """
    started: list[tuple[gr.Blocks, dict[str, Any]]] = []

    def remember(blocks: gr.Blocks, **options: Any) -> tuple[None, str, None]:
        started.append((blocks, options))
        return None, "", None

    with replace_launch(remember):
        page.launch(**launch.options(), inbrowser=False, prevent_thread_lock=True, quiet=True)
    [(blocks, options)] = started
    if not getattr(blocks, "exited", True):
        # The code never left its `with` block. launch() does that too.
        blocks.__exit__()
    # As in launch(), its own options take precedence over those of Blocks().
    for name in ("theme", "css", "css_paths", "js", "head", "head_paths"):
        if options.get(name) is None:
            options[name] = getattr(blocks, f"_deprecated_{name}")
    return blocks, options


@contextmanager
def replace_launch(launch: Callable[..., object]) -> Iterator[None]:
    """Replaces Gradio's `launch()` with this function."""
    own = gr.Blocks.launch
    gr.Blocks.launch = launch
    try:
        yield
    finally:
        gr.Blocks.launch = own
