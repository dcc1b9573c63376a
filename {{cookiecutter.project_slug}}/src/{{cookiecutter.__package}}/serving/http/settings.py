"""What a request may be, and who may send it."""

from collections.abc import Callable
from functools import partial
from typing import Annotated

from pydantic import Field, StringConstraints

from ..base import Strict

Origin = Annotated[str, StringConstraints(pattern=r"^https://[A-Za-z0-9.*-]+(:[0-9]+)?$")]


Host = Annotated[
    str,
    StringConstraints(pattern=r"^(\*\.)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(:[0-9]{1,5})?$"),
]


class RequestLimits(Strict):
    """What one HTTP request may hold."""

    request_bytes: int = Field(default=2**20, ge=1024)
    """Size of one HTTP request, and of one file where a page takes files."""


class HttpSettings(Strict):
    """How the page is reached."""

    limits: RequestLimits = RequestLimits()
    login_user: str | None = Field(default=None, min_length=1, pattern="^[^:]+$")
    """Asks everybody for this name, and for the password in the variable `PAGE_PASSWORD`."""
    mcp: bool = False
    """Whether clients of the Model Context Protocol find the page's function at `/mcp`."""
    hosts: tuple[Host, ...] = ()
    """Names by which browsers reach the page, of a proxy before it too: `page.example.org`,
    `*.example.org`, with a port where only that one is right. Its addresses and localhost need
    none."""
    embedded_in: tuple[Origin, ...] = ()
    """Sites that show the page in a frame, over HTTPS: `https://wiki.example.org`."""

    def start_checks(self) -> list[Callable[[], object]]:
        """Returns what raises a readable error where this machine cannot serve the page."""
        if self.login_user is None:
            return []
        # Here, so that the settings alone load no server.
        from .login import read_credentials

        return [partial(read_credentials, self.login_user)]
