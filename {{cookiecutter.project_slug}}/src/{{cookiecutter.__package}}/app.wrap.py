"""The graph: the page, with its models in the same process."""

from ray.serve import Application

from .models import MODELS
from .page import DESCRIPTION, LAUNCH, OPTIONS, TITLE, build_page
from .serving import (
    GenerationOptions,
    GradioServer,
    ModelSettings,
    PageOfModels,
    PageSettings,
)


class Settings(PageSettings):
    """What a Serve config can say under `args:`. Add fields of your own."""

    title: str = TITLE
    description: str = DESCRIPTION
    options: GenerationOptions = OPTIONS
    models: tuple[ModelSettings, ...] = MODELS


def build(settings: Settings) -> Application:
    """Returns the application that a Serve config describes with its `args:`."""
    server = GradioServer.options(ray_actor_options={"num_cpus": 1})
    return server.bind(settings, PageOfModels(settings, build_page), launch=LAUNCH)


app = build(Settings())
