"""Serves the page over HTTP as the application's ingress deployment."""

import os
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import gradio as gr
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig, RequestRouterConfig
from ray.serve.gradio_integrations import GradioIngress
from ray.serve.handle import DeploymentHandle
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from ..base import PAGE_DEPLOYMENT, StartError, behind_haproxy
from ..telemetry.logs import clean_request_ids, where
from ..telemetry.traces import TracingMiddleware, start_traces
from .disconnects import ClosingMiddleware, DisconnectMiddleware, ProxyLossMiddleware
from .guard import RETRY_SECONDS
from .launch import Launch, built, name_of
from .mount import mount
from .proxy import check_rules
from .sessions import SessionCookieMiddleware, SessionRouter, application_name
from .settings import HttpSettings


@runtime_checkable
class HasHealth(Protocol):
    def check_health(self) -> None: ...


@runtime_checkable
class HasMiddleware(Protocol):
    """A builder that adds middleware once its page is built."""

    def middleware(self) -> Sequence[Middleware]:
        """Returns middleware that runs before everything else and needs no session."""


Builder = Callable[..., gr.Blocks | gr.Server]


class PageIngress(GradioIngress):
    """Serves the page that `builder` returns, called with a handle for each of `models`.

    The builder runs in the replica, because Gradio's objects cannot be pickled.

    Args:
        launch: the options that you would pass to Gradio's `launch()`.
        middleware: your own ASGI middleware. It runs after the guards.
        routes: your own routes, besides the page's.
    """

    def __init__(
        self,
        settings: HttpSettings,
        builder: Builder,
        *models: DeploymentHandle,
        launch: Launch = Launch(),  # noqa: B008 - it is frozen
        middleware: Sequence[Middleware] = (),
        routes: Sequence[BaseRoute] = (),
    ) -> None:
        self._builder = builder
        if behind_haproxy():
            check_rules(application_name())
        # After each call, Gradio builds a table of all calls that it remembers, 10,000 by default.
        os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
        os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "100")
        clean_request_ids()
        page = _built(builder, *models)
        web = mount(page, settings, launch, middleware, routes, application_name())
        web.add_middleware(
            SessionCookieMiddleware,
            embedded=bool(settings.embedded_in or settings.origins),
            path=settings.public_path,
            origins=settings.origins,
        )
        web.add_middleware(DisconnectMiddleware, seconds=settings.stream_seconds)
        add_outer_middleware(web, builder, settings)
        web.add_middleware(ProxyLossMiddleware)
        self._closing = ClosingMiddleware(web)
        # GradioIngress would serve the Blocks without a theme and a queue. Its parent class takes
        # the mounted app, which has both.
        super(GradioIngress, self).__init__(self._closing)

    async def close(self) -> bool:
        """Refuses new calls from now on. Returns whether answers are still running."""
        return self._closing.close()

    def check_health(self) -> None:
        """Runs the builder's health check. If it raises, Serve replaces the replica."""
        if isinstance(self._builder, HasHealth):
            self._builder.check_health()


def add_outer_middleware(web: FastAPI, builder: object, settings: HttpSettings) -> None:
    """Puts the builder's middleware around the rest, and tracing around that."""
    for each in builder.middleware() if isinstance(builder, HasMiddleware) else ():
        web.add_middleware(each.cls, *each.args, **each.kwargs)
    if settings.traces is not None:
        start_traces(settings.traces)
        web.add_middleware(TracingMiddleware)


def _built(builder: Builder, *models: DeploymentHandle) -> gr.Blocks | gr.Server:
    try:
        return built(builder, *models)
    except StartError:
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise StartError(
            f"{name_of(builder)} failed with {reason}, {where(error).partition(' ')[2]}. Fix the "
            "error. The preview shows the whole traceback."
        ) from error


GradioServer = serve.deployment(
    PageIngress,
    name=PAGE_DEPLOYMENT,
    # Behind HAProxy, Serve refuses a router class.
    request_router_config=RequestRouterConfig()
    if behind_haproxy()
    else RequestRouterConfig(request_router_class=SessionRouter),
    # Every open tab holds one request while it is open, and a second one while it waits for an
    # answer. This limits the tabs. The page's queue limits the work.
    max_ongoing_requests=1000,
    # Opening the page takes a dozen requests. This is enough for many visitors at once.
    max_queued_requests=1000,
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_SECONDS),
    max_constructor_retry_count=1,
    ray_actor_options={"num_cpus": 0.4},
)
