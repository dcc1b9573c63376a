"""Models as Serve deployments. Knows nothing of Gradio."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from .settings import GenerationOptions, Limits, ModelSettings


class ModelReplica:
    """One model in a process of its own."""

    def __init__(self, model: ModelSettings, limits: Limits) -> None:
        # Here, so that a process which only binds the graph does without torch.
        from .engine import Engine

        self._engine = Engine(model, limits)

    async def stream(self, prompt: str, options: GenerationOptions) -> AsyncGenerator[str, None]:
        async for piece in self._engine.stream(prompt, options):
            yield piece

    def check_health(self) -> None:
        """Serve replaces the replica when this raises."""
        self._engine.check_health()


TextGenerationModel = serve.deployment(
    ModelReplica,
    # A model that cannot be loaded is no different the second time.
    max_constructor_retry_count=1,
    ray_actor_options={"num_cpus": 0.8},
)


@dataclass(frozen=True)
class RemoteModel:
    """A deployed model as the page sees it."""

    name: str
    handle: DeploymentHandle

    async def stream(self, prompt: str, options: GenerationOptions) -> AsyncGenerator[str, None]:
        """Yields the answer piece by piece; leaving the loop ends the generation."""
        response = self.handle.options(stream=True).stream.remote(prompt, options)
        try:
            async for piece in response:
                yield piece
        except RayTaskError as error:
            raise error.cause from error
        finally:
            response.cancel()
