"""A project's page with a model, and a custom page: both follow commands in prompts.

`wait 12` answers after 12 seconds, `fail` raises an error.
"""

import asyncio
import importlib
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import BaseModel
from ray import serve
from ray.serve import Application

PACKAGE = os.environ["MONITORED_PACKAGE"]
MODEL = "stand-in"
AT_ONCE = 4
"""Calls to the custom page that run at the same time; twice as many may wait."""


TO_ZERO = {
    "min_replicas": 0,
    "max_replicas": 2,
    "target_ongoing_requests": 100,
    "upscale_delay_s": 0,
    "downscale_delay_s": 2,
}


def part(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.{name}")


class Obedient:
    name = MODEL

    async def stream(
        self,
        messages: Sequence[Any],
        options: object,  # noqa: ARG002
    ) -> AsyncGenerator[object, None]:
        protocol = part("serving.protocol")
        match messages[-1].content.split():
            case ["wait", seconds]:
                await asyncio.sleep(float(seconds))
            case ["fail"]:
                raise RuntimeError("as told")
        for word in ("as ", "you ", "say"):
            yield protocol.Piece(word, 1)
            await asyncio.sleep(0.05)
        yield protocol.End("stop")


def hinder(hindrance: str) -> None:
    if Path(hindrance).exists():
        raise RuntimeError("hindered")


@serve.deployment(
    name=MODEL,
    num_replicas=2,
    max_ongoing_requests=100,
    ray_actor_options={"num_cpus": 0.1},
)
class Replica:
    """Does not start while the given file exists."""

    def __init__(self, hindrance: str) -> None:
        hinder(hindrance)
        self._model = part("serving.telemetry.metrics").MeteredModel(Obedient(), log_prompts=False)

    async def stream(
        self,
        messages: Sequence[object],
        options: object,
        request: str,  # noqa: ARG002
    ) -> AsyncGenerator[object, None]:
        async with aclosing(self._model.stream(messages, options)) as pieces:
            async for piece in pieces:
                yield piece


class Arguments(BaseModel):
    hindrance: str = ""
    rate_limits: dict[str, int | str] | None = None
    scales_to_zero: bool = False


def build(args: Arguments) -> Application:
    page, serving = part("page"), part("serving")
    settings = serving.PageSettings(
        title="Monitored",
        description="",
        models=[serving.ModelSettings(name=MODEL, source="none")],
        rate_limits=args.rate_limits,
    )
    builder = serving.PageOfModels(settings, page.build_page)
    replica = Replica
    if args.scales_to_zero:
        replica = Replica.options(num_replicas=None, autoscaling_config=TO_ZERO)
    return serving.GradioServer.options(ray_actor_options={"num_cpus": 0.1}).bind(
        settings, builder, replica.bind(args.hindrance), launch=page.LAUNCH
    )


def build_own(args: Arguments) -> Application:
    serving = part("serving")
    return serving.GradioServer.options(ray_actor_options={"num_cpus": 0.1}).bind(
        serving.HttpSettings(rate_limits=args.rate_limits), partial(build_page, args.hindrance)
    )


def build_page(hindrance: str) -> gr.Blocks:
    hinder(hindrance)
    with gr.Blocks(title="Monitored", analytics_enabled=False) as page:
        prompt, said = gr.Textbox(), gr.Textbox()
        prompt.submit(obey, prompt, said, api_name="obey")
    return page.queue(default_concurrency_limit=AT_ONCE, max_size=2 * AT_ONCE)


def obey(prompt: str) -> str:
    match prompt.split():
        case ["wait", seconds]:
            time.sleep(float(seconds))
        case ["fail"]:
            raise RuntimeError("as told")
    return "as you say"
