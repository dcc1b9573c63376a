"""Calls a deployed model from the page. Does not import Gradio."""

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

FIRST_CHECK_SECONDS = 1
"""How long to wait for the first text before asking Serve for replicas. Doubles each time."""
STATUS_SECONDS = 1
"""How long a status from Serve is reused, for all waiting requests."""
REFUSAL = "ModelError: "
FOLDERS = re.compile(r"(?<![\w.:/~-])(?:~|\.{1,2})?/(?:[^\s'\"/]+/)*(?=[^\s'\"/])")


@dataclass
class CachedStatus:
    """The last status that Serve returned for a deployment, and when."""

    status: DeploymentStatusOverview | None = None
    at: float = float("-inf")
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class RemoteModel:
    """A model that runs in replicas of a deployment."""

    name: str
    handle: DeploymentHandle
    answers: Counter = field(default_factory=answers_counter)
    """Counts the refused requests, which reach no replica."""
    seen: CachedStatus = field(default_factory=CachedStatus)

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        """Yields the answer piece by piece; leaving the loop ends the generation.

        If a replica dies or fails before its first text, another one is tried, once.
        `on_model_start` is called while no replica runs.

        Raises:
            PromptError, BusyError: as the model's engine does.
            InterruptionError: a replica was lost after its first text, or two were lost. Also if
                no replica can start. Then the message is the engine's.
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
                        f"{self.name} was interrupted. Try again to get the whole answer."
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
            # Over gRPC, because a Ray object for each piece costs both processes more time.
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
                    reason or f"{self.name} could not be started. See the server's log."
                ) from error
            except BackPressureError as error:
                self.answers.inc(tags={"model": self.name, "outcome": "refused"})
                asked.ends("refused", error)
                raise BusyError(f"{self.name} is busy. Try again in a moment.") from error
            finally:
                response.cancel()

    async def _first(self, pieces: AsyncIterator[Piece | End]) -> Piece | End:
        """Waits for the first piece, for as long as a replica runs or may start."""
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
        """Calls `on_model_start` while no replica runs.

        Raises:
            InterruptionError: no replica can start.
        """
        patience = FIRST_CHECK_SECONDS
        while True:
            await asyncio.sleep(patience)
            status = await self._cached_status()
            if reason := refusal(status):
                raise InterruptionError(reason)
            if status and not status.replica_states.get("RUNNING"):
                on_model_start.get()()
            patience *= 2

    async def _cached_status(self) -> DeploymentStatusOverview | None:
        """Asks Serve once for all waiting requests, to spare its controller."""
        async with self.seen.asking:
            if time.monotonic() - self.seen.at > STATUS_SECONDS:
                self.seen.status = await asyncio.to_thread(self._status)
                self.seen.at = time.monotonic()
            return self.seen.status

    def _status(self) -> DeploymentStatusOverview | None:
        try:
            applications = serve.status().applications
        except (RayError, RayServeException):
            # Replicas still answer while the controller is down.
            return None
        application = applications.get(self.handle.deployment_id.app_name)
        return application.deployments.get(self.name) if application else None


def refusal(deployment: DeploymentStatusOverview | None) -> str | None:
    """Returns why a model cannot be loaded, or None if a replica runs or no reason is known."""
    if deployment is None or deployment.replica_states.get("RUNNING"):
        return None
    said = [line for line in deployment.message.splitlines() if REFUSAL in line]
    # Visitors read this message, so it must not show the server's directories.
    return FOLDERS.sub("…/", said[-1].partition(REFUSAL)[2]) if said else None
