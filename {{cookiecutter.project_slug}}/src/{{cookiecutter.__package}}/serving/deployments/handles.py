"""A deployed model as the page sees it. Knows nothing of Gradio."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
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
from ..telemetry.traces import carried, step

PATIENCE_SECONDS = 5
"""How long to wait for a first text before asking Serve whether a replica can start; it doubles."""
REFUSAL = "ModelError: "
FOLDERS = re.compile(r"(?<![\w.:/~-])(?:~|\.{1,2})?/(?:[^\s'\"/]+/)*(?=[^\s'\"/])")


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
            InterruptionError: the replica was lost half way, or the second one as well; or none
                can be started, and the message is that of the engine.
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
        deployment = self.handle.deployment_id
        attributes = {
            "ray.serve.application": deployment.app_name,
            "ray.serve.deployment": self.name,
        }
        with step(f"handle {self.name}", attributes, kind="client") as asked:
            # By gRPC: an object of Ray's for each piece takes more of both processes.
            handle = self.handle.options(stream=True, _by_reference=False)
            response = handle.stream.remote(tuple(messages), options, carried(request_id.get()))
            try:
                pieces = aiter(response)
                yield await self._first(pieces)
                async for piece in pieces:
                    yield piece
            except StopAsyncIteration:
                return
            except RayTaskError as error:
                raise error.cause from error
            except DeploymentUnavailableError as error:
                reason = await asyncio.to_thread(self._refusal)
                raise InterruptionError(
                    reason or f"{self.name} could not be started. Look at the server's log."
                ) from error
            except BackPressureError as error:
                self.answers.inc(tags={"model": self.name, "outcome": "refused"})
                asked.ends("refused", error)
                raise BusyError(
                    f"{self.name} has too much to do. Try again in a moment."
                ) from error
            finally:
                response.cancel()

    async def _first(self, pieces: AsyncIterator[Piece | End]) -> Piece | End:
        """Waits for a replica no longer than one may come."""
        first, patience = asyncio.ensure_future(anext(pieces)), PATIENCE_SECONDS
        try:
            while not (await asyncio.wait([first], timeout=patience))[0]:
                if reason := await asyncio.to_thread(self._refusal):
                    raise InterruptionError(reason)
                patience *= 2
            return first.result()
        finally:
            first.cancel()

    def _refusal(self) -> str | None:
        """Returns why the model cannot be loaded, where no replica of it is left."""
        application = serve.status().applications.get(self.handle.deployment_id.app_name)
        deployment = application.deployments.get(self.name) if application else None
        if deployment is None or deployment.replica_states.get("RUNNING"):
            return None
        said = [line for line in deployment.message.splitlines() if REFUSAL in line]
        # A visitor reads it, whom the server's folders do not concern.
        return FOLDERS.sub("…/", said[-1].partition(REFUSAL)[2]) if said else None
