"""What Serve's HTTP proxy does with a request before anything else.

Serve calls `middleware` in each proxy where `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ..telemetry.logs import clean

REQUEST_ID = b"x-request-id"


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
