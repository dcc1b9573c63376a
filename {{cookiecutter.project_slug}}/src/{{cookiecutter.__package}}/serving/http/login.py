"""The page's login. Every replica can check it without the others."""

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

from ..base import HAPROXY, LoginError, behind_haproxy, require_extra
from ..telemetry.logs import logger
from .launch import Launch
from .settings import HttpSettings, Oidc

PASSWORD_VARIABLE = "PAGE_PASSWORD"  # noqa: S105
COOKIE = "page-login"
FORM_BYTES = 10_000
USER = "page.user"
"""The key in the ASGI scope for the user who sent a request. No header can set it."""
BY_KEY = "page.by_key"
"""The key in the ASGI scope that tells whether the request has an API key. Then `USER` is the
key's name."""
KEYS_VARIABLE = "API_KEYS"
KEYS_FILE_VARIABLE = "API_KEYS_FILE"
KEY = re.compile(r"([^:]*[^:\s])\s*:\s*([!-~]+)")
GRADIO_TOOLS = "/gradio_api/mcp"
TOOLS = ("/mcp", *(f"{GRADIO_TOOLS}{end}" for end in ("", "/", "/http", "/http/")))
"""The paths that MCP clients call."""
SECRET_VARIABLE = "PAGE_SECRET"  # noqa: S105
SECRET_CHARACTERS = 32
FORWARDED_VARIABLE = "FORWARDED_ALLOW_IPS"
"""The proxies whose `X-Forwarded-For` uvicorn trusts."""
MAX_USER_LENGTH = 256
LIMITS_LIBRARIES = {"limits", "redis"}
OIDC_LIBRARIES = {"authlib", "httpx2", "joserfc"}
LOGIN_SECONDS = 7 * 24 * 3600
TOKEN = "access-token"  # noqa: S105
"""The prefix of the cookies of Gradio's login."""
OWN_HISTORY = "_saved_conversations_"
"""The prefix of the key under which a gr.ChatInterface saves conversations."""


Version = tuple[int, int, int]


@dataclass(frozen=True)
class Credentials:
    user: str
    password: str

    def allow(self, authorization: str) -> bool:
        """Compares them with an HTTP Basic header, in constant time."""
        expected = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        scheme, _, given = authorization.partition(" ")
        equal = hmac.compare_digest(given.strip().encode(), expected.encode())
        return equal and scheme.lower() == "basic"

    def cookie(self) -> str:
        """Returns a cookie value that only somebody who knows the password can make."""
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
            f"login_user is {user!r}, but {PASSWORD_VARIABLE} is not set. Set it to the password "
            "in the environment that starts Ray, or remove login_user."
        )
    return Credentials(user, password)


def logged_in(request: HTTPConnection) -> str | None:
    """Returns the user who is logged in, or None."""
    user: str | None = request.scope.get(USER)
    return user


class ApiKeys:
    """The API keys of programs. Only their digests are stored.

    Args:
        names: the name of each key's owner, by the key's digest.
        file: the file with the keys, if any. It is read again when it changes.
        version: the file's version before it was read.
    """

    def __init__(
        self, names: Mapping[bytes, str], file: Path | None = None, version: Version | None = None
    ) -> None:
        self._names = names
        self._file = file
        self._version = version

    def name_of(self, authorization: str) -> str | None:
        """Returns the owner of the key in a Bearer header. The lookup takes constant time."""
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
            # The file may be half written. Until it is complete, the old keys stay valid.
            logger.warning(
                "The API keys could not be reloaded, so the old ones stay valid: %s", error
            )


def read_keys(reason: str) -> ApiKeys:
    """Returns the API keys in the environment, or in the file that the environment names.

    Args:
        reason: why keys are needed, as the beginning of the error message.

    Raises:
        LoginError: there are no keys, or they cannot be read.
    """
    text, path = os.environ.get(KEYS_VARIABLE), os.environ.get(KEYS_FILE_VARIABLE)
    if text and path:
        raise LoginError(
            f"{KEYS_VARIABLE} and {KEYS_FILE_VARIABLE} are both set. Unset one of them."
        )
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
            f"{reason}, but there are none. In the environment that starts Ray, set "
            f"{KEYS_VARIABLE} to comma-separated entries of the form name:key, or set "
            f"{KEYS_FILE_VARIABLE} to the path of a file with such entries."
        )
    return keys


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise LoginError(
            f"the file in {KEYS_FILE_VARIABLE} cannot be read: {reason}. Correct the path or the file."
        ) from None


def _version_of(file: Path) -> Version | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _names_of(text: str, source: str) -> dict[bytes, str]:
    """Returns the owners' names by the digests of their keys. An owner may have several keys."""
    entries = [entry.strip() for entry in re.split("[,\n]", text) if entry.strip()]
    names = {}
    for number, entry in enumerate(entries, 1):
        found = KEY.fullmatch(entry)
        if not found:
            raise LoginError(
                f"entry {number} of {source} does not have the form name:key. Write it as "
                "ada:SECRET. The key must be ASCII without spaces. Separate entries with commas or "
                "line breaks."
            )
        names[hashlib.sha256(found[2].encode()).digest()] = found[1]
    return names


def invalid_key_response() -> Response:
    """Returns OpenAI's error for a wrong or missing API key."""
    reason = "The API key is missing or wrong. Send it in a header: Authorization: Bearer KEY"
    error = {"message": reason, "type": "invalid_request_error", "param": None}
    body = {"error": {**error, "code": "invalid_api_key"}}
    return JSONResponse(body, 401, {"www-authenticate": "Bearer"})


class Login:
    """Admits users who are logged in, and on the paths of the page's tools, programs with a key.

    Args:
        keys: the API keys of programs. If given, nothing else is accepted on the tools' paths.
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
            by_key, refuse = True, cast("ASGIApp", invalid_key_response())
        else:
            user, by_key, refuse = self.user_of(request), False, self.answer
        if user is not None:
            await self._app({**scope, USER: user, BY_KEY: by_key}, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refuse(scope, receive, send)

    def user_of(self, request: HTTPConnection) -> str | None:
        """Returns the user who sent a request, or None if nobody is logged in."""
        raise NotImplementedError

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request from somebody who is not logged in."""
        await PlainTextResponse("Log in first.", 401)(scope, receive, send)


class PasswordLogin(Login):
    """Asks for a name and a password. Every replica can check them without the others.

    A browser sends them in a header. `gradio_client` sends them in a form, and gets a cookie.
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
                    return PlainTextResponse("The login form is too long. Send a shorter one.", 413)
        except HTTPException as refused:
            # From `BodyLimitMiddleware`. The handler that would turn it into an answer is further inside.
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
    """Takes the user's name from a header, but only if the request comes from a listed proxy."""

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
        # If there are two, the visitor may have sent one of them.
        if len(names) != 1 or not self._is_of_a_proxy(request.scope):
            return None
        try:
            name = names[0].encode("latin-1").decode().strip()
        except UnicodeDecodeError:
            return None
        return name if name.isprintable() and 0 < len(name) <= MAX_USER_LENGTH else None

    def _is_of_a_proxy(self, scope: Scope) -> bool:
        host, _ = scope.get("client") or ("", 0)
        try:
            address = ip_address(host)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._proxies)


def login_middleware(settings: HttpSettings, keys: ApiKeys | None) -> Middleware:
    """Returns the middleware for the login in the settings.

    Raises:
        LoginError: a secret or a variable for it is missing.
        StartError: its libraries are not installed.
    """
    if settings.login_user is not None:
        credentials = read_credentials(settings.login_user)
        return Middleware(PasswordLogin, keys=keys, credentials=credentials)
    if settings.oidc is not None:
        secret, client_secret = _secret_for("oidc"), _client_secret(settings.oidc)
        with require_extra("oidc", "oidc", OIDC_LIBRARIES):
            from .oidc import OidcLogin
        return Middleware(
            OidcLogin,
            keys=keys,
            settings=settings.oidc,
            client_secret=client_secret,
            secret=secret,
        )
    if settings.login_header is None:
        raise ValueError("the settings have no login")
    _secret_for("login_header")
    if behind_haproxy():
        raise LoginError(
            f"with login_header, {HAPROXY} cannot be set, because every request would come from "
            "Serve's HAProxy. Unset it in the environment that starts Ray, on each node."
        )
    if os.environ.get(FORWARDED_VARIABLE) != "":
        raise LoginError(
            f"with login_header, {FORWARDED_VARIABLE} must be set to an empty value. Otherwise, "
            "visitors who come through a proxy on this machine can forge their address. Set it in "
            f"the environment that starts Ray, on each node: export {FORWARDED_VARIABLE}="
        )
    header, proxies = settings.login_header, settings.proxies
    return Middleware(HeaderLogin, keys=keys, header=header, proxies=proxies)


def check_login(settings: HttpSettings) -> None:
    """Checks that the login has what it needs, and that its provider answers.

    Raises:
        LoginError: something is missing, or the provider does not answer.
    """
    login_middleware(settings, None)
    if settings.oidc is not None:
        # Imported here because its libraries may not be installed.
        from .oidc import check_provider

        check_provider(settings.oidc)


def _secret_for(setting: str) -> str:
    secret = read_secret()
    if secret is None:
        raise LoginError(
            f"{setting} needs {SECRET_VARIABLE}, which is not set. Set it to a long random string in "
            "the environment that starts Ray, the same on each node."
        )
    return secret


def _client_secret(settings: Oidc) -> str:
    secret = os.environ.get(settings.client_secret_variable)
    if not secret:
        raise LoginError(
            f"oidc needs the secret of the client {settings.client_id!r}, but "
            f"{settings.client_secret_variable} is not set. Set it in the environment that starts "
            "Ray, on each node."
        )
    return secret


def rate_limits() -> ModuleType:
    """Returns the module `rate_limits`, whose libraries are an extra.

    Raises:
        StartError: they are not installed.
    """
    with require_extra("limits", "rate_limits", LIMITS_LIBRARIES):
        return import_module(".rate_limits", __package__)


def inner_path(scope: Scope) -> str:
    """Returns the path without the application's prefix."""
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
            "random string in the environment that starts Ray, the same on each node."
        )
    return secret


def derive_key(secret: str, *purpose: str) -> str:
    return hmac.digest(secret.encode(), "\0".join(purpose).encode(), hashlib.sha256).hex()


class SignedLogins(dict[str, str]):
    """Signed tokens for Gradio's login, which hold the user's name and the expiry time.

    No replica stores them. So a login outlives its replica, and logging out only removes the token
    from the browser.

    Args:
        accounts: passwords by name, or a function that checks a name and a password.
    """

    def __init__(self, accounts: Any, key: str) -> None:
        self._accounts = accounts
        self._key = key

    async def log_in(self, user: str, password: str) -> str | None:
        """Returns a token, or None if the name or the password is wrong."""
        if callable(self._accounts):
            allowed = self._accounts(user, password)
            if inspect.isawaitable(allowed):
                allowed = await allowed
        else:
            right = self._accounts.get(user)
            allowed = right is not None and hmac.compare_digest(password.encode(), right.encode())
        return self._token(user, int(time.time()) + LOGIN_SECONDS) if allowed else None

    def get(self, token: str | None, default: Any = None) -> Any:
        """Returns the user whom the token belongs to."""
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
        # Changing the password invalidates the tokens made with the old one.
        password = "" if callable(self._accounts) else self._accounts.get(user, "")
        name = base64.urlsafe_b64encode(user.encode()).decode()
        return f"{name}.{until}.{derive_key(self._key, user, str(until), password)}"


def share_logins(app: Any, name: str) -> None:
    """Makes Gradio's login valid on each replica, and after a deploy.

    Gradio keeps tokens, and the name of their cookie, in the process that made them.

    Raises:
        LoginError: the secret is not set.
    """
    secret = read_secret()
    if secret is None:
        raise LoginError(
            f"auth in Launch needs {SECRET_VARIABLE} to sign logins, but it is not set. Set it to a "
            "long random string in the environment that starts Ray, the same on each node. Or "
            "use login_user instead of auth."
        )
    key = derive_key(secret, "login", name)
    app.cookie_id = derive_key(key, "cookie")[:16]
    app.tokens = logins = SignedLogins(app.auth, key)

    async def log_in(request: Request) -> Response:
        form = await request.form()
        user, password = (str(form.get(field, "")) for field in ("username", "password"))
        token = await logins.log_in(user.strip(), password)
        if token is None:
            return JSONResponse({"detail": "Incorrect credentials."}, 400)
        answer = JSONResponse({"success": True})
        # Gradio sets both cookies too, and accepts either.
        answer.set_cookie(
            f"{TOKEN}-{app.cookie_id}", token, httponly=True, samesite="none", secure=True
        )
        answer.set_cookie(f"{TOKEN}-unsecure-{app.cookie_id}", token, httponly=True)
        return answer

    app.router.routes[:0] = [
        Route(path, log_in, methods=["POST"]) for path in ("/login", "/login/")
    ]


async def user_of(app: Any, request: Request) -> str | None:
    """Returns the user by Gradio's login, or by HTTP Basic authentication if `auth` is set."""
    user: str | None
    if app.auth_dependency is not None:
        user = app.auth_dependency(request)
        return await user if inspect.isawaitable(user) else user
    for kind in ("", "-unsecure"):
        user = app.tokens.get(request.cookies.get(f"{TOKEN}{kind}-{app.cookie_id}"))
        if user is not None:
            return user
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic" or not isinstance(app.tokens, SignedLogins):
        return None
    try:
        name, _, password = base64.b64decode(given).decode().partition(":")
    except ValueError:
        return None
    return name if await app.tokens.log_in(name, password) else None


def share_browser_states(
    page: gr.Blocks, settings: HttpSettings, launch: Launch, name: str
) -> None:
    """Gives each gr.BrowserState, and a saved history, the same key on each replica.

    Gradio encrypts what it stores in a browser. By default, each process generates its own
    random secret. Everybody who may load the page gets the secret, so it only protects from others.
    """
    states = [block for block in page.blocks.values() if isinstance(block, BrowserState)]
    secret = read_secret()
    if secret is None and settings.login_user is not None:
        secret = read_credentials(settings.login_user).password
    if secret is None and launch.auth_dependency is not None and states:
        logger.warning(
            "Data that the page stores in a browser can be read there without a login. Set %s to a "
            "long random string in the environment that starts Ray.",
            SECRET_VARIABLE,
        )
    for number, state in enumerate(states):
        given = state.constructor_args
        # Pages on one host share the browser's storage, and Gradio only numbers the histories.
        if str(given.get("storage_key") or OWN_HISTORY).startswith(OWN_HISTORY):
            state.storage_key = f"{name}-state-{number}"
        if not given.get("secret"):
            state.secret = derive_key(secret or "", "browser", name, state.storage_key)
