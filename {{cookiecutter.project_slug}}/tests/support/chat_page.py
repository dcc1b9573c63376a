"""A chat as the page, as a team with an existing Gradio app would add it."""

from collections.abc import AsyncIterator

import gradio as gr
from ray.serve import Application

from {{ cookiecutter.__package }}.serving import GradioServer, HttpSettings


def build(settings: HttpSettings) -> Application:
    return GradioServer.bind(settings, chat_page)


def chat_page() -> gr.ChatInterface:
    async def shout(message: str, _: list[dict[str, str]]) -> AsyncIterator[str]:
        for end in range(1, len(message) + 1):
            yield message[:end].upper()

    return gr.ChatInterface(shout, title="Shouting")
