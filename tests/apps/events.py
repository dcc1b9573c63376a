"""Apps for each kind of event and of call."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from playwright.sync_api import Page, expect

from .app import app, ask
from .components import same


def chains(page: Page) -> None:
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_label("Steps")).to_have_value("one two three")


@app(ask("/one", ""), ask("/two", "one"), ask("/fails", ""), use=chains)
def chain() -> gr.Blocks:
    def fails(_: str) -> str:
        raise gr.Error("half way", title="Stopped", duration=3)

    with gr.Blocks() as page:
        steps, other = gr.Textbox(label="Steps"), gr.Textbox(label="Other")
        gr.Button("Start").click(lambda _: "one", steps, steps, api_name="one").then(
            lambda text: f"{text} two", steps, steps, api_name="two"
        ).success(lambda text: f"{text} three", steps, steps, api_name="three")
        gr.Button("Fail").click(fails, other, other).failure(
            lambda: "it failed", None, other, api_name="failed"
        )
    return page


def fails_in_view(page: Page) -> None:
    page.get_by_role("button", name="Say no").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("not a whale")


@app(
    *(ask("/raise_value_error", "a"), ask("/say_no", "a whale"), ask("/raise_with_a_path", "a")),
    *(ask("/warn", "a"), ask("/return_too_many", "a"), ask("/raise_key_error", "a")),
    *(ask("/give_nothing", "a"), ask("/say_no_quietly", "a")),
    use=fails_in_view,
)
def errors() -> gr.Blocks:
    def raise_value_error(text: str) -> str:
        raise ValueError(f"bad {text}")

    def raise_key_error(text: str) -> str:
        return {"sea": "whale"}[text]

    def raise_with_a_path(_: str) -> str:
        return Path("/no/such/file").read_text()

    def say_no(text: str) -> str:
        raise gr.Error(f"not {text or 'a whale'}")

    def say_no_quietly(text: str) -> str:
        raise gr.Error(f"not {text}", print_exception=False, visible=False)

    def warn(text: str) -> str:
        gr.Warning("careful")
        gr.Info("by the way")
        return text

    def return_too_many(text: str) -> tuple[str, str]:
        return text, text

    def give_nothing(_: str) -> None:
        return None

    with gr.Blocks() as page:
        text = gr.Textbox()
        for function in (raise_value_error, raise_key_error, raise_with_a_path, say_no_quietly):
            gr.Button(function.__name__).click(function, text, text)
        gr.Button("Say no").click(say_no, text, text)
        gr.Button().click(warn, text, text)
        gr.Button().click(return_too_many, text, text)
        gr.Button().click(give_nothing, text, text)
    return page


@app(ask("/raise_value_error", "a"), ask("/raise_key_error", "a"), show_error=True)
def errors_shown() -> gr.Blocks:
    return errors()


def streams(page: Page) -> None:
    page.get_by_role("button", name="Stream").click()
    expect(page.get_by_label("Text")).to_have_value("0 1 2 3 4")


@app(
    *(ask("/spell", 3), ask("/spell_later", 4), ask("/break_off", 2), ask("/pairs", 3)),
    use=streams,
)
def generators() -> gr.Blocks:
    def spell(number: float) -> Generator[str, None, None]:
        for end in range(int(number)):
            yield " ".join(map(str, range(end + 1)))

    async def spell_later(number: float) -> AsyncGenerator[str, None]:
        for text in spell(number):
            await asyncio.sleep(0.01)
            yield text

    def break_off(number: float) -> Generator[str, None, None]:
        yield from spell(number)
        raise ValueError("half way")

    def pairs(number: float) -> Generator[tuple[str, dict[str, int]], None, None]:
        for text in spell(number):
            yield text, {"length": len(text)}

    with gr.Blocks() as page:
        number, text, facts = gr.Number(5), gr.Textbox(label="Text"), gr.JSON()
        gr.Button("Stream").click(spell, number, text)
        for function in (spell_later, break_off):
            gr.Button().click(function, number, text)
        gr.Button().click(pairs, number, [text, facts])
    return page


@app(ask("/count_up", 3), ask("/track", 3))
def progress() -> gr.Blocks:
    def count_up(number: float, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        for each in range(int(number)):
            progress((each, int(number)), desc="Counting")
            time.sleep(0.02)
        return "done"

    def track(number: float, progress: gr.Progress = gr.Progress(track_tqdm=True)) -> float:  # noqa: B008
        return float(sum(progress.tqdm(range(int(number)))))

    with gr.Blocks() as page:
        number = gr.Number(3)
        gr.Button("Count").click(count_up, number, gr.Textbox(label="End"))
        gr.Button("Track").click(track, number, gr.Number())
    return page


@app(
    ask("/direct", "a"), ask("/direct_later", "a"), ask("/direct_fail", "a"), ask("/direct_no", "a")
)
def without_queue() -> gr.Blocks:
    async def direct_later(text: str) -> str:
        await asyncio.sleep(0.01)
        return text.upper()

    def direct_fail(text: str) -> str:
        raise RuntimeError(text)

    def direct_no(text: str) -> str:
        raise gr.Error(f"not {text}")

    with gr.Blocks() as page:
        text = gr.Textbox()
        gr.Button().click(str.upper, text, text, queue=False, api_name="direct")
        for function in (direct_later, direct_fail, direct_no):
            gr.Button().click(function, text, text, queue=False)
    return page


@app(ask("/shout", "sea"), ask("/shout_all", "sea"))
def batches() -> gr.Blocks:
    def shout(texts: list[str]) -> list[list[str]]:
        return [[text.upper() for text in texts]]

    async def shout_all(texts: list[str]) -> tuple[list[str], list[int]]:
        return [text.upper() for text in texts], [len(text) for text in texts]

    with gr.Blocks() as page:
        text = gr.Textbox()
        gr.Button().click(shout, text, text, batch=True, max_batch_size=4)
        gr.Button().click(shout_all, text, [text, gr.Number()], batch=True)
    return page


@app(
    ask("/remember", "a"),
    ask("/remember", "a"),
    ask("/remember_steps", 2),
    ask("/remember_steps", 2),
)
def caches() -> gr.Blocks:
    @gr.cache
    def remember(text: str) -> str:
        return text * 2

    @gr.cache
    def remember_steps(number: float) -> Generator[int, None, None]:
        yield from range(int(number))

    with gr.Blocks() as page:
        text, number = gr.Textbox(), gr.Number()
        gr.Button().click(remember, text, text)
        gr.Button().click(remember_steps, number, number)
    return page


@app(ask("/checked", "whale"), ask("/checked", ""), ask("/both", "a", -1))
def validators() -> gr.Blocks:
    def is_there(text: str) -> Any:
        return gr.validate(bool(text), "Write something.")

    def are_right(text: str, number: float) -> list[Any]:
        return [gr.validate(bool(text), "Write."), gr.validate(number > 0, "Above 0.")]

    with gr.Blocks() as page:
        text, number = gr.Textbox(), gr.Number()
        gr.Button().click(same, text, text, validator=is_there, api_name="checked")
        gr.Button().click(
            lambda text, number: text * int(number),
            [text, number],
            text,
            validator=are_right,
            api_name="both",
        )
    return page


@app(ask("/add", 1, 2), ask("/describe", "x", 3), ask("/hidden", 1), ask("/stream_up", "ab"))
def api_alone() -> gr.Blocks:
    def add(left: int, right: int = 5) -> int:
        """Adds two numbers.

        Args:
            left: the first
            right: the second
        """
        return left + right

    def describe(name: str, size: float) -> dict[str, Any]:
        return {"name": name, "size": size}

    def stream_up(text: str) -> Generator[str, None, None]:
        yield from text.upper()

    with gr.Blocks() as page:
        gr.api(add)
        gr.api(describe)
        gr.api(stream_up)
        number = gr.Number()
        gr.Button().click(same, number, number, api_name="hidden", api_visibility="undocumented")
        gr.Button().click(same, number, number, api_name="secret", api_visibility="private")
    return page


@app(ask("/show", "b"), ask("/more", 3), ask("/hide"), ask("/keep", "x"), ask("/by_name", "x", 2))
def updates() -> gr.Blocks:
    with gr.Blocks() as page:
        text = gr.Textbox(label="Text")
        choice = gr.Dropdown(["a"], label="Choice")
        row = gr.Row()

        def show(value: str) -> Any:
            return gr.Dropdown(["a", "b", "c"], value=value, label="New")

        def more(number: float) -> dict[Any, Any]:
            return {choice: gr.update(choices=list("xyz")[: int(number)]), text: "more"}

        def by_name(inputs: dict[Any, Any]) -> str:
            return str(sorted(map(str, inputs.values())))

        gr.Button().click(show, text, choice)
        gr.Button().click(more, gr.Number(), [text, choice])
        gr.Button().click(lambda: gr.Row(visible=False), None, row, api_name="hide")
        gr.Button().click(lambda _: gr.skip(), text, text, api_name="keep")
        gr.Button().click(by_name, {text, gr.Number(label="n")}, text)
    return page


def hears_of_changes(page: Page) -> None:
    # Gradio handles keys one at a time, and drops those pressed while it is busy.
    page.get_by_label("Word").press("s")
    expect(page.get_by_label("Inputs")).to_have_value("s")
    expect(page.get_by_label("Changes")).to_have_value("s")
    page.get_by_label("Word").press("Enter")
    expect(page.get_by_label("Submitted")).to_have_value("s!")
    page.get_by_role("tab", name="Second").click()
    expect(page.get_by_label("Selected")).to_have_value("Second")


@app(ask("/typed", "a"), ask("/submitted", "a"), use=hears_of_changes)
def listeners() -> gr.Blocks:
    def tell(event: gr.SelectData) -> str:
        return str(event.value)

    with gr.Blocks() as page:
        word = gr.Textbox(label="Word")
        inputs, changes, submitted, selected = (
            gr.Textbox(label=label) for label in ("Inputs", "Changes", "Submitted", "Selected")
        )
        with gr.Tabs() as tabs:
            for name in ("First", "Second"):
                with gr.Tab(name):
                    gr.Markdown(name)
        word.input(same, word, inputs, api_name="typed")
        inputs.change(same, inputs, changes, api_name="changed")
        gr.on([word.submit], lambda text: f"{text}!", word, submitted, api_name="submitted")
        tabs.select(tell, None, selected)
        word.focus(lambda: None, js="() => {}")
    return page


def renders(page: Page) -> None:
    page.get_by_label("Rows").fill("3")
    page.get_by_label("Rows").press("Enter")
    page.get_by_role("button", name="Row 2").click()
    expect(page.get_by_label("Pressed")).to_have_value("2")


@app(use=renders)
def rendered() -> gr.Blocks:
    with gr.Blocks() as page:
        rows, pressed = gr.Number(1, label="Rows"), gr.Textbox(label="Pressed")

        @gr.render(inputs=rows, triggers=[page.load, rows.submit])
        def draw(number: float) -> None:
            for each in range(int(number)):
                button = gr.Button(f"Row {each}", key=f"row-{each}")
                button.click(lambda each=each: str(each), None, pressed, api_name=f"press_{each}")

    return page


def ticks(page: Page) -> None:
    expect(page.get_by_label("Loaded")).to_have_value("loaded")
    expect(page.get_by_label("Ticks")).to_have_value("3")


@app(ask("/tick", 1), ask("/loaded"), use=ticks)
def timers() -> gr.Blocks:
    with gr.Blocks() as page:
        number, loaded = gr.Number(0, label="Ticks"), gr.Textbox(label="Loaded")
        timer = gr.Timer(0.2)
        timer.tick(lambda each: min(each + 1, 3), number, number, api_name="tick")
        page.load(lambda: "loaded", None, loaded, api_name="loaded")
        page.unload(lambda: None)
    return page


def stops(page: Page) -> None:
    page.get_by_role("button", name="Wait").click()
    expect(page.get_by_label("Text")).to_have_value("waiting")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Say").click()
    expect(page.get_by_label("Text")).to_have_value("said")


@app(ask("/say"), use=stops)
def cancels() -> gr.Blocks:
    async def wait() -> AsyncGenerator[str, None]:
        yield "waiting"
        await asyncio.sleep(60)
        yield "late"

    with gr.Blocks() as page:
        text = gr.Textbox(label="Text")
        waiting = gr.Button("Wait").click(wait, None, text)
        gr.Button("Stop").click(None, cancels=[waiting])
        gr.Button("Say").click(lambda: "said", None, text, api_name="say")
    return page


@app(ask("/who", "x"), ask("/where"))
def requests() -> gr.Blocks:
    def who(text: str, request: gr.Request) -> str:
        agent = request.headers.get("x-tests", "nobody")
        return f"{text} {request.username} {agent} {bool(request.session_hash)}"

    def where(request: gr.Request) -> dict[str, Any]:
        return {"query": dict(request.query_params), "host": bool(request.client.host)}

    with gr.Blocks() as page:
        text = gr.Textbox()
        gr.Button().click(who, text, text)
        gr.Button().click(where, None, gr.JSON())
    return page


@app(ask("/play", 2))
def streamed_audio() -> gr.Blocks:
    def play(number: float) -> Generator[tuple[int, Any], None, None]:
        for each in range(int(number)):
            yield 8000, (np.sin(np.arange(4000) / (4 + each)) * 9000).astype(np.int16)

    with gr.Blocks() as page:
        gr.Button().click(play, gr.Number(), gr.Audio())
    return page


def runs_javascript(page: Page) -> None:
    page.get_by_role("button", name="Reverse").click()
    expect(page.get_by_label("Text")).to_have_value("aes")
    page.get_by_role("button", name="Both").click()
    expect(page.get_by_label("Text")).to_have_value("AES")


@app(ask("/both", "sea"), use=runs_javascript)
def javascript() -> gr.Blocks:
    with gr.Blocks() as page:
        text = gr.Textbox("sea", label="Text")
        gr.Button("Reverse").click(None, text, text, js="text => [...text].reverse().join('')")
        gr.Button("Both").click(str.upper, text, text, js="text => text.trim()", api_name="both")
    return page


def asks_the_server(page: Page) -> None:
    page.get_by_role("button", name="Ask the server").click()
    expect(page.locator("#told")).to_have_text("6")


@app(use=asks_the_server)
def server_functions() -> gr.Blocks:
    def add_up(numbers: list[int]) -> int:
        return sum(numbers)

    with gr.Blocks() as page:
        gr.HTML(
            "<button>Ask the server</button><p id='told'></p>",
            js_on_load="""
            element.querySelector('button').addEventListener('click', async () => {
                element.querySelector('#told').textContent = await server.add_up([1, 2, 3])
            })""",
            server_functions=[add_up],
        )
    return page
