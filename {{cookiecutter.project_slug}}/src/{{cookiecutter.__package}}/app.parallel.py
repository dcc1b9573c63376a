"""The application: the page, and a deployment for each model. Also an API without a page."""

from ray.serve import Application

from .models import MODELS
from .page import DESCRIPTION, LAUNCH, OPTIONS, TITLE, build_page
from .serving import (
    ApiServer,
    GenerationOptions,
    GradioServer,
    ModelSettings,
    PageOfModels,
    PageSettings,
    deployments_of,
)


class Settings(PageSettings):
    """The settings that a Serve config can set under `args:`. Add your own fields."""

    title: str = TITLE
    description: str = DESCRIPTION
    options: GenerationOptions = OPTIONS
    models: tuple[ModelSettings, ...] = MODELS


def build(settings: Settings) -> Application:
    """Returns the application for the `args:` of a Serve config."""
    page = PageOfModels(settings, build_page)
    return GradioServer.bind(settings, page, *deployments_of(settings), launch=LAUNCH)


def api(settings: Settings) -> Application:
    """Returns an application with only the OpenAI-compatible API, for a separate Serve config."""
    return ApiServer.bind(PageOfModels(settings, Settings.api_of), *deployments_of(settings))


app = build(Settings())
