"""The graph: the page, and behind it one deployment for each model. Also models without a page."""

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
    """What a Serve config can say under `args:`. Add fields of your own."""

    title: str = TITLE
    description: str = DESCRIPTION
    options: GenerationOptions = OPTIONS
    models: tuple[ModelSettings, ...] = MODELS


def build(settings: Settings) -> Application:
    """Returns the application that a Serve config describes with its `args:`."""
    page = PageOfModels(settings, build_page)
    return GradioServer.bind(settings, page, *deployments_of(settings), launch=LAUNCH)


def api(settings: Settings) -> Application:
    """Returns the models by OpenAI's protocol alone, for a config of its own or a second entry."""
    return ApiServer.bind(PageOfModels(settings, Settings.api_of), *deployments_of(settings))


app = build(Settings())
