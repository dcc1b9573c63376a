"""A deployed model as the page sees it. Knows nothing of Gradio."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter
from ray.serve.schema import DeploymentStatusOverview

from ..protocol import (
    BusyError,
    End,
    GenerationError,
    GenerationOptions,
    InterruptionError,
    Message,
    Piece,
    on_model_start,
)
from ..telemetry.logs import request_id
from ..telemetry.metrics import answers_counter
from ..telemetry.traces import step, with_traceparent

PATIENCE_SECONDS = 1
"""How long to wait for a first text before asking Serve whether a replica is there; it doubles."""
SAME_SECONDS = 1
"""For which what Serve said holds for all who wait."""
REFUSAL = "ModelError: "
FOLDERS = re.compile(r"(?<![\w.:/~-])(?:~|\.{1,2})?/(?:[^\s'\"/]+/)*(?=[^\s'\"/])")


@dataclass
class Seen:
    """What Serve said last of a deployment, and when."""

    status: DeploymentStatusOverview | None = None
    at: float = float("-inf")
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class RemoteModel:
    """Asks one of the replicas."""

    name: str
    handle: DeploymentHandle
    answers: Counter = field(default_factory=answers_counter)
    """Of the refused ones, which no replica hears of."""
    seen: Seen = field(default_factory=Seen)

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        """Yields the answer piece by piece; leaving the loop ends the generation.

        A replica that is lost, or gives up, before it has shown any text is replaced by
        another, once. `on_model_start` is called while there is none.

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
            response = handle.stream.remote(
                tuple(messages), options, with_traceparent(request_id.get())
            )
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
                reason = refusal(await asyncio.to_thread(self._status))
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
        first = asyncio.ensure_future(anext(pieces))
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait([first, watching], return_when="FIRST_COMPLETED")
            if not first.done():
                watching.result()
            return first.result()
        finally:
            first.cancel()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Tells when no replica is there yet.

        Raises:
            InterruptionError: none can start.
        """
        patience = PATIENCE_SECONDS
        while True:
            await asyncio.sleep(patience)
            status = await self._seen_by_all()
            if reason := refusal(status):
                raise InterruptionError(reason)
            if status and not status.replica_states.get("RUNNING"):
                on_model_start.get()()
            patience *= 2

    async def _seen_by_all(self) -> DeploymentStatusOverview | None:
        """Asks Serve once for all who wait: its controller has other things to do."""
        async with self.seen.asking:
            if time.monotonic() - self.seen.at > SAME_SECONDS:
                self.seen.status = await asyncio.to_thread(self._status)
                self.seen.at = time.monotonic()
            return self.seen.status

    def _status(self) -> DeploymentStatusOverview | None:
        try:
            applications = serve.status().applications
        except (RayError, RayServeException):
            # While the controller is away, replicas still answer.
            return None
        application = applications.get(self.handle.deployment_id.app_name)
        return application.deployments.get(self.name) if application else None


def refusal(deployment: DeploymentStatusOverview | None) -> str | None:
    """Returns why a model cannot be loaded, where no replica of it is left."""
    if deployment is None or deployment.replica_states.get("RUNNING"):
        return None
    said = [line for line in deployment.message.splitlines() if REFUSAL in line]
    # A visitor reads it, whom the server's folders do not concern.
    return FOLDERS.sub("…/", said[-1].partition(REFUSAL)[2]) if said else None
