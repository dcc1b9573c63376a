"""The project's page with a model that loads slowly, and gets slower with more calls.

A Serve config names `build`.
"""

import asyncio
import importlib
import os
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal

from pydantic import BaseModel
from ray.serve import Application

PACKAGE = os.environ["BENCHMARK_PACKAGE"]
serving = importlib.import_module(f"{PACKAGE}.serving")
deployment = importlib.import_module(f"{PACKAGE}.serving.deployments.deployment")
metrics = importlib.import_module(f"{PACKAGE}.serving.telemetry.metrics")


class Crowded:
    """Writes its process id, later if more calls run at the same time."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self._seconds = seconds
        self._asked = 0

    async def stream(self, messages: object, options: object) -> AsyncGenerator[object, None]:  # noqa: ARG002
        self._asked += 1
        try:
            await asyncio.sleep(self._seconds * self._asked)
            yield serving.Piece(f"{os.getpid()} ", 1)
            yield serving.End("stop")
        finally:
            self._asked -= 1


class Loaded(deployment.ModelReplica):  # type: ignore[misc]
    """A model replica of the project, with a fake model."""

    def __init__(self, name: str, load_seconds: float, seconds: float) -> None:
        time.sleep(load_seconds)
        self._metered = metrics.MeteredModel(Crowded(name, seconds), log_prompts=False)

    def check_health(self) -> None:
        """Always passes."""


class Arguments(BaseModel):
    name: str
    load_seconds: float
    seconds: float
    """Seconds to the first text without other calls."""
    deployment: Mapping[str, float]
    """Arguments of `DeploymentSettings`."""
    openai_api: Literal["without-keys"] = "without-keys"


def build(args: Arguments) -> Application:
    # Imported here, because the model process does not need Gradio.
    page = importlib.import_module(f"{PACKAGE}.page")
    own: dict[str, Any] = {"num_cpus": 0.05, **args.deployment}
    model = serving.ModelSettings(
        name=args.name, source="none", deployment=serving.DeploymentSettings(**own)
    )
    settings = serving.PageSettings(
        title="Scaled", description="", models=[model], openai_api=args.openai_api
    )
    replicas = deployment.TextGenerationModel.options(
        func_or_class=Loaded,
        name=model.name,
        max_ongoing_requests=settings.limits.running_requests,
        max_queued_requests=settings.limits.waiting_requests,
        **settings.deployment_of(model).options(),
    )
    return serving.GradioServer.bind(
        settings,
        serving.PageOfModels(settings, page.build_page),
        replicas.bind(model.name, args.load_seconds, args.seconds),
        launch=page.LAUNCH,
    )
