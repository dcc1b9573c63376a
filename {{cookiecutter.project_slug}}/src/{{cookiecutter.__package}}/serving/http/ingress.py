"""Serves the page over HTTP as the application's ingress deployment."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import gradio as gr
from ray import cloudpickle, serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig, RequestRouterConfig
from ray.serve.gradio_integrations import GradioIngress
from ray.serve.handle import DeploymentHandle
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from ..base import PAGE_DEPLOYMENT, StartError
from ..telemetry.logs import clean_request_ids, where
from .disconnects import LeftStreams, ProxyLoss
from .guard import RETRY_SECONDS
from .launch import Launch, built, name_of
from .mount import mount
from .sessions import SessionCookie, SessionRouter
from .settings import HttpSettings


@runtime_checkable
class HasHealth(Protocol):
    def check_health(self) -> None: ...


Builder = Callable[..., gr.Blocks | gr.Server]


class PageIngress(GradioIngress):
    """The page that `builder` makes, called with a handle for each of `models`.

    The builder runs in the replica, because Gradio's objects cannot be pickled.

    Args:
        launch: what Gradio's `launch()` would be given.
        middleware: ASGI middleware of your own; it meets a request that the guards let pass.
        routes: routes of your own beside the page.
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
        # After each call, Gradio makes a table of all calls that it remembers: of 10,000.
        os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
        os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "100")
        clean_request_ids()
        name = serve.get_replica_context().app_name
        web = mount(_built(builder, *models), settings, launch, middleware, routes, name)
        web.add_middleware(
            SessionCookie,
            embedded=bool(settings.embedded_in or settings.origins),
            path=settings.public_path,
            origins=settings.origins,
        )
        web.add_middleware(LeftStreams)
        web.add_middleware(ProxyLoss)
        # GradioIngress would serve the Blocks alone, with no theme and no queue; its
        # parent takes the mounted app, which starts both.
        super(GradioIngress, self).__init__(web)

    def check_health(self) -> None:
        """Serve replaces the replica when this raises, as the builder's own may."""
        if isinstance(self._builder, HasHealth):
            self._builder.check_health()


def _built(builder: Builder, *models: DeploymentHandle) -> gr.Blocks | gr.Server:
    try:
        return built(builder, *models)
    except StartError:
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise StartError(
            f"{name_of(builder)} fails with {reason}, {where(error).partition(' ')[2]}. Correct it; "
            "the preview shows the whole traceback."
        ) from error


class PageDeployment(Deployment):
    """A deployment of the page, which refuses what could not reach a replica."""

    def bind(
        self,
        settings: HttpSettings,
        builder: Builder,
        *models: Application,
        launch: Launch = Launch(),  # noqa: B008 - it is frozen
        **others: Any,
    ) -> Application:
        """Returns the application whose page the builder makes, in each replica.

        Raises:
            StartError: the builder is a page itself, or holds one, and cannot be pickled.
        """
        import_it = (
            "Give it a function that imports the page and returns it: def build_page(): "
            "from .my_page import demo; return demo"
        )
        if isinstance(builder, gr.Blocks | gr.Server):
            raise StartError(f"the page itself cannot be sent to replicas. {import_it}")
        try:
            cloudpickle.dumps(builder)
        except Exception as error:
            raise StartError(
                f"{name_of(builder)} cannot be sent to replicas, since it holds what cannot be "
                f"pickled, such as a page. {import_it}"
            ) from error
        return super().bind(settings, builder, *models, launch=launch, **others)

    def options(self, *arguments: Any, **options: Any) -> "PageDeployment":
        return PageDeployment._of(super().options(*arguments, **options))

    @classmethod
    def _of(cls, other: Deployment) -> "PageDeployment":
        changed = (other._name, other._deployment_config, other._replica_config, other._version)
        return cls(*changed, _internal=True)


GradioServer = PageDeployment._of(
    serve.deployment(
        PageIngress,
        name=PAGE_DEPLOYMENT,
        request_router_config=RequestRouterConfig(request_router_class=SessionRouter),
        # Every open tab holds one request for as long as it is open, and a second while it
        # waits for an answer: this bounds the tabs, and the page's queue bounds the work.
        max_ongoing_requests=1000,
        # Room for many who open the page at once: each asks for a dozen files.
        max_queued_requests=1000,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_SECONDS),
        max_constructor_retry_count=1,
        ray_actor_options={"num_cpus": 0.4},
    )
)
