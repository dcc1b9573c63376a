"""Models as Serve deployments. Knows nothing of Gradio."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter

from .answers import Piece
from .errors import BusyError, GenerationError, InterruptionError
from .logs import clean_request_ids, request_id
from .settings import GenerationOptions, Limits, ModelSettings
from .telemetry import Metered, answers_counter


class ModelReplica:
    """One model in a process of its own."""

    def __init__(self, model: ModelSettings, limits: Limits, *, log_prompts: bool = False) -> None:
        # Here, so that a process which only binds the graph does without torch.
        from .engine import Engine

        clean_request_ids()
        self._engine = Engine(model, limits)
        self._metered = Metered(self._engine, log_prompts=log_prompts)

    async def stream(
        self, prompt: str, options: GenerationOptions, request: str = ""
    ) -> AsyncGenerator[Piece, None]:
        request_id.set(request)
        async with aclosing(self._metered.stream(prompt, options)) as pieces:
            async for piece in pieces:
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
    answers: Counter = field(default_factory=answers_counter)
    """Of the refused ones, which no replica hears of."""

    async def stream(self, prompt: str, options: GenerationOptions) -> AsyncGenerator[Piece, None]:
        """Yields the answer piece by piece; leaving the loop ends the generation.

        A replica that is lost, or gives up, before it has shown any text is replaced by
        another, once.

        Raises:
            PromptError, BusyError: as the model's engine does.
            InterruptionError: the replica was lost half way, or the second one as well.
        """
        for retries_left in (1, 0):
            shown = False
            try:
                async with aclosing(self._ask(prompt, options)) as pieces:
                    async for piece in pieces:
                        shown = True
                        yield piece
                return
            except (RayActorError, ReplicaUnavailableError, GenerationError) as error:
                if shown or not retries_left:
                    raise InterruptionError(
                        f"{self.name} was interrupted. Run again for the whole answer."
                    ) from error

    async def _ask(self, prompt: str, options: GenerationOptions) -> AsyncGenerator[Piece, None]:
        response = self.handle.options(stream=True).stream.remote(prompt, options, request_id.get())
        try:
            async for piece in response:
                yield piece
        except RayTaskError as error:
            raise error.cause from error
        except BackPressureError as error:
            self.answers.inc(tags={"model": self.name, "outcome": "refused"})
            raise BusyError(f"{self.name} has too much to do. Try again in a moment.") from error
        finally:
            response.cancel()
