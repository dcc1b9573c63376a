"""Serves the OpenAI-compatible API as a separate application, without a page."""

from collections.abc import Callable

from ray import serve
from ray.serve._private.http_util import ASGIAppReplicaWrapper
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from ..base import API_DEPLOYMENT
from ..telemetry.logs import clean_request_ids
from ..telemetry.traces import TracingMiddleware
from .disconnects import ClosingMiddleware, ProxyLossMiddleware
from .guard import RETRY_SECONDS
from .openai_api import refuse


class ApiIngress(ASGIAppReplicaWrapper):
    """Serves the middleware that `builder` returns, called with a handle for each of `models`."""

    def __init__(self, builder: Callable[..., Middleware], *models: DeploymentHandle) -> None:
        clean_request_ids()
        layers = [Middleware(ProxyLossMiddleware), Middleware(TracingMiddleware), builder(*models)]
        web = Starlette(middleware=layers, exception_handlers={HTTPException: refuse})
        self._closing = ClosingMiddleware(web)
        super().__init__(self._closing)

    async def close(self) -> bool:
        """Refuses new calls from now on. Returns whether answers are still running."""
        return self._closing.close()


ApiServer = serve.deployment(
    ApiIngress,
    name=API_DEPLOYMENT,
    # There are no sessions and no open tabs, so the number of requests is the load.
    autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 100},
    max_ongoing_requests=1000,
    max_queued_requests=1000,
    backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_SECONDS),
    max_constructor_retry_count=1,
    ray_actor_options={"num_cpus": 0.2},
)
