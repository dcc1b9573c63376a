"""Hostile requests on all routes, past Serve's proxy to the page, with and without logins."""

import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import hypothesis
import psutil
import pytest
import requests
import schemathesis

from benchmarks.users import Call, ask_at_once

from ..generated.project import START_SECONDS
from .cluster import WORDS, Cluster, applications
from .intruders import (
    BROWSER,
    HANGS_SECONDS,
    Answer,
    Begun,
    Request,
    hostile_files,
    hostile_logins,
    hostile_requests,
    send_all,
)

LOGIN, STAFF, FILES = "login", "staff", "files"
"""Pages with a password, with an OpenID Connect provider, and with that provider and files."""
USER, PASSWORD = "ada", "a wet whale in Whitby"
CLIENT, CLIENT_SECRET = "the page", "that the client knows"
KEY = "an9QwEr7ZxCv1AsDf3Gh5JkL"
LONG_NUMBER, SHORT_NUMBER = 5_000, 500
IN_ALL, WARM = 10_000, 10_000
GROWTH = 1.05
FEW_BYTES = 4e6
"""How much a process may grow as it settles."""
TAKE_FILES = (
    *("textbox", "file", "files", "image", "editor", "gallery", "multimodal", "dataframe", "json"),
    *("chatbot", "audio", "video"),
)
"""Functions of the file page that return what they are passed, in the page's order."""
PROVIDER = """
import sys
from tests.support.oidc_provider import an_app, provider_of
with provider_of(an_app()) as provider:
    provider.know("1", preferred_username="ada")
    print("provider at", provider.url, flush=True)
    sys.stdin.read()
"""
PAGE_SCHEMA = """
import json, sys
import gradio as gr
from gradio.routes import App
app = App.create_app(gr.Blocks(analytics_enabled=False))
app.openapi_url = "/openapi.json"
with open(sys.argv[1], "w") as file:
    json.dump(app.openapi(), file)
"""


@dataclass(frozen=True)
class Guest:
    """A logged-in user, and the parts of the login that others may have seen."""

    session: str
    """The cookie, with its name."""
    begun: Begun
    """Another login, which nobody finishes."""


@pytest.fixture(scope="module")
def provider(cluster: Cluster) -> Iterator[str]:
    """Runs the login provider; yields its URL."""
    with cluster.project.started("python", "-c", PROVIDER) as running:
        log = running.wait_for(lambda log: "provider at" in log, START_SECONDS)
        yield log.partition("provider at ")[2].split()[0]


@pytest.fixture(scope="module")
def pages(cluster: Cluster, provider: str) -> str:
    """Deploys an open page and some with a login; returns the server's URL."""
    config = applications(cluster, pages=2, models=1, seconds=0.1)
    [words, _] = config["applications"]
    variables = {
        **words["runtime_env"]["env_vars"],
        "PAGE_PASSWORD": PASSWORD,
        "PAGE_SECRET": "a secret of thirty-two characters",
        "OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "API_KEYS": f"robot:{KEY}",
    }
    words["runtime_env"]["env_vars"] = variables
    oidc = {"issuer": provider, "client_id": CLIENT}
    login = {
        **words,
        "name": LOGIN,
        "route_prefix": f"/{LOGIN}",
        "args": {**words["args"], "login_user": USER},
    }
    staff = {
        **words,
        "name": STAFF,
        "route_prefix": f"/{STAFF}",
        "args": {**words["args"], "oidc": oidc, "openai_api": True, "mcp": True},
    }
    files = {
        **words,
        "name": FILES,
        "route_prefix": f"/{FILES}",
        "import_path": "tests.support.file_page:build",
        "runtime_env": {"env_vars": {**variables, "PYTHONPATH": str(cluster.project.root)}},
        # A different scope, so that a login at one page is not valid at the other.
        "args": {"oidc": {**oidc, "scope": "openid profile email"}},
    }
    config["applications"] = [words, login, staff, files]
    cluster.deploy(config)
    return cluster.url


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Paths of files outside the page, and their contents."""
    file = tmp_path_factory.mktemp("outside") / "secret"
    file.write_text(uuid.uuid4().hex)
    link = file.parent / "link"
    link.symlink_to(file)
    return {
        str(file): file.read_bytes(),
        str(link): file.read_bytes(),
        f"/proc/self/root{file}": file.read_bytes(),
        "/etc/passwd": b"root:x:0:0",
        "/proc/self/environ": PASSWORD.encode(),
        "/proc/self/cmdline": b"ray::",
    }


@pytest.fixture(scope="module")
def number(soak: bool) -> int:
    return LONG_NUMBER if soak else SHORT_NUMBER


@pytest.fixture(autouse=True)
def the_page_goes_on(cluster: Cluster, pages: str) -> Iterator[None]:
    """Asserts that the same processes answer, and that valid logins still work."""
    replicas = cluster.pids()
    yield
    call = Call(f"{pages}/{WORDS}", "generate", ["The whale", 1, 1, "1", "1"])
    [answer] = ask_at_once(call, 1)
    assert answer.failure is None
    assert log_in(f"{pages}/{STAFF}").session
    key = {"authorization": f"Bearer {KEY}"}
    assert httpx2.get(f"{pages}/{STAFF}/v1/models", headers=key).status_code == 200
    assert cluster.pids() == replicas


@pytest.mark.parametrize("application", [WORDS, LOGIN])
def test_hostile_requests_get_no_access(
    pages: str, secrets: dict[str, bytes], number: int, application: str
) -> None:
    hostile = hostile_requests(list(secrets), f"replica-{application}", number // 3)
    check(send_all(f"{pages}/{application}", hostile), application, secrets)


@pytest.mark.parametrize("application", [WORDS, LOGIN])
def test_fuzzed_requests_to_every_route_get_no_access(
    cluster: Cluster,
    pages: str,
    secrets: dict[str, bytes],
    number: int,
    application: str,
    tmp_path: Path,
) -> None:
    schema = routes_of_gradio(cluster, tmp_path / "schema.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    answers = [
        answer
        for operation in operations
        for answer in fuzz(operation, f"{pages}/{application}", number // 4 // len(operations) + 1)
    ]
    check(answers, application, secrets)


def test_no_login_succeeds_without_the_provider(
    pages: str, provider: str, secrets: dict[str, bytes], number: int
) -> None:
    check(send_all(f"{pages}/{STAFF}", logins(pages, number // 2)), STAFF, secrets, provider)


def test_a_user_who_may_upload_files_reaches_no_others(
    pages: str, secrets: dict[str, bytes], number: int
) -> None:
    outside = Path(next(iter(secrets))).parent
    before = sorted(outside.iterdir())
    check(send_all(f"{pages}/{FILES}", uploads(pages, secrets, number // 2)), FILES, secrets)
    assert sorted(outside.iterdir()) == before


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_ten_thousand_hostile_requests_do_not_grow_memory(
    cluster: Cluster, pages: str, provider: str, secrets: dict[str, bytes]
) -> None:
    def attack(number: int) -> None:
        each = number // 4
        for application in (WORDS, LOGIN):
            hostile = hostile_requests(list(secrets), f"replica-{application}", each)
            check(send_all(f"{pages}/{application}", hostile), application, secrets)
        check(send_all(f"{pages}/{STAFF}", logins(pages, each)), STAFF, secrets, provider)
        check(send_all(f"{pages}/{FILES}", uploads(pages, secrets, each)), FILES, secrets)

    # At first, a replica still grows: the first few thousand requests take 10 to 20 MB.
    attack(WARM)
    before = memory(cluster)
    attack(IN_ALL)
    after = memory(cluster)
    for name, size in before.items():
        print(f"REPORT {name}: {size / 1e6:.0f} MB, {after[name] / size:.3f}")
    grown = {name for name, size in before.items() if after[name] > GROWTH * size}
    assert not {name for name in grown if after[name] - before[name] > FEW_BYTES}


def memory(cluster: Cluster) -> dict[str, int]:
    """Returns the private bytes of each process that answers."""
    applications = cluster.status()["applications"]
    pids = {
        f"{deployment} of {application} {pid}": pid
        for application, details in applications.items()
        for deployment in details["deployments"]
        for pid in cluster.replicas(application, deployment)
    }
    proxies = cluster.processes("ray::ProxyActor")
    assert proxies
    pids |= {f"proxy {process.pid}": process.pid for process in proxies}
    return {name: psutil.Process(pid).memory_full_info().uss for name, pid in pids.items()}


def logins(pages: str, number: int) -> list[Request]:
    guests = [log_in(f"{pages}/{STAFF}") for _ in range(3)]
    other = log_in(f"{pages}/{FILES}").session.partition("=")[2]
    return hostile_logins([guest.begun for guest in guests], [other], [KEY], number)


def uploads(pages: str, secrets: dict[str, bytes], number: int) -> list[Request]:
    session = log_in(f"{pages}/{FILES}").session
    return hostile_files(list(secrets), TAKE_FILES, session, number)


def log_in(page: str) -> Guest:
    """Logs in like a browser."""
    with httpx2.Client(headers=dict(BROWSER), timeout=HANGS_SECONDS) as browser:
        begun = browser.get(f"{page}/")
        back = httpx2.post(begun.headers["location"], data={"sub": "1"}).headers["location"]
        session = browser.get(back).headers.get_list("set-cookie")[0].partition(";")[0]
        assert browser.get(f"{page}/").status_code == 200
        browser.cookies.clear()
        begun = browser.get(f"{page}/")
        name, _, value = begun.headers["set-cookie"].partition(";")[0].partition("=")
        [state] = parse_qs(urlsplit(begun.headers["location"]).query)["state"]
        return Guest(session, Begun(name, value, state))


def check(
    answers: Iterable[Answer],
    application: str,
    secrets: dict[str, bytes],
    provider: str = "",
) -> None:
    found = Counter(answer.status for answer in answers)
    print(f"REPORT {application}: {found.total()} hostile requests: {dict(sorted(found.items()))}")
    failed = [answer.request for answer in answers if answer.status >= 500]
    assert not failed
    assert not [
        answer for answer in answers for secret in secrets.values() if secret in answer.body
    ]
    taken = [answer for answer in answers if 200 <= answer.status < 400]
    assert not [answer for answer in taken if answer.request.foreign]
    if application == LOGIN:
        assert not taken
    if application == STAFF:
        assert not [answer.request for answer in taken if not stays_out(answer, provider)]


def stays_out(answer: Answer, provider: str) -> bool:
    """Whether the answer redirects to the provider or confirms a logout."""
    if answer.status == 200:
        return b"You are logged out." in answer.body
    [place] = re.findall(rb"(?im)^location: (\S+)\r$", answer.body)
    address = urlsplit(place.decode())
    back = parse_qs(address.query).get("redirect_uri", [""])[0]
    return place.startswith(provider.encode()) and "elsewhere" not in back.partition("?")[0]


def routes_of_gradio(cluster: Cluster, file: Path) -> Any:
    """Returns every route of Gradio, whether the page uses it or not."""
    cluster.project.run(
        str(cluster.project.environment / "bin" / "python"), "-c", PAGE_SCHEMA, str(file)
    )
    schema = json.loads(file.read_text())
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            parameters = operation.setdefault("parameters", [])
            known = {parameter["name"] for parameter in parameters}
            for name in (part.split("}")[0] for part in path.split("{")[1:]):
                if name not in known:
                    place = {"in": "path", "required": True, "schema": {"type": "string"}}
                    parameters.append({"name": name, **place})
            for parameter in parameters:
                if parameter["name"] == "api_name":
                    parameter["schema"] = {"enum": ["generate", "load_example", "nothing"]}
    return schemathesis.openapi.from_dict(schema)


def fuzz(operation: Any, url: str, number: int) -> list[Answer]:
    answers: list[Answer] = []
    cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    honest = operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE)

    @hypothesis.settings(
        max_examples=number,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(hypothesis.strategies.one_of(honest, cases))
    def send_case(case: Any) -> None:
        arguments = case.as_transport_kwargs(base_url=url)
        with requests.request(**arguments, timeout=HANGS_SECONDS, stream=True) as response:
            stream = response.headers.get("content-type", "").startswith("text/event-stream")
            body = b"" if stream else response.content
        answers.append(Answer(Request(case.method, str(case)), response.status_code, body))

    send_case()
    return answers
