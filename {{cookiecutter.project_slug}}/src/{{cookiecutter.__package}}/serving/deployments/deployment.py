"""Models as Serve deployments. Does not import Gradio."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from ..engine.settings import EngineSettings, ModelLimits
from ..protocol import End, GenerationOptions, Message, Piece
from ..telemetry.logs import clean_request_ids, request_id
from ..telemetry.metrics import MeteredModel
from ..telemetry.traces import Traces, continue_trace, start_traces, stop_traces
from .pinning import pinned
from .routing import ConversationRouter
from .scaling import FIRST_TEXT
from .settings import ModelsSettings


class ModelReplica:
    """One model in its own process."""

    def __init__(
        self,
        model: EngineSettings,
        limits: ModelLimits,
        *,
        log_prompts: bool = False,
        traces: Traces | None = None,
    ) -> None:
        # Imported here so that a process that only binds the graph does not load torch.
        from ..engine.engine import Engine

        clean_request_ids()
        start_traces(traces)
        self._engine = Engine(model, limits)
        self._metered = MeteredModel(self._engine, log_prompts=log_prompts)

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions, request: str = ""
    ) -> AsyncGenerator[Piece | End, None]:
        request_id.set(str(request))
        continue_trace(request)
        async with aclosing(self._metered.stream(messages, options)) as pieces:
            async for piece in pieces:
                yield piece

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve calls this when autoscaling is on."""
        return {FIRST_TEXT: self._metered.first_text_seconds()}

    def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        self._engine.check_health()

    def __del__(self) -> None:
        """Serve calls this when the replica has finished its requests."""
        stop_traces()


TextGenerationModel = serve.deployment(
    ModelReplica,
    request_router_config=RequestRouterConfig(request_router_class=ConversationRouter),
    # If a model fails to load once, it fails the second time too.
    max_constructor_retry_count=1,
)


def deployments_of(settings: ModelsSettings) -> list[Application]:
    """Returns a deployment, named after its model, for each model that runs here."""
    return [
        TextGenerationModel.options(
            name=model.name,
            max_ongoing_requests=settings.limits.running_requests,
            max_queued_requests=settings.limits.waiting_requests,
            **settings.deployment_of(model).options(),
        ).bind(
            pinned(model),
            settings.limits,
            log_prompts=settings.log_prompts,
            traces=settings.traces,
        )
        for model in settings.models
        if model.base_url is None
    ]
