"""One prompt, asked of all models at once."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import gradio as gr

from ..answers import Answer, State, fan_out
from ..base import SESSION_LOST
from ..protocol import Message, Model
from ..telemetry.logs import keep_request_id, logger, request_id
from .browser import END_OF_MARKING, MARK_STOPPED, fill_at_start, make_link
from .options import OptionControls, read_options, shown
from .panes import Pane, state_line
from .prompt import check_prompt
from .settings import PageSettings

# Gradio's workers beyond those that answer, so that what else is clicked has no need to wait.
OTHER_WORKERS = 8

SESSION_LOST_WARNING = (
    "The server that held this page's history is gone. The page goes on with another one."
)


@dataclass(frozen=True)
class CompareControls:
    """What a visitor sees and clicks."""

    prompt: gr.Textbox
    options: OptionControls
    panes: Sequence[Pane]
    run: gr.Button
    stop: gr.Button
    clear: gr.Button
    share: gr.Button


def connect(
    page: gr.Blocks, controls: CompareControls, settings: PageSettings, models: Sequence[Model]
) -> None:
    """Lets the controls do what they say, and offers the function `generate` in the page's API.

    Call it once, inside of the page's `with`, when all controls are there.
    """
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
        check_prompt(prompt, limits.prompt_characters)
        options = read_options(min_new_tokens, max_new_tokens, temperature, top_p, defaults)
        messages = [Message("user", prompt)]
        nonlocal answering
        answering += 1
        logger.info("asked", extra={"request": request_id.get(), "characters": len(prompt)})
        try:
            yield [Answer() for _ in models]
            answers = fan_out(
                models, messages, options, lambda: limits.pause(answering), limits.answer_seconds
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
        temperature: str | float = shown(defaults.temperature),
        top_p: str | float = shown(defaults.top_p),
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

    texts = [pane.text for pane in controls.panes]
    states = [pane.state for pane in controls.panes]
    named = {"prompt": controls.prompt, **controls.options.named()}
    inputs = [*named.values()]
    running = gr.on(
        [controls.run.click, controls.prompt.submit],
        show,
        inputs,
        [*texts, *states],
        api_visibility="private",
        concurrency_limit=limits.running_requests,
        concurrency_id="answers",
        show_progress="minimal",
        js=END_OF_MARKING,
    )
    controls.stop.click(None, js=MARK_STOPPED, cancels=running, api_visibility="private")
    controls.clear.click(
        lambda: [""] * (1 + len(texts) + len(states)),
        outputs=[controls.prompt, *texts, *states],
        cancels=running,
        api_visibility="private",
    )
    controls.share.click(
        None, inputs, controls.share, js=make_link(named), api_visibility="private"
    )
    # Clients ask for the texts alone, by this name.
    gr.Button(visible=False).click(
        generate,
        inputs,
        texts,
        api_name="generate",
        concurrency_limit=limits.running_requests,
        concurrency_id="answers",
    )
    fill_at_start(page, named, texts)
    page.max_threads = limits.running_requests + OTHER_WORKERS
    # A direct call would pass the queue by, and get the first words alone.
    page.queue(max_size=limits.waiting_requests, api_open=False)
