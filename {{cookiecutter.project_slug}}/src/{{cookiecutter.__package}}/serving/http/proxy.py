"""What Serve's HTTP proxies do with a request before a page has it: its own, and HAProxy.

Serve calls `middleware` in each proxy where `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it,
and behind HAProxy in each replica.

HAProxy asks no router of ours. Serve writes its config from a template that has no word for how a
backend chooses its server. It writes the time between two health checks there as it stands in a
variable, so rules follow the time. They do what `SessionRouter` does, but for a replica that leaves.

`python -m PACKAGE.serving.http.proxy NAME…` prints what a shell has to export before it starts Ray
with HAProxy, with the names of all applications.
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
from .sessions import COOKIE, WITHOUT_SESSION, cookie_name

REQUEST_ID = b"x-request-id"
RULES = "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"
CHECK_SECONDS = "5s"
"""Serve's own."""

HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}
"""On which HAProxy tells of itself, with Serve's own values."""


class CleanRequestIds:
    """Cleans the name that a caller gives to a request: the proxy writes it into its log."""

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
    return [Middleware(CleanRequestIds)]


def haproxy_variables(applications: Iterable[str]) -> dict[str, str]:
    """Returns what differs from Serve's own values."""
    return {
        RULES: session_rules(applications),
        # After each change of replicas, open streams go on in the HAProxy of before. With Serve's
        # own two minutes, tabs that are open would lose theirs, and with it their session.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "86400",
        # A replica that leaves answers so long, though nobody asks. HAProxy hears of it within a
        # second, and asks another where a connection is refused. With Serve's own 30 seconds,
        # Ctrl-C takes as long.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        # uvicorn's own value, which the image takes away: HAProxy on this node tells of visitors.
        "FORWARDED_ALLOW_IPS": "127.0.0.1,::1",
    }


def session_rules(applications: Iterable[str]) -> str:
    """Returns the value of `RULES` with which HAProxy keeps the sessions of these applications."""
    # A backslash would have to be written once more for each time that HAProxy reads it.
    session = COOKIE.pattern.replace(r"\.", "[.]")
    in_path = f'path,regsub("^.*?/~({session})(/.*)?$","\\\\1")'
    rules = [f"http-request set-var(txn.session) '{in_path}'" + _if(f"path_reg /~{session}(/|$)")]
    for name in applications:
        # Each application has a backend of its own, and each backend all these lines.
        here = f"be_name {_safe(f'http-{name}')}"
        cookie = f"req.cook({cookie_name(name)})"
        of_cookie = (f"{cookie} -m reg ^{session}$", f"!path_reg {WITHOUT_SESSION.pattern}$")
        page = _safe(f"SERVE_REPLICA::{name}#{PAGE_DEPLOYMENT}#")
        rules += [
            f"http-request set-var(txn.session) {cookie}"
            + _if(here, "!var(txn.session) -m found", *of_cookie),
            f"http-request set-var-fmt(txn.replica) {page}%[var(txn.session),field(1,.)]"
            + _if(here, "var(txn.session) -m found"),
        ]
    rules += [
        "use-server %[var(txn.replica)]" + _if("var(txn.replica) -m found"),
        # For sessions whose replica is gone. Who has none yet meets the replicas in turns, which
        # HAProxy does not do with `hash-type consistent`.
        "balance hash var(txn.session)",
        # Else a page would take HAProxy's address for its visitor's, or one that the visitor names.
        "option forwardfor",
        # What Serve writes after the time belongs to servers.
        "default-server",
    ]
    return "\n    ".join([CHECK_SECONDS, *rules])


def _if(*conditions: str) -> str:
    """Returns the end of a rule. What begins with `!` must not be."""
    each = (re.sub("^(!?)(.*)$", r"\1{ \2 }", condition) for condition in conditions)
    return f" if {' '.join(each)}"


def _safe(name: str) -> str:
    """Returns what Serve makes of a name for HAProxy."""
    return re.sub("[^A-Za-z0-9._-]+", "_", name.replace("#", "-").replace("/", "."))


def check_haproxy() -> None:
    """Serve itself would try again and again, and say so in a log alone."""
    # Here, because a replica does without it. The name without `_` prints a line, too.
    from ray.serve._private.haproxy import _resolve_haproxy_binary

    try:
        _resolve_haproxy_binary()
    except FileNotFoundError as error:
        raise StartError(
            f"{HAPROXY}=1 asks for HAProxy, which is not here. Install version 2.8 or a later one, "
            f"name it in RAY_SERVE_HAPROXY_BINARY_PATH, or unset {HAPROXY}: {error}"
        ) from error


def check_rules(application: str) -> None:
    """Raises where HAProxy, which has this process's variables, would scatter a session."""
    if f"req.cook({cookie_name(application)})" not in os.environ.get(RULES, ""):
        raise StartError(
            f"HAProxy is not told to keep the sessions of {application} together. Before Ray "
            f'starts, on each node: eval "$(python -m {__name__} {shlex.quote(application)})", '
            "with the names of all applications in it."
        )


if __name__ == "__main__":
    for name, value in {HAPROXY: "1", **haproxy_variables(sys.argv[1:])}.items():
        print(f"export {name}={shlex.quote(value)}")
