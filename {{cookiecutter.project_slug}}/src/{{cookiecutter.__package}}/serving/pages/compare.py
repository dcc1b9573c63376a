"""Sends one prompt to all models at once."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..answers import Answer
from ..base import SESSION_LOST
from ..protocol import Message, Model
from .asking import Ask, asking, configure_queue, texts_of, within_rate_limits
from .browser import (
    CONTINUE_ANSWER,
    KEEP_PROMPT,
    MARK_STOPPED,
    NAME_PANES,
    fill_at_start,
    make_link,
)
from .options import OptionControls, option_text, read_options
from .panes import Pane, state_line
from .prompt import check_prompt
from .settings import ANSWERS, PageSettings

SESSION_LOST_WARNING = (
    "The server that held this page's history has stopped. The page now uses another one."
)


@dataclass(frozen=True)
class CompareControls:
    """The components of the page."""

    prompt: gr.Textbox
    options: OptionControls
    panes: Sequence[Pane]
    run: gr.Button
    stop: gr.Button
    clear: gr.Button
    share: gr.Button


def connect(
    page: gr.Blocks,
    controls: CompareControls,
    settings: PageSettings,
    models: Sequence[Model],
    following: Callable[[Ask], Ask] | None = None,
) -> None:
    """Connects the controls to the models, and adds the function `generate` to the page's API.

    Call it once, inside the page's `with` block, after all controls.

    Args:
        following: wraps the function that asks the models for the panes, to see their answers.
    """
    limits = settings.limits
    defaults = settings.options
    ask = asking(settings)
    ask_for_panes = within_rate_limits(following(ask) if following else ask)

    def answer(
        ask: Ask,
        asked: Sequence[Model],
        prompt: str,
        said: Sequence[Any],
        request: gr.Request | None,
        begun: str = "",
    ) -> AsyncGenerator[list[Answer], None]:
        check_prompt(prompt, limits.prompt_characters)
        options = read_options(defaults, *said)
        if request is not None and SESSION_LOST in request.headers:
            gr.Warning(SESSION_LOST_WARNING, title="A new session")
        messages = [Message("user", prompt)]
        if begun:
            messages.append(Message("assistant", begun))
        return ask(asked, [messages] * len(asked), options, request)

    async def generate(
        prompt: str,
        min_new_tokens: int = defaults.min_new_tokens,
        max_new_tokens: int = defaults.max_new_tokens,
        temperature: str | float = option_text(defaults.temperature),
        top_p: str | float = option_text(defaults.top_p),
        request: gr.Request | None = None,
    ) -> AsyncGenerator[list[str] | str, None]:
        """Asks every model, and streams each one's text so far, in the order of the settings."""
        said = (min_new_tokens, max_new_tokens, temperature, top_p)
        answers = answer(ask, models, prompt, said, request)
        async with aclosing(texts_of(answers)) as texts:
            async for text in texts:
                yield text

    async def show(request: gr.Request, prompt: str, *said: Any) -> AsyncGenerator[list[str], None]:
        answers = answer(ask_for_panes, models, prompt, said, request)
        async with aclosing(answers) as updates:
            async for update in updates:
                yield [each.text for each in update] + [state_line(each) for each in update]

    def continue_with(model: Model) -> Callable[..., AsyncGenerator[tuple[str, str], None]]:
        async def continue_answer(
            request: gr.Request, prompt: str, *rest: Any
        ) -> AsyncGenerator[tuple[str, str], None]:
            *said, text = rest
            answers = answer(ask_for_panes, [model], prompt, said, request, text)
            async with aclosing(answers) as updates:
                async for [update] in updates:
                    yield text + update.text, state_line(update)

        return continue_answer

    texts = [pane.text for pane in controls.panes]
    states = [pane.state for pane in controls.panes]
    named = {"prompt": controls.prompt, **controls.options.named()}
    inputs = [*named.values()]
    answering: dict[str, Any] = {
        "api_visibility": "private",
        "concurrency_limit": limits.running_requests,
        "concurrency_id": ANSWERS,
        "show_progress": "minimal",
        # The values are text already, and Gradio would process each one in another thread.
        "postprocess": False,
    }
    starts = [controls.run.click, controls.prompt.submit]
    running = [gr.on(starts, show, inputs, [*texts, *states], js=KEEP_PROMPT, **answering)]
    running += [
        pane.more.click(
            continue_with(model),
            [*inputs, pane.text],
            [pane.text, pane.state],
            js=CONTINUE_ANSWER,
            **answering,
        )
        for pane, model in zip(controls.panes, models, strict=True)
    ]
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
    # API clients use this name, and get only the texts.
    gr.Button(visible=False).click(
        generate,
        inputs,
        texts,
        api_name="generate",
        postprocess=False,
        concurrency_limit=limits.running_requests,
        concurrency_id=ANSWERS,
    )
    page.load(None, js=NAME_PANES, api_visibility="private")
    fill_at_start(page, named, texts)
    configure_queue(page, settings, controls.run, controls.stop)
