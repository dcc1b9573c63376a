"""The OpenAI API of a page, called by the official client, and directly where that refuses."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import httpx2
import openai
import pytest
from gradio_client import Client
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from openai.types.chat import ChatCompletionMessageParam
from ray import serve
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from {{ cookiecutter.__package }}.serving.base import LoginError, StartError
from {{ cookiecutter.__package }}.serving.config import deployments_in
from {{ cookiecutter.__package }}.serving.deployments.builders import (
    PageOfModels,
)
from {{ cookiecutter.__package }}.serving.deployments.openai_client import (
    OpenAIClient,
)
from {{ cookiecutter.__package }}.serving.deployments.settings import (
    ModelSettings,
)
from {{ cookiecutter.__package }}.serving.http.ingress import (
    add_outer_middleware,
)
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.http.sessions import (
    SESSIONLESS_PATH,
)
from {{ cookiecutter.__package }}.serving.http.settings import HttpSettings
from {{ cookiecutter.__package }}.serving.pages.settings import (
    Limits,
    PageSettings,
)
from {{ cookiecutter.__package }}.serving.protocol import (
    BusyError,
    End,
    GenerationOptions,
    InterruptionError,
    Message,
    Model,
    Piece,
    PromptError,
)

from ...support import compare_page
from ...support.compare_page import KEY, LAUNCH, MODELS, build_page
from ...support.stand_ins import Asleep, StandIn, fast, in_thread, settings_of, until

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
LIMITS = Limits(new_tokens=64, prompt_characters=1000)


@dataclass
class Thinking:
    """Thinks, answers, and is stopped by a server that also dropped a message."""

    name: str = "thinking"

    async def stream(
        self,
        messages: Sequence[Message],  # noqa: ARG002
        options: GenerationOptions,  # noqa: ARG002
    ) -> AsyncGenerator[Piece | End, None]:
        yield Piece("Hm. ", 2, thought=True)
        yield Piece("Yes", 3)
        yield End("filtered", prompt_tokens=7, dropped_messages=1)


def web_of(
    *models: Model, limits: Limits = LIMITS, keys: bool = False, **settings: Any
) -> Starlette:
    """Returns a minimal page with the API of the models."""
    given = {"openai_api": True if keys else "without-keys", "limits": limits, **settings}
    web = Starlette()
    web.add_route("/{path:path}", lambda _: JSONResponse("the page"), ["GET", "POST"])
    [beside] = settings_of().model_copy(update=given).middleware_of(models)
    web.add_middleware(beside.cls, *beside.args, **beside.kwargs)
    return web


def asked(*models: Model, **settings: Any) -> TestClient:
    here = ("127.0.0.1", 1)
    return TestClient(web_of(*models, **settings), base_url="http://localhost", client=here)


@contextmanager
def client_of(*models: Model, **settings: Any) -> Iterator[openai.OpenAI]:
    """Yields the official client of a server."""
    with (
        in_thread(web_of(*models, **settings)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield client


def complete(api: TestClient, **given: Any) -> httpx2.Response:
    body = {"model": "fast", "messages": HELLO, **given}
    # The body may contain an incomplete character.
    return api.post("/v1/chat/completions", content=json.dumps(body))


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """Returns the one-line error of an answer in OpenAI's format."""
    [(name, error)] = answer.json().items()
    assert name == "error"
    assert error.keys() == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return dict(error)


def test_without_the_setting_there_is_no_api() -> None:
    assert settings_of().middleware_of([fast()]) == []


def test_the_models_are_listed_and_described() -> None:
    with client_of(fast(), Thinking()) as client:
        assert [model.id for model in client.models.list()] == ["fast", "thinking"]
        assert client.models.retrieve("fast").object == "model"
        with pytest.raises(openai.NotFoundError, match="Choose one of: fast, thinking") as caught:
            client.models.retrieve("slow")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_an_answer_may_be_returned_as_a_whole() -> None:
    model = fast()
    with client_of(model) as client:
        answer = client.chat.completions.create(
            model="fast",
            messages=[{"role": "developer", "content": "Be kind."}, *HELLO],
            max_completion_tokens=5,
            temperature=0.5,
            top_p=0,
            stop="!",
            seed=3,
        )
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "one two three")
    assert choice.finish_reason == "stop"
    [(messages, options)] = model.asked
    assert messages == [Message("system", "Be kind."), Message("user", "Hello")]
    assert (options.max_new_tokens, options.min_new_tokens) == (5, 0)
    assert (options.temperature, options.stop, options.seed) == (0.5, ("!",), 3)
    assert options.top_p == pytest.approx(0, abs=1e-5)
    # Without a prompt token count there is no usage.
    assert answer.usage is None


def test_omitted_options_are_left_to_the_model() -> None:
    model = fast()
    answer = complete(asked(model), temperature=None, stop=None, tools=[], n=1, user="ada")
    assert answer.status_code == 200
    assert model.asked[0][1] == GenerationOptions(max_new_tokens=LIMITS.new_tokens)


def test_a_streamed_answer_ends_with_its_usage() -> None:
    with client_of(fast(), Thinking()) as client:
        plain = [*client.chat.completions.create(model="fast", messages=HELLO, stream=True)]
        told = [
            *client.chat.completions.create(
                model="thinking",
                messages=HELLO,
                stream=True,
                stream_options={"include_usage": True},
            )
        ]
    said = [chunk.choices[0].delta.content for chunk in plain]
    assert said == ["", "one ", "two ", "three", None]
    assert [chunk.choices[0].finish_reason for chunk in plain] == [None] * 4 + ["stop"]
    assert len({chunk.id for chunk in plain}) == 1
    *chunks, last = told
    thoughts = [(chunk.choices[0].delta.model_extra or {}) for chunk in chunks]
    assert [each.get("reasoning_content") for each in thoughts] == [None, "Hm. ", None, None]
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert [chunk.usage for chunk in chunks] == [None] * 4
    assert last.choices == []
    assert last.usage
    assert last.usage.completion_tokens_details
    assert last.usage.completion_tokens_details.reasoning_tokens == 2
    counts = (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens)
    assert counts == (7, 5, 12)


def test_thoughts_and_dropped_messages_are_reported_beside_the_answer() -> None:
    answer = complete(asked(Thinking()), model="thinking").json()
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Yes", "Hm. ")
    assert (answer["dropped_messages"], answer["usage"]["total_tokens"]) == (1, 12)


def test_a_stream_ends_with_done() -> None:
    answer = complete(asked(fast()), stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.text.endswith("data: [DONE]\n\n")


def test_text_parts_are_joined_and_an_answer_is_continued() -> None:
    model = fast()
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    last = {"role": "assistant", "content": "one"}
    turns = [{"role": "user", "content": parts}, last]
    assert complete(asked(model), messages=turns).status_code == 200
    assert model.asked[0][0] == [Message("user", "Hello"), Message("assistant", "one")]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


@pytest.mark.parametrize(
    ("given", "param", "reason"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "Hello"}, "messages", "valid list"),
        ({"messages": None}, "messages", "valid list"),
        ({"messages": [{"content": "Hello"}]}, "messages[0].role", "required"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages", "not a message role"),
        ({"messages": [{"role": "user"}]}, "messages", "may contain only text"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages", "Leave out images"),
        ({"messages": [{"role": "user", "content": 4}]}, "messages[0].content", "valid list"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages", "incomplete character"),
        ({"messages": [{"role": "user", "content": "a" * 1001}]}, "messages", "at most 1,000"),
        ({"model": None}, "model", "valid string"),
        ({"max_tokens": 65}, "max_tokens", "at most 64 tokens. Ask for fewer"),
        ({"max_completion_tokens": 65}, "max_completion_tokens", "Ask for fewer"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "Send only one of them"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"top_p": -1}, "top_p", "greater than or equal to 0"),
        ({"stop": ["a"] * 5}, "stop", "more than 4"),
        ({"stop": ""}, "stop", "none of them empty"),
        ({"stop": [4]}, "stop[0]", "valid string"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"n": 2}, "n", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
    ],
)
def test_an_invalid_request_is_refused_in_one_line(
    given: dict[str, Any], param: str, reason: str
) -> None:
    model = fast()
    answer = complete(asked(model), **given)
    error = error_of(answer)
    assert answer.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert reason in error["message"]
    assert model.asked == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"4", b"\xff", b"[" * 100_000, b'{"model": ' + b"9" * 5000 + b"}"]
)
def test_a_body_that_is_not_an_object_is_refused(body: bytes) -> None:
    answer = asked(fast()).post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert "JSON" in error_of(answer)["message"]


def test_a_body_that_is_too_large_is_refused_with_the_same_error_format() -> None:
    answer = complete(asked(fast()), messages=[{"role": "user", "content": "a"}] * 40_000)
    assert answer.status_code == 413
    assert "Send a smaller one" in error_of(answer)["message"]


def test_two_thousand_turns_are_accepted_and_ten_thousand_are_refused() -> None:
    model = fast()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    answer = complete(asked(model), messages=turns * 5000)
    assert (answer.status_code, error_of(answer)["param"]) == (400, "messages")
    assert "at most 2048" in answer.text
    assert complete(asked(model), messages=turns * 1000).status_code == 200
    assert len(model.asked[0][0]) == 2000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1", 404),
        ("GET", "/v1/", 404),
        ("POST", "/v1/completions", 404),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/chat/completions", 405),
    ],
)
def test_unknown_models_and_paths_are_refused_with_the_same_error_format(
    method: str, path: str, status: int
) -> None:
    answer = asked(fast()).request(method, path)
    assert answer.status_code == status
    assert "address" in error_of(answer)["message"]


@pytest.mark.parametrize("path", ["/", "/v1x", "/v11/models", "/gradio_api/v1/models", "/x/v1/"])
def test_all_other_paths_belong_to_the_page(path: str) -> None:
    assert asked(fast()).get(path).json() == "the page"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (PromptError("Too long. Shorten it."), 400, "invalid_request_error"),
        (BusyError("Too much to do."), 429, "rate_limit_error"),
        (InterruptionError("It was lost."), 503, "server_error"),
        (RuntimeError("secret path /srv/model"), 500, "server_error"),
    ],
)
def test_each_kind_of_failure_has_its_own_status(
    stream: bool, failure: Exception, status: int, kind: str
) -> None:
    answer = complete(asked(StandIn("fast", [], failure=failure)), stream=stream)
    assert (answer.status_code, error_of(answer)["type"]) == (status, kind)
    assert (answer.headers.get("retry-after") == "5") == (status in (429, 503))
    assert "secret" not in answer.text


def test_the_official_client_raises_the_matching_errors() -> None:
    busy = StandIn("fast", [], failure=BusyError("Too much to do."))
    with client_of(busy) as client:
        with pytest.raises(openai.RateLimitError, match="Too much to do") as caught:
            client.chat.completions.create(model="fast", messages=HELLO)
        assert caught.value.code == "rate_limit_exceeded"
        with pytest.raises(openai.BadRequestError, match="not supported"):
            client.chat.completions.create(model="fast", messages=HELLO, n=3)


def test_a_stream_that_fails_midway_reports_the_error() -> None:
    half = StandIn("fast", ["half "], failure=InterruptionError("It was lost. Try again."))
    with client_of(half) as client:
        stream = client.chat.completions.create(model="fast", messages=HELLO, stream=True)
        said = [next(stream).choices[0].delta.content for _ in range(2)]
        with pytest.raises(openai.APIError, match=r"It was lost\. Try again"):
            next(stream)
    assert said == ["", "half "]


def test_an_answer_that_takes_too_long_is_stopped() -> None:
    late = StandIn("fast", ["a", "b", "c"], pause=0.4)
    answer = complete(asked(late, limits=LIMITS.model_copy(update={"answer_seconds": 0.6})))
    assert answer.status_code == 504
    assert "took too long" in error_of(answer)["message"]
    assert late.left == 1
    limits = LIMITS.model_copy(update={"answer_seconds": 0.6})
    *_, error, last = complete(asked(late, limits=limits), stream=True).text.split("\n\n")
    assert "took too long" in json.loads(error.removeprefix("data: "))["error"]["message"]
    assert (last, late.left) == ("", 2)


@pytest.mark.parametrize("stream", [False, True])
def test_a_starting_model_is_waited_for_and_then_answers_503_with_retry_after(
    stream: bool,
) -> None:
    asleep = Asleep("fast", ["awake"], pause=0.4)
    assert "awake" in complete(asked(asleep), stream=stream).text
    limits = LIMITS.model_copy(update={"answer_seconds": 0.2})
    late = complete(asked(asleep, limits=limits), stream=stream)
    assert (late.status_code, late.headers["retry-after"]) == (503, "5")
    assert error_of(late)["message"] == "fast is still starting. Try again in a moment."


class Silent:
    """A custom model that yields nothing."""

    name = "fast"

    async def stream(self, *_: object) -> AsyncGenerator[Piece | End, None]:
        nothing: list[Piece] = []
        for piece in nothing:
            yield piece


def test_a_silent_model_gives_an_empty_answer() -> None:
    whole = complete(asked(Silent())).json()["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == ("", "stop")
    assert complete(asked(Silent()), stream=True).text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_ends_generation(stream: bool) -> None:
    model = StandIn("slow", ["a"] * 600, pause=0.1)
    with in_thread(web_of(model)) as url:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        asking = asyncio.create_task(read(client, stream=stream))
        await until(lambda: len(model.asked) == 1)
        await asyncio.sleep(0.3)
        assert model.left == 0
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: model.left == 1)


async def read(client: openai.AsyncOpenAI, *, stream: bool) -> None:
    asking = client.chat.completions.create(model="slow", messages=HELLO, stream=stream)
    answer: Any = await asking
    if stream:
        async with answer:
            async for _ in answer:
                pass


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.delenv("API_KEYS_FILE", raising=False)
    return lambda text: monkeypatch.setenv("API_KEYS", text)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_with_keys_only_requests_with_a_key_are_answered(keys: Callable[[str], None]) -> None:
    keys("ada:a wet whale".replace(" ", "-") + ", bob : b:c=")
    api = asked(fast(), keys=True)
    assert api.get("/v1/models", headers=bearer("a-wet-whale")).status_code == 200
    assert api.get("/v1/models", headers=bearer("b:c=")).status_code == 200
    wrong = ("", "a-wet-whal", "a-wet-whale2", "ada:a-wet-whale", "A-WET-WHALE", "b")
    refused = [{}, {"authorization": "Basic a-wet-whale"}, *map(bearer, wrong)]
    for headers in refused:
        for path in ("/v1/models", "/v1/chat/completions", "/v1/elsewhere"):
            answer = api.get(path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert error_of(answer)["code"] == "invalid_api_key"
            assert "whale" not in answer.text
    latin = [(b"authorization", b"Bearer \xff")]
    assert api.get("/v1/models", headers=latin).status_code == 401


def test_the_official_client_sends_its_key(keys: Callable[[str], None]) -> None:
    keys("ada:whale")
    with client_of(fast(), keys=True) as client:
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            client.models.list()
        assert client.with_options(api_key="whale").models.list().data[0].id == "fast"


@pytest.fixture
def behind_a_login(
    keys: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    """A page with a login, tools and the API, as in the preview."""
    keys("ada:whale")
    monkeypatch.setenv("PAGE_PASSWORD", "a wet whale")
    settings = settings_of().model_copy(
        update={"openai_api": True, "mcp": True, "login_user": "ada"}
    )
    builder = PageOfModels(settings, build_page)
    web = mount(builder.preview((), serve.run, engine=False), settings, LAUNCH)
    add_outer_middleware(web, builder, settings)
    with TestClient(web, base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(
    ("asking", "with_key", "with_login"),
    [
        ("GET /v1/models", 200, 401),
        ("GET /v1/elsewhere", 404, 401),
        ("POST /mcp", 400, 401),
        ("GET /", 401, 200),
        ("GET /config", 401, 200),
        ("GET /gradio_api/info", 401, 200),
        ("GET /gradio_api/mcp/schema", 401, 200),
        ("GET /v1x", 401, 404),
    ],
)
def test_a_key_does_not_open_the_page_and_a_login_does_not_open_the_api(
    behind_a_login: TestClient, asking: str, with_key: int, with_login: int
) -> None:
    method, path = asking.split()
    ask = partial(behind_a_login.request, method, path)
    assert ask().status_code == 401
    assert ask(headers=bearer("whale")).status_code == with_key
    assert ask(auth=("ada", "a wet whale")).status_code == with_login


def test_the_models_are_those_of_the_page(behind_a_login: TestClient) -> None:
    models = behind_a_login.get("/v1/models", headers=bearer("whale")).json()
    assert [model["id"] for model in models["data"]] == ["unused"]
    body = {"model": "unused", "messages": HELLO, "max_tokens": 2}
    answer = behind_a_login.post("/v1/chat/completions", json=body, headers=bearer("whale")).json()
    assert answer["choices"][0]["message"]["content"] == "Hello Hello "
    assert answer["choices"][0]["finish_reason"] == "length"
    assert "set-cookie" not in behind_a_login.get("/v1/models").headers


@pytest.mark.parametrize("text", ["", " , ", "whale", "ada:", ":whale", "ada:a b", "ada:ä"])
def test_without_keys_the_start_is_refused(keys: Callable[[str], None], text: str) -> None:
    keys(text)
    settings = settings_of().model_copy(update={"openai_api": True})
    check, *_ = settings.start_checks()
    with pytest.raises(LoginError, match="API_KEYS") as caught:
        check()
    assert "\n" not in str(caught.value)
    assert "whale" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        ("127.0.0.1", False),
        ("127.8.0.1", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),  # noqa: S104
        ("::", True),
        ("10.0.0.1", True),
        ("page.example.org", True),
    ],
)
def test_without_keys_the_page_must_listen_on_loopback(host: str, refused: bool) -> None:
    settings = settings_of().model_copy(update={"openai_api": "without-keys"})
    if refused:
        with pytest.raises(StartError, match="list keys in API_KEYS, or set host to 127"):
            settings.check_host(host)
    else:
        settings.check_host(host)
    settings_of().check_host(host)
    settings.model_copy(update={"openai_api": True}).check_host(host)


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {"host": "localhost:8000"}, 200),
        ("::1", {"host": "[::1]:8000"}, 200),
        ("127.0.0.1", {"host": "127.0.0.1"}, 200),
        ("10.0.0.7", {"host": "localhost"}, 403),
        ("127.0.0.1", {"host": "10.0.0.7"}, 403),
        ("127.0.0.1", {"host": "localhost", "x-forwarded-for": "10.0.0.7"}, 403),
        ("127.0.0.1", {"host": "localhost", "origin": "http://evil.example"}, 403),
        ("127.0.0.1", {"host": "evil.example"}, 421),
    ],
)
def test_without_keys_requests_from_other_machines_are_refused(
    client: str, headers: dict[str, str], status: int
) -> None:
    api = TestClient(web_of(fast()), client=(client, 1))
    body = {"model": "fast", "messages": HELLO}
    answer = api.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == status
    if status != 200:
        error_of(answer)


@pytest.mark.parametrize(
    ("path", "without"),
    [
        ("/v1/models", True),
        ("/v1/models/fast", True),
        ("/v1/chat/completions", True),
        ("/v1", False),
        ("/v1/chat", False),
        ("/x/v1/models", False),
        ("/v1/models/a/b", False),
    ],
)
def test_api_requests_may_use_any_replica(path: str, without: bool) -> None:
    assert (SESSIONLESS_PATH.fullmatch(path) is not None) == without


def test_the_api_alone_is_an_application_that_scales_independently() -> None:
    settings = settings_of().model_copy(update={"openai_api": False})
    there = deployments_in(compare_page.api(settings))
    assert [*there] == ["ApiServer", "unused"]
    assert there["ApiServer"]["autoscaling_config"]["max_replicas"] > 1
    assert "request_router_class" not in str(there["ApiServer"])


@pytest.mark.served
@pytest.mark.parametrize("place", ["beside a page", "alone"])
async def test_on_ray_the_official_client_is_answered(place: str, words: str, api: str) -> None:
    url, names = (words, list(MODELS)) if place == "beside a page" else (api, [MODELS[0]])
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    assert [model.id async for model in client.models.list()] == names
    asked: Any = {"model": MODELS[0], "messages": HELLO, "max_completion_tokens": 20, "seed": 1}
    whole = await client.chat.completions.create(**asked)
    assert whole.usage
    assert 0 < whole.usage.completion_tokens <= 20
    streamed = ""
    async with await client.chat.completions.create(**asked, stream=True) as chunks:
        async for chunk in chunks:
            streamed += chunk.choices[0].delta.content or ""
    assert streamed == whole.choices[0].message.content
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError, match="Ask for fewer"):
        await client.chat.completions.create(**{**asked, "max_completion_tokens": 10**6})
    plain = httpx2.get(f"{url}/v1/models", headers=bearer(KEY), timeout=60)
    assert (plain.status_code, "set-cookie" in plain.headers) == (200, False)
    elsewhere = httpx2.get(f"{url}/v2", headers=bearer(KEY), timeout=60)
    assert elsewhere.status_code == 404


def test_the_setting_has_one_of_three_values() -> None:
    rest = {"title": "", "description": "", "models": [{"name": "a", "source": "b"}]}
    for value in (False, True, "without-keys"):
        assert PageSettings.model_validate({**rest, "openai_api": value}).openai_api == value


async def test_another_project_can_use_the_api_as_a_remote_model() -> None:
    with in_thread(web_of(Thinking())) as api:
        there = ModelSettings(name="far", source="thinking", base_url=f"{api}/v1")
        stream = OpenAIClient(there).stream(
            [Message("user", "Hello")], GenerationOptions(max_new_tokens=20)
        )
        said = [each async for each in stream]
    # Tokens that the chunks do not count are in the usage.
    thought, text = Piece("Hm. ", 1, thought=True), Piece("Yes", 1)
    assert said == [thought, text, Piece("", 3), End("filtered", prompt_tokens=7)]


def test_gradios_own_chat_works_with_the_api() -> None:
    with in_thread(web_of(fast())) as api:
        chat = gr.load_chat(f"{api}/v1", model="fast", token=KEY)
        with in_thread(mount(chat, HttpSettings())) as page:
            said = Client(page, verbose=False).predict({"text": "Hello", "files": []})
    assert said == "one two three"


def test_the_hugging_face_client_works_with_and_without_streaming(
    keys: Callable[[str], None],
) -> None:
    keys("ada:whale")
    hello: list[Any] = [*HELLO]
    with in_thread(web_of(fast(), keys=True)) as api:
        client = InferenceClient(base_url=f"{api}/v1", api_key="whale")
        whole = client.chat_completion(hello, model="fast", max_tokens=5, temperature=0.1)
        chunks = client.chat_completion(hello, model="fast", stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        with pytest.raises(HfHubHTTPError, match="401"):
            InferenceClient(base_url=f"{api}/v1", api_key="wrong").chat_completion(hello)
    assert whole.choices[0].message.content == streamed == "one two three"
    assert whole.choices[0].finish_reason == "stop"


def test_a_short_program_can_read_each_event() -> None:
    lines = complete(asked(fast()), stream=True).text.splitlines()
    events = [line.removeprefix("data: ") for line in lines if line]
    assert all(line.startswith("data: ") for line in lines if line)
    assert [json.loads(each)["object"] for each in events[:-1]] == ["chat.completion.chunk"] * 5
