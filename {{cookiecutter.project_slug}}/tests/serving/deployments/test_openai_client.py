"""A model on an OpenAI-compatible server, tested with a loopback server."""

import asyncio
import json
import re
import traceback
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import Headers

from {{ cookiecutter.__package }}.serving.deployments import openai_client
from {{ cookiecutter.__package }}.serving.deployments.openai_client import (
    OpenAIClient,
)
from {{ cookiecutter.__package }}.serving.deployments.settings import (
    ModelSettings,
)
from {{ cookiecutter.__package }}.serving.protocol import (
    BusyError,
    End,
    GenerationOptions,
    InterruptionError,
    Message,
    Piece,
    PromptError,
)
from {{ cookiecutter.__package }}.serving.telemetry.metrics import MeteredModel
from {{ cookiecutter.__package }}.serving.telemetry.traces import (
    TracedRequestId,
    Traces,
    continue_trace,
    start_traces,
    stop_traces,
)

from ...support.collector import collecting
from ...support.stand_ins import in_thread, pieces_of, until, user

KEY = "a key of the tests"
OPTIONS = GenerationOptions(min_new_tokens=0, max_new_tokens=7, temperature=0.3)


@dataclass
class Loopback:
    """Answers with three words, or as its fields specify."""

    status: int = 200
    param: str | None = None
    """Fields that the server refuses."""
    pause: float = 0
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    """The token counts that the server sends at the end, if any."""
    breaks: bool = False
    refuses: tuple[str, ...] = ()
    """Options that it answers with 400, one at a time."""
    names_them: bool = True
    """Whether it names them in a separate field, as OpenAI does, or in the text."""
    events: list[str] | None = None
    """The events that it streams instead of three words."""
    headers: list[Headers] = field(default_factory=list)
    asked: list[dict[str, object]] = field(default_factory=list)
    left: int = 0
    url: str = ""

    def web(self) -> FastAPI:
        web = FastAPI()

        @web.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            self.headers.append(request.headers)
            if request.headers.get("authorization") != f"Bearer {KEY}":
                return JSONResponse({"error": {"message": "wrong key"}}, 401)
            if self.status != 200:
                error = {"message": "/srv/secret", "param": self.param}
                return JSONResponse({"error": error}, self.status)
            self.asked.append(asked := await request.json())
            for name in self.refuses:
                if name in asked:
                    error = {"message": f"/srv/secret: Unsupported parameter: '{name}'"}
                    param = {"param": name} if self.names_them else {}
                    return JSONResponse({"error": error | param}, 400 if self.names_them else 422)
            return StreamingResponse(self.chunks(), media_type="text/event-stream")

        return web

    async def chunks(self) -> AsyncGenerator[str, None]:
        for event in self.events or ():
            yield event
        if self.events is not None:
            return
        try:
            for word in ("one ", "two ", "three"):
                await asyncio.sleep(self.pause)
                yield self.chunk(word)
                if self.breaks:
                    raise RuntimeError("the server dies")
            yield self.chunk("", self.finish_reason)
            if self.prompt_tokens is not None:
                yield self.usage(self.prompt_tokens)
            yield "data: [DONE]\n\n"
        finally:
            self.left += 1

    def delta(self, finish_reason: str | None = None, **delta: str) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return self.event(choices=[choice])

    def chunk(self, word: str, finish_reason: str | None = None) -> str:
        return self.delta(finish_reason, content=word)

    def usage(self, prompt_tokens: int, tokens: int = 3) -> str:
        used = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": 9}
        return self.event(choices=[], usage=used)

    def event(self, **fields: object) -> str:
        kind = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "whale"}
        return f"data: {json.dumps({**kind, **fields})}\n\n"


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    loopback = Loopback()
    with in_thread(loopback.web()) as url:
        loopback.url = f"{url}/v1"
        yield loopback


@pytest.fixture
def model(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> OpenAIClient:
    monkeypatch.setenv("WHALE_KEY", KEY)
    return model_at(loopback.url)


def model_at(url: str, **settings: Any) -> OpenAIClient:
    """Returns a model with short limits. `settings` adds settings or overrides them."""
    given = {"api_key_variable": "WHALE_KEY", "prompt": "In short: {prompt}", **settings}
    return OpenAIClient(ModelSettings(name="whale", source="whale-7b", base_url=url, **given))


async def test_the_answer_streams_and_the_request_arrives_complete(
    model: OpenAIClient, loopback: Loopback
) -> None:
    answer = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert answer == [Piece("one ", 1), Piece("two ", 1), Piece("three", 1), End("stop")]
    [asked] = loopback.asked
    assert asked["model"] == "whale-7b"
    assert asked["messages"] == [{"role": "user", "content": "In short: Hello"}]
    assert asked == {
        "model": "whale-7b",
        "messages": [{"role": "user", "content": "In short: Hello"}],
        "max_completion_tokens": 7,
        "temperature": 0.3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_the_server_gets_the_trace_header_only_when_there_is_a_trace(
    model: OpenAIClient, loopback: Loopback
) -> None:
    await pieces_of(model.stream(user("Hello"), OPTIONS))
    with collecting() as collector:
        start_traces(Traces(endpoint=collector.url))
        continue_trace(carried_below("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"))
        await pieces_of(MeteredModel(model, log_prompts=False).stream(user("Hello"), OPTIONS))
        stop_traces()
        continue_trace("")
    span = collector.one("chat whale")
    told = [headers.getlist("traceparent") for headers in loopback.headers]
    assert told == [[], [f"00-0af7651916cd43dd8448eb211c80319c-{span.id}-01"]]


def carried_below(trace: str, span: str) -> TracedRequestId:
    named = TracedRequestId("whale-1")
    named.traceparent = f"00-{trace}-{span}-01"
    return named


async def test_options_set_by_neither_settings_nor_request_are_not_sent(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHALE_KEY", KEY)
    plain, own = model_at(loopback.url), model_at(loopback.url, temperature=0.7, top_p=0.9)
    for model in (plain, own):
        await pieces_of(model.stream(user("Hello"), GenerationOptions()))
    await pieces_of(own.stream(user("Hello"), GenerationOptions(top_p=0.5)))
    sent = [(asked.get("temperature"), asked.get("top_p")) for asked in loopback.asked]
    assert sent == [(None, None), (0.7, 0.9), (0.7, 0.5)]


@pytest.mark.parametrize("names_them", [True, False])
async def test_an_option_that_the_server_refuses_is_no_longer_sent(
    model: OpenAIClient,
    loopback: Loopback,
    caplog: pytest.LogCaptureFixture,
    names_them: bool,
) -> None:
    caplog.set_level("WARNING", "ray.serve")
    loopback.refuses = ("max_completion_tokens", "temperature", "stream_options")
    loopback.names_them = names_them
    for _ in range(2):
        assert len(await pieces_of(model.stream(user("Hello"), OPTIONS))) == 3
    optional = [asked.keys() - {"model", "messages", "stream"} for asked in loopback.asked]
    assert optional == [
        {"max_completion_tokens", "temperature", "stream_options"},
        {"max_tokens", "temperature", "stream_options"},
        {"max_tokens", "stream_options"},
        {"max_tokens"},
        {"max_tokens"},
    ]
    assert caplog.text.count("its server does not accept") == 1
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (("max_completion_tokens", "max_tokens"), "cannot write that many tokens. Ask for fewer"),
        (("stop",), "does not support stop. Leave it out"),
        (("messages",), "rejected this text"),
    ],
)
async def test_a_refusal_that_cannot_be_worked_around_is_reported(
    model: OpenAIClient, loopback: Loopback, refused: tuple[str, ...], reason: str
) -> None:
    loopback.refuses = refused
    options = OPTIONS.model_copy(update={"stop": ("!",)})
    with pytest.raises(PromptError, match=re.escape(reason)):
        await pieces_of(model.stream(user("Hello"), options))
    loopback.refuses = ()
    await pieces_of(model.stream(user("Hello"), options))
    # A retry that did not help says nothing about the server.
    assert "max_completion_tokens" in loopback.asked[-1]


async def test_variables_that_the_settings_do_not_name_are_never_sent(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {"OPENAI_API_KEY": "sk", "OPENAI_ORG_ID": "org", "OPENAI_PROJECT_ID": "project"}
    for name, value in {**secret, "OPENAI_ADMIN_KEY": "admin", "WHALE_ORG": "whales"}.items():
        monkeypatch.setenv(name, value)
    model = model_at(loopback.url, api_key_variable=None)
    with pytest.raises(InterruptionError, match="Set api_key_variable"):
        await anext(model.stream(user("Hello"), OPTIONS))
    monkeypatch.setenv("WHALE_KEY", KEY)
    model = model_at(loopback.url, organization_variable="WHALE_ORG")
    await pieces_of(model.stream(user("Hello"), OPTIONS))
    bare, named = loopback.headers
    kept = {"authorization", "openai-organization", "openai-project"}
    assert not kept & {*bare.keys()}
    assert kept & {*named.keys()} == {"authorization", "openai-organization"}
    assert named["openai-organization"] == "whales"


async def test_token_counts_come_from_the_server(model: OpenAIClient, loopback: Loopback) -> None:
    loopback.events = [loopback.chunk("four words in one", "stop"), loopback.usage(6, 4)]
    *pieces, end = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert [piece.text for piece in pieces if isinstance(piece, Piece)] == ["four words in one", ""]
    assert sum(piece.tokens for piece in pieces if isinstance(piece, Piece)) == 4
    assert end == End("stop", 6)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_thoughts_are_marked_and_an_answer_may_hold_only_thoughts(
    model: OpenAIClient, loopback: Loopback, field: str
) -> None:
    loopback.events = [loopback.delta(**{field: "Hm."}), loopback.delta("length")]
    thought, end = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert thought == Piece("Hm.", 1, thought=True)
    assert end == End("length")


async def test_a_refusal_is_shown_as_text(model: OpenAIClient, loopback: Loopback) -> None:
    loopback.events = [loopback.delta(refusal="I cannot."), loopback.delta("content_filter")]
    refusal, end = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert (refusal, end) == (Piece("I cannot.", 1), End("filtered"))


async def test_a_stream_is_closed_at_the_limit_if_the_server_ignores_it(
    model: OpenAIClient, loopback: Loopback
) -> None:
    loopback.events = [loopback.chunk("word ")] * 50
    *pieces, end = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert (len(pieces), end) == (8, End("length"))


@pytest.mark.parametrize(
    "line",
    ["{", "4", "null", '"text"', "[]", '{"choices": null}', '{"choices": [{}]}', "{}", "\x00"],
)
async def test_an_invalid_line_ends_the_answer(
    model: OpenAIClient, loopback: Loopback, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    caplog.set_level("WARNING", "ray.serve")
    loopback.events = [loopback.chunk("secret "), f"data: {line}\n\n", loopback.chunk("three")]
    stream = model.stream(user("Hello"), OPTIONS)
    assert await anext(stream) == Piece("secret ", 1)
    with pytest.raises(InterruptionError, match=r"sent an invalid answer\. Try again"):
        await anext(stream)
    assert "sent an invalid chunk" in caplog.text
    assert "secret" not in caplog.text


async def test_stop_texts_and_a_seed_are_sent_if_set(
    model: OpenAIClient, loopback: Loopback
) -> None:
    options = OPTIONS.model_copy(update={"stop": ("!", "END"), "seed": 0})
    await pieces_of(model.stream(user("Hello"), options))
    [asked] = loopback.asked
    assert (asked["stop"], asked["seed"]) == (["!", "END"], 0)


async def test_a_conversation_is_sent_with_its_system_prompt_and_wrapped_last_question(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHALE_KEY", KEY)
    model = model_at(loopback.url, system="Be kind.")
    roles = ("user", "One"), ("assistant", "Two"), ("user", "Three"), ("assistant", "Fo")
    messages = [Message(role, text) for role, text in roles]  # type: ignore[arg-type]
    await pieces_of(model.stream(messages, OPTIONS))
    await pieces_of(model.stream([Message("system", "Be brief."), *user("Hi")], OPTIONS))
    own, told = (asked["messages"] for asked in loopback.asked)
    assert own == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "In short: Three"},
        {"role": "assistant", "content": "Fo"},
    ]
    assert told == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "In short: Hi"},
    ]


async def test_a_conversation_without_a_question_is_not_sent(
    model: OpenAIClient, loopback: Loopback
) -> None:
    with pytest.raises(PromptError, match=r"has no user message\. Add one"):
        await pieces_of(model.stream([Message("system", "Be kind.")], OPTIONS))
    assert not loopback.asked


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "filtered"),
        ("tool_calls", "stop"),
        (None, "stop"),
    ],
)
async def test_the_finish_reason_comes_from_the_server(
    said: str | None, reason: str, model: OpenAIClient, loopback: Loopback
) -> None:
    loopback.finish_reason, loopback.prompt_tokens = said, 6
    *_, end = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert isinstance(end, End)
    assert (end.reason, end.prompt_tokens) == (reason, 6)


async def test_closing_the_stream_closes_the_connection(
    model: OpenAIClient, loopback: Loopback
) -> None:
    loopback.pause = 0.2
    async with aclosing(model.stream(user("Hello"), OPTIONS)) as pieces:
        await anext(pieces)
    await until(lambda: loopback.left == 1)


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (400, PromptError, "rejected this text"),
        (403, InterruptionError, "Set WHALE_KEY correctly in the environment that starts Ray"),
        (404, InterruptionError, "whale's server has no model whale-7b. Correct its source"),
        (429, BusyError, "Try again in a moment"),
        (500, InterruptionError, "whale's server ended the answer early. Try again"),
    ],
)
async def test_a_server_error_is_shown_in_the_pane(
    status: int, kind: type[Exception], reason: str, model: OpenAIClient, loopback: Loopback
) -> None:
    loopback.status = status
    with pytest.raises(kind, match=reason) as caught:
        await anext(model.stream(user("Hello"), OPTIONS))
    assert "secret" not in str(caught.value)


async def test_an_error_is_logged_without_its_text(
    model: OpenAIClient, loopback: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "ray.serve")
    loopback.status, loopback.param = 400, "seed"
    with pytest.raises(PromptError, match="whale does not support seed"):
        await anext(model.stream(user("Hello"), OPTIONS))
    assert "BadRequestError: 400, None, seed" in caplog.text
    assert "secret" not in caplog.text


async def test_the_error_for_a_wrong_key_names_the_variable_to_set(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WHALE_KEY", raising=False)
    with pytest.raises(InterruptionError, match="Set WHALE_KEY"):
        await anext(model_at(loopback.url).stream(user("Hello"), OPTIONS))


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY} "])
async def test_whitespace_around_a_key_is_removed(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("WHALE_KEY", key)
    assert len(await pieces_of(model_at(loopback.url).stream(user("Hello"), OPTIONS))) == 3


async def test_an_invalid_key_appears_in_no_log_and_no_traceback(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "ray.serve")
    monkeypatch.setenv("WHALE_KEY", "secret-whale\nsecond line")
    with pytest.raises(InterruptionError) as caught:
        await anext(model_at(loopback.url).stream(user("Hello"), OPTIONS))
    assert "APIConnectionError: LocalProtocolError" in caplog.text
    assert "secret-whale" not in caplog.text + "".join(traceback.format_exception(caught.value))


async def test_an_unreachable_server_is_reported() -> None:
    with pytest.raises(InterruptionError, match="whale cannot be reached"):
        await anext(model_at("http://127.0.0.1:9/v1").stream(user("Hello"), OPTIONS))


async def test_a_silent_server_is_given_up_after_the_timeout(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHALE_KEY", KEY)
    monkeypatch.setattr(openai_client, "SILENCE_SECONDS", 0.3)
    loopback.pause = 5
    with pytest.raises(InterruptionError, match="did not answer in time"):
        await anext(model_at(loopback.url).stream(user("Hello"), OPTIONS))


async def test_a_server_that_dies_midway_is_reported(
    model: OpenAIClient, loopback: Loopback
) -> None:
    loopback.breaks = True
    stream = model.stream(user("Hello"), OPTIONS)
    assert await anext(stream) == Piece("one ", 1)
    with pytest.raises(InterruptionError):
        await anext(stream)
