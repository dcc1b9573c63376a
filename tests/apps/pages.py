"""Apps for each kind of page."""

from collections.abc import Generator
from typing import Any

import gradio as gr
from playwright.sync_api import Page, expect

from .app import File, app, ask
from .components import same


def greet(name: str, loudly: bool) -> str:
    """Greets somebody."""
    return f"Hello {name}{'!' if loudly else ''}"


def submits(page: Page) -> None:
    page.get_by_label("name").fill("Ada")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_label("output")).to_have_value("Hello Ada")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_label("name")).to_have_value("")


@app(ask("/predict", "Ada", True), ask("/predict", "Ada", None), use=submits)
def interface() -> gr.Blocks:
    return gr.Interface(
        greet,
        ["text", "checkbox"],
        "text",
        title="Greeter",
        description="Greets **you**",
        article="The end",
        examples=[["Ada", True], ["Bob", False]],
        api_name="predict",
    )


@app(ask("/turn", "abc"), ask("/turn", ""))
def live_interface() -> gr.Blocks:
    def turn(text: str) -> tuple[str, int]:
        return text[::-1], len(text)

    return gr.Interface(turn, gr.Textbox(), [gr.Textbox(), gr.Number()], live=True)


@app(ask("/shout", "a"), ask("/load_example", 0))
def cached_examples() -> gr.Blocks:
    def shout(text: str) -> str:
        return text.upper()

    return gr.Interface(
        shout, "text", "text", examples=["sea", "land"], cache_examples=True, cache_mode="eager"
    )


@app(ask("/spell", "abc"))
def streaming_interface() -> gr.Blocks:
    def spell(text: str) -> Generator[str, None, None]:
        for end in range(len(text)):
            yield text[: end + 1]

    return gr.Interface(spell, "text", "text", flagging_mode="never")


def chats(page: Page) -> None:
    page.get_by_test_id("textbox").first.fill("sea")
    page.get_by_test_id("textbox").first.press("Enter")
    expect(page.get_by_text("SEA 0")).to_be_visible()
    page.get_by_test_id("textbox").first.fill("land")
    page.get_by_test_id("textbox").first.press("Enter")
    expect(page.get_by_text("LAND 2")).to_be_visible()


@app(ask("/chat", "sea"), ask("/chat", "land"), use=chats)
def chat() -> gr.Blocks:
    def shout(message: str, history: list[Any]) -> str:
        return f"{message.upper()} {len(history)}"

    return gr.ChatInterface(shout, examples=["hello", "bye"], title="Chat", api_name="chat")


@app(ask("/chat", "sea", 2), ask("/chat", "land", 1))
def streaming_chat() -> gr.Blocks:
    def shout(message: str, _: list[Any], times: float) -> Generator[str, None, None]:
        for each in range(int(times)):
            yield message * (each + 1)

    return gr.ChatInterface(
        shout, additional_inputs=[gr.Slider(1, 5, value=2, step=1)], editable=True, api_name="chat"
    )


@app(
    ask("/chat", {"text": "look", "files": [File("note.txt")]}),
    ask("/chat", {"text": "on", "files": []}),
)
def multimodal_chat() -> gr.Blocks:
    def tell(message: dict[str, Any], history: list[Any]) -> list[Any]:
        return [f"{message['text']}: {len(message['files'])} of {len(history)}", gr.Markdown("*x*")]

    return gr.ChatInterface(tell, multimodal=True, api_name="chat")


def opens_a_tab(page: Page) -> None:
    page.get_by_role("tab", name="Chat").click()
    expect(page.get_by_placeholder("Type a message...")).to_be_visible()


@app(ask("/predict", "Ada", True), ask("/turn", "ab"), ask("/chat", "sea"), use=opens_a_tab)
def tabs() -> gr.Blocks:
    return gr.TabbedInterface(
        [interface(), live_interface(), chat()], ["Greet", "Turn", "Chat"], title="Three"
    )


def goes_to_the_other_page(page: Page) -> None:
    page.get_by_role("link", name="More").click()
    page.get_by_label("Word").fill("sea")
    page.get_by_role("button", name="Turn").click()
    expect(page.get_by_label("Turned")).to_have_value("aes")


@app(ask("/first", "a"), ask("/second", "ab"), use=goes_to_the_other_page)
def multipage() -> gr.Blocks:
    with gr.Blocks(title="Pages") as page:
        gr.Navbar(main_page_name="Start")
        text = gr.Textbox()
        gr.Button().click(str.upper, text, text, api_name="first")
    with page.route("More", "/more"):
        word, turned = gr.Textbox(label="Word"), gr.Textbox(label="Turned")
        gr.Button("Turn").click(lambda text: text[::-1], word, turned, api_name="second")
    return page


def opens_what_is_closed(page: Page) -> None:
    page.get_by_role("button", name="Details").click()
    expect(page.get_by_text("inside")).to_be_visible()


@app(ask("/add", 1, 2), use=opens_what_is_closed)
def layout() -> gr.Blocks:
    with gr.Blocks(fill_height=True, fill_width=True) as page:
        with gr.Sidebar(position="right"):
            gr.Markdown("aside")
        with gr.Row(equal_height=True), gr.Column(scale=2, min_width=200), gr.Group():
            left, right = gr.Number(), gr.Number()
        with gr.Accordion("Details", open=False):
            gr.Markdown("inside")
        result = gr.Number(elem_id="result", elem_classes=["big"])
        gr.Button("Add").click(lambda a, b: a + b, [left, right], result, api_name="add")
        gr.ClearButton([left, right])
        gr.DuplicateButton()
        gr.DeepLinkButton()
    return page


@app(ask("/outer", "a"), ask("/predict", "Ada", True))
def nested() -> gr.Blocks:
    inner = interface()
    with gr.Blocks() as page:
        text = gr.Textbox()
        gr.Button().click(str.upper, text, text, api_name="outer")
        inner.render()
    return page


@app(ask("/predict", "Ada", True))
def deep_queue() -> gr.Blocks:
    return interface().queue(default_concurrency_limit=3, max_size=5, api_open=False)


@app(ask("/same", "whale " * 900_000), ask("/sing", 900_000))
def large() -> gr.Blocks:
    """More than the 4 MB that a gRPC message can hold by default, in each direction."""
    with gr.Blocks() as page:
        text, times = gr.Textbox("whale " * 900_000), gr.Number(precision=0)
        gr.Button().click(same, text, text, api_name="same")
        gr.Button().click(lambda count: "whale " * count, times, text, api_name="sing")
    return page


@app(ask("/same", "a"))
def launched_before_its_end() -> gr.Blocks:
    """A page that calls `launch()` inside its `with` block."""
    page = gr.Blocks().__enter__()
    text = gr.Textbox()
    gr.Textbox()
    gr.Button().click(same, text, text, api_name="same")
    return page


@app(ask("/predict", "Ada"), ask("/load_example", 0), ask("/load_example", 1))
def flagged() -> gr.Blocks:
    def greet(name: str) -> str:
        return f"Hello {name}"

    return gr.Interface(
        greet,
        "text",
        "text",
        examples=[["Ada"], ["Bo"]],
        cache_examples=True,
        flagging_mode="manual",
        api_name="predict",
    )
