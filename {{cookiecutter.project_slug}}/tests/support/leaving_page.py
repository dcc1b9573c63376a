"""A page with Gradio's login that records closed tabs."""

import os
from pathlib import Path

import gradio as gr
from ray.serve import Application

from {{ cookiecutter.__package }}.serving import (
    GradioServer,
    HttpSettings,
    Launch,
)

NOTES = "LEAVING_PAGE_NOTES"
USER, PASSWORD = "ada", "a wet whale"


def build(settings: HttpSettings) -> Application:
    return GradioServer.bind(settings, leaving_page, launch=Launch(auth=(USER, PASSWORD)))


def leaving_page() -> gr.Blocks:
    # By default, Gradio keeps the state of a closed tab for an hour.
    os.environ["GRADIO_IS_E2E_TEST"] = "1"
    with gr.Blocks() as page:
        name, process, user = gr.State(delete_callback=forget), gr.Number(), gr.Textbox()
        gr.Button().click(remember, gr.Textbox(), [name, process, user], api_name="remember")
        gr.Button().click(fail, api_name="fail")
        gr.BrowserState(storage_key="history")
        page.unload(leave)
    return page


def remember(name: str, request: gr.Request) -> tuple[str, int, str | None]:
    return name, os.getpid(), request.username


def fail() -> None:
    raise ValueError("a whale of an error")


def leave(request: gr.Request) -> None:
    note("left", str(request.session_hash))


def forget(name: str | None) -> None:
    note("forgot", str(name))


def note(what: str, whose: str) -> None:
    with Path(os.environ[NOTES]).open("a") as notes:
        notes.write(f"{what} {whose}\n")
