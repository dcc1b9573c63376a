"""An OpenID Connect provider on loopback, whose answers a test can change."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from io import BytesIO
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx2
import oidc_provider_mock

STOP_SECONDS = 10
CLIENT = "the page"
SECRET = "that the client knows"  # noqa: S105
TOKENS = "/oauth2/token"

Json = dict[str, Any]


@dataclass
class Provider:
    app: Any
    """The provider, which a test may replace with one that has other keys."""
    url: str = ""
    change: Callable[[Json], Json] | None = None
    """Changes a token response before it is sent."""
    hide: tuple[str, ...] = ()
    """Fields that its discovery document omits."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """The token requests that it received."""

    def __call__(self, environ: Json, start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == TOKENS:
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            given = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            self.asked.append(given)
            environ["wsgi.input"] = BytesIO(body)
        said: list[Any] = []

        def remember(*status: Any) -> None:
            said[:] = status[:2]

        answer = b"".join(self.app(environ, remember))
        status, headers = said
        if path == TOKENS and self.change is not None:
            answer = json.dumps(self.change(json.loads(answer))).encode()
        if path.startswith("/.well-known"):
            told = json.loads(answer)
            left = {name: told[name] for name in told if name not in self.hide}
            answer = json.dumps(left).encode()
        others = [header for header in headers if header[0].lower() != "content-length"]
        start_response(status, [*others, ("Content-Length", str(len(answer)))])
        return [answer]

    def know(self, user: str, **claims: object) -> None:
        httpx2.put(f"{self.url}/users/{user}", json=claims).raise_for_status()

    def log_in(self, address: str, user: str) -> str:
        """Logs in at this URL of the provider, and returns the URL that it redirects to."""
        answer = httpx2.post(address, data={"sub": user})
        assert answer.status_code == 302, answer.text
        return answer.headers["location"]

    def deny(self, address: str) -> str:
        return httpx2.post(address, data={"action": "deny"}).headers["location"]

    def token_for(self, other: str, address: str, user: str) -> str:
        """Returns the ID token that another client gets for a login at this URL."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        query = urlencode({**asked, "client_id": other})
        back = urlsplit(self.log_in(f"{self.url}/oauth2/authorize?{query}", user))
        [code] = parse_qs(back.query)["code"]
        form = {"grant_type": "authorization_code", "code": code}
        form["redirect_uri"] = asked["redirect_uri"]
        answer = httpx2.post(f"{self.url}{TOKENS}", data=form, auth=(other, SECRET))
        token: str = answer.json()["id_token"]
        return token


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def an_app(*, lasts: timedelta = timedelta(hours=1)) -> Any:
    return oidc_provider_mock.app(require_nonce=True, access_token_max_age=lasts)


@contextmanager
def provider_of(app: Any) -> Iterator[Provider]:
    provider = Provider(app)
    with make_server("127.0.0.1", 0, provider, Server, Quiet) as server:
        provider.url = f"http://localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join(STOP_SECONDS)
            assert not thread.is_alive()
