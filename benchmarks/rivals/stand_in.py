"""The project's page with models of a fixed service time, which behave like a GPU."""

import asyncio
import importlib
import os
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel
from ray import serve
from ray.serve import Application

PACKAGE = os.environ["BENCHMARK_PACKAGE"]


@dataclass(frozen=True)
class StandInSettings:
    name: str
    seconds: float
    """Seconds from a request to the end of its text, however many run at once."""
    replicas: int
    at_once: int
    """Requests that a replica processes at the same time, like a batch on a GPU."""
    tokens: int
    """Tokens of an answer, which arrive evenly and are grouped like those of the real engine."""


@serve.deployment
class StandIn:
    def __init__(self, seconds: float, tokens: int) -> None:
        self._seconds = seconds
        self._tokens = tokens
        self._running = 0
        self._limits = importlib.import_module(f"{PACKAGE}.serving").Limits()

    async def stream(
        self,
        messages: object,  # noqa: ARG002
        options: object,  # noqa: ARG002
        request: str,  # noqa: ARG002
    ) -> AsyncGenerator[object, None]:
        """Writes its process id for each token."""
        protocol = importlib.import_module(f"{PACKAGE}.serving.protocol")
        began, told, each = time.monotonic(), 0, self._seconds / self._tokens
        self._running += 1
        try:
            await asyncio.sleep(each)
            while told < self._tokens:
                passed = time.monotonic() - began
                tokens = min(max(int(passed / each), told + 1), self._tokens) - told
                told += tokens
                yield protocol.Piece(f"{os.getpid()} " * tokens, tokens)
                passed = time.monotonic() - began
                end = max(self._seconds - passed, 0)
                await asyncio.sleep(min(self._limits.pause(self._running), end))
            yield protocol.End("stop")
        finally:
            self._running -= 1


class Arguments(BaseModel):
    models: list[StandInSettings]
    page_replicas: int
    running_requests: int = 200
    waiting_requests: int = 200
    login_user: str | None = None
    openai_api: bool | Literal["without-keys"] = False
    login_header: str | None = None
    proxies: tuple[str, ...] = ()
    rate_limits: dict[str, int | str] | None = None
    oidc: dict[str, str] | None = None
    mcp: bool = False


def build(args: Arguments) -> Application:
    page = importlib.import_module(f"{PACKAGE}.page")
    serving = importlib.import_module(f"{PACKAGE}.serving")
    deployments = [
        StandIn.options(
            name=model.name,
            num_replicas=model.replicas,
            max_ongoing_requests=model.at_once,
            ray_actor_options={"num_cpus": 0.05},
        ).bind(model.seconds, model.tokens)
        for model in args.models
    ]
    settings = serving.PageSettings(
        title="Stand-ins",
        description="",
        models=[serving.ModelSettings(name=model.name, source="none") for model in args.models],
        limits=serving.Limits(
            running_requests=args.running_requests, waiting_requests=args.waiting_requests
        ),
        login_user=args.login_user,
        openai_api=args.openai_api,
        login_header=args.login_header,
        proxies=args.proxies,
        rate_limits=args.rate_limits,
        oidc=args.oidc,
        mcp=args.mcp,
    )
    builder = serving.PageOfModels(settings, page.build_page)
    server = serving.GradioServer.options(num_replicas=args.page_replicas)
    return server.bind(settings, builder, *deployments, launch=page.LAUNCH)
