"""What a page looks like and may do, under the names of Gradio's `launch()`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import gradio as gr

FooterLink = Literal["api", "gradio", "settings", "runs"]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Options of Gradio's `launch()`, with its defaults, but where Serve needs others."""

    theme: gr.Theme | str | None = None
    css: str | None = None
    css_paths: str | Path | Sequence[str | Path] | None = None
    js: str | Literal[True] | None = None
    head: str | None = None
    head_paths: str | Path | Sequence[str | Path] | None = None
    favicon_path: str | None = None
    allowed_paths: Sequence[str] = ()
    """Files and directories that every visitor may read, and the page's functions may return."""
    blocked_paths: Sequence[str] = ()
    """Files and directories that no visitor reads, wherever they are."""
    footer_links: Sequence[FooterLink | Mapping[str, str]] = ("api",)
    i18n: gr.I18n | None = None
    pwa: bool | None = None
    show_error: bool = False
    """Whether a reader sees errors that are no gr.Error; they may tell a path."""

    def __post_init__(self) -> None:
        for path in (*self.allowed_paths, *self.blocked_paths):
            # A replica has a working directory of its own.
            if not Path(path).is_absolute():
                raise ValueError(f"the path {path!r} is not absolute; write it from / on")

    def options(self) -> dict[str, Any]:
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("footer_links", "allowed_paths", "blocked_paths"):
            options[name] = list(options[name])
        return options
