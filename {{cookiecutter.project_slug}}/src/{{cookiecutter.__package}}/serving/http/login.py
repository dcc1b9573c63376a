"""The login, which every replica of the page can check by itself."""

import base64
import binascii
import hashlib
import hmac
import inspect
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from urllib.parse import parse_qsl

import gradio as gr
from gradio.components import BrowserState
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..base import HAPROXY, LoginError, behind_haproxy, from_extra
from ..telemetry.logs import logger
from .launch import Launch
from .settings import HttpSettings, Oidc

PASSWORD_VARIABLE = "PAGE_PASSWORD"  # noqa: S105
COOKIE = "page-login"
FORM_BYTES = 10_000
USER = "page.user"
"""Where a request says who sent it. No header can."""
BY_KEY = "page.by_key"
"""Where a request says that it came with a key, whose name is in `USER`."""
KEYS_VARIABLE = "API_KEYS"
KEYS_FILE_VARIABLE = "API_KEYS_FILE"
KEY = re.compile(r"([^:]*[^:\s])\s*:\s*([!-~]+)")
GRADIOS_TOOLS = "/gradio_api/mcp"
TOOLS = ("/mcp", *(f"{GRADIOS_TOOLS}{end}" for end in ("", "/", "/http", "/http/")))
"""Where clients of the Model Context Protocol ask."""
SECRET_VARIABLE = "PAGE_SECRET"  # noqa: S105
SECRET_CHARACTERS = 32
FORWARDED_VARIABLE = "FORWARDED_ALLOW_IPS"
"""From whom uvicorn takes `X-Forwarded-For` for the address that sent a request."""
LONGEST_USER = 256
LIMITS_LIBRARIES = {"limits", "redis"}
OIDC_LIBRARIES = {"authlib", "httpx2", "joserfc"}
LOGIN_SECONDS = 7 * 24 * 3600
TOKEN = "access-token"  # noqa: S105
"""How the cookies of Gradio's login begin."""
OWN_HISTORY = "_saved_conversations_"
"""How a gr.ChatInterface begins the key of what it saves."""


Version = tuple[int, int, int]


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


class ApiKeys:
    """The keys of programs. Their digests alone are kept.

    Args:
        names: whose each is, by its digest.
        file: what they come from, if it is to be read again whenever it changes.
        version: of the file, before it was read.
    """

    def __init__(
        self, names: Mapping[bytes, str], file: Path | None = None, version: Version | None = None
    ) -> None:
        self._names = names
        self._file = file
        self._version = version

    def name_of(self, authorization: str) -> str | None:
        """Returns whose key a header of Bearer authentication has, found in constant time."""
        self._read_again()
        scheme, _, given = authorization.partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        names = [name for own, name in self._names.items() if hmac.compare_digest(own, digest)]
        return names[0] if names and scheme.lower() == "bearer" else None

    def _read_again(self) -> None:
        if self._file is None or (version := _version_of(self._file)) == self._version:
            return
        self._version = version
        try:
            self._names = _names_of(_text_of(self._file), KEYS_FILE_VARIABLE)
        except LoginError as error:
            # Half written, say: whoever had a key keeps it until there is a whole file.
            logger.warning("The keys stay as they were: %s", error)


def read_keys(reason: str) -> ApiKeys:
    """Returns the keys that the environment holds, or the file that it names.

    Args:
        reason: what asks for them, as an error says it.

    Raises:
        LoginError: there are none, or they cannot be read.
    """
    text, path = os.environ.get(KEYS_VARIABLE), os.environ.get(KEYS_FILE_VARIABLE)
    if text and path:
        raise LoginError(f"{KEYS_VARIABLE} and {KEYS_FILE_VARIABLE} are both set. Unset one.")
    if path:
        file = Path(path)
        version = _version_of(file)
        names = _names_of(_text_of(file), KEYS_FILE_VARIABLE)
        keys = ApiKeys(names, file, version)
    else:
        names = _names_of(text or "", KEYS_VARIABLE)
        keys = ApiKeys(names)
    if not names:
        raise LoginError(
            f"{reason}, and there are none. Set {KEYS_VARIABLE} to name:key, with commas between, "
            f"in the environment in which Ray starts, or {KEYS_FILE_VARIABLE} to a file with them."
        )
    return keys


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise LoginError(
            f"the file that {KEYS_FILE_VARIABLE} names cannot be read: {reason}"
        ) from None


def _version_of(file: Path) -> Version | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _names_of(text: str, source: str) -> dict[bytes, str]:
    """Returns the names by the digests of their keys. One name may have several."""
    entries = [entry.strip() for entry in re.split("[,\n]", text) if entry.strip()]
    names = {}
    for number, entry in enumerate(entries, 1):
        found = KEY.fullmatch(entry)
        if not found:
            raise LoginError(
                f"entry {number} of {source} is no name:key. Write it as ada:SECRET, the key in "
                "ASCII and without spaces, with commas or line ends between two."
            )
        names[hashlib.sha256(found[2].encode()).digest()] = found[1]
    return names


def refused_key() -> Response:
    """Says that a key is wrong, or lacking, as OpenAI does."""
    reason = "The API key is missing or wrong. Send yours in a header: Authorization: Bearer KEY"
    error = {"message": reason, "type": "invalid_request_error", "param": None}
    body = {"error": {**error, "code": "invalid_api_key"}}
    return JSONResponse(body, 401, {"www-authenticate": "Bearer"})


class Login:
    """Lets in whom a login knows, and at the page's tools whoever has a key.

    Args:
        keys: with which programs, and they alone, come to the page's tools.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        if self._keys is not None and inner_path(scope) in TOOLS:
            user = self._keys.name_of(request.headers.get("authorization", ""))
            by_key, refuse = True, cast("ASGIApp", refused_key())
        else:
            user, by_key, refuse = self.user_of(request), False, self.answer
        if user is not None:
            await self._app({**scope, USER: user, BY_KEY: by_key}, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refuse(scope, receive, send)

    def user_of(self, request: HTTPConnection) -> str | None:
        """Returns who sent a request, or None where the login does not know."""
        raise NotImplementedError

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers whom it does not know."""
        await PlainTextResponse("Log in first.", 401)(scope, receive, send)


class PasswordLogin(Login):
    """Asks for a name and a password, in a way that every replica can check by itself.

    A browser answers with a header, and `gradio_client` with a form, for which it gets a cookie.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys | None, credentials: Credentials) -> None:
        super().__init__(app, keys)
        self._credentials = credentials

    def user_of(self, request: HTTPConnection) -> str | None:
        knows = self._credentials.allow(
            request.headers.get("authorization", "")
        ) or self._credentials.allow_cookie(request.cookies.get(COOKIE, ""))
        return self._credentials.user if knows else None

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST" and inner_path(scope) == "/login":
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


class HeaderLogin(Login):
    """Takes the name that a proxy tells, from the addresses of that proxy alone."""

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys | None,
        header: str,
        proxies: tuple[IPv4Network | IPv6Network, ...],
    ) -> None:
        super().__init__(app, keys)
        self._header = header
        self._proxies = proxies

    def user_of(self, request: HTTPConnection) -> str | None:
        names = request.headers.getlist(self._header)
        # Of two, one may be what the proxy was sent.
        if len(names) != 1 or not self._is_of_a_proxy(request.scope):
            return None
        try:
            name = names[0].encode("latin-1").decode().strip()
        except UnicodeDecodeError:
            return None
        return name if name.isprintable() and 0 < len(name) <= LONGEST_USER else None

    def _is_of_a_proxy(self, scope: Scope) -> bool:
        host, _ = scope.get("client") or ("", 0)
        try:
            address = ip_address(host)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._proxies)


def login_of(settings: HttpSettings, keys: ApiKeys | None) -> Middleware:
    """Returns the login that the settings ask for.

    Raises:
        LoginError: something of it is not there.
        StartError: its libraries are not.
    """
    if settings.login_user is not None:
        credentials = read_credentials(settings.login_user)
        return Middleware(PasswordLogin, keys=keys, credentials=credentials)
    if settings.oidc is not None:
        secret, client_secret = _secret_for("oidc"), _client_secret(settings.oidc)
        with from_extra("oidc", "oidc", OIDC_LIBRARIES):
            from .oidc import OidcLogin
        return Middleware(
            OidcLogin,
            keys=keys,
            settings=settings.oidc,
            client_secret=client_secret,
            secret=secret,
        )
    if settings.login_header is None:
        raise ValueError("the settings ask for no login")
    _secret_for("login_header")
    if behind_haproxy():
        raise LoginError(
            f"with login_header, {HAPROXY} cannot be set: every request would come from Serve's own "
            "HAProxy. Unset it where Ray starts, on each node."
        )
    if os.environ.get(FORWARDED_VARIABLE) != "":
        raise LoginError(
            f"with login_header, {FORWARDED_VARIABLE} has to be there and empty: else whoever comes "
            "through a proxy on this machine chooses the address that the page sees. "
            f"Set it in the environment in which Ray starts, on each node: export "
            f"{FORWARDED_VARIABLE}="
        )
    header, proxies = settings.login_header, settings.proxies
    return Middleware(HeaderLogin, keys=keys, header=header, proxies=proxies)


def check_login(settings: HttpSettings) -> None:
    """Looks whether the login can be offered, and whether its provider answers.

    Raises:
        LoginError: it cannot, or the provider does not.
    """
    login_of(settings, None)
    if settings.oidc is not None:
        # Here, as its libraries may not be there.
        from .oidc import check_provider

        check_provider(settings.oidc)


def _secret_for(setting: str) -> str:
    secret = read_secret()
    if secret is None:
        raise LoginError(
            f"{setting} needs {SECRET_VARIABLE}, which is not set. Set it to a long random text in "
            "the environment in which Ray starts, the same on each node."
        )
    return secret


def _client_secret(settings: Oidc) -> str:
    secret = os.environ.get(settings.client_secret_variable)
    if not secret:
        raise LoginError(
            f"oidc needs the secret of the client {settings.client_id!r}, and "
            f"{settings.client_secret_variable} is not set. Set it in the environment in which Ray "
            "starts, on each node."
        )
    return secret


def rate_limits() -> ModuleType:
    """Returns the module of that name, whose libraries may not be there.

    Raises:
        StartError: they are not.
    """
    with from_extra("limits", "rate_limits", LIMITS_LIBRARIES):
        return import_module(".rate_limits", __package__)


def inner_path(scope: Scope) -> str:
    """Returns the path below the application's own."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _refusal() -> Response:
    challenge = {"www-authenticate": 'Basic realm="page", charset="UTF-8"'}
    return PlainTextResponse("Log in first.", 401, challenge)


def read_secret() -> str | None:
    secret = os.environ.get(SECRET_VARIABLE)
    if secret is not None and len(secret) < SECRET_CHARACTERS:
        raise LoginError(
            f"{SECRET_VARIABLE} has fewer than {SECRET_CHARACTERS} characters. Set it to a long "
            "random text in the environment in which Ray starts, the same on each node."
        )
    return secret


def derived(secret: str, *purpose: str) -> str:
    return hmac.digest(secret.encode(), "\0".join(purpose).encode(), hashlib.sha256).hex()


class Logins(dict[str, str]):
    """The tokens of Gradio's login, which tell each replica who it was, until when, and are signed.

    Nothing is kept: a login outlives its replica, and logging out forgets it in the browser.

    Args:
        accounts: passwords by name, or what tells whether a name and a password are right.
    """

    def __init__(self, accounts: Any, key: str) -> None:
        self._accounts = accounts
        self._key = key

    async def log_in(self, user: str, password: str) -> str | None:
        """Returns a token, or None where the name or the password is wrong."""
        if callable(self._accounts):
            allowed = self._accounts(user, password)
            if inspect.isawaitable(allowed):
                allowed = await allowed
        else:
            right = self._accounts.get(user)
            allowed = right is not None and hmac.compare_digest(password.encode(), right.encode())
        return self._token(user, int(time.time()) + LOGIN_SECONDS) if allowed else None

    def get(self, token: str | None, default: Any = None) -> Any:
        """Returns who has logged in with the token."""
        try:
            name, until, _ = (token or "").split(".")
            user = base64.urlsafe_b64decode(name).decode()
            known = callable(self._accounts) or user in self._accounts
            signed = hmac.compare_digest(
                self._token(user, int(until)).encode(), (token or "").encode()
            )
        except (ValueError, binascii.Error):
            return default
        return user if known and signed and int(until) > time.time() else default

    def _token(self, user: str, until: int) -> str:
        # Another password ends the logins with the one before.
        password = "" if callable(self._accounts) else self._accounts.get(user, "")
        name = base64.urlsafe_b64encode(user.encode()).decode()
        return f"{name}.{until}.{derived(self._key, user, str(until), password)}"


def keep_logins(app: Any, name: str) -> None:
    """Has Gradio's login count on each replica, and after a deploy.

    Gradio keeps tokens, and the name of their cookie, in the process that gave them.

    Raises:
        LoginError: the environment holds no secret.
    """
    secret = read_secret()
    if secret is None:
        raise LoginError(
            f"auth of Launch signs who has logged in, and {SECRET_VARIABLE} is not set. Set it to a "
            "long random text in the environment in which Ray starts, the same on each node, or "
            "use login_user in the place of auth."
        )
    key = derived(secret, "login", name)
    app.cookie_id = derived(key, "cookie")[:16]
    app.tokens = logins = Logins(app.auth, key)

    async def log_in(request: Request) -> Response:
        form = await request.form()
        user, password = (str(form.get(field, "")) for field in ("username", "password"))
        token = await logins.log_in(user.strip(), password)
        if token is None:
            return JSONResponse({"detail": "Incorrect credentials."}, 400)
        answer = JSONResponse({"success": True})
        # As Gradio does, which asks for either.
        answer.set_cookie(
            f"{TOKEN}-{app.cookie_id}", token, httponly=True, samesite="none", secure=True
        )
        answer.set_cookie(f"{TOKEN}-unsecure-{app.cookie_id}", token, httponly=True)
        return answer

    app.router.routes[:0] = [
        Route(path, log_in, methods=["POST"]) for path in ("/login", "/login/")
    ]


async def user_of(app: Any, request: Request) -> str | None:
    """Returns who asks, as Gradio knows it, or by HTTP Basic authentication where `auth` is set."""
    user: str | None
    if app.auth_dependency is not None:
        user = app.auth_dependency(request)
        return await user if inspect.isawaitable(user) else user
    for kind in ("", "-unsecure"):
        user = app.tokens.get(request.cookies.get(f"{TOKEN}{kind}-{app.cookie_id}"))
        if user is not None:
            return user
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic" or not isinstance(app.tokens, Logins):
        return None
    try:
        name, _, password = base64.b64decode(given).decode().partition(":")
    except ValueError:
        return None
    return name if await app.tokens.log_in(name, password) else None


def keep_browser_states(page: gr.Blocks, settings: HttpSettings, launch: Launch, name: str) -> None:
    """Gives each gr.BrowserState, and a saved history, the same key on each replica.

    Gradio encrypts what a browser keeps with a secret that each process draws anew, and tells it
    to everybody who may load the page. So the secret keeps out those who may not.
    """
    states = [block for block in page.blocks.values() if isinstance(block, BrowserState)]
    secret = read_secret()
    if secret is None and settings.login_user is not None:
        secret = read_credentials(settings.login_user).password
    if secret is None and launch.auth_dependency is not None and states:
        logger.warning(
            "What browsers keep of the page can be read there without a login. Set %s to a long "
            "random text in the environment in which Ray starts.",
            SECRET_VARIABLE,
        )
    for number, state in enumerate(states):
        given = state.constructor_args
        # Pages of one host share what a browser keeps, and Gradio numbers a history by its place.
        if str(given.get("storage_key") or OWN_HISTORY).startswith(OWN_HISTORY):
            state.storage_key = f"{name}-state-{number}"
        if not given.get("secret"):
            state.secret = derived(secret or "", "browser", name, state.storage_key)
