"""Apps for each kind of component: inputs come back unchanged."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from playwright.sync_api import Page, expect

from .app import File, app, ask, refused


def same(value: Any) -> Any:
    return value


def said(role: str, text: str) -> dict[str, Any]:
    content = [{"type": "text", "text": text}]
    return {"role": role, "metadata": None, "content": content, "options": None}


def echo(*components: Callable[[], Any]) -> gr.Blocks:
    """Returns a page that copies the value of each component to another of its kind."""
    with gr.Blocks() as page:
        for number, component in enumerate(components):
            button = gr.Button(f"Give back {number}")
            button.click(same, component(), component(), api_name=f"echo_{number}")
    return page


def types_a_name(page: Page) -> None:
    page.get_by_label("Name").fill("Ada")
    page.get_by_role("button", name="Greet").click()
    expect(page.get_by_label("Greeting")).to_have_value("Hello Ada")


@app(ask("/greet", "Ada"), ask("/greet", ""), ask("/greet", "Grüße 灯台 \u202e"), use=types_a_name)
def textbox() -> gr.Blocks:
    with gr.Blocks() as page:
        name, greeting = gr.Textbox(label="Name"), gr.Textbox(label="Greeting")
        gr.Button("Greet").click(lambda each: f"Hello {each}", name, greeting, api_name="greet")
    return page


def moves_a_slider(page: Page) -> None:
    page.get_by_label("number input for Size").fill("7")
    page.get_by_role("button", name="Double").click()
    expect(page.get_by_label("Twice")).to_have_value("14")


@app(
    *(ask("/double", 3), ask("/round", 2.5)),
    *(refused("/double", value) for value in (99, None, "seven")),
    use=moves_a_slider,
)
def numbers() -> gr.Blocks:
    with gr.Blocks() as page:
        size, twice = gr.Slider(0, 10, value=2, step=1, label="Size"), gr.Number(label="Twice")
        gr.Button("Double").click(lambda each: each * 2, size, twice, api_name="double")
        whole = gr.Number(precision=0, minimum=0, maximum=5)
        gr.Button("Round").click(same, whole, gr.Number(), api_name="round")
    return page


@app(
    *(ask("/echo_0", True), ask("/echo_1", ["b", "a"]), refused("/echo_1", ["z"])),
    *(ask("/echo_2", 2), refused("/echo_2", 9), ask("/echo_3", ["a", 1]), ask("/echo_4", "own")),
)
def choices() -> gr.Blocks:
    return echo(
        gr.Checkbox,
        lambda: gr.CheckboxGroup(["a", "b", "c"]),
        lambda: gr.Radio([("one", 1), ("two", 2)]),
        lambda: gr.Dropdown(["a", "b", ("first", 1)], multiselect=True),
        lambda: gr.Dropdown(["a", "b"], allow_custom_value=True),
    )


@app(
    ask("/describe", {"headers": ["a", "b"], "data": [[1, 2], [3, 4]], "metadata": None}),
    ask("/many", 500),
    use=lambda page: expect(page.get_by_role("gridcell", name="whale")).to_be_visible(),
)
def dataframe() -> gr.Blocks:
    with gr.Blocks() as page:
        table = pd.DataFrame({"name": ["whale", "seal"], "size": [30, 2]})
        animals = gr.Dataframe(table, interactive=True)
        sums = gr.Dataframe()
        gr.Button("Sum").click(
            lambda table: table.sum(numeric_only=True).to_frame().T,
            animals,
            sums,
            api_name="describe",
        )
        rows = gr.Number(3)
        gr.Button("Many").click(
            lambda number: pd.DataFrame({"n": range(int(number)), "half": np.arange(number) / 2}),
            rows,
            sums,
            api_name="many",
        )
    return page


@app(
    *(ask("/echo_0", {"a": [1, None, {"b": "ü"}]}), ask("/echo_1", "print('whale')")),
    *(ask("/echo_2", "#ff8800"), ask("/echo_3", "2026-01-02 03:04:05"), refused("/echo_3", "soon")),
    ask("/echo_4", "# Title"),
)
def structured() -> gr.Blocks:
    return echo(
        gr.JSON,
        lambda: gr.Code(language="python"),
        gr.ColorPicker,
        lambda: gr.DateTime(timezone="UTC"),
        gr.Markdown,
    )


@app(
    *(ask(f"/invert_{kind}", File("picture.png")) for kind in ("pil", "numpy", "filepath")),
    ask("/invert_pil", File("photo.jpg")),
    *(ask("/invert_pil", File("note.txt")), ask("/invert_pil", None)),
)
def images() -> gr.Blocks:
    def invert_pil(picture: Image.Image) -> Image.Image:
        return ImageOps.invert(picture.convert("RGB"))

    def invert_numpy(picture: Any) -> Any:
        return 255 - picture

    def invert_filepath(path: str) -> str:
        target = Path(tempfile.mkdtemp()) / "inverted.png"
        invert_pil(Image.open(path)).save(target)
        return str(target)

    with gr.Blocks() as page:
        for function in (invert_pil, invert_numpy, invert_filepath):
            kind = function.__name__.removeprefix("invert_")
            gr.Button().click(function, gr.Image(type=kind), gr.Image(format="png"))
    return page


@app(
    ask("/echo_0", File("tone.wav")),
    ask("/echo_1", File("tone.wav")),
    ask("/half", File("tone.wav")),
)
def audio() -> gr.Blocks:
    page = echo(lambda: gr.Audio(type="filepath"), gr.Audio)
    with page:
        sound = gr.Audio()
        gr.Button().click(
            lambda tone: (tone[0], tone[1][: len(tone[1]) // 2]), sound, gr.Audio(), api_name="half"
        )
    return page


@app(
    *(ask("/echo_0", File("note.txt")), ask("/echo_0", File("with spaces & ümlaut.txt"))),
    *(ask("/echo_1", [File("note.txt"), File("table.csv")]), ask("/read", File("table.csv"))),
    *(
        ask("/echo_2", File("note.txt")),
        ask("/write", "seals bark"),
        ask("/echo_3", File("note.txt")),
    ),
)
def files() -> gr.Blocks:
    page = echo(
        gr.File,
        lambda: gr.File(file_count="multiple"),
        lambda: gr.File(file_types=[".csv"]),
        lambda: gr.UploadButton("Upload"),
    )

    def write(text: str) -> str:
        target = Path(tempfile.mkdtemp()) / "told.txt"
        target.write_text(text)
        return str(target)

    with page:
        table = gr.File(type="binary")
        gr.Button().click(lambda content: content.decode(), table, gr.Textbox(), api_name="read")
        gr.Button().click(write, gr.Textbox(), gr.DownloadButton("Get"), api_name="write")
    return page


@app(
    ask("/echo_0", [{"image": File("picture.png"), "caption": "one"}]),
    ask("/echo_1", (File("picture.png"), File("photo.jpg"))),
    ask("/paint", 3),
)
def galleries() -> gr.Blocks:
    page = echo(gr.Gallery, gr.ImageSlider)

    def paint(number: float) -> list[Any]:
        return [(Image.new("RGB", (4 + each, 4), "navy"), f"{each}") for each in range(int(number))]

    with page:
        gr.Button().click(paint, gr.Number(), gr.Gallery(), api_name="paint")
    return page


@app(
    ask(
        "/edit",
        {"background": File("picture.png"), "layers": [], "composite": File("picture.png")},
    ),
    ask("/sketch", {"background": None, "layers": [File("photo.jpg")], "composite": None}),
    use=lambda page: expect(page.get_by_role("button", name="Edit")).to_be_visible(),
)
def image_editor() -> gr.Blocks:
    with gr.Blocks() as page:
        editor = gr.ImageEditor(type="pil", label="Editor")
        gr.Button("Edit").click(
            lambda edited: edited["composite"], editor, gr.Image(format="png"), api_name="edit"
        )
        pad = gr.Sketchpad(type="numpy", label="Pad")
        gr.Button("Sketch").click(
            lambda drawn: len(drawn["layers"]), pad, gr.Number(), api_name="sketch"
        )
    return page


@app(
    ask("/echo_0", [said("user", "Hi"), said("assistant", "*Ho*")]),
    ask("/echo_1", {"text": "look", "files": [File("picture.png")]}),
    ask(
        "/show",
    ),
)
def conversation() -> gr.Blocks:
    page = echo(gr.Chatbot, gr.MultimodalTextbox)

    def show() -> list[dict[str, Any]]:
        thought = {"title": "Thinking", "status": "done"}
        return [
            {"role": "user", "content": "Draw"},
            {"role": "assistant", "content": "A line", "metadata": thought},
            {"role": "assistant", "content": gr.Image(Image.new("RGB", (4, 4), "red"))},
        ]

    with page:
        gr.Button().click(show, None, gr.Chatbot(), api_name="show")
    return page


@app(ask("/judge", "whale"), ask("/mark", "a whale sings"), ask("/box", File("picture.png")))
def labelled() -> gr.Blocks:
    def mark(text: str) -> list[tuple[str, str | None]]:
        return [(word, "animal" if word == "whale" else None) for word in text.split()]

    def box(picture: Any) -> tuple[Any, list[tuple[Any, str]]]:
        return picture, [((1, 1, 9, 9), "corner")]

    with gr.Blocks() as page:
        text, picture = gr.Textbox(), gr.Image()
        gr.Button().click(
            lambda each: {each: 0.75, "other": 0.25}, text, gr.Label(), api_name="judge"
        )
        gr.Button().click(mark, text, gr.HighlightedText(color_map={"animal": "teal"}))
        gr.Button().click(box, picture, gr.AnnotatedImage())
    return page


@app(ask("/draw", 4), use=lambda page: page.wait_for_selector("canvas, svg"))
def plots() -> gr.Blocks:
    def draw(number: float) -> tuple[Any, Any, Any]:
        points = pd.DataFrame({"x": range(int(number)), "y": [n * n for n in range(int(number))]})
        return points, points, points

    with gr.Blocks() as page:
        number = gr.Number(3)
        shapes = [kind(x="x", y="y") for kind in (gr.LinePlot, gr.BarPlot, gr.ScatterPlot)]
        gr.Button("Draw").click(draw, number, shapes)
        page.load(draw, number, shapes, api_name="drawn")
    return page


@app(ask("/echo_0", File("model.obj")), ask("/greet", "<b>sea</b>"))
def html_and_models() -> gr.Blocks:
    page = echo(gr.Model3D)
    with page:
        gr.Button().click(
            lambda text: f"<i>{text}</i>", gr.Textbox(), gr.HTML("<hr>"), api_name="greet"
        )
        gr.HTML("<p>${value}</p>", html_template="<p>${value}</p>", css_template="p {color: teal}")
    return page


@app(
    ask(
        "/list",
    ),
    ask("/pick", "first"),
)
def files_on_disk() -> gr.Blocks:
    folder = Path(tempfile.gettempdir(), "apps-of-the-tests")
    folder.mkdir(exist_ok=True)
    (folder / "first.txt").write_text("1")

    with gr.Blocks() as page:
        explorer = gr.FileExplorer("*.txt", root_dir=folder)
        gr.Button().click(lambda: ["first.txt"], None, explorer, api_name="list")
        stem = gr.Textbox()
        gr.Button().click(
            lambda each: str(folder / f"{each}.txt"), stem, gr.File(), api_name="pick"
        )
    return page


@app(
    ask(
        "/count",
    ),
    ask(
        "/count",
    ),
    ask(
        "/count",
    ),
    ask(
        "/reset",
    ),
    ask(
        "/count",
    ),
)
def state() -> gr.Blocks:
    with gr.Blocks() as page:
        calls, shown = gr.State(0), gr.Number(label="Calls")
        seen = gr.State([], time_to_live=3600)

        def count(calls: int, seen: list[int]) -> tuple[int, list[int], int]:
            return calls + 1, [*seen, calls], calls + len(seen) * 10

        gr.Button("Count").click(count, [calls, seen], [calls, seen, shown])
        gr.Button("Reset").click(lambda: (0, []), None, [calls, seen], api_name="reset")
    return page


def comes_back(page: Page) -> None:
    page.get_by_label("Kept").fill("seal")
    page.get_by_label("Kept").blur()
    page.wait_for_timeout(1000)
    page.reload()
    expect(page.get_by_label("Kept")).to_have_value("seal")


@app(ask("/keep", "whale"), use=comes_back)
def browser_state() -> gr.Blocks:
    with gr.Blocks() as page:
        kept = gr.BrowserState("", storage_key="kept", secret="the same each time")  # noqa: S106
        name = gr.Textbox(label="Kept")
        name.change(same, name, kept, api_name="keep")
        page.load(same, kept, name, api_name="come_back")
    return page
