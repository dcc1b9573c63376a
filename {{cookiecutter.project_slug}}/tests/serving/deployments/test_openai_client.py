"""A model on a server that speaks OpenAI's protocol, before a loopback server that does."""

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
from {{ cookiecutter.__package }}.serving.telemetry.metrics import Metered
from {{ cookiecutter.__package }}.serving.telemetry.traces import (
    Carried,
    Traces,
    carry_on,
    start_traces,
    stop_traces,
)

from ...support.collector import collecting
from ...support.stand_ins import in_thread, pieces_of, until, user

KEY = "a key of the tests"
OPTIONS = GenerationOptions(min_new_tokens=0, max_new_tokens=7, temperature=0.3)


@dataclass
class Loopback:
    """Answers with three words, or as its fields say."""

    status: int = 200
    param: str | None = None
    """What the server does not take."""
    pause: float = 0
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    """What the server says at the end, where it says something."""
    breaks: bool = False
    refuses: tuple[str, ...] = ()
    """Options that it answers with 400, one after the other."""
    names_them: bool = True
    """Whether it does so in a field of its own, as OpenAI does, or in the text."""
    events: list[str] | None = None
    """What it streams, if not three words."""
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
    """Returns a model that is asked in short. `settings` are further ones, or others."""
    given = {"api_key_variable": "WHALE_KEY", "prompt": "In short: {prompt}", **settings}
    return OpenAIClient(ModelSettings(name="whale", source="whale-7b", base_url=url, **given))


async def test_the_answer_streams_and_what_was_asked_arrives(
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


async def test_its_server_goes_on_with_the_trace_and_hears_of_none_where_there_is_none(
    model: OpenAIClient, loopback: Loopback
) -> None:
    await pieces_of(model.stream(user("Hello"), OPTIONS))
    with collecting() as collector:
        start_traces(Traces(endpoint=collector.url))
        carry_on(carried_below("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"))
        await pieces_of(Metered(model, log_prompts=False).stream(user("Hello"), OPTIONS))
        stop_traces()
        carry_on("")
    span = collector.one("chat whale")
    told = [headers.getlist("traceparent") for headers in loopback.headers]
    assert told == [[], [f"00-0af7651916cd43dd8448eb211c80319c-{span.id}-01"]]


def carried_below(trace: str, span: str) -> Carried:
    named = Carried("whale-1")
    named.traceparent = f"00-{trace}-{span}-01"
    return named


async def test_what_neither_settings_nor_request_say_is_not_sent(
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
async def test_what_a_server_refuses_is_left_out_from_then_on(
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
async def test_what_cannot_be_left_out_is_told(
    model: OpenAIClient, loopback: Loopback, refused: tuple[str, ...], reason: str
) -> None:
    loopback.refuses = refused
    options = OPTIONS.model_copy(update={"stop": ("!",)})
    with pytest.raises(PromptError, match=re.escape(reason)):
        await pieces_of(model.stream(user("Hello"), options))
    loopback.refuses = ()
    await pieces_of(model.stream(user("Hello"), options))
    # What did not help is no news of the server.
    assert "max_completion_tokens" in loopback.asked[-1]


async def test_nothing_is_sent_of_variables_that_nobody_named(
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


async def test_tokens_are_those_that_the_server_has_counted(
    model: OpenAIClient, loopback: Loopback
) -> None:
    loopback.events = [loopback.chunk("four words in one", "stop"), loopback.usage(6, 4)]
    *pieces, end = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert [piece.text for piece in pieces if isinstance(piece, Piece)] == ["four words in one", ""]
    assert sum(piece.tokens for piece in pieces if isinstance(piece, Piece)) == 4
    assert end == End("stop", 6)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_thoughts_are_marked_and_an_answer_may_be_nothing_else(
    model: OpenAIClient, loopback: Loopback, field: str
) -> None:
    loopback.events = [loopback.delta(**{field: "Hm."}), loopback.delta("length")]
    thought, end = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert thought == Piece("Hm.", 1, thought=True)
    assert end == End("length")


async def test_a_refusal_is_text(model: OpenAIClient, loopback: Loopback) -> None:
    loopback.events = [loopback.delta(refusal="I cannot."), loopback.delta("content_filter")]
    refusal, end = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert (refusal, end) == (Piece("I cannot.", 1), End("filtered"))


async def test_a_server_that_knows_no_bound_is_left_there(
    model: OpenAIClient, loopback: Loopback
) -> None:
    loopback.events = [loopback.chunk("word ")] * 50
    *pieces, end = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert (len(pieces), end) == (8, End("length"))


@pytest.mark.parametrize(
    "line",
    ["{", "4", "null", '"text"', "[]", '{"choices": null}', '{"choices": [{}]}', "{}", "\x00"],
)
async def test_a_line_that_is_no_part_of_an_answer_ends_it(
    model: OpenAIClient, loopback: Loopback, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    caplog.set_level("WARNING", "ray.serve")
    loopback.events = [loopback.chunk("secret "), f"data: {line}\n\n", loopback.chunk("three")]
    stream = model.stream(user("Hello"), OPTIONS)
    assert await anext(stream) == Piece("secret ", 1)
    with pytest.raises(InterruptionError, match=r"sent an invalid answer\. Run again"):
        await anext(stream)
    assert "sent an invalid chunk" in caplog.text
    assert "secret" not in caplog.text


async def test_stop_texts_and_a_seed_are_sent_where_they_are_set(
    model: OpenAIClient, loopback: Loopback
) -> None:
    options = OPTIONS.model_copy(update={"stop": ("!", "END"), "seed": 0})
    await pieces_of(model.stream(user("Hello"), options))
    [asked] = loopback.asked
    assert (asked["stop"], asked["seed"]) == (["!", "END"], 0)


async def test_a_conversation_is_sent_with_system_and_the_last_question_wrapped(
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
async def test_the_end_is_what_the_server_says(
    said: str | None, reason: str, model: OpenAIClient, loopback: Loopback
) -> None:
    loopback.finish_reason, loopback.prompt_tokens = said, 6
    *_, end = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert isinstance(end, End)
    assert (end.reason, end.prompt_tokens) == (reason, 6)


async def test_leaving_the_stream_closes_the_connection(
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
        (403, InterruptionError, "Set WHALE_KEY correctly where Ray starts"),
        (404, InterruptionError, "The server of whale has no model whale-7b. Correct its source"),
        (429, BusyError, "Try again in a moment"),
        (500, InterruptionError, "The server of whale ended the answer. Run again"),
    ],
)
async def test_an_error_of_the_server_is_one_that_a_pane_shows(
    status: int, kind: type[Exception], reason: str, model: OpenAIClient, loopback: Loopback
) -> None:
    loopback.status = status
    with pytest.raises(kind, match=reason) as caught:
        await anext(model.stream(user("Hello"), OPTIONS))
    assert "secret" not in str(caught.value)


async def test_an_error_is_logged_without_what_it_says(
    model: OpenAIClient, loopback: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "ray.serve")
    loopback.status, loopback.param = 400, "seed"
    with pytest.raises(PromptError, match="whale does not support seed"):
        await anext(model.stream(user("Hello"), OPTIONS))
    assert "BadRequestError: 400, None, seed" in caplog.text
    assert "secret" not in caplog.text


async def test_a_wrong_key_names_the_variable_to_set(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WHALE_KEY", raising=False)
    with pytest.raises(InterruptionError, match="Set WHALE_KEY"):
        await anext(model_at(loopback.url).stream(user("Hello"), OPTIONS))


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY} "])
async def test_what_surrounds_a_key_is_left_out(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("WHALE_KEY", key)
    assert len(await pieces_of(model_at(loopback.url).stream(user("Hello"), OPTIONS))) == 3


async def test_a_key_that_cannot_be_sent_is_in_no_log_and_no_traceback(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "ray.serve")
    monkeypatch.setenv("WHALE_KEY", "secret-whale\nsecond line")
    with pytest.raises(InterruptionError) as caught:
        await anext(model_at(loopback.url).stream(user("Hello"), OPTIONS))
    assert "APIConnectionError: LocalProtocolError" in caplog.text
    assert "secret-whale" not in caplog.text + "".join(traceback.format_exception(caught.value))


async def test_a_server_that_is_not_there_is_told() -> None:
    with pytest.raises(InterruptionError, match="whale cannot be reached"):
        await anext(model_at("http://127.0.0.1:9/v1").stream(user("Hello"), OPTIONS))


async def test_a_server_that_stays_silent_is_left(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHALE_KEY", KEY)
    monkeypatch.setattr(openai_client, "SILENCE_SECONDS", 0.3)
    loopback.pause = 5
    with pytest.raises(InterruptionError, match="did not answer in time"):
        await anext(model_at(loopback.url).stream(user("Hello"), OPTIONS))


async def test_a_server_that_dies_half_way_is_told(model: OpenAIClient, loopback: Loopback) -> None:
    loopback.breaks = True
    stream = model.stream(user("Hello"), OPTIONS)
    assert await anext(stream) == Piece("one ", 1)
    with pytest.raises(InterruptionError):
        await anext(stream)
