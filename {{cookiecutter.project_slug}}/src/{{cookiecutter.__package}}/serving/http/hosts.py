"""Checks a request's host name, and the site that sends it.

If a site's name is changed to this machine's address (DNS rebinding), the Host header reveals it.
If another site sends a form, the Origin header reveals it. Browsers do not let a site set these
headers.
"""

import os
import re
from ipaddress import ip_address
from string import printable
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

DEFAULT_PORTS = {"http": "80", "https": "443"}
AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
ADD_TO_HOSTS = "If this is the page's own name, add it to `hosts` in the settings."
ORIGIN = re.compile(r"(https?)://(.+)")
PORT = re.compile("[0-9]{1,5}", re.ASCII)
HOSTS_VARIABLE = "PAGE_HOSTS"
SESSION_PATH = "page.session_path"
"""The key in the ASGI scope for the end of the root path that names a session."""


class Authority(NamedTuple):
    name: str
    port: str | None


class HostAndOriginMiddleware:
    """Refuses a request for another host with 421, and one that another site sends with 403.

    IP addresses and localhost are always accepted, because rebinding needs a name. Other names must
    be in `hosts`. The sites in `origins` may send anything.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], origins: tuple[str, ...] = ()) -> None:
        self._app = app
        self._hosts = [authority for host in hosts if (authority := _authority(host, "*."))]
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (refusal := self._refusal(scope)) is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        asked: list[Authority] = []
        forwarded = _first(headers, "x-forwarded-host")
        for host in [*headers.getlist("host"), *([forwarded] if forwarded else [])]:
            authority = _authority(host)
            if authority is None:
                detail = "The Host header is not valid. Send the name of a host."
                return JSONResponse({"detail": detail}, 400)
            if not self._is_right(authority):
                detail = f"This page does not answer to {authority.name}. {ADD_TO_HOSTS}"
                return JSONResponse({"detail": detail}, 421)
            asked.append(authority)
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            return None
        # Over plain HTTP, browsers send Sec-Fetch-Site only to localhost. And if `hosts` has
        # another name of the same site, only Origin tells them apart.
        if origin := headers.get("origin"):
            foreign = origin not in self._origins and not self._is_own(origin, asked)
        else:
            foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign:
            detail = (
                "Another site sent this request. If that site is this page under another name, add "
                "the name to `hosts` in the settings. To allow other sites, add them to `origins`."
            )
            return JSONResponse({"detail": detail}, 403)
        return None

    def _is_right(self, host: Authority) -> bool:
        return host.name == "localhost" or _is_address(host.name) or self._is_listed(host)

    def _is_listed(self, host: Authority) -> bool:
        # Browsers leave out the default port.
        ports = (None, host.port) if host.port else (None, *DEFAULT_PORTS.values())
        return any(
            (own.name == host.name or (own.name[:2] == "*." and host.name.endswith(own.name[1:])))
            and own.port in ports
            for own in self._hosts
        )

    def _is_own(self, origin: str, asked: list[Authority]) -> bool:
        found = ORIGIN.fullmatch(origin)
        sender = found and _authority(found[2])
        if not found or not sender:
            return False
        if self._is_listed(sender):
            return True
        usual = DEFAULT_PORTS[found[1]]
        return any(
            sender.name == host.name and (sender.port or usual) == (host.port or usual)
            for host in asked
        )


class PublicUrlMiddleware:
    """Rewrites a request to the address that its visitor sees, from the headers of proxies.

    Gradio builds the addresses of files and of the page from it.

    Args:
        public_url: from the settings. It takes precedence over headers.
    """

    def __init__(self, app: ASGIApp, public_url: str | None) -> None:
        self._app = app
        self._url = None if public_url is None else urlsplit(public_url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = self._seen(scope)
        await self._app(scope, receive, send)

    def _seen(self, scope: Scope) -> Scope:
        headers = Headers(scope=scope)
        scheme = _first(headers, "x-forwarded-proto")
        host = _first(headers, "x-forwarded-host") or headers.get("host", "")
        port = _first(headers, "x-forwarded-port")
        if scheme not in DEFAULT_PORTS:
            scheme = scope["scheme"]
        if self._url and self._url.netloc:
            scheme, host = self._url.scheme, self._url.netloc
        elif (authority := _authority(host)) and not authority.port and PORT.fullmatch(port):
            host += "" if port == DEFAULT_PORTS.get(scheme) else f":{port}"
        others = [header for header in scope["headers"] if header[0] != b"host"]
        seen = {**scope, "scheme": scheme, "headers": [(b"host", host.encode()), *others]}
        # An address cannot contain arbitrary bytes, so they are quoted, as in browsers.
        seen["query_string"] = quote(scope.get("query_string", b""), safe=printable).encode()
        if self._url:
            path, prefix = scope["path"], scope.get("root_path", "")
            root = self._url.path.rstrip("/") + scope.get(SESSION_PATH, "")
            if path == prefix or path.startswith(f"{prefix}/"):
                path = path[len(prefix) :]
            seen |= {"root_path": root, "path": root + path}
            seen.pop("raw_path", None)
        return seen


def _first(headers: Headers, name: str) -> str:
    """Returns the header's value from the proxy nearest to the visitor."""
    return headers.get(name, "").split(",")[0].strip()


def _authority(text: str, before: str = "") -> Authority | None:
    wildcard = before if before and text.startswith(before) else ""
    found = AUTHORITY.fullmatch(text.removeprefix(wildcard))
    return found and Authority(wildcard + found[1].lower().removesuffix("."), found[2])


def hosts_from_environment() -> tuple[str, ...]:
    """Returns the comma-separated names in the variable `PAGE_HOSTS`.

    With it, one config can be deployed in several places under different names.
    """
    return tuple(name.strip() for name in os.environ.get(HOSTS_VARIABLE, "").split(","))


def is_loopback(name: str) -> bool:
    """Returns whether a host name or address is a loopback one."""
    if name.lower() == "localhost":
        return True
    return _is_address(name) and ip_address(name.strip("[]")).is_loopback


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
