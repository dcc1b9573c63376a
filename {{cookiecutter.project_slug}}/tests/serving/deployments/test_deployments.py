"""The models as deployments, in Serve's local testing mode: no cluster, one process."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from ray import serve
from ray.exceptions import ActorUnavailableError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from {{ cookiecutter.__package }}.serving.deployments import handles
from {{ cookiecutter.__package }}.serving.deployments.deployment import (
    TextGenerationModel,
)
from {{ cookiecutter.__package }}.serving.deployments.handles import RemoteModel
from {{ cookiecutter.__package }}.serving.deployments.settings import (
    ModelSettings,
)
from {{ cookiecutter.__package }}.serving.pages.settings import Limits
from {{ cookiecutter.__package }}.serving.protocol import (
    BusyError,
    End,
    GenerationError,
    GenerationOptions,
    InterruptionError,
    Message,
    Piece,
    PromptError,
    on_model_start,
)

from ...support.stand_ins import pieces_of, user


@pytest.fixture
async def tiny(tiny_decoder: Path) -> AsyncGenerator[RemoteModel, None]:
    model = ModelSettings(name="tiny", source=str(tiny_decoder))
    application = TextGenerationModel.options(name=model.name).bind(model, Limits(update_seconds=0))
    handle = serve.run(application, name="tiny", _local_testing_mode=True)
    yield RemoteModel(model.name, handle)
    handle.shutdown()


async def test_a_deployed_model_streams_its_text(tiny: RemoteModel) -> None:
    options = GenerationOptions(min_new_tokens=50, max_new_tokens=50)
    *pieces, end = [each async for each in tiny.stream(user("The whale"), options)]
    written = [piece for piece in pieces if isinstance(piece, Piece)]
    assert len(pieces) == len(written) > 1
    assert sum(piece.tokens for piece in written) == 50
    assert isinstance(end, End)
    assert end.reason == "length"
    assert end.prompt_tokens


async def test_the_whole_conversation_and_the_options_reach_the_model() -> None:
    class Repeating:
        async def stream(
            self,
            messages: Sequence[Message],
            options: GenerationOptions,
            request: str,  # noqa: ARG002
        ) -> AsyncGenerator[Piece | End, None]:
            yield Piece(repr((list(messages), options)), 1)
            yield End("stop")

    application = serve.deployment(Repeating, name="repeating").bind()
    handle = serve.run(application, name="repeating", _local_testing_mode=True)
    messages = [Message("system", "Be kind."), *user("Hi"), Message("assistant", "Hello")]
    options = GenerationOptions(stop=("!",), seed=7, top_k=3)
    [piece] = await pieces_of(RemoteModel("repeating", handle).stream(messages, options))
    assert piece.text == repr((messages, options))


async def test_a_prompt_error_reaches_the_page_unchanged(tiny: RemoteModel) -> None:
    with pytest.raises(PromptError, match="too long for tiny"):
        await anext(tiny.stream(user("whale " * 300), GenerationOptions()))


class Flaky:
    """Fails the given number of times, after the given number of pieces."""

    def __init__(self, failures: int, pieces: int) -> None:
        self._failures = failures
        self._pieces = pieces

    async def stream(
        self,
        messages: Sequence[Message],  # noqa: ARG002
        options: GenerationOptions,  # noqa: ARG002
        request: str,  # noqa: ARG002
    ) -> AsyncGenerator[Piece | End, None]:
        failing = self._failures > 0
        self._failures -= 1
        for number in range(self._pieces if failing else 3):
            yield Piece(f"{number} ", 1)
        if failing:
            raise GenerationError("the model is lost")
        yield End("stop")


def flaky(failures: int, pieces: int) -> RemoteModel:
    deployment = serve.deployment(Flaky, name="flaky")
    application = deployment.bind(failures, pieces)
    return RemoteModel("flaky", serve.run(application, name="flaky", _local_testing_mode=True))


async def test_a_call_is_retried_once_if_its_replica_dies_before_the_first_piece() -> None:
    once = flaky(failures=1, pieces=0)
    pieces = await pieces_of(once.stream(user(""), GenerationOptions()))
    assert "".join(piece.text for piece in pieces) == "0 1 2 "
    with pytest.raises(InterruptionError, match="Try again"):
        await anext(flaky(failures=2, pieces=0).stream(user(""), GenerationOptions()))


async def test_a_call_is_not_retried_if_its_replica_dies_midway() -> None:
    stream = flaky(failures=1, pieces=2).stream(user(""), GenerationOptions())
    assert [await anext(stream), await anext(stream)] == [Piece("0 ", 1), Piece("1 ", 1)]
    with pytest.raises(InterruptionError, match="flaky was interrupted"):
        await anext(stream)


async def test_a_call_to_a_full_queue_is_refused_and_counted() -> None:
    handle, answers = MagicMock(), MagicMock()
    full = handle.options.return_value.stream.remote.return_value
    full.__aiter__.side_effect = BackPressureError(num_queued_requests=1, max_queued_requests=1)
    with pytest.raises(BusyError, match="Try again"):
        await anext(RemoteModel("full", handle, answers).stream(user("Hi"), GenerationOptions()))
    answers.inc.assert_called_once_with(tags={"model": "full", "outcome": "refused"})


def refused(message: str, running: int = 0) -> MagicMock:
    """Serve's status of an application whose model does not start."""
    deployment = MagicMock(message=message, replica_states={"RUNNING": running})
    return MagicMock(applications={"ours": MagicMock(deployments={"tiny": deployment})})


def traceback(line: str) -> str:
    """Serve's message about a replica that did not start."""
    return f"""A replica failed to start with exception. Retrying. Error:
Traceback (most recent call last):
  File "engine.py", line 1, in __init__
package.serving.protocol.ModelError: {line}"""


TRACEBACK = traceback("Model 'tiny': 'org/tiny' is not on the hub.")


class Silent:
    """The stream of a handle while no replica accepts the request."""

    def __aiter__(self) -> "Silent":
        return self

    async def __anext__(self) -> Piece:
        await asyncio.sleep(60)
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Has nothing to cancel."""


def never_answering() -> MagicMock:
    handle = MagicMock(deployment_id=MagicMock(app_name="ours"))
    handle.options.return_value.stream.remote.return_value = Silent()
    return handle


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("'org/tiny' is not on the hub.", "'org/tiny' is not on the hub."),
        ("'/srv/ada/tiny' has no config.json.", "'…/tiny' has no config.json."),
        ("no file is at '~/ada/tiny.gguf'.", "no file is at '…/tiny.gguf'."),
        ("no directory is at '../ada/tiny'.", "no directory is at '…/tiny'."),
        ("cannot be saved in /home/ada/hub (full).", "cannot be saved in …/hub (full)."),
        ("the hub returned 500 (https://hub/api/x).", "the hub returned 500 (https://hub/api/x)."),
        ("2/3 of it and/or more", "2/3 of it and/or more"),
    ],
)
async def test_a_model_that_cannot_start_gives_the_reason_without_naming_a_folder(
    said: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "FIRST_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(serve, "status", lambda: refused(traceback(said)))
    model = RemoteModel("tiny", never_answering(), MagicMock())
    with pytest.raises(InterruptionError) as error:
        await anext(model.stream(user("Hi"), GenerationOptions()))
    assert str(error.value) == shown


@pytest.mark.parametrize("status", [refused(TRACEBACK, running=1), refused("waits for a GPU")])
async def test_callers_wait_for_a_model_that_may_still_answer(
    status: MagicMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "FIRST_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(serve, "status", lambda: status)
    model = RemoteModel("tiny", never_answering(), MagicMock())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(model.stream(user("Hi"), GenerationOptions())), 0.5)


@pytest.mark.parametrize(("running", "told"), [(0, True), (1, False)])
async def test_readers_are_told_when_no_replica_is_running(
    running: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "FIRST_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(serve, "status", lambda: refused("", running))
    starts: list[bool] = []
    on_model_start.set(lambda: starts.append(True))
    model = RemoteModel("tiny", never_answering(), MagicMock())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(model.stream(user("Hi"), GenerationOptions())), 2)
    assert bool(starts) == told


async def test_callers_wait_for_a_model_while_the_controller_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handles, "FIRST_CHECK_SECONDS", 0.01)
    status = MagicMock(side_effect=ActorUnavailableError("It is away.", None))
    monkeypatch.setattr(serve, "status", status)
    model = RemoteModel("tiny", never_answering(), MagicMock())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(model.stream(user("Hi"), GenerationOptions())), 2)
    status.assert_called()


async def test_waiting_callers_share_one_status_request_to_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handles, "FIRST_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(handles, "STATUS_SECONDS", 60)
    status = MagicMock(return_value=refused(""))
    monkeypatch.setattr(serve, "status", status)
    model = RemoteModel("tiny", never_answering(), MagicMock())
    streams = [anext(model.stream(user("Hi"), GenerationOptions())) for _ in range(20)]
    waiting = [asyncio.wait_for(each, 2) for each in streams]
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(each) for each in ended} == {TimeoutError}
    status.assert_called_once()


async def test_a_deployment_that_serve_gave_up_on_gives_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve, "status", lambda: refused(TRACEBACK))
    handle = MagicMock(deployment_id=MagicMock(app_name="ours"))
    given_up = DeploymentUnavailableError(DeploymentID(name="tiny", app_name="ours"))
    handle.options.return_value.stream.remote.return_value.__aiter__.side_effect = given_up
    model = RemoteModel("tiny", handle, MagicMock())
    with pytest.raises(InterruptionError, match="'org/tiny' is not on the hub"):
        await anext(model.stream(user("Hi"), GenerationOptions()))
    monkeypatch.setattr(serve, "status", lambda: refused("RuntimeError: out of luck"))
    with pytest.raises(InterruptionError, match="tiny could not be started"):
        await anext(model.stream(user("Hi"), GenerationOptions()))


async def test_a_stream_can_be_closed_early(tiny: RemoteModel) -> None:
    stream = tiny.stream(user("The whale"), GenerationOptions())
    assert await anext(stream)
    await stream.aclose()
    assert await anext(tiny.stream(user("The lamp"), GenerationOptions()))
