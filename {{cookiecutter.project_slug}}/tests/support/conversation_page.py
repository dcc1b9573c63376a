"""A chat built only from `serving`, independent of the team's page."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import gradio as gr
from ray.serve import Application

from {{ cookiecutter.__package }}.serving import (
    ChatControls,
    End,
    GenerationOptions,
    GradioServer,
    Message,
    Model,
    PageSettings,
    Piece,
    chat_panes_of,
    connect_chat,
    option_controls,
)
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.http.settings import Oidc

from .compare_page import LAUNCH
from .stand_ins import StandIn, in_thread, settings_of

PROMPT_LABEL = "Your message"
WORD_SECONDS = 0.1


class Reader:
    """Answers with the number of messages that it read."""

    name = "reader"

    async def stream(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,  # noqa: ARG002
    ) -> AsyncGenerator[Piece | End, None]:
        for text in ("I ", "have ", "read ", f"{len(messages)} ", "messages."):
            await asyncio.sleep(WORD_SECONDS)
            yield Piece(text, 1)
        yield End("stop")


def build(settings: PageSettings) -> Application:
    page = partial(build_page, settings, [Reader()])
    return GradioServer.bind(settings, page, launch=LAUNCH)


def build_page(settings: PageSettings, models: Sequence[Model]) -> gr.Blocks:
    with gr.Blocks(title=settings.title, analytics_enabled=False) as page:
        gr.Markdown(f"# {settings.title}")
        with gr.Row():
            panes = chat_panes_of(models)
        prompt = gr.Textbox(label=PROMPT_LABEL, max_lines=12, elem_classes="prompt")
        send, stop = gr.Button("Send", variant="primary"), gr.Button("Stop")
        clear, share = gr.Button("Clear"), gr.Button("Copy a link")
        with gr.Accordion("Options", open=False):
            system = gr.Textbox(label="System prompt")
            options = option_controls(settings)
        controls = ChatControls(prompt, system, options, panes, send, stop, clear, share)
        connect_chat(page, controls, settings, models)
    return page


@contextmanager
def conversation_with(
    *models: StandIn, login_user: str | None = None, oidc: Oidc | None = None
) -> Iterator[str]:
    """Yields the URL of the page with these models, without Ray."""
    settings = settings_of().model_copy(update={"login_user": login_user, "oidc": oidc})
    with in_thread(mount(build_page(settings, models), settings, LAUNCH)) as url:
        yield f"{url}/"
