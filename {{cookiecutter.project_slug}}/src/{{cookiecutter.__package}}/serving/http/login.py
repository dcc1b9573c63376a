"""The login, which every replica of the page can check by itself."""

import base64
import hmac
import os
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..protocol import LoginError

PASSWORD_VARIABLE = "PAGE_PASSWORD"  # noqa: S105
COOKIE = "page-login"
FORM_BYTES = 10_000
USER = "page.user"
"""Where a request says who sent it. No header can."""


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

    def cookie(self) -> str:
        """Returns what every replica knows to be of somebody who knew the password."""
        return hmac.digest(self.password.encode(), self.user.encode(), "sha256").hex()

    def allow_cookie(self, cookie: str) -> bool:
        return hmac.compare_digest(cookie.encode(), self.cookie().encode())

    def allow_form(self, form: str) -> bool:
        given = dict(parse_qsl(form))
        pair = f"{given.get('username', '')}:{given.get('password', '')}"
        return self.allow(f"Basic {base64.b64encode(pair.encode()).decode()}")


def read_credentials(user: str) -> Credentials:
    password = os.environ.get(PASSWORD_VARIABLE)
    if not password:
        raise LoginError(
            f"login_user is {user!r} and {PASSWORD_VARIABLE} is not set. Set it to the password "
            "in the environment in which Ray starts, or leave login_user out."
        )
    return Credentials(user, password)


def logged_in(request: HTTPConnection) -> str | None:
    """Returns whom the login let in."""
    user: str | None = request.scope.get(USER)
    return user


class Login:
    """Asks for a name and a password, in a way that every replica can check by itself.

    A browser answers with a header, and `gradio_client` with a form, for which it gets a cookie.
    """

    def __init__(self, app: ASGIApp, credentials: Credentials) -> None:
        self._app = app
        self._credentials = credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        if self._credentials.allow(
            request.headers.get("authorization", "")
        ) or self._credentials.allow_cookie(request.cookies.get(COOKIE, "")):
            await self._app({**scope, USER: self._credentials.user}, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] == "POST" and scope["path"] == _login_path(scope):
            response = await self._answer_form(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await _refusal()(scope, receive, send)

    async def _answer_form(self, request: Request) -> Response:
        form = b""
        try:
            async for part in request.stream():
                form += part
                if len(form) > FORM_BYTES:
                    return PlainTextResponse("A login is shorter.", 413)
        except HTTPException as refused:
            # Of `BodyLimit`; what turns it into an answer is further in.
            return PlainTextResponse(refused.detail, refused.status_code)
        if not self._credentials.allow_form(form.decode("latin-1")):
            return _refusal()
        response = JSONResponse({"success": True})
        response.set_cookie(
            COOKIE,
            self._credentials.cookie(),
            path=request.scope.get("root_path") or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",
        )
        return response


def _login_path(scope: Scope) -> str:
    return f"{scope.get('root_path', '')}/login"


def _refusal() -> Response:
    challenge = {"www-authenticate": 'Basic realm="page", charset="UTF-8"'}
    return PlainTextResponse("Log in first.", 401, challenge)
