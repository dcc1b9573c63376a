"""A page that counts the calls of each session, so that tests see a lost session."""

import os

import gradio as gr
from ray.serve import Application

from {{ cookiecutter.__package }}.serving import GradioServer, HttpSettings

PAGE_REPLICAS = 2
MISSING_FILE = "/home/ada/whales.txt"
USER, PASSWORD = "ada", "a wet whale"


class Settings(HttpSettings):
    title: str = ""
    """A different value makes a different version of the application."""


def build(settings: Settings) -> Application:
    return GradioServer.bind(settings, counting_page)


def counting_page() -> gr.Blocks:
    with gr.Blocks() as page:
        calls = gr.State(0)
        process, number = gr.Number(label="Process"), gr.Number(label="Calls")

        def count(calls: int) -> tuple[int, int, int]:
            return calls + 1, os.getpid(), calls + 1

        def fail() -> None:
            raise FileNotFoundError(MISSING_FILE)

        gr.Button("Count").click(count, calls, [calls, process, number], api_name="count")
        gr.Button("Fail").click(fail, api_name="fail")
    return page.queue(default_concurrency_limit=20)
