"""Serves all apps in one deployment, each as if it were the only one.

Two replicas of each app would take a hundred processes. So each replica holds a page deployment
class for each requested app, and a request header selects the app.
"""

import asyncio
import os
import pkgutil
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.gradio_integrations import GradioIngress
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

serving = pkgutil.resolve_name(f"{os.environ['APPS_PACKAGE']}.serving")
http = pkgutil.resolve_name(f"{os.environ['APPS_PACKAGE']}.serving.http")
PageIngress = pkgutil.resolve_name(f"{http.__name__}.ingress:PageIngress")
SessionRouter = pkgutil.resolve_name(f"{http.__name__}.sessions:SessionRouter")

APP = "x-app"
"""The header that selects the app."""


class Settings(serving.HttpSettings):  # type: ignore[misc, name-defined]
    apps: str
    """Import path of the function that returns them."""


class Choice:
    """The ASGI application: passes a request to the app that its header selects."""

    def __init__(self, settings: Settings) -> None:
        self._apps = pkgutil.resolve_name(settings.apps)()
        self._settings = settings
        self._pages: dict[str, Any] = {}
        self._started: dict[str, asyncio.Task[None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for stage in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{stage}.complete"})
            return
        name = Headers(scope=scope)[APP]
        if name not in self._pages:
            app = self._apps[name]
            launch = serving.Launch(**app.launch or {})
            page = PageIngress(self._settings, app.build, launch=launch)
            self._pages[name] = page
            self._started[name] = asyncio.create_task(page._run_asgi_lifespan_startup())
        await self._started[name]
        await self._pages[name](scope, receive, send)


class Apps(PageIngress):  # type: ignore[misc, valid-type]
    def __init__(self, settings: Settings) -> None:
        super(GradioIngress, self).__init__(Choice(settings))

    def check_health(self) -> None:
        """Does nothing, since it has no builder."""


def build(settings: Settings) -> Application:
    deployment = serve.deployment(
        Apps,
        name="GradioServer",
        num_replicas=2,
        max_ongoing_requests=1000,
        request_router_config=RequestRouterConfig(request_router_class=SessionRouter),
        ray_actor_options={"num_cpus": 0.1},
    )
    return deployment.bind(settings)
