"""What a page looks like and may do, under the names of Gradio's `launch()`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

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
    footer_links: Sequence[FooterLink | Mapping[str, str]] = ("api",)
    i18n: gr.I18n | None = None
    pwa: bool | None = None
    show_error: bool = False
    """Whether a reader sees errors that are no gr.Error; they may tell a path."""

    def options(self) -> dict[str, object]:
        options = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**options, "footer_links": list(self.footer_links)}
