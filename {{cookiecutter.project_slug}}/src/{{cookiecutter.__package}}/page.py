"""The page: change its words, its looks and its controls here. Knows nothing of Ray."""

import asyncio
import logging
import unicodedata
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

import gradio as gr
from pydantic import ValidationError

from .errors import BusyError, InterruptionError, PromptError
from .settings import SESSION_LOST, GenerationOptions, Limits, Settings
from .task import BUTTON, EXAMPLES, PROMPT_LABEL, PROMPT_PLACEHOLDER

logger = logging.getLogger(__name__)

# System fonts: the theme's own would be fetched from another host by every browser.
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

# A choice, because Gradio's number field cannot be empty: it shows and sends 0.
OWN = "each model's own"

SESSION_LOST_WARNING = (
    "The server that held this page's history is gone. The page goes on with another one."
)


class Model(Protocol):
    """What a pane shows: an engine in this process, or a deployment elsewhere."""

    @property
    def name(self) -> str: ...

    def stream(self, prompt: str, options: GenerationOptions) -> AsyncGenerator[str, None]: ...


def build_page(settings: Settings, models: Sequence[Model]) -> gr.Blocks:
    """Returns a page with one pane a model, and the API endpoint `/generate`."""
    limits = settings.limits
    defaults = settings.options
    answering = 0

    async def generate(
        prompt: str,
        min_new_tokens: int = defaults.min_new_tokens,
        max_new_tokens: int = defaults.max_new_tokens,
        temperature: str = _shown(defaults.temperature),
        top_p: str = _shown(defaults.top_p),
        request: gr.Request | None = None,
    ) -> AsyncGenerator[list[str] | str, None]:
        """Streams each model's text so far, in the order of the settings."""
        if request is not None and SESSION_LOST in request.headers:
            gr.Warning(SESSION_LOST_WARNING, title="A new session")
        check_prompt(prompt, limits)
        options = read_options(min_new_tokens, max_new_tokens, temperature, top_p)
        nonlocal answering
        answering += 1
        answers = fan_out(
            models, prompt, options, lambda: limits.pause(answering), limits.answer_seconds
        )
        try:
            async with aclosing(answers) as updates:
                async for texts in updates:
                    yield texts if len(texts) > 1 else texts[0]
        finally:
            answering -= 1

    with gr.Blocks(title=settings.title, analytics_enabled=False) as page:
        gr.Markdown(f"# {settings.title}\n{settings.description}")
        prompt = gr.Textbox(
            label=PROMPT_LABEL,
            placeholder=PROMPT_PLACEHOLDER,
            lines=3,
            max_lines=12,
            autofocus=True,
        )
        with gr.Row():
            run = gr.Button(BUTTON, variant="primary")
            stop = gr.Button("Stop", variant="stop")
            clear = gr.Button("Clear")
        with gr.Accordion("Options", open=False), gr.Row():
            min_new_tokens = gr.Slider(
                0,
                limits.new_tokens,
                value=defaults.min_new_tokens,
                step=1,
                label="At least, tokens",
                info="A token is about three quarters of a word.",
            )
            max_new_tokens = gr.Slider(
                1,
                limits.new_tokens,
                value=defaults.max_new_tokens,
                step=1,
                label="At most, tokens",
                info="The answer is cut off here.",
            )
            temperature = gr.Dropdown(
                [OWN, "0", "0.3", "0.7", "1", "1.5"],
                value=_shown(defaults.temperature),
                allow_custom_value=True,
                label="Temperature",
                info="0 always takes the likeliest token, 2 is wild.",
            )
            top_p = gr.Dropdown(
                [OWN, "0.5", "0.8", "0.9", "0.95", "1"],
                value=_shown(defaults.top_p),
                allow_custom_value=True,
                label="Top p",
                info="Samples from the likeliest tokens of this probability.",
            )
        with gr.Row(equal_height=True):
            panes = [
                gr.Textbox(
                    label=model.name,
                    lines=10,
                    max_lines=24,
                    buttons=["copy"],
                    elem_id=f"pane-{model.name}",
                )
                for model in models
            ]
        gr.Examples(EXAMPLES, prompt, label="Examples")

        controls = [prompt, min_new_tokens, max_new_tokens, temperature, top_p]
        running = gr.on(
            [run.click, prompt.submit],
            generate,
            controls,
            panes,
            api_name="generate",
            concurrency_limit=limits.running_requests,
            show_progress="minimal",
        )
        stop.click(None, cancels=running)
        clear.click(
            lambda: [""] * (len(panes) + 1),
            outputs=[prompt, *panes],
            cancels=running,
            api_visibility="private",
        )
        _outlive_reloads(page, [prompt, *panes])
    # A direct call would pass the queue by, and get the first words alone.
    return page.queue(max_size=limits.waiting_requests, api_open=False)


def _outlive_reloads(page: gr.Blocks, boxes: Sequence[gr.Textbox]) -> None:
    """Keeps texts in the browser's tab: after a lost connection, Gradio's page loads anew."""
    for position, box in enumerate(boxes):
        remember = f"text => sessionStorage.setItem(location.pathname + {position}, text)"
        box.change(None, box, js=remember, api_visibility="private")
    # What somebody has typed before the page was ready stays.
    recall = """(...texts) => texts.map(
        (text, position) => text || sessionStorage.getItem(location.pathname + position) || ""
    )"""
    page.load(None, list(boxes), list(boxes), js=recall, api_visibility="private")


def check_prompt(prompt: str, limits: Limits) -> None:
    """Raises gr.Error, which the page shows, when no model could answer the prompt."""
    if not prompt.strip():
        raise refusal("Write a text first.")
    if len(prompt) > limits.prompt_characters:
        raise refusal(
            f"The text has {len(prompt):,} characters; shorten it to {limits.prompt_characters:,}."
        )
    for position, character in enumerate(prompt, start=1):
        category = unicodedata.category(character)
        if category == "Cs":
            raise refusal(
                f"Character {position} is half of a character, so the text is no valid UTF-8. "
                "Remove it, or type it again."
            )
        if category == "Cc" and character not in "\t\n\r":
            raise refusal(
                f"Character {position} is the control character U+{ord(character):04X}. Remove it."
            )


def read_options(
    min_new_tokens: int, max_new_tokens: int, temperature: str, top_p: str
) -> GenerationOptions:
    """Raises gr.Error with the reason when the options are out of range."""
    try:
        return GenerationOptions.model_validate(
            {
                "min_new_tokens": min_new_tokens,
                "max_new_tokens": max_new_tokens,
                "temperature": None if temperature == OWN else temperature,
                "top_p": None if top_p == OWN else top_p,
            }
        )
    except ValidationError as error:
        reasons = "; ".join(_reason(detail["loc"], detail["msg"]) for detail in error.errors())
        raise refusal(reasons) from error


def refusal(reason: str) -> gr.Error:
    return gr.Error(reason, title="Please change this", print_exception=False)


async def fan_out(
    models: Sequence[Model],
    prompt: str,
    options: GenerationOptions,
    pause: Callable[[], float],
    answer_seconds: float,
) -> AsyncGenerator[list[str], None]:
    """Asks all models at once and yields every model's text so far when any of them grew.

    What grows within a pause after an update is shown with the next: an eye follows no more.
    A model that fails says so in its own pane. Closing the iterator stops all models.

    Raises:
        gr.Error: every model failed.
    """
    texts = ["" for _ in models]
    failures: list[str] = []
    grew = asyncio.Event()
    running = len(models)

    async def read(pane: int, model: Model) -> None:
        nonlocal running
        try:
            async with (
                asyncio.timeout(answer_seconds),
                aclosing(model.stream(prompt, options)) as pieces,
            ):
                async for piece in pieces:
                    texts[pane] += piece
                    grew.set()
        except Exception as error:
            failures.append(_explain(model, error))
            texts[pane] = f"{texts[pane]}\n\n⚠ {failures[-1]}".lstrip()
        finally:
            running -= 1
            grew.set()

    readers = [asyncio.create_task(read(pane, model)) for pane, model in enumerate(models)]
    try:
        while running or grew.is_set():
            await grew.wait()
            grew.clear()
            yield list(texts)
            if running:
                await asyncio.sleep(pause())
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    if len(failures) == len(models):
        raise gr.Error(" ".join(failures), title="No answer", print_exception=False)


def _shown(option: float | None) -> str:
    return OWN if option is None else f"{option:g}"


def _explain(model: Model, error: Exception) -> str:
    if isinstance(error, PromptError | BusyError | InterruptionError):
        return str(error)
    if isinstance(error, TimeoutError):
        return f"{model.name} was stopped, because it took too long. Ask for fewer tokens."
    logger.error("%s failed", model.name, exc_info=error)
    return f"{model.name} failed to answer. Run again; if it stays so, look at the server's log."


def _reason(location: tuple[int | str, ...], message: str) -> str:
    named = ".".join(str(part) for part in location)
    reason = message.removeprefix("Value error, ")
    return f"{named}: {reason}" if named else reason
