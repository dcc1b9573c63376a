"""What every part of the machinery builds on: strict settings, and errors that a person reads.

Knows neither Ray nor Gradio.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict

SESSION_LOST = "x-session-lost"
"""Header that the page finds in a request whose session went with a replica that is gone."""

PAGE_DEPLOYMENT = "GradioServer"


class Strict(BaseModel):
    """Refuses names it does not know, so that a misspelt argument is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StartError(RuntimeError):
    """The application cannot start; the message says why and what to do."""


class LoginError(StartError):
    """The login cannot be offered; the message says why and what to do."""


@contextmanager
def explained() -> Iterator[None]:
    """Says in one line what Ray says in thirty where an application cannot be pickled."""
    try:
        yield
    except TypeError as error:
        if not str(error).startswith("Could not serialize the deployment"):
            raise
        raise StartError(
            "a deployment is bound with something that cannot be sent to its replicas. A Gradio "
            "page cannot: import it inside of the function that you bind, as in "
            "def build_page(): from .my_demo import demo; return demo"
        ) from error
