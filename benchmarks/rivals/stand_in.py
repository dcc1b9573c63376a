"""The project's page before models of a fixed service time, as a GPU would behave."""

import asyncio
import importlib
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial

import gradio as gr
from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

PACKAGE = os.environ["BENCHMARK_PACKAGE"]
PIECES = 8


@dataclass(frozen=True)
class StandInSettings:
    name: str
    seconds: float
    """From a request to the end of its text, however many run beside it."""
    replicas: int
    at_once: int
    """Requests that a replica works on at the same time, as a GPU does with a batch."""


@serve.deployment
class StandIn:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def stream(
        self,
        prompt: str,  # noqa: ARG002
        options: object,  # noqa: ARG002
        request: str,  # noqa: ARG002
    ) -> AsyncGenerator[object, None]:
        """Writes the id of its process again and again."""
        answers = importlib.import_module(f"{PACKAGE}.answers")
        for _ in range(PIECES):
            await asyncio.sleep(self._seconds / PIECES)
            yield answers.Piece(f"{os.getpid()} ", 1)


class Arguments(BaseModel):
    models: list[StandInSettings]
    page_replicas: int
    running_requests: int = 200
    waiting_requests: int = 200
    login_user: str | None = None


def build(args: Arguments) -> Application:
    ingress = importlib.import_module(f"{PACKAGE}.ingress")
    deployments = [
        StandIn.options(
            name=model.name,
            num_replicas=model.replicas,
            max_ongoing_requests=model.at_once,
            ray_actor_options={"num_cpus": 0.05},
        ).bind(model.seconds)
        for model in args.models
    ]
    names = [model.name for model in args.models]
    package = importlib.import_module(f"{PACKAGE}.settings")
    limits = package.Limits(
        running_requests=args.running_requests, waiting_requests=args.waiting_requests
    )
    settings = package.Settings(limits=limits, login_user=args.login_user)
    server = ingress.GradioServer.options(num_replicas=args.page_replicas)
    return server.bind(settings, partial(page_of, settings, names), *deployments)


def page_of(settings: object, names: list[str], *handles: DeploymentHandle) -> gr.Blocks:
    deployments = importlib.import_module(f"{PACKAGE}.deployments")
    page = importlib.import_module(f"{PACKAGE}.page")
    models = [deployments.RemoteModel(*model) for model in zip(names, handles, strict=True)]
    return page.build_page(settings, models)
