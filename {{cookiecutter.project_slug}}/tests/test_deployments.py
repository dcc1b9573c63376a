"""The models as deployments, in Serve's local testing mode: no cluster, one process."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from ray import serve

from {{ cookiecutter.__package }}.deployments import RemoteModel, TextGenerationModel
from {{ cookiecutter.__package }}.errors import PromptError
from {{ cookiecutter.__package }}.settings import GenerationOptions, Limits, ModelSettings


@pytest.fixture
async def tiny(tiny_decoder: Path) -> AsyncGenerator[RemoteModel, None]:
    model = ModelSettings(name="tiny", source=str(tiny_decoder))
    application = TextGenerationModel.options(name=model.name).bind(model, Limits())
    handle = serve.run(application, name="tiny", _local_testing_mode=True)
    yield RemoteModel(model.name, handle)
    handle.shutdown()


async def test_a_deployed_model_streams_its_text(tiny: RemoteModel) -> None:
    pieces = [piece async for piece in tiny.stream("The whale", GenerationOptions())]
    assert len(pieces) > 1


async def test_a_prompt_error_reaches_the_page_as_itself(tiny: RemoteModel) -> None:
    with pytest.raises(PromptError, match="too long for tiny"):
        await anext(tiny.stream("whale " * 300, GenerationOptions()))


async def test_a_stream_can_be_left(tiny: RemoteModel) -> None:
    stream = tiny.stream("The whale", GenerationOptions())
    assert await anext(stream)
    await stream.aclose()
    assert await anext(tiny.stream("The lamp", GenerationOptions()))
