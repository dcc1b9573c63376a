"""HAProxy keeps sessions on their replicas with the project's rules in Serve's config."""

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import httpx2
import pytest
from ray.serve._private.haproxy import (
    BackendConfig,
    HAProxyApi,
    HAProxyConfig,
    HAProxyManager,
    ServerConfig,
    _resolve_haproxy_binary,
)
from ray.serve.config import HTTPOptions

from {{ cookiecutter.__package }}.serving.base import StartError
from {{ cookiecutter.__package }}.serving.http.proxy import (
    RULES,
    check_rules,
    session_rules,
)

from ...support.servers import free_port

START_SECONDS = 30
ROOT, CHAT = "at the root", "my #1/chat"
PREFIXES = {ROOT: "/", CHAT: "/chat"}
COOKIES = {ROOT: "replica-at-the-root", CHAT: "replica-my--1-chat"}
REPLICAS = ("first", "second", "third")

serves_name: Any = HAProxyManager.__ray_metadata__.modified_class.get_safe_name


class Replica(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Send one packet, since health checks disconnect after the first.
    wbufsize = -1

    def __init__(self, name: str, *arguments: Any) -> None:
        self._name = name.encode()
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answers with its own name, or with the forwarded addresses."""
        visitors = ", ".join(self.headers.get_all("x-forwarded-for", []))
        said = visitors.encode() if self.path.endswith("/visitors") else self._name
        self.send_response(200)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def replica(name: str) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Replica, name)) as server:
        Thread(target=server.serve_forever, args=[0.05]).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@dataclass(frozen=True)
class Proxy:
    url: str
    client: httpx2.Client

    def ask(self, path: str, **cookies: str) -> str:
        """Returns the name of the replica that answers."""
        header = "; ".join(f"{name}={value}" for name, value in cookies.items())
        answer = self.client.get(f"{self.url}{path}", headers={"cookie": header} if header else {})
        return answer.raise_for_status().text


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    """Two applications, of three replicas each, behind HAProxy."""
    rules = session_rules(PREFIXES)
    with ExitStack() as replicas:
        backends = {
            application: BackendConfig(
                name=serves_name(f"http-{application}"),
                path_prefix=prefix,
                app_name=application,
                health_check_inter=rules,
                servers=[
                    ServerConfig(
                        serves_name(f"SERVE_REPLICA::{application}#GradioServer#{name}"),
                        "127.0.0.1",
                        replicas.enter_context(replica(f"{name} of {application}")),
                    )
                    for name in REPLICAS
                ],
            )
            for application, prefix in PREFIXES.items()
        }
        port = free_port()
        config = HAProxyConfig(
            socket_path=str(tmp_path / "socket"),
            stats_port=free_port(),
            metrics_port=free_port(),
            http_options=HTTPOptions(host="127.0.0.1", port=port),
            enable_hap_optimization=False,
            metrics_enabled=False,
            has_received_routes=True,
        )
        file = tmp_path / "haproxy.cfg"
        HAProxyApi(config, backends, str(file))._generate_config_file_internal()
        command = [_resolve_haproxy_binary(), "-db", "-f", str(file)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        replicas.callback(process.wait)
        replicas.callback(process.kill)
        client = replicas.enter_context(httpx2.Client())
        wait_for(f"http://127.0.0.1:{port}", client, process)
        yield Proxy(f"http://127.0.0.1:{port}", client)


def wait_for(url: str, client: httpx2.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = monotonic() + START_SECONDS
    while process.poll() is None and monotonic() < deadline:
        try:
            client.get(url)
        except httpx2.TransportError:
            sleep(0.05)
        else:
            return
    raise TimeoutError(url)


@pytest.mark.parametrize("application", PREFIXES)
def test_a_session_goes_to_the_replica_in_its_cookie(proxy: Proxy, application: str) -> None:
    # A visitor of both pages sends both cookies to the nested one.
    cookies = dict.fromkeys(COOKIES.values(), "third.1a")
    for name in REPLICAS:
        cookies[COOKIES[application]] = f"{name}.1a"
        said = {proxy.ask(PREFIXES[application], **cookies) for _ in range(4)}
        assert said == {f"{name} of {application}"}


@pytest.mark.parametrize("path", ["/chat/~second.2b", "/chat/~second.2b/gradio_api/queue/join"])
def test_a_session_goes_to_the_replica_in_its_url(proxy: Proxy, path: str) -> None:
    for cookies in ({}, {COOKIES[CHAT]: "first.1a"}):
        assert {proxy.ask(path, **cookies) for _ in range(4)} == {f"second of {CHAT}"}


@pytest.mark.parametrize("path", ["/chat", "/chat/~gone.{}/config"])
def test_a_session_whose_replica_is_gone_moves_to_one_other_replica(
    proxy: Proxy, path: str
) -> None:
    found = set[str]()
    for session in range(20):
        cookies = {COOKIES[CHAT]: f"gone.{session}"}
        said = {proxy.ask(path.format(session), **cookies) for _ in range(3)}
        assert len(said) == 1
        found |= said
    assert len(found) == len(REPLICAS)


def one_each(said: list[str]) -> bool:
    return Counter(said).keys() == {f"{name} of {CHAT}" for name in REPLICAS}


@pytest.mark.parametrize(
    "cookie", ["", "second", "second.", ".1a", "second.x", "../second.1a", "second.1a.1a"]
)
def test_requests_without_a_session_go_to_the_replicas_in_turn(proxy: Proxy, cookie: str) -> None:
    cookies = {COOKIES[CHAT]: cookie} if cookie else {}
    assert one_each([proxy.ask("/chat", **cookies) for _ in REPLICAS])


@pytest.mark.parametrize("path", ["/chat/v1/models", "/chat/v1/chat/completions"])
def test_api_requests_go_to_the_replicas_in_turn(proxy: Proxy, path: str) -> None:
    assert one_each([proxy.ask(path, **{COOKIES[CHAT]: "second.2b"}) for _ in REPLICAS])


def test_the_last_forwarded_address_is_that_of_the_real_client(proxy: Proxy) -> None:
    claimed = {"x-forwarded-for": "203.0.113.7"}
    answer = proxy.client.get(f"{proxy.url}/visitors", headers=claimed)
    assert answer.text == "203.0.113.7, 127.0.0.1"


def test_a_page_without_rules_in_haproxy_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(RULES, raising=False)
    with pytest.raises(StartError, match=r"proxy 'my #1/chat'\)\""):
        check_rules(CHAT)
    monkeypatch.setenv(RULES, session_rules([ROOT]))
    with pytest.raises(StartError, match="sessions of my #1/chat"):
        check_rules(CHAT)
    monkeypatch.setenv(RULES, session_rules(PREFIXES))
    check_rules(CHAT)
