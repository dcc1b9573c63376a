"""A deployed model as the page sees it. Knows nothing of Gradio."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter

from ..protocol import (
    BusyError,
    End,
    GenerationError,
    GenerationOptions,
    InterruptionError,
    Message,
    Piece,
)
from ..telemetry.logs import request_id
from ..telemetry.metrics import answers_counter


@dataclass(frozen=True)
class RemoteModel:
    """Asks one of the replicas."""

    name: str
    handle: DeploymentHandle
    answers: Counter = field(default_factory=answers_counter)
    """Of the refused ones, which no replica hears of."""

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
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
                async with aclosing(self._ask(messages, options)) as pieces:
                    async for piece in pieces:
                        shown = True
                        yield piece
                return
            except (RayActorError, ReplicaUnavailableError, GenerationError) as error:
                if shown or not retries_left:
                    raise InterruptionError(
                        f"{self.name} was interrupted. Run again for the whole answer."
                    ) from error

    async def _ask(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        response = self.handle.options(stream=True).stream.remote(
            tuple(messages), options, request_id.get()
        )
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
