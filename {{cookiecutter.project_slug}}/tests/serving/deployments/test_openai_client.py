"""A model on a server that speaks OpenAI's protocol, before a loopback server that does."""

import asyncio
import json
import traceback
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

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
    asked: list[dict[str, object]] = field(default_factory=list)
    left: int = 0
    url: str = ""

    def web(self) -> FastAPI:
        web = FastAPI()

        @web.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            if request.headers["authorization"] != f"Bearer {KEY}":
                return JSONResponse({"error": {"message": "wrong key"}}, 401)
            if self.status != 200:
                error = {"message": "/srv/secret", "param": self.param}
                return JSONResponse({"error": error}, self.status)
            self.asked.append(await request.json())
            return StreamingResponse(self.chunks(), media_type="text/event-stream")

        return web

    async def chunks(self) -> AsyncGenerator[str, None]:
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

    def chunk(self, word: str, finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": finish_reason}
        return self.event(choices=[choice])

    def usage(self, prompt_tokens: int) -> str:
        used = {"prompt_tokens": prompt_tokens, "completion_tokens": 3, "total_tokens": 9}
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


def model_at(url: str, system: str = "") -> OpenAIClient:
    return OpenAIClient(
        ModelSettings(
            name="whale",
            source="whale-7b",
            base_url=url,
            api_key_variable="WHALE_KEY",
            system=system,
            prompt="In short: {prompt}",
        )
    )


async def test_the_answer_streams_and_what_was_asked_arrives(
    model: OpenAIClient, loopback: Loopback
) -> None:
    answer = [each async for each in model.stream(user("Hello"), OPTIONS)]
    assert answer == [Piece("one ", 1), Piece("two ", 1), Piece("three", 1), End("stop")]
    [asked] = loopback.asked
    assert asked["model"] == "whale-7b"
    assert asked["messages"] == [{"role": "user", "content": "In short: Hello"}]
    assert (asked["max_tokens"], asked["temperature"], asked["top_p"]) == (7, 0.3, 1.0)
    assert not {"stop", "seed", "top_k", "stream_options"} & asked.keys()


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
    with pytest.raises(PromptError, match=r"needs a message of a user\. Add one"):
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
        (400, PromptError, "does not take this text"),
        (403, InterruptionError, "Set WHALE_KEY where Ray starts"),
        (404, InterruptionError, "whale's server has no whale-7b. Correct it"),
        (429, BusyError, "Try again in a moment"),
        (500, InterruptionError, "interrupted by its server. Run again"),
    ],
)
async def test_an_error_of_the_server_is_one_that_a_pane_shows(
    status: int, kind: type[Exception], reason: str, model: OpenAIClient, loopback: Loopback
) -> None:
    loopback.status = status
    with pytest.raises(kind, match=reason) as caught:
        await anext(model.stream(user("Hello"), OPTIONS))
    assert "secret" not in str(caught.value)


async def test_an_option_that_the_server_does_not_take_is_named_and_logged(
    model: OpenAIClient, loopback: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "ray.serve")
    loopback.status, loopback.param = 400, "max_tokens"
    with pytest.raises(InterruptionError, match="whale does not take max_tokens"):
        await anext(model.stream(user("Hello"), OPTIONS))
    assert "BadRequestError: 400, None, max_tokens" in caplog.text
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
