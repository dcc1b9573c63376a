"""The page: change its words, its looks and its controls here. Knows nothing of Ray."""

import html
import unicodedata
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import gradio as gr
from pydantic import ValidationError

from .answers import Answer, Model, State, fan_out
from .browser import END_OF_MARKING, MARK_STOPPED, fill_at_start, make_link
from .logs import keep_request_id, logger, request_id
from .settings import SESSION_LOST, GenerationOptions, Limits, Settings
from .task import BUTTON, EXAMPLES, PROMPT_LABEL, PROMPT_PLACEHOLDER

# System fonts: the theme's own would be fetched from another host by every browser.
THEME = gr.themes.Soft(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    # Darker than the theme's, so that every text has the contrast that WCAG asks for.
    block_info_text_color="*neutral_600",
    block_label_text_color="*primary_700",
    block_title_text_color="*primary_700",
    body_text_color_subdued="*neutral_600",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_dark="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_hover_dark="*primary_700",
)
CSS = """
#prompt textarea { min-height: 4.5em }
.pane { gap: 4px }
/* Gradio would lay the word Error over an answer that was stopped, or that a refusal left. */
.pane [data-testid="status-tracker"]:has(.error) { display: none }
/* The one link of the footer needs nothing that divides it from others. */
footer .divider { display: none }
.state { margin: 0; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums }
.state.failed { color: var(--error-text-color) }
"""

# A choice, because Gradio's number field cannot be empty: it shows and sends 0.
OWN = "each model's own"

# Gradio's workers beyond those that answer, so that what else is clicked has no need to wait.
OTHER_WORKERS = 8

SESSION_LOST_WARNING = (
    "The server that held this page's history is gone. The page goes on with another one."
)


def build_page(settings: Settings, models: Sequence[Model]) -> gr.Blocks:
    """Returns a page with one pane a model, and the API endpoint `/generate`."""
    limits = settings.limits
    defaults = settings.options
    answering = 0

    async def answer(
        prompt: str,
        min_new_tokens: int,
        max_new_tokens: int,
        temperature: str | float,
        top_p: str | float,
        request: gr.Request | None,
    ) -> AsyncGenerator[list[Answer], None]:
        if request is not None:
            keep_request_id(request.headers)
            if SESSION_LOST in request.headers:
                gr.Warning(SESSION_LOST_WARNING, title="A new session")
        check_prompt(prompt, limits)
        options = read_options(min_new_tokens, max_new_tokens, temperature, top_p, defaults)
        nonlocal answering
        answering += 1
        logger.info("asked", extra={"request": request_id.get(), "characters": len(prompt)})
        try:
            yield [Answer() for _ in models]
            answers = fan_out(
                models, prompt, options, lambda: limits.pause(answering), limits.answer_seconds
            )
            async with aclosing(answers) as updates:
                async for update in updates:
                    yield update
        finally:
            answering -= 1

    async def generate(
        prompt: str,
        min_new_tokens: int = defaults.min_new_tokens,
        max_new_tokens: int = defaults.max_new_tokens,
        temperature: str | float = _shown(defaults.temperature),
        top_p: str | float = _shown(defaults.top_p),
        request: gr.Request | None = None,
    ) -> AsyncGenerator[list[str] | str, None]:
        """Asks every model, and streams each one's text so far, in the order of the settings."""
        answers = answer(prompt, min_new_tokens, max_new_tokens, temperature, top_p, request)
        update: list[Answer] = []
        async with aclosing(answers) as updates:
            async for update in updates:
                texts = [each.whole for each in update]
                if any(each.state is not State.WAITING for each in update):
                    yield texts if len(texts) > 1 else texts[0]
        if all(each.state is State.FAILED for each in update):
            failures = [each.failure for each in update]
            raise gr.Error(" ".join(failures), title="No answer", print_exception=False)

    async def show(
        prompt: str,
        min_new_tokens: int,
        max_new_tokens: int,
        temperature: str,
        top_p: str,
        request: gr.Request,
    ) -> AsyncGenerator[list[str], None]:
        answers = answer(prompt, min_new_tokens, max_new_tokens, temperature, top_p, request)
        async with aclosing(answers) as updates:
            async for update in updates:
                yield [each.text for each in update] + [state_line(each) for each in update]

    with gr.Blocks(title=settings.title, analytics_enabled=False) as page:
        gr.Markdown(f"# {settings.title}\n{settings.description}")
        prompt = gr.Textbox(
            label=PROMPT_LABEL,
            placeholder=PROMPT_PLACEHOLDER,
            info="Enter runs it, Shift and Enter begin a line.",
            max_lines=12,
            autofocus=True,
            elem_id="prompt",
        )
        with gr.Row():
            run = gr.Button(BUTTON, variant="primary", min_width=140)
            stop = gr.Button("Stop", variant="stop", min_width=140)
            clear = gr.Button("Clear", min_width=140)
            share = gr.Button("Copy a link", min_width=140)
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
        panes: list[gr.Textbox] = []
        states: list[gr.HTML] = []
        with gr.Row():
            for model in models:
                with gr.Column(min_width=300, elem_classes="pane"):
                    pane = gr.Textbox(
                        label=model.name,
                        lines=10,
                        max_lines=24,
                        buttons=["copy"],
                        elem_id=f"pane-{model.name}",
                    )
                    panes.append(pane)
                    states.append(gr.HTML(elem_id=f"state-{model.name}"))
        gr.Examples(EXAMPLES, prompt, label="Examples")

        controls = {
            "prompt": prompt,
            "min_new_tokens": min_new_tokens,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
        }
        inputs = [*controls.values()]
        running = gr.on(
            [run.click, prompt.submit],
            show,
            inputs,
            [*panes, *states],
            api_visibility="private",
            concurrency_limit=limits.running_requests,
            concurrency_id="answers",
            show_progress="minimal",
            js=END_OF_MARKING,
        )
        stop.click(None, js=MARK_STOPPED, cancels=running, api_visibility="private")
        clear.click(
            lambda: [""] * (1 + len(panes) + len(states)),
            outputs=[prompt, *panes, *states],
            cancels=running,
            api_visibility="private",
        )
        share.click(None, inputs, share, js=make_link(controls), api_visibility="private")
        # Clients ask for the texts alone, by this name.
        gr.Button(visible=False).click(
            generate,
            inputs,
            panes,
            api_name="generate",
            concurrency_limit=limits.running_requests,
            concurrency_id="answers",
        )
        fill_at_start(page, controls, panes)
    page.max_threads = limits.running_requests + OTHER_WORKERS
    # A direct call would pass the queue by, and get the first words alone.
    return page.queue(max_size=limits.waiting_requests, api_open=False)


def state_line(answer: Answer) -> str:
    """Says how far an answer is: `Writing · first text after 0.4 s · 23 tokens · 31 tokens/s`."""
    said = [answer.state.capitalize()]
    if answer.first_text_seconds is not None:
        said += [f"first text after {answer.first_text_seconds:.1f} s", f"{answer.tokens} tokens"]
    if answer.tokens_per_second is not None:
        said.append(f"{answer.tokens_per_second:.0f} tokens/s")
    if answer.failure:
        said.append(answer.failure)
    # What is still changing is not read aloud.
    live = "off" if answer.state in (State.WAITING, State.WRITING) else "polite"
    text = html.escape(" · ".join(said))
    return f'<p role="status" aria-live="{live}" class="state {answer.state}">{text}</p>'


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
    min_new_tokens: int,
    max_new_tokens: int,
    temperature: str | float,
    top_p: str | float,
    defaults: GenerationOptions,
) -> GenerationOptions:
    """Raises gr.Error with the reason when the options are out of range."""
    if min_new_tokens == defaults.min_new_tokens:
        # A caller who names the most tokens alone has not chosen the least.
        min_new_tokens = min(min_new_tokens, max_new_tokens)
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


def _shown(option: float | None) -> str:
    return OWN if option is None else f"{option:g}"


def _reason(location: tuple[int | str, ...], message: str) -> str:
    named = ".".join(str(part) for part in location)
    reason = message.removeprefix("Value error, ")
    return f"{named}: {reason}" if named else reason
