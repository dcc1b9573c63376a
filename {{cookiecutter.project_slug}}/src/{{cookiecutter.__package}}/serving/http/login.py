"""The login, which every replica of the page can check by itself."""

import base64
import hmac
import os
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..base import LoginError

PASSWORD_VARIABLE = "PAGE_PASSWORD"  # noqa: S105


@dataclass(frozen=True)
class Credentials:
    user: str
    password: str

    def allow(self, authorization: str) -> bool:
        """Compares with a header of HTTP Basic authentication, in constant time."""
        expected = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        scheme, _, given = authorization.partition(" ")
        equal = hmac.compare_digest(given.strip().encode(), expected.encode())
        return equal and scheme.lower() == "basic"


def read_credentials(user: str) -> Credentials:
    password = os.environ.get(PASSWORD_VARIABLE)
    if not password:
        raise LoginError(
            f"login_user is {user!r} and {PASSWORD_VARIABLE} is not set. Set it to the password "
            "in the environment in which Ray starts, or leave login_user out."
        )
    return Credentials(user, password)


class Login:
    """Asks for a name and a password, in a way that every replica can check by itself."""

    def __init__(self, app: ASGIApp, credentials: Credentials) -> None:
        self._app = app
        self._credentials = credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._credentials.allow(
            Headers(scope=scope).get("authorization", "")
        ):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            challenge = {"www-authenticate": 'Basic realm="page", charset="UTF-8"'}
            response = PlainTextResponse("Log in first.", 401, challenge)
            await response(scope, receive, send)
