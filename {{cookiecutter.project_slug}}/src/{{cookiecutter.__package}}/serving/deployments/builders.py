"""Gives a page its models, wherever each runs. Does not import Gradio."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.middleware import Middleware

from ..protocol import End, GenerationOptions, Message, Model, Piece
from ..telemetry.metrics import MeteredModel
from .handles import RemoteModel
from .pinning import pinned
from .settings import ModelSettings, ModelsSettings

S = TypeVar("S", bound=ModelsSettings)
P = TypeVar("P")

WORDS_PER_SECOND = 50


@dataclass(frozen=True)
class Echo:
    """A stand-in for a model in a preview: it repeats the words of the last message."""

    name: str

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        asked = next(each.content for each in reversed(messages) if each.role == "user").split()
        for word in (asked * options.max_new_tokens)[: options.max_new_tokens]:
            yield Piece(f"{word} ", 1)
            await asyncio.sleep(1 / WORDS_PER_SECOND)
        yield End("length", prompt_tokens=len(asked))


class PageOfModels(Generic[S, P]):
    """Builds the page. `GradioServer` calls it in its replica.

    Each model in the settings is reached through the handle of its deployment if it has one,
    through its server if the settings name one, and otherwise runs in the page's process.
    Deployments that the settings do not name, such as your own, come last.
    """

    def __init__(self, settings: S, build_page: Callable[[S, Sequence[Model]], P]) -> None:
        self.settings = settings
        self.build_page = build_page
        self._models: Sequence[Model] = ()
        self._healthy: list[Callable[[], None]] = []

    def __call__(self, *handles: DeploymentHandle) -> P:
        deployed: dict[str, Model] = {
            handle.deployment_name: RemoteModel(handle.deployment_name, handle)
            for handle in handles
        }
        named = [
            deployed.pop(model.name) if model.name in deployed else self._own(model)
            for model in self.settings.models
        ]
        return self._built([*named, *deployed.values()])

    def __reduce__(self) -> tuple[type["PageOfModels[S, P]"], tuple[object, ...]]:
        # Serve pickles a replica's arguments again after it starts. Engines cannot be pickled.
        models = tuple(map(pinned, self.settings.models))
        return PageOfModels, (self.settings.model_copy(update={"models": models}), self.build_page)

    def preview(
        self,
        deployments: Sequence[Application],
        handle_of: Callable[[Application], DeploymentHandle],
        *,
        engine: bool,
    ) -> P:
        """Returns the page without Ray, with echo models or with the models in the settings."""
        names = [model.name for model in self.settings.models]
        others = [each for each in deployments if each._bound_deployment.name not in names]
        if engine:
            # A model in the settings that has no handle is loaded in this process.
            return self(*map(handle_of, others))
        names += [each._bound_deployment.name for each in others]
        return self._built([Echo(name) for name in names])

    def middleware(self) -> Sequence[Middleware]:
        """Returns middleware that serves the same models at routes next to the page's."""
        return self.settings.middleware_of(self._models)

    def check_health(self) -> None:
        for check in self._healthy:
            check()

    def _built(self, models: Sequence[Model]) -> P:
        self._models = models
        return self.build_page(self.settings, self.settings.on_page(models))

    def _own(self, model: ModelSettings) -> Model:
        served: Model
        if model.base_url:
            # Imported here because the client takes most of a second to import.
            from .openai_client import OpenAIClient

            served = OpenAIClient(model)
        else:
            # Imported here so that a process that only calls deployments does not load torch.
            from ..engine.engine import Engine

            served = Engine(model, self.settings.limits)
            self._healthy.append(served.check_health)
        remote = model.base_url is not None
        return MeteredModel(served, log_prompts=self.settings.log_prompts, remote=remote)
