"""What a request may be, and who may send it."""

from collections.abc import Callable
from functools import partial
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints

from ..base import Strict

TOOLS_NEED_KEYS = "with login_user, mcp asks for keys"

FrameOrigin = Annotated[str, StringConstraints(pattern=r"^https://[A-Za-z0-9.*-]+(:[0-9]+)?$")]
Origin = Annotated[str, StringConstraints(pattern=r"^https?://[a-z0-9.-]+(:[0-9]{1,5})?$")]
Host = Annotated[
    str,
    StringConstraints(pattern=r"^(\*\.)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(:[0-9]{1,5})?$"),
]
PublicUrl = Annotated[
    str,
    StringConstraints(
        pattern=r"^(https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?/?|/)([A-Za-z0-9_~-][A-Za-z0-9._~-]*/?)*$"
    ),
]
Policy = Annotated[str, StringConstraints(pattern=r"^[ -~]*$")]


class RequestLimits(Strict):
    """What one HTTP request may hold."""

    request_bytes: int = Field(default=10 * 2**20, ge=1024)
    """Size of one HTTP request, without the files in it."""
    file_bytes: int = Field(default=100_000_000, ge=1024)
    """Size of one file where a page takes files."""


class HttpSettings(Strict):
    """How the page is reached."""

    limits: RequestLimits = RequestLimits()
    login_user: str | None = Field(default=None, min_length=1, pattern="^[^:]+$")
    """Asks everybody for this name, and for the password in the variable `PAGE_PASSWORD`.
    Programs come with a key."""
    mcp: bool = False
    """Whether clients of the Model Context Protocol find the page's function at `/mcp`."""
    hosts: tuple[Host, ...] = ()
    """Names by which browsers reach the page, of a proxy before it too: `page.example.org`,
    `*.example.org`, with a port where only that one is right. Its addresses and localhost need
    none. Those in the variable `PAGE_HOSTS` are added."""
    public_url: PublicUrl | None = None
    """Where visitors find the page, if a proxy takes a part of its path away or tells no host:
    `https://page.example.org/chat`. `/chat` alone where the page has several names."""
    embedded_in: tuple[FrameOrigin, ...] = ()
    """Sites that show the page in a frame, over HTTPS: `https://wiki.example.org`."""
    origins: tuple[Origin, ...] = ()
    """Sites that call the page from a browser, as <gradio-app> does: `https://wiki.example.org`."""
    content_policy: Policy = ""
    """Directives of Content-Security-Policy, beside the one that `embedded_in` makes."""
    keep_files_seconds: float = Field(default=86_400, gt=0)
    """How long a file is kept that a visitor uploaded or a function returned."""
    stream_seconds: float | None = Field(default=None, gt=0)
    """The longest that a stream stays open before the page asks for the rest of it, for a platform
    that ends each request after a time: 25 where that is 30 seconds."""

    @property
    def public_path(self) -> str | None:
        """Returns the path of `public_url`, without a slash at its end."""
        return None if self.public_url is None else urlsplit(self.public_url).path.rstrip("/")

    def start_checks(self) -> list[Callable[[], object]]:
        """Returns what raises a readable error where this machine cannot serve the page."""
        if self.login_user is None:
            return []
        # Here, so that the settings alone load no server.
        from .login import read_credentials, read_keys

        checks: list[Callable[[], object]] = [partial(read_credentials, self.login_user)]
        return [*checks, partial(read_keys, TOOLS_NEED_KEYS)] if self.mcp else checks
