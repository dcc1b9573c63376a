"""Hostile requests on all routes, past Serve's proxy to the page, with and without a login."""

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis

from benchmarks.users import Call, ask_at_once

from .cluster import PAGE, WORDS, Cluster, applications
from .intruders import HANGS_SECONDS, Answer, Request, hostile_requests, send_all

LOGIN = "login"
USER, PASSWORD = "ada", "a wet whale in Whitby"
LONG_NUMBER, SHORT_NUMBER = 5_000, 500
PAGE_SCHEMA = """
import json, sys
import gradio as gr
from gradio.routes import App
app = App.create_app(gr.Blocks(analytics_enabled=False))
app.openapi_url = "/openapi.json"
with open(sys.argv[1], "w") as file:
    json.dump(app.openapi(), file)
"""


@pytest.fixture(scope="module")
def pages(cluster: Cluster) -> str:
    """Deploys a page that anybody may use, and one with a login; returns the server's address."""
    config = applications(cluster, pages=2, models=1, seconds=0.1)
    [words, _] = config["applications"]
    variables = {**words["runtime_env"]["env_vars"], "PAGE_PASSWORD": PASSWORD}
    words["runtime_env"]["env_vars"] = variables
    login = {
        **words,
        "name": LOGIN,
        "route_prefix": f"/{LOGIN}",
        "args": {**words["args"], "login_user": USER},
    }
    config["applications"] = [words, login]
    cluster.deploy(config)
    return cluster.url


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Paths of files outside, and what is in them."""
    file = tmp_path_factory.mktemp("outside") / "secret"
    file.write_text(uuid.uuid4().hex)
    return {
        str(file): file.read_bytes(),
        "/etc/passwd": b"root:x:0:0",
        "/proc/self/environ": PASSWORD.encode(),
        "/proc/self/cmdline": b"ray::",
    }


@pytest.fixture(scope="module")
def number(soak: bool) -> int:
    return LONG_NUMBER if soak else SHORT_NUMBER


@pytest.fixture(autouse=True)
def the_page_goes_on(cluster: Cluster, pages: str) -> Iterator[None]:
    """Afterwards the same processes answer."""
    replicas = cluster.replicas(WORDS, PAGE)
    yield
    call = Call(f"{pages}/{WORDS}", "generate", ["The whale", 1, 1, "1", "1"])
    [answer] = ask_at_once(call, 1)
    assert answer.failure is None
    assert cluster.replicas(WORDS, PAGE) == replicas


@pytest.mark.parametrize("application", [WORDS, LOGIN])
def test_requests_that_no_client_sends_get_in_nowhere(
    pages: str, secrets: dict[str, bytes], number: int, application: str
) -> None:
    hostile = hostile_requests(list(secrets), f"replica-{application}", number // 3)
    check(send_all(f"{pages}/{application}", hostile), application, secrets)


@pytest.mark.parametrize("application", [WORDS, LOGIN])
def test_requests_that_a_fuzzer_makes_up_for_every_route_get_in_nowhere(
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


def check(answers: Iterable[Answer], application: str, secrets: dict[str, bytes]) -> None:
    found = Counter(answer.status for answer in answers)
    print(f"REPORT {application}: {found.total()} hostile requests: {dict(sorted(found.items()))}")
    failed = [answer.request for answer in answers if answer.status >= 500]
    assert not failed
    assert not [
        answer for answer in answers for secret in secrets.values() if secret in answer.body
    ]
    if application == LOGIN:
        assert not [answer for answer in answers if 200 <= answer.status < 400]


def routes_of_gradio(cluster: Cluster, file: Path) -> Any:
    """Every route that Gradio has, whether the page uses it or not."""
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
