"""The application: a page with its models in the same process."""

import gradio as gr
from ray.serve import Application

from .ingress import GradioServer, HasHealth
from .page import build_page
from .settings import Settings
from .telemetry import Metered


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
        models: list[Metered] = []
        for model in settings.models:
            if model.base_url:
                # Here, because its client takes most of a second to import.
                from .openai_server import OpenAIServer

                served = Metered(OpenAIServer(model), log_prompts=settings.log_prompts)
            else:
                engine = Engine(model, settings.limits)
                self._engines.append(engine)
                served = Metered(engine, log_prompts=settings.log_prompts)
            models.append(served)
        return build_page(settings, models)

    def __reduce__(self) -> tuple[type["PageWithModels"], tuple[Settings]]:
        # Serve pickles a replica's arguments once more when it has started; engines cannot be.
        return PageWithModels, (self._settings,)

    def check_health(self) -> None:
        for engine in self._engines:
            engine.check_health()


app = build(Settings())
