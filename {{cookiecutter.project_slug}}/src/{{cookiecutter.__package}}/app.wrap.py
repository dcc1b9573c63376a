"""The application: the page, with its models in the same process."""

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
    """The settings that a Serve config can set under `args:`. Add your own fields."""

    title: str = TITLE
    description: str = DESCRIPTION
    options: GenerationOptions = OPTIONS
    models: tuple[ModelSettings, ...] = MODELS


def build(settings: Settings) -> Application:
    """Returns the application for the `args:` of a Serve config."""
    server = GradioServer.options(ray_actor_options={"num_cpus": 1})
    return server.bind(settings, PageOfModels(settings, build_page), launch=LAUNCH)


app = build(Settings())
