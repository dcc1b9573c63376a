"""Settings of HTTP: the limits of a request, and who may send one."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, IPvAnyNetwork, StringConstraints, model_validator

from ..base import Strict
from ..telemetry.traces import TracedSettings, check_traces

TOOLS_NEED_KEYS = "with a login, mcp needs API keys"

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
    """The largest request and file."""

    request_bytes: int = Field(default=10 * 2**20, ge=1024)
    """The largest HTTP request, without its files."""
    file_bytes: int = Field(default=100_000_000, ge=1024)
    """The largest file, if the page takes files."""


class RateLimits(Strict):
    """How much each caller may ask for. A caller is a user, else an API key, else an address."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    requests_per_day: int | None = Field(default=None, ge=1)
    redis_url_variable: EnvironmentName | None = None
    """The environment variable with the address of a Redis server, in which all replicas count
    together. Without it, each replica counts on its own, and the limit is divided by their
    number."""

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        names = [name for name in type(self).model_fields if "_per_" in name]
        if all(getattr(self, name) is None for name in names):
            raise ValueError(f"it sets no limit. Set one of {', '.join(names)}")
        return self


class Oidc(Strict):
    """The OpenID Connect provider where users log in."""

    issuer: Issuer
    """The provider's address, exactly as the provider spells it:
    `https://login.example.org/realms/staff`."""
    client_id: str = Field(min_length=1)
    client_secret_variable: EnvironmentName = "OIDC_CLIENT_SECRET"  # noqa: S105
    """The environment variable with the client's secret."""
    username_claim: str = Field(default="preferred_username", min_length=1)
    """The claim that becomes `request.username`. Choose one that users cannot set themselves."""
    required_claims: dict[str, str] = Field(default_factory=dict)
    """Claims that a user must have to get in: `{hd: example.org}`. If a claim is a list,
    one entry must match."""
    scope: str = Field(default="openid profile", pattern=r"^(.* )?openid( .*)?$")
    """The requested scopes. Some claims need more of them: `openid email`."""


class HttpSettings(TracedSettings):
    """Settings of the page's HTTP server."""

    limits: RequestLimits = RequestLimits()
    rate_limits: RateLimits | None = None
    """How much each caller may ask for. By default, there is no limit per caller."""
    login_user: str | None = Field(default=None, min_length=1, pattern="^[^:]+$")
    """The name that everybody logs in with. The password is in the variable `PAGE_PASSWORD`.
    Programs use API keys."""
    oidc: Oidc | None = None
    """Requires everyone to log in with an OpenID Connect provider. Programs use API keys."""
    login_header: HeaderName | None = None
    """The header in which a proxy, one of `proxies`, sends the name of the logged-in user. The page
    refuses requests without it, and requests from elsewhere. Programs use API keys."""
    proxies: tuple[IPvAnyNetwork, ...] = ()
    """Addresses of the proxies in front of the page, as the page sees them: `10.0.3.7`,
    `10.0.4.0/24`."""
    mcp: bool = False
    """Whether to offer the page's functions to MCP clients, at `/mcp`."""
    hosts: tuple[Host, ...] = ()
    """Host names of the page, and of proxies in front of it: `page.example.org`, `*.example.org`.
    Add a port to allow only that one. IP addresses and localhost are always allowed. The names in
    the variable `PAGE_HOSTS` are added."""
    public_url: PublicUrl | None = None
    """The page's address for visitors, if a proxy strips a part of the path or does not forward the
    host: `https://page.example.org/chat`. If the page has several host names, set only the path:
    `/chat`."""
    embedded_in: tuple[FrameOrigin, ...] = ()
    """Sites that may show the page in a frame, over HTTPS: `https://wiki.example.org`."""
    origins: tuple[Origin, ...] = ()
    """Sites that may call the page from a browser, like <gradio-app>:
    `https://wiki.example.org`."""
    content_policy: Policy = ""
    """Directives to add to the Content-Security-Policy, besides the one from `embedded_in`."""
    keep_files_seconds: float = Field(default=86_400, gt=0)
    """How long to keep files that visitors upload and functions return."""
    stream_seconds: float | None = Field(default=None, gt=0)
    """How long a stream may stay open before the page requests the rest of it. Set it on platforms
    that end long requests: to 25, for example, if they end after 30 seconds."""

    @model_validator(mode="after")
    def _check_login(self) -> Self:
        logins = ("login_user", "oidc", "login_header")
        given = [name for name in logins if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot be used together. Keep one of them")
        if self.login_header is not None and not self.proxies:
            raise ValueError(
                "login_header needs proxies, because anybody can send that header. Set proxies to "
                "the addresses of the proxy that sets the header"
            )
        return self

    @model_validator(mode="after")
    def _check_rate_limits(self) -> Self:
        behind = self.public_url is not None and not self.proxies
        if self.rate_limits is not None and behind and not self.knows_users:
            raise ValueError(
                "rate_limits by address need proxies. public_url means that the page is behind a "
                "proxy, so it would count every visitor under the proxy's address. Set proxies to "
                "the proxy's addresses"
            )
        return self

    @property
    def trusts_addresses(self) -> bool:
        """Returns whether a login or a limit depends on the address of a request."""
        limits_addresses = self.rate_limits is not None and not self.knows_users
        return self.login_header is not None or (limits_addresses and bool(self.proxies))

    @property
    def knows_users(self) -> bool:
        """Returns whether the login gives each user a name of their own."""
        return self.oidc is not None or self.login_header is not None

    def counts(self, concurrency_id: str, visibility: object) -> bool:  # noqa: ARG002
        """Returns whether a call of a function counts as a request for `rate_limits`."""
        return True

    @property
    def asks_login(self) -> bool:
        return any(each is not None for each in (self.login_user, self.oidc, self.login_header))

    @property
    def public_path(self) -> str | None:
        """Returns the path of `public_url`, without a trailing slash."""
        return None if self.public_url is None else urlsplit(self.public_url).path.rstrip("/")

    def start_checks(self) -> list[Callable[[], object]]:
        """Returns functions that raise a readable error if this machine cannot serve the page."""
        checks: list[Callable[[], object]] = [] if self.traces is None else [check_traces]
        # Imported here so that the settings do not load the server.
        if self.asks_login:
            from .login import check_login, read_keys

            checks.append(partial(check_login, self))
            if self.mcp:
                checks.append(partial(read_keys, TOOLS_NEED_KEYS))
        if self.rate_limits is not None:
            from .login import rate_limits

            checks.append(lambda: rate_limits().check_rate_limits(self))
        return checks
