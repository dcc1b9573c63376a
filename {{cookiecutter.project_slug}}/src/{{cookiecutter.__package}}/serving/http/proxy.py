"""Middleware for Serve's HTTP proxy, and session rules for HAProxy.

Serve calls `middleware` in each of its proxies, because `serving.start` sets
`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`. Behind HAProxy, Serve calls it in each replica.

HAProxy cannot use `SessionRouter`. Serve writes HAProxy's config from a template, which has no
setting for how a backend chooses a server. But the template copies the interval between two health
checks from a variable, unescaped. So this module appends its rules to that interval. The rules do
what `SessionRouter` does, except for replicas that are shutting down.

`python -m PACKAGE.serving.http.proxy NAME…` prints the variables that a shell must export before it
starts Ray with HAProxy. Pass the names of all applications.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ..base import HAPROXY, PAGE_DEPLOYMENT, StartError
from ..telemetry.logs import clean
from .sessions import COOKIE, SESSIONLESS_PATH, cookie_name

REQUEST_ID = b"x-request-id"
RULES = "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"
CHECK_SECONDS = "5s"
"""Serve's default."""

HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}
"""The ports of HAProxy's statistics and metrics, and Serve's defaults."""


class RequestIdMiddleware:
    """Cleans the ID that a caller gives to a request, because the proxy writes it to its log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if any(name == REQUEST_ID for name, _ in scope.get("headers", ())):
            headers = [
                (name, clean(value.decode("latin-1")).encode() if name == REQUEST_ID else value)
                for name, value in scope["headers"]
            ]
            scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)


def middleware() -> list[Middleware]:
    return [Middleware(RequestIdMiddleware)]


def haproxy_variables(applications: Iterable[str]) -> dict[str, str]:
    """Returns the variables that differ from Serve's defaults."""
    return {
        RULES: session_rules(applications),
        # When replicas change, Serve starts a new HAProxy, and open streams stay on the old one. By
        # default, Serve stops that after two minutes. Open tabs would lose their streams, and so
        # their sessions.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "86400",
        # How long a replica that shuts down keeps answering. HAProxy learns of the shutdown within
        # a second, and tries another replica if a connection is refused. With Serve's default of 30
        # seconds, Ctrl-C takes as long.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        # uvicorn's default, which the image overrides: HAProxy on this node forwards the visitor's
        # address.
        "FORWARDED_ALLOW_IPS": "127.0.0.1,::1",
    }


def session_rules(applications: Iterable[str]) -> str:
    """Returns the value of `RULES` that makes HAProxy keep the sessions of these applications."""
    # HAProxy reads the text several times, and each time a backslash would need another escape.
    session = COOKIE.pattern.replace(r"\.", "[.]")
    in_path = f'path,regsub("^.*?/~({session})(/.*)?$","\\\\1")'
    rules = [f"http-request set-var(txn.session) '{in_path}'" + _if(f"path_reg /~{session}(/|$)")]
    for name in applications:
        # Each application has its own backend, and each backend gets all of these lines.
        here = f"be_name {_safe(f'http-{name}')}"
        cookie = f"req.cook({cookie_name(name)})"
        of_cookie = (f"{cookie} -m reg ^{session}$", f"!path_reg {SESSIONLESS_PATH.pattern}$")
        page = _safe(f"SERVE_REPLICA::{name}#{PAGE_DEPLOYMENT}#")
        rules += [
            f"http-request set-var(txn.session) {cookie}"
            + _if(here, "!var(txn.session) -m found", *of_cookie),
            f"http-request set-var-fmt(txn.replica) {page}%[var(txn.session),field(1,.)]"
            + _if(here, "var(txn.session) -m found"),
        ]
    rules += [
        "use-server %[var(txn.replica)]" + _if("var(txn.replica) -m found"),
        # For sessions whose replica is gone. Requests without a session go to the replicas in turn.
        # With `hash-type consistent`, HAProxy would not do that.
        "balance hash var(txn.session)",
        # Without it, a page would see HAProxy's address instead of the visitor's, or trust an
        # address that the visitor sent.
        "option forwardfor",
        # Serve writes server options after the interval.
        "default-server",
    ]
    return "\n    ".join([CHECK_SECONDS, *rules])


def _if(*conditions: str) -> str:
    """Returns the end of a rule. A `!` negates a condition."""
    each = (re.sub("^(!?)(.*)$", r"\1{ \2 }", condition) for condition in conditions)
    return f" if {' '.join(each)}"


def _safe(name: str) -> str:
    """Returns the name that Serve derives from this one for HAProxy."""
    return re.sub("[^A-Za-z0-9._-]+", "_", name.replace("#", "-").replace("/", "."))


def check_haproxy() -> None:
    """Checks that HAProxy is installed. Serve would only retry, and log the failure."""
    # Imported here because a replica does not need it. The public function also prints a line.
    from ray.serve._private.haproxy import _resolve_haproxy_binary

    try:
        _resolve_haproxy_binary()
    except FileNotFoundError as error:
        raise StartError(
            f"{HAPROXY} is 1, but HAProxy is not installed. Install version 2.8 or later, set "
            f"RAY_SERVE_HAPROXY_BINARY_PATH to its path, or unset {HAPROXY}. The error: {error}"
        ) from error


def check_rules(application: str) -> None:
    """Checks that HAProxy, which has the variables of this process, keeps sessions together.

    Raises:
        StartError: it would spread the requests of a session over the replicas.
    """
    if f"req.cook({cookie_name(application)})" not in os.environ.get(RULES, ""):
        raise StartError(
            f"HAProxy has no rules that keep the sessions of {application} together. Before you "
            f'start Ray, run on each node: eval "$(python -m {__name__} '
            f'{shlex.quote(application)})". List all applications in that command.'
        )


if __name__ == "__main__":
    for name, value in {HAPROXY: "1", **haproxy_variables(sys.argv[1:])}.items():
        print(f"export {name}={shlex.quote(value)}")
