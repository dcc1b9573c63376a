"""Limits for each caller of a page, its tools and the OpenAI API."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from secrets import token_hex
from typing import Any

import gradio as gr
import httpx2
import pytest
from fastapi import FastAPI
from limits import RateLimitItemPerMinute
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from playwright.sync_api import Browser, expect
from pydantic import ValidationError
from redis import Redis
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

from {{ cookiecutter.__package }}.serving.base import StartError
from {{ cookiecutter.__package }}.serving.http import rate_limits
from {{ cookiecutter.__package }}.serving.http.launch import Launch
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.http.rate_limits import (
    Caller,
    Limiter,
    address_of,
    check_rate_limits,
)
from {{ cookiecutter.__package }}.serving.http.settings import (
    HttpSettings,
    RateLimits,
)
from {{ cookiecutter.__package }}.serving.pages.settings import (
    TokenLimits,
)

from ...support.compare_page import BUTTON, LAUNCH, PROMPT_LABEL, build_page
from ...support.redis_server import OwnRedis, own_redis
from ...support.stand_ins import StandIn, fast, in_thread, settings_of, until

ADA, BOB = Caller("user", "ada"), Caller("user", "bob")
VARIABLE = "TEST_LIMITS_URL"
CALL = "/gradio_api/call"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    rate_limits.limiter_of.cache_clear()
    yield
    rate_limits.limiter_of.cache_clear()


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    with own_redis() as server:
        yield server.url


@pytest.fixture
def stoppable(monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnRedis]:
    with own_redis() as server:
        monkeypatch.setenv(VARIABLE, server.url)
        yield server


@pytest.fixture(params=["memory", "redis"])
def counted_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Returns the variable with the Redis URL, or None to count in memory."""
    if request.param == "memory":
        return None
    monkeypatch.setenv(VARIABLE, request.getfixturevalue("redis"))
    return VARIABLE


@pytest.fixture
def somebody() -> Caller:
    """A caller that no earlier test has counted."""
    return Caller("user", token_hex())


async def refusal_of(limiter: Limiter, caller: Caller) -> HTTPException | None:
    try:
        await limiter.take(caller)
    except HTTPException as refused:
        return refused
    return None


async def settled(limiter: Limiter) -> None:
    """Waits until every token is counted."""
    await until(lambda: not limiter._spending)


async def test_a_refusal_names_the_limit_and_when_to_retry(
    counted_in: str | None, somebody: Caller
) -> None:
    limiter = Limiter(RateLimits(requests_per_minute=2, redis_url_variable=counted_in))

    assert [await refusal_of(limiter, somebody) for _ in range(2)] == [None, None]
    refused = await refusal_of(limiter, somebody)
    assert refused is not None
    assert refused.status_code == 429
    assert refused.headers is not None
    seconds = int(refused.headers["retry-after"])
    assert 50 < seconds <= 60
    assert refused.detail == f"Your limit is 2 requests a minute. Try again in {seconds} seconds."
    assert await refusal_of(limiter, Caller("user", token_hex())) is None


async def test_a_key_with_the_name_of_a_user_counts_as_another_caller(somebody: Caller) -> None:
    limiter = Limiter(RateLimits(requests_per_day=1))

    assert await refusal_of(limiter, somebody) is None
    assert await refusal_of(limiter, Caller("key", somebody.name)) is None
    refused = await refusal_of(limiter, Caller("key", somebody.name))
    assert refused is not None
    assert refused.detail == "The limit for your key is 1 request a day. Try again in 24 hours."


async def test_a_window_expires(
    counted_in: str | None, somebody: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RateLimitItemPerMinute, "get_expiry", lambda _: 1)
    limiter = Limiter(RateLimits(requests_per_minute=1, redis_url_variable=counted_in))

    assert await refusal_of(limiter, somebody) is None
    refused = await refusal_of(limiter, somebody)
    assert refused is not None
    assert refused.headers == {"retry-after": "1"}
    await asyncio.sleep(1.1)
    assert await refusal_of(limiter, somebody) is None


async def test_tokens_are_counted_once_they_are_known(
    counted_in: str | None, somebody: Caller
) -> None:
    limiter = Limiter(TokenLimits(tokens_per_day=1000, redis_url_variable=counted_in))

    for tokens in (999, 500):
        assert await refusal_of(limiter, somebody) is None
        limiter.spend(somebody, tokens)
        await settled(limiter)
    refused = await refusal_of(limiter, somebody)
    assert refused is not None
    assert refused.detail.startswith("Your limit is 1,000 tokens a day. Try again in 24 hours.")


async def test_replicas_share_counts_in_redis_under_concurrent_calls(
    redis: str, somebody: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, redis)
    settings = RateLimits(requests_per_minute=20, redis_url_variable=VARIABLE)
    replicas = [Limiter(settings) for _ in range(3)]

    calls = [refusal_of(replicas[number % 3], somebody) for number in range(60)]
    refused = [each for each in await asyncio.gather(*calls) if each]
    assert len(refused) == 40


async def test_without_redis_each_replica_gets_its_share_of_the_limit(
    somebody: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "_replicas", lambda: 3)
    limiter = Limiter(RateLimits(requests_per_minute=10))

    refused = [await refusal_of(limiter, somebody) for _ in range(4)]
    assert refused[:3] == [None] * 3
    assert refused[3] is not None
    assert "3 requests a minute" in refused[3].detail


async def test_while_redis_is_down_each_replica_counts_alone(
    stoppable: OwnRedis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rate_limits, "REDIS_RETRY_SECONDS", 0.5)
    limiter = Limiter(RateLimits(requests_per_minute=2, redis_url_variable=VARIABLE))
    assert await refusal_of(limiter, ADA) is None

    stoppable.stop()
    assert [await refusal_of(limiter, ADA) for _ in range(2)] == [None, None]
    assert await refusal_of(limiter, ADA)
    said = [record for record in caplog.records if "Redis did not answer" in record.message]
    assert 1 <= len(said) <= 2
    assert str(stoppable.port) not in caplog.text
    stoppable.start()
    await asyncio.sleep(0.6)
    # Its counts are lost.
    assert await refusal_of(limiter, ADA) is None


async def test_no_names_are_stored_in_redis(redis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, redis)
    limiter = Limiter(RateLimits(requests_per_minute=2, redis_url_variable=VARIABLE))
    name = f"eve {token_hex()}\r\nFLUSHALL"

    await limiter.take(Caller("user", name))
    with Redis.from_url(redis, decode_responses=True) as client:
        keys = [key for key in client.scan_iter() if Caller("user", name).digest in key]
        assert len(keys) == 1
        assert 0 < client.ttl(keys[0]) <= 60
        assert "eve" not in keys[0]


async def test_many_callers_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_COUNTERS", 10)
    limiter = Limiter(RateLimits(requests_per_minute=2))
    assert await refusal_of(limiter, ADA) is None

    outcomes = [await refusal_of(limiter, Caller("address", str(each))) for each in range(20)]
    assert outcomes[:11] == [None] * 11
    assert None not in outcomes[12:]
    assert len(limiter._memory.storage) == 11
    # Earlier callers keep their counts.
    assert await refusal_of(limiter, ADA) is None


def scope_of(sender: str, *forwarded: str, **headers: str) -> dict[str, Any]:
    pairs = [("x-forwarded-for", each) for each in forwarded] + [*headers.items()]
    raw = [(name.encode(), value.encode()) for name, value in pairs]
    return {"type": "http", "client": (sender, 1), "headers": raw}


@pytest.mark.parametrize(
    ("sender", "forwarded", "address"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        # Entries of untrusted addresses are ignored.
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),
        ("10.0.0.5", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.5", ["192.0.2.1, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.5", ["192.0.2.1", "198.51.100.1"], "198.51.100.1"),
        ("10.0.0.5", ["192.0.2.1, 198.51.100.1, 10.0.0.6"], "198.51.100.1"),
        ("::ffff:10.0.0.5", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.5", ["nonsense"], "10.0.0.5"),
        # A header of a megabyte is not read either.
        ("10.0.0.5", [", ".join(["198.51.100.1", *["10.0.0.6"] * 60])], "10.0.0.6"),
        ("10.0.0.5", [], "10.0.0.5"),
        ("10.0.0.5", ["2001:db8:1:2:3::4"], "2001:db8:1:2::/64"),
        ("10.0.0.5", ["[2001:db8:1:2:ffff::9]:80"], "2001:db8:1:2::/64"),
    ],
)
def test_the_client_address_comes_from_trusted_proxies(
    sender: str, forwarded: list[str], address: str
) -> None:
    settings = HttpSettings.model_validate({"proxies": ["10.0.0.0/24"]})

    assert address_of(scope_of(sender, *forwarded), settings) == address


@pytest.mark.parametrize(
    "scope",
    [scope_of("127.0.0.1", "203.0.113.7"), scope_of("127.0.0.1", forwarded="for=203.0.113.7")],
)
def test_behind_an_untrusted_proxy_limits_by_address_are_refused(
    scope: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(HTTPException, match="add the proxy's address to `proxies`"):
        address_of(scope, HttpSettings())
    assert "proxies" in caplog.text


def test_the_entry_of_serves_haproxy_is_not_taken_for_another_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")

    assert address_of(scope_of("203.0.113.7", "203.0.113.7"), HttpSettings()) == "203.0.113.7"
    with pytest.raises(HTTPException):
        address_of(scope_of("10.0.0.5", "203.0.113.7", "10.0.0.5"), HttpSettings())


def test_limits_that_cannot_be_enforced_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=r"sets no limit\. Set one of requests_per_minute"):
        RateLimits()
    by_address = {"rate_limits": {"requests_per_minute": 1}}
    with pytest.raises(ValidationError, match="rate_limits by address need proxies"):
        HttpSettings.model_validate({**by_address, "public_url": "https://page.example.org"})
    settings = HttpSettings.model_validate({**by_address, "proxies": ["10.0.0.5"]})
    check_rate_limits(settings)
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1")
    with pytest.raises(StartError, match="FORWARDED_ALLOW_IPS must be set to an empty value"):
        mount(words(), settings)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, f"{VARIABLE} is not set"),
        ("http://secret@localhost", "is not a Redis address"),
        ("redis://:secret@127.0.0.1:no/0", "is not valid"),
        ("redis://:secret@127.0.0.1:1/0", "does not answer"),
    ],
)
def test_a_start_without_redis_gives_instructions_and_contains_no_secret(
    url: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url:
        monkeypatch.setenv(VARIABLE, url)
    limits = {"requests_per_minute": 1, "redis_url_variable": VARIABLE}
    settings = HttpSettings.model_validate({"rate_limits": limits})

    [check] = settings.start_checks()
    with pytest.raises(StartError, match=reason) as raised:
        check()
    assert "secret" not in str(raised.value)
    assert raised.value.__context__ is None or raised.value.__suppress_context__


def test_a_start_without_the_libraries_says_what_to_install() -> None:
    code = """
import sys
sys.modules["limits"] = None
from {{ cookiecutter.__package }}.serving.http.settings import HttpSettings
settings = HttpSettings.model_validate({"rate_limits": {"requests_per_minute": 1}})
try:
    settings.start_checks()[0]()
except Exception as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "uv sync --extra limits" in said.stdout


def words(**queue: Any) -> gr.Blocks:
    """A page with one function in the queue and one outside it."""
    with gr.Blocks() as page:
        box = gr.Textbox()
        gr.Button().click(lambda word: word * 2, box, box, api_name="double")
        page.load(lambda: None, api_name="look")
    page.queue(**queue)
    return page


def limited(**settings: Any) -> HttpSettings:
    return HttpSettings.model_validate({"rate_limits": {"requests_per_minute": 2}, **settings})


@pytest.mark.parametrize("path", [f"{CALL}/double", "/gradio_api/run/double"])
def test_a_custom_page_refuses_calls_over_the_limit(path: str) -> None:
    with TestClient(mount(words(), limited()), base_url="http://localhost") as browser:
        for _ in range(5):
            assert browser.get("/").status_code == 200
            assert browser.post(f"{CALL}/look", json={"data": []}).status_code == 200
        answers = [browser.post(path, json={"data": ["a"]}) for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert 0 < int(answers[2].headers["retry-after"]) <= 60
    assert "The limit for your address is 2 requests a minute." in answers[2].json()["detail"]


def test_a_call_over_the_limit_counts_as_limited_and_not_as_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        caplog.at_level(logging.INFO),
        TestClient(mount(words(), limited()), base_url="http://localhost") as browser,
    ):
        for _ in range(3):
            browser.post(f"{CALL}/double", json={"data": ["a"]})
    outcomes = [vars(each)["outcome"] for each in caplog.records if each.message == "call"]
    assert outcomes.count("limited") == 1
    assert "refused" not in outcomes


def test_cookies_and_forged_headers_do_not_change_the_caller() -> None:
    settings = limited(proxies=["10.0.0.5"])
    with TestClient(mount(words(), settings), base_url="http://localhost") as browser:
        codes = []
        for number in range(4):
            headers = {"x-forwarded-for": f"203.0.113.{number}", "x-real-ip": f"1.1.1.{number}"}
            headers["cookie"] = f"page-session={token_hex(16)}"
            answer = browser.post(f"{CALL}/double", json={"data": ["a"]}, headers=headers)
            codes.append(answer.status_code)
    assert codes == [200, 200, 429, 429]


def test_clients_behind_a_trusted_proxy_each_have_their_own_limit() -> None:
    web = mount(words(), limited(proxies=["10.0.0.5"]))
    with TestClient(web, base_url="http://localhost", client=("10.0.0.5", 1)) as proxy:
        for number in range(3):
            codes = [
                proxy.post(
                    f"{CALL}/double",
                    json={"data": ["a"]},
                    headers={"x-forwarded-for": f"9.9.9.9, 203.0.113.{number}"},
                ).status_code
                for _ in range(3)
            ]
            assert codes == [200, 200, 429]


@pytest.mark.parametrize("path", [f"{CALL}/double", "/gradio_api/run/double"])
def test_users_of_a_gradio_login_each_have_their_own_limit(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGE_SECRET", "a secret of thirty-two characters")
    launch = Launch(auth=[("ada", "a"), ("bob", "b")])
    with TestClient(mount(words(), limited(), launch), base_url="http://localhost") as browser:
        for name in ("ada", "bob"):
            browser.cookies.clear()
            browser.post("/login", data={"username": name, "password": name[0]})
            codes = [browser.post(path, json={"data": ["a"]}).status_code for _ in range(3)]
            assert codes == [200, 200, 429]


def test_users_named_by_a_proxy_each_have_their_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_SECRET", "a secret of thirty-two characters")
    settings = limited(login_header="x-user", proxies=["10.0.0.5"])
    web = mount(words(), settings)
    with TestClient(web, base_url="http://localhost", client=("10.0.0.5", 1)) as proxy:
        for name in ("ada", "bob"):
            codes = [
                proxy.post(f"{CALL}/double", json={"data": ["a"]}, headers={"x-user": name})
                for _ in range(3)
            ]
            assert [each.status_code for each in codes] == [200, 200, 429]
            assert codes[2].json()["detail"].startswith("Your limit is 2 requests a minute.")


def test_users_of_a_shared_login_are_limited_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_PASSWORD", "open")
    web = mount(words(), limited(login_user="team"))
    for address in ("203.0.113.1", "203.0.113.2"):
        with TestClient(web, base_url="http://localhost", client=(address, 1)) as browser:
            browser.auth = ("team", "open")
            codes = [browser.post(f"{CALL}/double", json={"data": ["a"]}) for _ in range(3)]
        assert [each.status_code for each in codes] == [200, 200, 429]


async def test_a_tool_names_the_limit_that_its_caller_exceeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAGE_PASSWORD", "open")
    monkeypatch.setenv("API_KEYS", "ci:sesame")
    settings = limited(login_user="team", mcp=True)
    with in_thread(mount(words(), settings)) as url:
        headers = {"authorization": "Bearer sesame"}
        http = httpx2.AsyncClient(headers=headers, timeout=60)
        async with Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client:
            results = [await client.call_tool("double", {"word": "a"}) for _ in range(3)]
    assert [each.is_error for each in results] == [False, False, True]
    assert "The limit for your key is 2 requests a minute. Try again in" in str(results[2].content)


def text_page(model: StandIn, **limits: int) -> FastAPI:
    settings = settings_of().model_copy(update={"rate_limits": TokenLimits.model_validate(limits)})
    return mount(build_page(settings, [model]), settings, LAUNCH)


def test_the_api_of_a_page_of_models_answers_429() -> None:
    web = text_page(fast(), requests_per_minute=2)
    with TestClient(web, base_url="http://localhost") as browser:
        answers = [browser.post(f"{CALL}/generate", json={"data": ["a"]}) for _ in range(3)]
    assert [each.status_code for each in answers] == [200, 200, 429]
    assert int(answers[2].headers["retry-after"]) > 0


@pytest.mark.browser
def test_in_the_browser_a_pane_names_the_exceeded_limit(browser: Browser) -> None:
    model = fast()
    with (
        in_thread(text_page(model, requests_per_minute=1)) as url,
        browser.new_page() as page,
    ):
        page.goto(url)
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(page.get_by_label("fast", exact=True)).to_have_value("one two three")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(page.locator(".pane")).to_contain_text("is 1 request a minute. Try again in")
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("Hello")
    assert len(model.asked) == 1


def test_prompt_and_answer_tokens_of_a_page_are_counted() -> None:
    # Each answer has three tokens, and the model reports no prompt tokens.
    web = text_page(fast(), tokens_per_minute=8)
    with TestClient(web, base_url="http://localhost") as browser:
        codes = []
        for _ in range(3):
            answer = browser.post(f"{CALL}/generate", json={"data": ["eight ch", 1, 9, "1", "1"]})
            codes.append(answer.status_code)
            if answer.status_code == 200:
                browser.get(f"{CALL}/generate/{answer.json()['event_id']}")
    assert codes == [200, 200, 429]


def test_the_openai_api_refuses_a_key_over_the_limit_in_its_own_error_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_KEYS", "ci:sesame, ops:open")
    limits = TokenLimits(requests_per_minute=2, tokens_per_day=1000)
    given = {"openai_api": True, "rate_limits": limits}
    settings = settings_of().model_copy(update=given)
    web = FastAPI()
    [beside] = settings.middleware_of([fast()])
    web.add_middleware(beside.cls, *beside.args, **beside.kwargs)
    body = {"model": "fast", "messages": [{"role": "user", "content": "Hello"}]}
    with TestClient(web, base_url="http://localhost") as api:
        for key in ("sesame", "open"):
            api.headers["authorization"] = f"Bearer {key}"
            # Requests that start no answer are not counted.
            assert api.post("/v1/chat/completions", json={}).status_code == 400
            assert api.get("/v1/models").status_code == 200
            answers = [api.post("/v1/chat/completions", json=body) for _ in range(3)]
            assert [each.status_code for each in answers] == [200, 200, 429]
        api.headers["authorization"] = "Bearer guessed"
        assert api.post("/v1/chat/completions", json=body).status_code == 401
    error = answers[2].json()["error"]
    assert error["type"] == "rate_limit_error"
    assert error["code"] == "rate_limit_exceeded"
    assert error["message"].startswith("The limit for your key is 2 requests a minute.")
    assert 5 < int(answers[2].headers["retry-after"]) <= 60


def test_tokens_of_the_openai_api_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "ci:sesame")
    given = {"openai_api": True, "rate_limits": TokenLimits(tokens_per_day=8)}
    settings = settings_of().model_copy(update=given)
    web = FastAPI()
    [beside] = settings.middleware_of([fast()])
    web.add_middleware(beside.cls, *beside.args, **beside.kwargs)
    body = {"model": "fast", "messages": [{"role": "user", "content": "eight ch"}]}
    with TestClient(web, base_url="http://localhost") as api:
        api.headers["authorization"] = "Bearer sesame"
        for stream in (True, False, True):
            answer = api.post("/v1/chat/completions", json={**body, "stream": stream})
    assert answer.status_code == 429
    assert "8 tokens a day" in answer.json()["error"]["message"]
