"""The application: a page with its models in the same process."""

import gradio as gr
from ray.serve import Application

from .ingress import GradioServer, HasHealth
from .page import build_page
from .settings import Settings


def build(settings: Settings) -> Application:
    """Returns the application that a Serve config describes with its `args:`."""
    server = GradioServer.options(ray_actor_options={"num_cpus": 1})
    return server.bind(settings, PageWithModels(settings))


class PageWithModels:
    """Builds the page, and the models in its process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engines: list[HasHealth] = []

    def __call__(self) -> gr.Blocks:
        # Here, so that a process which only binds the graph does without torch.
        from .engine import Engine

        settings = self._settings
        engines = [Engine(model, settings.limits) for model in settings.models]
        self._engines = [*engines]
        return build_page(settings, engines)

    def __reduce__(self) -> tuple[type["PageWithModels"], tuple[Settings]]:
        # Serve pickles a replica's arguments once more when it has started; engines cannot be.
        return PageWithModels, (self._settings,)

    def check_health(self) -> None:
        for engine in self._engines:
            engine.check_health()


app = build(Settings())
