"""A model without a page, whose replicas answer with their process ID."""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence

from ray.serve import Application

from {{ cookiecutter.__package }}.serving import (
    ApiServer,
    End,
    GenerationOptions,
    HttpSettings,
    Message,
    ModelSettings,
    PageOfModels,
    PageSettings,
    Piece,
    TextGenerationModel,
)

SPEAKER = "speaker"
SPEAKERS = 3
AT_ONCE = 4
"""Requests that one replica accepts at the same time."""
WORD_SECONDS = 0.1


class Speaker:
    async def stream(
        self,
        messages: Sequence[Message],
        options: GenerationOptions,
        request: str = "",  # noqa: ARG002
    ) -> AsyncGenerator[Piece | End, None]:
        for _ in range(options.max_new_tokens):
            await asyncio.sleep(WORD_SECONDS)
            yield Piece(f"{os.getpid()} ", 1)
        yield End("length", len(messages))


def build(settings: HttpSettings) -> Application:
    """Calls the model from two processes that do not share their state."""
    models = (ModelSettings(name=SPEAKER, source="unused"),)
    said = {"title": "", "description": "", "openai_api": "without-keys"}
    own = PageSettings.model_validate({**settings.model_dump(), **said, "models": models})
    speaker = TextGenerationModel.options(
        func_or_class=Speaker,
        name=SPEAKER,
        num_replicas=SPEAKERS,
        max_ongoing_requests=AT_ONCE,
        ray_actor_options={"num_cpus": 0.1},
    )
    server = ApiServer.options(
        autoscaling_config=None, num_replicas=2, ray_actor_options={"num_cpus": 0.1}
    )
    return server.bind(PageOfModels(own, PageSettings.api_of), speaker.bind())
