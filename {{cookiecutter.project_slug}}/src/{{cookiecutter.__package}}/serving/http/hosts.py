"""Which names the page answers to, and which sites may send it something.

A site whose name is turned to this machine's address (DNS rebinding) gives itself away by the
Host header, and another site that sends a form by Origin. No browser lets a site set either.
"""

import re
from ipaddress import ip_address
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

DEFAULT_PORTS = {"http": "80", "https": "443"}
AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
REMEDY = "If that is the page's own name, add it to `hosts` of the settings."
ORIGIN = re.compile(r"(https?)://(.+)")
URL = re.compile(r"https?://([^/?#]+)(?:[/?#].*)?")


class Authority(NamedTuple):
    name: str
    port: str | None


class OwnSite:
    """Refuses with 421 a request for another host, and with 403 one that another site sends.

    Addresses are right, because rebinding needs a name, and so is localhost. Other names are
    those in `hosts`.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        self._app = app
        self._hosts = [authority for host in hosts if (authority := _authority(host, "*."))]

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
        for host in [*headers.getlist("host"), *_forwarded(headers)]:
            authority = _authority(host)
            if authority is None:
                return JSONResponse({"detail": "The Host header names no host."}, 400)
            if not self._is_right(authority):
                detail = f"This page does not answer to {authority.name}. {REMEDY}"
                return JSONResponse({"detail": detail}, 421)
            asked.append(authority)
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            return None
        # Over plain HTTP, browsers tell Sec-Fetch-Site to their own machine alone. Another name
        # in `hosts` may be of the same site, and only its Origin says which one it is.
        if origin := headers.get("origin"):
            foreign = not self._is_own(origin, asked)
        else:
            foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign:
            return JSONResponse({"detail": f"Another site may not send this. {REMEDY}"}, 403)
        return None

    def _is_right(self, host: Authority) -> bool:
        return host.name == "localhost" or _is_address(host.name) or self._is_listed(host)

    def _is_listed(self, host: Authority) -> bool:
        # A browser leaves out the usual port.
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


def _forwarded(headers: Headers) -> list[str]:
    """Returns the names that Gradio takes from a proxy, and puts into the page's addresses."""
    host, server = (
        headers.get(name, "").split(",")[0].strip()
        for name in ("x-forwarded-host", "x-gradio-server")
    )
    if url := URL.fullmatch(server):
        server = url[1]
    return [name for name in (host, server) if name]


def _authority(text: str, before: str = "") -> Authority | None:
    wildcard = before if before and text.startswith(before) else ""
    found = AUTHORITY.fullmatch(text.removeprefix(wildcard))
    return found and Authority(wildcard + found[1].lower().removesuffix("."), found[2])


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
