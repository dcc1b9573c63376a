"""The page's function as a tool, asked by the protocol's own client."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

import gradio as gr
import pytest
from mcp.client import Client
from mcp.types import CallToolResult, TextContent

from {{ cookiecutter.__package }}.serving.http.mcp_server import offers_of
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.http.settings import HttpSettings

from ...support.compare_page import MODELS, build_page
from ...support.stand_ins import StandIn, broken, fast, in_thread, settings_of, slow, until


@contextmanager
def tools_of(*models: StandIn) -> Iterator[str]:
    """Yields the address of the tools of a page before these models."""
    settings = settings_of().model_copy(update={"mcp": True})
    with in_thread(mount(build_page(settings, models), settings)) as url:
        yield f"{url}/mcp"


def texts(result: CallToolResult) -> list[str]:
    return [part.text for part in result.content if isinstance(part, TextContent)]


async def test_a_client_finds_the_function_and_what_it_takes() -> None:
    with tools_of(fast(), slow()) as url:
        async with Client(url) as client:
            [tool] = (await client.list_tools()).tools
    assert tool.name == "generate"
    assert tool.description
    assert "Returns: fast, slow." in tool.description
    assert tool.input_schema["required"] == ["prompt"]
    assert tool.input_schema["properties"]["max_new_tokens"]["default"] == 100


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_call_reports_progress_and_returns_the_text_of_each_model(mode: str) -> None:
    reported: list[float] = []

    async def report(progress: float, *_: object) -> None:
        reported.append(progress)

    with tools_of(StandIn("other", ["a", "b"], pause=0.2), fast()) as url:
        async with Client(url, mode=mode) as client:
            result = await client.call_tool(
                "generate", {"prompt": "Hello", "max_new_tokens": 30}, progress_callback=report
            )
    assert not result.is_error
    assert texts(result) == ["ab", "one two three"]
    assert reported == sorted(set(reported))
    assert len(reported) > 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"prompt": " "}, "Write a text first."),
        ({"prompt": "Hi", "temperature": "hot"}, "temperature: Input should be a valid number"),
        (
            {"prompt": "Hi", "temperature": 3},
            "temperature: Input should be less than or equal to 2",
        ),
        ({"prompt": "Hi", "max_new_tokens": 513}, "513 is greater than the maximum of 512"),
        ({"prompt": "Hi", "max_tokens": 5}, "max_tokens"),
        ({}, "'prompt' is a required property"),
    ],
)
async def test_bad_input_is_refused_with_the_reason(
    arguments: dict[str, object], reason: str
) -> None:
    model = fast()
    with tools_of(model) as url:
        async with Client(url) as client:
            result = await client.call_tool("generate", arguments)
    assert result.is_error
    assert reason in "".join(texts(result))
    assert model.asked == []


async def test_a_tool_that_there_is_not_is_an_error_that_names_those_there_are() -> None:
    with tools_of(fast()) as url:
        async with Client(url) as client:
            result = await client.call_tool("summon", {})
    assert result.is_error
    assert texts(result) == ["There is no tool summon. There are: generate."]


async def test_a_model_that_fails_is_an_error_that_tells_no_path() -> None:
    with tools_of(broken()) as url:
        async with Client(url) as client:
            result = await client.call_tool("generate", {"prompt": "Hi"})
    assert result.is_error
    assert "broken failed to answer" in "".join(texts(result))
    assert "/srv" not in "".join(texts(result))


async def test_who_leaves_stops_the_models() -> None:
    model = slow()
    with tools_of(model) as url:
        async with Client(url) as client:
            call = asyncio.create_task(client.call_tool("generate", {"prompt": "Hi"}))
            await until(lambda: bool(model.asked))
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        await until(lambda: model.left == 1)


async def shout(text: str) -> str:
    return text.upper()


async def remember(text: str, before: str) -> AsyncGenerator[str, None]:
    yield before + text


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (shout, ["text"]),
        (remember, ["text", "state"]),
        (remember, ["text", "file"]),
        (remember, ["text", "button"]),
    ],
    ids=["no generator", "a state", "a file", "a button"],
)
def test_a_function_that_cannot_be_a_tool_is_refused_with_a_way_out(
    function: Callable[..., object], inputs: list[str]
) -> None:
    page = gr.Interface(function, inputs, inputs, api_name="speak")
    with pytest.raises(TypeError, match="speak cannot be a tool"):
        list(offers_of(page))


def test_each_named_function_of_another_page_is_offered() -> None:
    async def count(text: str) -> AsyncGenerator[str, None]:
        """Counts the letters."""
        yield str(len(text))

    page = gr.Interface(count, gr.Textbox(label="Text"), gr.Textbox(label="Letters"))
    [offer] = offers_of(page)
    assert offer.description == "Counts the letters. Returns: Letters."


async def repeat(values: object) -> AsyncGenerator[object, None]:
    yield values


@pytest.mark.parametrize(
    ("multiselect", "custom", "schema"),
    [
        (False, False, {"type": "string", "enum": ["a", "b"]}),
        (False, True, {"type": ["string", "number"], "examples": ["a", "b"]}),
        (True, False, {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}),
        (
            True,
            True,
            {"type": "array", "items": {"type": ["string", "number"], "examples": ["a", "b"]}},
        ),
    ],
)
def test_a_dropdown_is_described_by_what_it_takes(
    multiselect: bool, custom: bool, schema: dict[str, object]
) -> None:
    box = gr.Dropdown(["a", "b"], multiselect=multiselect, allow_custom_value=custom)
    [offer] = offers_of(gr.Interface(repeat, box, "text"))
    described = offer.schema["properties"]["values"]
    assert {name: described.get(name) for name in ("type", "enum", "items", "examples")} == {
        **dict.fromkeys(("type", "enum", "items", "examples")),
        **schema,
    }


@pytest.mark.parametrize("several", [("one", "two"), ["one", "two"]])
async def test_each_of_several_values_is_a_text_of_its_own(several: object) -> None:
    async def count(_: str) -> AsyncGenerator[object, None]:
        yield several

    page = gr.Interface(count, "text", ["text", "text"], api_name="count")
    with in_thread(mount(page, HttpSettings(mcp=True))) as url:
        async with Client(f"{url}/mcp") as client:
            result = await client.call_tool("count", {"_": ""})
    assert texts(result) == ["one", "two"]


async def test_calls_take_turns_as_those_of_the_page_do() -> None:
    running, most = 0, 0
    released = threading.Event()

    async def wait(word: str) -> AsyncGenerator[str, None]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.to_thread(released.wait, 60)
        running -= 1
        yield word

    with gr.Blocks() as page:
        box = gr.Textbox()
        for name in ("wait", "wait_too"):
            gr.Button().click(
                wait, box, box, api_name=name, concurrency_limit=2, concurrency_id="shared"
            )
    page.queue(max_size=3)
    with in_thread(mount(page, HttpSettings(mcp=True))) as url:
        async with Client(f"{url}/mcp") as client:
            names = ("wait", "wait_too", "wait", "wait_too", "wait")
            calls = [asyncio.create_task(client.call_tool(each, {"word": each})) for each in names]
            await until(lambda: running == 2)
            await asyncio.sleep(0.5)
            refused = await client.call_tool("wait_too", {"word": "late"})
            released.set()
            answers = await asyncio.gather(*calls)
            after = await client.call_tool("wait", {"word": "after"})
    assert refused.is_error
    assert texts(refused) == ["Too many requests are waiting. Try again in a few seconds."]
    assert [texts(answer) for answer in answers] == [[name] for name in names]
    assert texts(after) == ["after"]
    assert most == 2


@pytest.mark.served
async def test_on_serve_each_call_of_a_session_is_answered(words: str) -> None:
    async with Client(f"{words.rstrip('/')}/mcp") as client:
        for _ in range(4):
            result = await client.call_tool("generate", {"prompt": "The whale"})
            assert not result.is_error
            assert len(texts(result)) == len(MODELS)
            assert all(texts(result))
