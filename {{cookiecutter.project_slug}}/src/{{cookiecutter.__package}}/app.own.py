"""The application: the page and its settings."""

from ray.serve import Application

from .page import LAUNCH, build_page
from .serving import GradioServer, HttpSettings


class Settings(HttpSettings):
    """The settings that a Serve config can set under `args:`. Add your own fields."""


def build(settings: Settings) -> Application:
    """Returns the application for the `args:` of a Serve config."""
    return GradioServer.bind(settings, build_page, launch=LAUNCH)


app = build(Settings())
