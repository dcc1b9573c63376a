"""The application: the page, and what a Serve config can say of it."""

from ray.serve import Application

from .page import LAUNCH, build_page
from .serving import GradioServer, HttpSettings


class Settings(HttpSettings):
    """What a Serve config can say under `args:`. Add fields of your own."""


def build(settings: Settings) -> Application:
    """Returns the application that a Serve config describes with its `args:`."""
    return GradioServer.bind(settings, build_page, launch=LAUNCH)


app = build(Settings())
