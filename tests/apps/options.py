"""Apps for each parameter of `launch()`."""

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr
from playwright.sync_api import Page, expect

from .app import app, ask
from .components import same

FOLDER = Path(tempfile.gettempdir(), "apps-of-the-tests-allowed")
(FOLDER / "blocked").mkdir(parents=True, exist_ok=True)
for place in (FOLDER / "song.txt", FOLDER / "blocked" / "song.txt"):
    place.write_text("whales sing")


def small() -> gr.Blocks:
    with gr.Blocks() as page:
        text = gr.Textbox(label="Text", elem_id="text")
        gr.Button("Same").click(same, text, text)
    return page


def looks(page: Page) -> None:
    border = "getComputedStyle(document.querySelector('#text')).borderTopColor"
    assert page.evaluate(border) == "rgb(220, 20, 60)"
    expect(page).to_have_title("mine")
    assert page.evaluate("document.querySelector('meta[name=mine]').content") == "yes"


@app(
    ask("/same", "a"),
    use=looks,
    theme=gr.themes.Monochrome(font=["system-ui"], font_mono=["monospace"]),
    css="#text {border: 3px solid crimson}",
    head="<meta name='mine' content='yes'>",
    js="() => {document.title = 'mine'}",
)
def dressed() -> gr.Blocks:
    return small()


def speaks_german(page: Page) -> None:
    expect(page.get_by_role("button", name="Greet")).to_be_visible()


@app(ask("/same", "a"), use=speaks_german, i18n=gr.I18n(en={"go": "Greet"}, de={"go": "Grüßen"}))
def translated() -> gr.Blocks:
    words = gr.I18n(en={"go": "Greet"}, de={"go": "Grüßen"})
    with gr.Blocks() as page:
        text = gr.Textbox()
        gr.Button(words("go")).click(same, text, text, api_name="same")
    return page


@app(
    *(ask("/read", "song.txt"), ask("/read", "blocked/song.txt"), ask("/read", "/etc/hostname")),
    allowed_paths=[str(FOLDER)],
    blocked_paths=[str(FOLDER / "blocked")],
)
def paths() -> gr.Blocks:
    def read(name: str) -> str:
        return str(FOLDER / name)

    with gr.Blocks() as page:
        gr.HTML(f"<a href='/gradio_api/file={FOLDER}/song.txt'>song</a>")
        gr.Button().click(read, gr.Textbox(), gr.File())
    return page


@app(ask("/same", "a"), footer_links=["gradio", {"label": "Help", "url": "https://example.org"}])
def footer() -> gr.Blocks:
    return small()


@app(ask("/same", "a"), pwa=True)
def installable() -> gr.Blocks:
    return small()


@app(
    ask("/flag", "a"),
    ask(
        "/count",
    ),
)
def own_title() -> gr.Blocks:
    flags: list[Any] = []
    with gr.Blocks(title="A title", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        text = gr.Textbox()
        gr.Button().click(lambda each: flags.count(each) or each, text, text, api_name="flag")
        gr.Button().click(lambda: gr.__name__, None, text, api_name="count")
    return page
