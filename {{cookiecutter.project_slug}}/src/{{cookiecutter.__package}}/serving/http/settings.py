"""What a request may be, and who may send it."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, IPvAnyNetwork, StringConstraints, model_validator

from ..base import Strict
from ..telemetry.traces import TracedSettings, check_traces

TOOLS_NEED_KEYS = "with a login, mcp asks for keys"

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
Issuer = Annotated[
    str,
    StringConstraints(
        pattern=r"^(https://[A-Za-z0-9.-]+|http://(localhost|127\.0\.0\.1))(:[0-9]{1,5})?(/[!-~]*)?$"
    ),
]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$")]
EnvironmentName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class RequestLimits(Strict):
    """What one HTTP request may hold."""

    request_bytes: int = Field(default=10 * 2**20, ge=1024)
    """Size of one HTTP request, without the files in it."""
    file_bytes: int = Field(default=100_000_000, ge=1024)
    """Size of one file where a page takes files."""


class RateLimits(Strict):
    """How much each caller may ask for: a user, else a key, else an address."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    requests_per_day: int | None = Field(default=None, ge=1)
    redis_url_variable: EnvironmentName | None = None
    """The variable of the environment that holds the address of a Redis, in which all replicas
    count together. Without it each has its share: the limit, divided by how many there are."""

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        names = [name for name in type(self).model_fields if "_per_" in name]
        if all(getattr(self, name) is None for name in names):
            raise ValueError(f"it limits nothing. Set one of {', '.join(names)}")
        return self


class Oidc(Strict):
    """A provider of OpenID Connect that says who somebody is."""

    issuer: Issuer
    """Its address, as it writes it itself: `https://login.example.org/realms/staff`."""
    client_id: str = Field(min_length=1)
    client_secret_variable: EnvironmentName = "OIDC_CLIENT_SECRET"  # noqa: S105
    """The variable of the environment that holds the client's secret."""
    username_claim: str = Field(default="preferred_username", min_length=1)
    """Which claim is `request.username`. Take one that nobody can choose for themselves."""
    required_claims: dict[str, str] = Field(default_factory=dict)
    """What the provider has to say of who may come in: `{hd: example.org}`. Of a list, one entry."""
    scope: str = Field(default="openid profile", pattern=r"^(.* )?openid( .*)?$")
    """What is asked of the provider, for claims that need more: `openid email`."""


class HttpSettings(TracedSettings):
    """How the page is reached."""

    limits: RequestLimits = RequestLimits()
    rate_limits: RateLimits | None = None
    """How much each caller may ask for. Without it, as much as there is room for."""
    login_user: str | None = Field(default=None, min_length=1, pattern="^[^:]+$")
    """Asks everybody for this name, and for the password in the variable `PAGE_PASSWORD`.
    Programs come with a key."""
    oidc: Oidc | None = None
    """Asks everybody to log in at a provider of OpenID Connect. Programs come with a key."""
    login_header: HeaderName | None = None
    """The header in which a proxy of `proxies` names who has logged in there. Without it, and from
    everybody else, the page takes nothing. Programs come with a key."""
    proxies: tuple[IPvAnyNetwork, ...] = ()
    """Addresses of the proxies before the page, as it sees them: `10.0.3.7`, `10.0.4.0/24`."""
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

    @model_validator(mode="after")
    def _check_login(self) -> Self:
        logins = ("login_user", "oidc", "login_header")
        given = [name for name in logins if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} contradict each other. Keep one of them")
        if self.login_header is not None and not self.proxies:
            raise ValueError(
                "login_header needs proxies: anybody can send a header. Name the addresses of the "
                "proxy that sets it"
            )
        return self

    @model_validator(mode="after")
    def _check_rate_limits(self) -> Self:
        behind = self.public_url is not None and not self.proxies
        if self.rate_limits is not None and behind and not self.knows_users:
            raise ValueError(
                "rate_limits by address need proxies where public_url says that there is one: the "
                "page would take its address for everybody's. Name the addresses of the proxy"
            )
        return self

    @property
    def trusts_addresses(self) -> bool:
        """Returns whether it matters from which address a request comes."""
        limits_addresses = self.rate_limits is not None and not self.knows_users
        return self.login_header is not None or (limits_addresses and bool(self.proxies))

    @property
    def knows_users(self) -> bool:
        """Returns whether a login tells one user from another."""
        return self.oidc is not None or self.login_header is not None

    def counts(self, concurrency_id: str, visibility: object) -> bool:  # noqa: ARG002
        """Says whether a call of a function is a request in the sense of `rate_limits`."""
        return True

    @property
    def asks_login(self) -> bool:
        return any(each is not None for each in (self.login_user, self.oidc, self.login_header))

    @property
    def public_path(self) -> str | None:
        """Returns the path of `public_url`, without a slash at its end."""
        return None if self.public_url is None else urlsplit(self.public_url).path.rstrip("/")

    def start_checks(self) -> list[Callable[[], object]]:
        """Returns what raises a readable error where this machine cannot serve the page."""
        checks: list[Callable[[], object]] = [] if self.traces is None else [check_traces]
        # Here, so that the settings alone load no server.
        if self.asks_login:
            from .login import check_login, read_keys

            checks.append(partial(check_login, self))
            if self.mcp:
                checks.append(partial(read_keys, TOOLS_NEED_KEYS))
        if self.rate_limits is not None:
            from .login import rate_limits

            checks.append(lambda: rate_limits().check_rate_limits(self))
        return checks
