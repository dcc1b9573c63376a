"""A page whose function takes ten milliseconds, for `launch()` and for the project."""

import importlib
import os
import time
from typing import Any

import gradio as gr
from ray.serve import Application

SECONDS = 0.01


def wait(text: str) -> str:
    time.sleep(SECONDS)
    return text


def build_page() -> gr.Blocks:
    page = gr.Interface(wait, "textbox", "textbox", api_name="generate")
    return page.queue(default_concurrency_limit=8)


def build(arguments: dict[str, Any]) -> Application:
    """Reads the number of replicas from `page_replicas`."""
    serving = importlib.import_module(f"{os.environ['BENCHMARK_PACKAGE']}.serving")
    server = serving.GradioServer.options(num_replicas=arguments["page_replicas"])
    return server.bind(serving.HttpSettings(), build_page)


if __name__ == "__main__":
    build_page().launch(server_port=int(os.environ["BENCHMARK_PORT"]))
