"""Login with OpenID Connect: the authorization code flow with PKCE, without a store on the server.

All state is in encrypted cookies: for a few minutes the state of a login in progress, then the
user's name. Every replica derives the key from the variable `PAGE_SECRET`. The provider's tokens
never leave the function that reads them.
"""

import asyncio
import hmac
import re
import time
from collections.abc import Mapping
from html import escape
from http import HTTPStatus
from secrets import token_urlsafe
from typing import Any, TypedDict
from urllib.parse import quote, urlencode

from authlib.integrations.base_client import OAuthError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oidc.core import CodeIDToken
from httpx2 import AsyncClient, HTTPError, InvalidURL, create_ssl_context
from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.jwe import JWERegistry
from joserfc.jwk import KeySet, OctKey
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..base import LoginError
from ..telemetry.logs import logger
from .hosts import SESSION_PATH
from .login import MAX_USER_LENGTH, ApiKeys, Login, derive_key, inner_path
from .settings import Oidc

CALLBACK = "/oidc/callback"
LOGGED_OUT = "/oidc/logged-out"
LOGOUT = "/logout"
FLOW_SECONDS = 600
"""How long a user may take to log in at the provider."""
MAX_FLOWS = 5
"""How many tabs of one browser may log in at the same time."""
MAX_DELETED_COOKIES = 20
"""How many cookies of older logins one answer deletes. A forged request may have thousands."""
SESSION_SECONDS = 12 * 3600
HTTP_SECONDS = 10.0
LEEWAY_SECONDS = 60
"""How much the provider's clock may differ from this machine's."""
METADATA_SECONDS = 3600.0
KEYS_SECONDS = 10.0
"""The shortest time between two requests for the provider's keys, to look for a new one."""
MAX_CODE_LENGTH = 4096
"""The longest code to send to the provider. Some providers put a token into it."""
MAX_ADDRESS_LENGTH = 1500
"""The longest address to keep in a cookie during a login. Browsers drop cookies over 4,096
bytes."""
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
"""Algorithms with a public key. With a shared key, everybody who knows it could sign a token."""
KEY_TYPES = {"RSA", "EC"}
ENCRYPTION = {"alg": "dir", "enc": "A256GCM"}
REQUIRED_METADATA = ("authorization_endpoint", "token_endpoint", "jwks_uri")


class ProviderError(Exception):
    """The provider does not answer as it should. The message is for the log."""


class RefusedUserError(Exception):
    """A user was refused. The message is for that user."""


class Flow(TypedDict):
    """A login in progress."""

    state: str
    nonce: str
    verifier: str
    redirect_uri: str
    address: str
    """The path and query to open after the login."""


class OidcLogin(Login):
    """Redirects browsers to the provider. When they come back, an encrypted cookie keeps the
    login."""

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys | None,
        settings: Oidc,
        client_secret: str,
        secret: str,
    ) -> None:
        super().__init__(app, keys)
        self._provider = Provider(settings, client_secret)
        # Other settings may admit other users, so a change of the settings ends all logins.
        key = derive_key(secret, "oidc", settings.model_dump_json())
        self._flows = CookieCipher(derive_key(key, "flow"))
        self._sessions = CookieCipher(derive_key(key, "session"))
        # Applications on one host see each other's cookies.
        self._cookie = f"page-oidc-{derive_key(key, 'cookie')[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the login's own paths before it checks who sent the request."""
        own = {CALLBACK: self._finish, LOGGED_OUT: self._show_logged_out, LOGOUT: self._log_out}
        path = inner_path(scope).rstrip("/") if scope["type"] == "http" else ""
        if path in own and scope["method"] == "GET":
            response = await own[path](Request(scope, receive))
            await response(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def user_of(self, request: HTTPConnection) -> str | None:
        session = self._sessions.decrypt(request.cookies.get(self._cookie, ""))
        return None if session is None else str(session["user"])

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if _is_navigation(request):
            response = await self._begin(request)
        else:
            detail = "Log in first. Open the page in a browser."
            response = JSONResponse({"detail": detail}, 401, {"cache-control": "no-store"})
        await response(scope, receive, send)

    async def _begin(self, request: Request) -> Response:
        root = _root(request)
        query = request.url.query
        address = quote(root + inner_path(request.scope)) + (f"?{query}" if query else "")
        flow = Flow(
            state=token_urlsafe(32),
            nonce=token_urlsafe(32),
            verifier=token_urlsafe(48),
            redirect_uri=_url(request, root + CALLBACK),
            address=address if len(address) <= MAX_ADDRESS_LENGTH else f"{root}/",
        )
        try:
            response: Response = RedirectResponse(await self._provider.login_url(flow), 303)
        except ProviderError as error:
            return self._unreachable(request, error)
        response.headers["cache-control"] = "no-store"
        own = re.compile(re.escape(self._cookie) + "-" + "[0-9a-f]" * 16)
        begun = [name for name in request.cookies if own.fullmatch(name)]
        for name in begun[: 1 - MAX_FLOWS][:MAX_DELETED_COOKIES]:
            response.delete_cookie(name, path=root or "/")
        self._keep(request, response, self._flow_cookie(flow["state"]), self._flows, flow)
        return response

    async def _finish(self, request: Request) -> Response:
        given = request.query_params
        name = self._flow_cookie(given.get("state", ""))
        flow = self._flows.decrypt(request.cookies.get(name, ""))
        if flow is None or not _equal(given.get("state", ""), flow["state"]):
            reason = "This login began in another browser, or too long ago. Start again."
            return _message(request, 400, reason, "Log in again")
        try:
            user = await self._provider.user_of(given, flow)
        except RefusedUserError as refused:
            response: Response = _message(request, 403, str(refused), "Log in again")
        except ProviderError as error:
            response = self._unreachable(request, error)
        else:
            # Always an address of this page, whatever the path and query are.
            response = RedirectResponse(_url(request, flow["address"]), 303)
            response.headers["cache-control"] = "no-store"
            self._keep(request, response, self._cookie, self._sessions, {"user": user})
        response.delete_cookie(name, path=_root(request) or "/")
        return response

    async def _log_out(self, request: Request) -> Response:
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return _message(request, 403, "Another site cannot log you out.", "Back to the page")
        back = _url(request, _root(request) + LOGGED_OUT)
        try:
            url = await self._provider.logout_url(back)
        except ProviderError as error:
            logger.warning("A user logged out here, but not at the OIDC provider: %s", error)
            url = back
        response = RedirectResponse(url, 303, {"cache-control": "no-store"})
        response.delete_cookie(self._cookie, path=_root(request) or "/")
        return response

    async def _show_logged_out(self, request: Request) -> Response:
        return _message(request, 200, "You are logged out.", "Log in again")

    def _unreachable(self, request: Request, error: ProviderError) -> Response:
        logger.error("The OIDC provider failed: %s", error)
        reason = "The login service does not answer as expected. Try again in a moment."
        return _message(request, 502, reason, "Try again")

    def _flow_cookie(self, state: str) -> str:
        return f"{self._cookie}-{derive_key(state, 'flow')[:16]}"

    def _keep(
        self,
        request: Request,
        response: Response,
        name: str,
        cipher: "CookieCipher",
        content: Mapping[str, Any],
    ) -> None:
        seconds = SESSION_SECONDS if cipher is self._sessions else FLOW_SECONDS
        response.set_cookie(
            name,
            cipher.encrypt(content, seconds),
            max_age=seconds,
            path=_root(request) or "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",
        )


class CookieCipher:
    """Encrypts the content of a cookie, with an expiry time."""

    def __init__(self, key: str) -> None:
        self._key = OctKey.import_key(bytes.fromhex(key))
        self._registry = JWERegistry(algorithms=list(ENCRYPTION.values()))
        self._begins = self.encrypt({}, 0).partition(".")[0] + "."

    def encrypt(self, content: Mapping[str, Any], seconds: int) -> str:
        claims = {**content, "exp": int(time.time()) + seconds}
        text: str = jwt.encode(ENCRYPTION, claims, self._key, registry=self._registry)
        return text

    def decrypt(self, text: str) -> Any:
        """Returns the content, or None if it was made elsewhere, was changed or has expired."""
        # The header must be ours, so a sender cannot choose another algorithm.
        if not text.startswith(self._begins):
            return None
        try:
            claims = jwt.decode(text, self._key, registry=self._registry).claims
        except (JoseError, ValueError):
            return None
        return claims if claims["exp"] > time.time() else None


class Provider:
    """Asks a provider who a user is, and caches the provider's endpoints and keys."""

    def __init__(self, settings: Oidc, client_secret: str = "") -> None:
        self._settings = settings
        self._secret = client_secret
        # Otherwise, each client would read all certificates again and block the page.
        self._tls = create_ssl_context()
        self._metadata: Mapping[str, Any] = {}
        self._metadata_until = 0.0
        self._keys = KeySet([])
        self._keys_until = 0.0

    async def login_url(self, flow: Flow) -> str:
        metadata = await self.metadata()
        async with self._client(metadata) as client:
            url, _ = client.create_authorization_url(
                metadata["authorization_endpoint"],
                state=flow["state"],
                nonce=flow["nonce"],
                code_verifier=flow["verifier"],
                redirect_uri=flow["redirect_uri"],
            )
        return str(url)

    async def logout_url(self, back: str) -> str:
        """Returns the provider's logout address, or `back` if it has none."""
        url = (await self.metadata()).get("end_session_endpoint")
        if not url:
            return back
        query = {"client_id": self._settings.client_id, "post_logout_redirect_uri": back}
        return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"

    async def user_of(self, given: Mapping[str, str], flow: Flow) -> str:
        """Returns the user who came back from the provider with a code.

        Raises:
            RefusedUserError: the provider refused the login, or this user may not log in.
            ProviderError: the provider does not answer, or its token is not valid.
        """
        code, issuer = given.get("code", ""), given.get("iss", self._settings.issuer)
        if not 0 < len(code) <= MAX_CODE_LENGTH or issuer != self._settings.issuer:
            raise RefusedUserError("The login service did not log you in.")
        metadata = await self.metadata()
        try:
            async with self._client(metadata) as client:
                token = await client.fetch_token(
                    metadata["token_endpoint"],
                    grant_type="authorization_code",
                    code=code,
                    code_verifier=flow["verifier"],
                    redirect_uri=flow["redirect_uri"],
                )
                claims = await self._claims(token, flow["nonce"])
                if not self._needed_claims() <= claims.keys() and metadata.get("userinfo_endpoint"):
                    # Some providers put these claims only into the user info, not into the token.
                    answer = await client.get(metadata["userinfo_endpoint"])
                    answer.raise_for_status()
                    more = answer.json()
                    if more["sub"] != claims["sub"]:
                        raise ProviderError("its user info and its ID token name different users")
                    claims = {**more, **claims}
        except JoseError as error:
            raise ProviderError(f"its ID token is not valid: {_named(error)}") from error
        except OAuthError as error:
            if error.error == "invalid_grant":
                # The code is old, used or forged, so the error is the sender's.
                raise RefusedUserError(
                    "The login service does not recognize this login."
                ) from error
            raise ProviderError(f"it returned no token: {error.error}") from error
        except (HTTPError, InvalidURL, LookupError, TypeError, ValueError) as error:
            raise ProviderError(f"it returned no token: {type(error).__name__}") from error
        return self._check_claims(claims)

    def _needed_claims(self) -> set[str]:
        return {self._settings.username_claim, *self._settings.required_claims}

    def _check_claims(self, claims: Mapping[str, Any]) -> str:
        for name, value in self._settings.required_claims.items():
            said = claims.get(name)
            if str(value) not in map(str, said if isinstance(said, list) else [said]):
                logger.warning(
                    "A user was refused, because the claim %s does not have the value that "
                    "required_claims sets. If the user should have it, check the provider, and the "
                    "scope setting under oidc.",
                    name,
                )
                raise RefusedUserError("You are logged in, but you may not use this page.")
        user = claims.get(self._settings.username_claim)
        if not (isinstance(user, str) and user.isprintable() and 0 < len(user) <= MAX_USER_LENGTH):
            logger.warning(
                "The OIDC provider sends no valid claim %s for a user. In oidc, set username_claim to "
                "a claim that it sends, or add the scope that includes this claim to scope.",
                self._settings.username_claim,
            )
            raise RefusedUserError("You are logged in, but the login service sent no user name.")
        return user

    async def _claims(self, token: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        """Returns the claims of an ID token, after checking its signature and its claims."""
        text = token["id_token"]
        try:
            read = jwt.decode(text, await self._known_keys(), algorithms=ALGORITHMS)
        except (InvalidKeyIdError, BadSignatureError):
            read = jwt.decode(text, await self._known_keys(again=True), algorithms=ALGORITHMS)
        claims = CodeIDToken(
            read.claims,
            read.header,
            options={
                "iss": {"essential": True, "value": self._settings.issuer},
                "aud": {"essential": True, "value": self._settings.client_id},
            },
            params={
                "nonce": nonce,
                "client_id": self._settings.client_id,
                "access_token": token.get("access_token"),
            },
        )
        claims.validate(leeway=LEEWAY_SECONDS)
        return dict(claims)

    async def _known_keys(self, *, again: bool = False) -> KeySet:
        now = time.monotonic()
        if not self._keys or now > self._keys_until or again:
            fetched = self._keys_until - METADATA_SECONDS
            if not again or now > fetched + KEYS_SECONDS:
                found = (await self._fetch_json((await self.metadata())["jwks_uri"])).get(
                    "keys", []
                )
                # A provider may have keys for other purposes.
                own = [
                    key
                    for key in found
                    if key.get("kty") in KEY_TYPES and key.get("use", "sig") == "sig"
                ]
                self._keys = KeySet.import_key_set({"keys": own})
                self._keys_until = now + METADATA_SECONDS
        return self._keys

    async def metadata(self) -> Mapping[str, Any]:
        """Returns the provider's metadata, cached for an hour.

        Raises:
            ProviderError: the provider does not answer, or has another issuer.
        """
        if time.monotonic() < self._metadata_until:
            return self._metadata
        issuer = self._settings.issuer
        address = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        found = await self._fetch_json(address)
        if found.get("issuer") != issuer:
            raise ProviderError(f"{address} has the issuer {str(found.get('issuer'))[:200]!r}")
        for name in REQUIRED_METADATA:
            if not isinstance(found.get(name), str):
                raise ProviderError(f"{address} has no {name}")
        self._metadata, self._metadata_until = found, time.monotonic() + METADATA_SECONDS
        return found

    async def _fetch_json(self, address: str) -> dict[str, Any]:
        try:
            async with AsyncClient(timeout=HTTP_SECONDS, verify=self._tls) as client:
                answer = await client.get(address)
            answer.raise_for_status()
            found = answer.json()
        except (HTTPError, InvalidURL, ValueError) as error:
            raise ProviderError(f"{address} does not answer: {type(error).__name__}") from error
        if not isinstance(found, dict):
            raise ProviderError(f"{address} does not return a JSON object")
        return found

    def _client(self, metadata: Mapping[str, Any]) -> Any:
        methods = metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        basic = "client_secret_basic" in methods
        return AsyncOAuth2Client(
            self._settings.client_id,
            self._secret,
            token_endpoint_auth_method="client_secret_basic" if basic else "client_secret_post",
            scope=self._settings.scope,
            code_challenge_method="S256",
            timeout=HTTP_SECONDS,
            verify=self._tls,
        )


def check_provider(settings: Oidc) -> None:
    """Checks that the provider answers.

    Raises:
        LoginError: it does not.
    """
    try:
        asyncio.run(Provider(settings).metadata())
    except ProviderError as error:
        raise LoginError(
            f"oidc: {error}. Set issuer exactly as the provider spells it, and make sure that this "
            "machine can reach it."
        ) from error


def _is_navigation(request: Request) -> bool:
    """Returns whether a user opens the page, rather than a script calling it."""
    if request.method != "GET":
        return False
    # Over plain HTTP, browsers send this header only to localhost.
    if mode := request.headers.get("sec-fetch-mode"):
        return mode == "navigate" and request.headers.get("sec-fetch-dest") == "document"
    return "text/html" in request.headers.get("accept", "")


def _root(request: Request) -> str:
    """Returns the path of the page, without a session's part."""
    root: str = request.scope.get("root_path", "")
    return root.removesuffix(request.scope.get(SESSION_PATH, ""))


def _url(request: Request, path: str) -> str:
    return f"{request.url.scheme}://{request.url.netloc}{path}"


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _named(error: JoseError) -> str:
    """Returns what is wrong with a token, without its content."""
    claim = getattr(error, "claim", None)
    return f"{type(error).__name__} {claim}" if claim else type(error).__name__


def _message(request: Request, status: int, text: str, link: str) -> Response:
    title, root = HTTPStatus(status).phrase if status >= 400 else "Login", f"{_root(request)}/"
    content = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<p>{escape(text)} <a href="{escape(root)}">{escape(link)}</a>'
    )
    return HTMLResponse(content, status, {"cache-control": "no-store"})
