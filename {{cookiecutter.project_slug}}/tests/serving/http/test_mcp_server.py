"""The functions of a page as MCP tools, called by the official client."""

import asyncio
import base64
import io
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image
from starlette.testclient import TestClient

from {{ cookiecutter.__package }}.serving import Launch
from {{ cookiecutter.__package }}.serving.http.mcp_server import offers_of
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.http.settings import HttpSettings

from ...support.compare_page import MODELS, build_page
from ...support.stand_ins import StandIn, broken, fast, in_thread, settings_of, slow, until


@contextmanager
def tools_of(*models: StandIn) -> Iterator[str]:
    """Yields the MCP URL of a page with these models."""
    settings = settings_of().model_copy(update={"mcp": True})
    with in_thread(mount(build_page(settings, models), settings)) as url:
        yield f"{url}/mcp"


def texts(result: CallToolResult) -> list[str]:
    return [part.text for part in result.content if isinstance(part, TextContent)]


async def test_a_client_finds_the_function_and_its_arguments() -> None:
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
        ({"prompt": " "}, "Enter some text first."),
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


async def test_the_error_for_an_unknown_tool_names_the_known_ones() -> None:
    with tools_of(fast()) as url:
        async with Client(url) as client:
            result = await client.call_tool("summon", {})
    assert result.is_error
    assert texts(result) == ["There is no tool summon. Call one of: generate."]


async def test_the_error_of_a_failing_model_contains_no_path() -> None:
    with tools_of(broken()) as url:
        async with Client(url) as client:
            result = await client.call_tool("generate", {"prompt": "Hi"})
    assert result.is_error
    assert "broken failed to answer" in "".join(texts(result))
    assert "/srv" not in "".join(texts(result))


async def test_a_disconnect_stops_the_models() -> None:
    model = slow()
    with tools_of(model) as url:
        async with Client(url) as client:
            call = asyncio.create_task(client.call_tool("generate", {"prompt": "Hi"}))
            await until(lambda: bool(model.asked))
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        await until(lambda: model.left == 1)


def shout(text: str) -> str:
    """Shouts.

    Args:
        text: what to shout.
    """
    return text.upper()


async def whisper(text: str) -> str:
    return text.lower()


def spell(text: str) -> Iterator[str]:
    for length in range(1, len(text) + 1):
        yield text[:length]


def greet(text: str, request: gr.Request) -> str:
    return f"{text} from {request.headers['x-whale']}, {request.username}"


def count(text: str, before: int, _button: str) -> tuple[int, str]:
    return before + 1, f"{text} {before + 1}"


def remind(text: str, progress: gr.Progress = gr.Progress()) -> str:
    for _ in progress.tqdm(["a", "b"], desc="Swimming"):
        time.sleep(0.1)
    return text


def fail(_text: str) -> str:
    raise KeyError("/srv/whale")


def refuse(_text: str) -> str:
    raise gr.Error("Not today")


@gr.mcp.tool(name="renamed", description="Renamed by its author.", structured_output=True)
def tagged(text: str) -> str:
    return text


@gr.mcp.resource("whale://{name}/song", description="A song.")
def song(name: str) -> str:
    return f"{name} sings"


@gr.mcp.resource("whale://all", mime_type="application/octet-stream")
def every_song() -> str:
    return base64.b64encode(b"all songs").decode()


@gr.mcp.prompt(name="ask", description="Asks a whale.")
def ask_whale(name: str) -> str:
    """Asks.

    Args:
        name: of the whale.
    """
    return f"Ask {name}"


def picture(size: int) -> Image.Image:
    return Image.new("RGB", (int(size), 1), "navy")


def length_of(path: str) -> int:
    return len(Path(path).read_bytes())


FUNCTIONS: dict[Callable[..., object], tuple[list[Any], list[Any]]] = {
    shout: (["text"], ["text"]),
    whisper: (["text"], ["text"]),
    spell: (["text"], ["text"]),
    greet: (["text"], ["text"]),
    remind: (["text"], ["text"]),
    fail: (["text"], ["text"]),
    refuse: (["text"], ["text"]),
    tagged: (["text"], ["text"]),
    picture: (["number"], ["image"]),
    length_of: ([gr.File], ["number"]),
}


@pytest.fixture(scope="module")
def tools() -> Iterator[str]:
    """MCP URL of a page with functions of every kind."""
    with gr.Blocks() as page:
        for function, (inputs, outputs) in FUNCTIONS.items():
            made = [_component(kind) for kind in inputs]
            to = [_component(kind) for kind in outputs]
            gr.Button().click(function, made, to, api_name=function.__name__)
        state = gr.State(0)
        gr.Button().click(
            count, [gr.Textbox(), state, gr.Button()], [state, gr.Textbox()], api_name="count"
        )
        gr.Button().click(shout, gr.Textbox(), gr.Textbox(), api_name="unqueued", queue=False)
        gr.Button().click(
            lambda texts: [[text.upper() for text in texts]],
            gr.Textbox(),
            gr.Textbox(),
            api_name="batch",
            batch=True,
        )
        for function in (song, every_song, ask_whale, whisper):
            gr.api(function, api_name=f"api_{function.__name__}")
        # Clients cannot call these.
        audio = gr.Audio(streaming=True)
        audio.stream(lambda sound: sound, audio, audio, api_name="streamed")
        gr.Button().click(shout, gr.Textbox(), gr.Textbox(), api_visibility="private")
        gr.Button().click(None, None, None, js="() => 1", api_name="script")
    with in_thread(mount(page, HttpSettings(), Launch(mcp_server=True))) as url:
        yield f"{url}/mcp"


def _component(kind: Any) -> Any:
    return gr.component(kind, render=True) if isinstance(kind, str) else kind()


def connect(url: str) -> Client:
    return Client(
        streamable_http_client(url, http_client=httpx2.AsyncClient(headers={"x-whale": "Ada"}))
    )


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("shout", {"text": "whale"}, ["WHALE"]),
        ("whisper", {"text": "WHALE"}, ["whale"]),
        ("spell", {"text": "whale"}, ["whale"]),
        ("greet", {"text": "Hello"}, ["Hello from Ada, None"]),
        ("remind", {"text": "whale"}, ["whale"]),
        ("renamed", {"text": "whale"}, ["whale"]),
        ("unqueued", {"text": "whale"}, ["WHALE"]),
        ("batch", {"texts": "whale"}, ["WHALE"]),
        ("api_whisper", {"text": "WHALE"}, ["whale"]),
        ("length_of", {"path": "data:text/plain;base64,d2hhbGU="}, ["5"]),
    ],
)
async def test_every_kind_of_function_is_a_tool(
    tools: str, name: str, arguments: dict[str, object], said: list[str]
) -> None:
    async with connect(tools) as client:
        result = await client.call_tool(name, arguments)
    assert texts(result) == said
    assert not result.is_error


WHALE = "data:text/plain;base64,d2hhbGU="
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWj"
    "R9awAAAABJRU5ErkJggg=="
)


@pytest.mark.parametrize(
    ("kind", "function", "argument", "said"),
    [
        (lambda: gr.File(file_count="multiple"), len, [WHALE, WHALE], "2"),
        (
            gr.MultimodalTextbox,
            lambda said: len(said["files"]),
            {"text": "", "files": [WHALE]},
            "1",
        ),
        (gr.Gallery, len, [{"image": PIXEL, "caption": None}], "1"),
        (lambda: gr.Image(type="pil"), lambda image: image.size[0], PIXEL, "1"),
        (
            gr.ImageEditor,
            lambda edited: edited["background"].shape[0],
            {"background": PIXEL, "layers": [], "composite": None},
            "1",
        ),
        (
            lambda: gr.Dataframe(type="array"),
            lambda rows: rows[0][0],
            {"headers": ["a"], "data": [["b"]], "metadata": None},
            "b",
        ),
        (lambda: gr.CheckboxGroup(["a", "b"]), len, ["a"], "1"),
        (gr.JSON, lambda value: value["a"], {"a": "b"}, "b"),
        (gr.Checkbox, str, True, "True"),
        (gr.DateTime, int, "1970-01-01 00:01:00", "60"),
    ],
)
async def test_a_component_of_every_shape_is_an_argument(
    kind: Callable[[], Any], function: Callable[[Any], object], argument: object, said: str
) -> None:
    with gr.Blocks() as page:
        box = kind()
        gr.Button().click(lambda value: str(function(value)), box, gr.Textbox(), api_name="ask")
    with in_thread(mount(page, HttpSettings(mcp=True))) as url:
        async with Client(f"{url}/mcp") as client:
            [tool] = (await client.list_tools()).tools
            [name] = tool.input_schema["properties"]
            result = await client.call_tool("ask", {name: argument})
    assert texts(result) == [said]


async def test_state_is_reset_for_each_call(tools: str) -> None:
    async with connect(tools) as client:
        for _ in range(2):
            assert texts(await client.call_tool("count", {"text": "call"})) == ["call 1"]


async def test_functions_that_no_client_can_call_are_left_out(tools: str) -> None:
    async with connect(tools) as client:
        offered = {tool.name: tool for tool in (await client.list_tools()).tools}
    own = {function.__name__ for function in FUNCTIONS} - {"tagged"}
    assert set(offered) == own | {"renamed", "count", "unqueued", "batch", "api_whisper"}
    assert offered["shout"].description.startswith("Shouts. Returns: value_")
    assert offered["shout"].input_schema["properties"]["text"]["description"] == "what to shout."
    assert offered["renamed"].description.startswith("Renamed by its author. Returns: ")
    assert offered["count"].input_schema["required"] == ["text"]


def test_left_out_functions_are_logged_and_the_page_still_starts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with gr.Blocks() as page:
        audio = gr.Audio(streaming=True)
        audio.stream(lambda sound: sound, audio, audio, api_name="streamed")
    with caplog.at_level(logging.WARNING, "ray.serve"):
        web = mount(page, HttpSettings(mcp=True))
    assert "streamed cannot be offered to MCP clients: it takes a stream" in caplog.text
    assert TestClient(web, base_url="http://localhost").get("/").status_code == 200


async def test_a_picture_is_returned_as_an_image_and_a_url(tools: str) -> None:
    async with connect(tools) as client:
        result = await client.call_tool("picture", {"size": 3})
    [shown, address] = result.content
    assert isinstance(shown, ImageContent)
    assert Image.open(io.BytesIO(base64.b64decode(shown.data))).size == (3, 1)
    assert isinstance(address, TextContent)
    url = address.text.removeprefix("Image URL: ")
    assert url.startswith(tools.removesuffix("mcp"))
    assert httpx2.get(url).headers["content-type"] == shown.mime_type


async def test_a_server_file_is_not_accepted_as_an_argument(tools: str) -> None:
    async with connect(tools) as client:
        for path in ("/etc/passwd", "file:///etc/passwd", __file__):
            result = await client.call_tool("length_of", {"path": path})
            assert result.is_error
            assert texts(result) == ["A file must be a URL. Start it with https:, http: or data:."]


async def test_progress_is_reported_with_its_text(tools: str) -> None:
    told: list[str | None] = []

    async def tell(_progress: float, _total: float | None, message: str | None) -> None:
        told.append(message)

    async with connect(tools) as client:
        await client.call_tool("remind", {"text": "whale"}, progress_callback=tell)
    assert "Swimming: 1 of 2" in told


async def test_a_failing_tool_reports_the_same_error_as_the_page(tools: str) -> None:
    async with connect(tools) as client:
        failed = await client.call_tool("fail", {"_text": "whale"})
        refused = await client.call_tool("refuse", {"_text": "whale"})
    assert failed.is_error
    assert texts(failed) == [
        "fail failed. Call it again. If it keeps failing, see the server's log."
    ]
    assert refused.is_error
    assert texts(refused) == ["Not today"]


async def test_a_tool_may_return_structured_data(tools: str) -> None:
    async with connect(tools) as client:
        result = await client.call_tool("renamed", {"text": "whale"})
    assert result.structured_content == {"result": "whale"}


async def test_resources_and_prompts_are_offered(tools: str) -> None:
    async with connect(tools) as client:
        [resource] = (await client.list_resources()).resources
        [template] = (await client.list_resource_templates()).resource_templates
        [prompt] = (await client.list_prompts()).prompts
        [text] = (await client.read_resource("whale://Ada/song")).contents
        [data] = (await client.read_resource("whale://all")).contents
        asked = await client.get_prompt("ask", {"name": "Ada"})
        with pytest.raises(MCPError, match="no resource whale://Ada/tears"):
            await client.read_resource("whale://Ada/tears")
        with pytest.raises(MCPError, match="no prompt whale"):
            await client.get_prompt("whale", {})
    assert (str(resource.uri), template.uri_template) == ("whale://all", "whale://{name}/song")
    assert text.text == "Ada sings"
    assert base64.b64decode(data.blob) == b"all songs"
    assert prompt.arguments is not None
    assert prompt.arguments[0].description == "of the whale."
    assert asked.messages[0].content.text == "Ask Ada"


@pytest.mark.parametrize("path", ["gradio_api/mcp", "gradio_api/mcp/", "gradio_api/mcp/http/"])
async def test_the_tools_are_at_the_url_that_gradio_uses(tools: str, path: str) -> None:
    async with connect(tools.removesuffix("mcp") + path) as client:
        assert texts(await client.call_tool("shout", {"text": "whale"})) == ["WHALE"]


def test_the_page_shows_its_tools(tools: str) -> None:
    address = tools.removesuffix("/mcp")
    assert httpx2.get(f"{address}/config").json()["mcp_server"] is True
    schema = httpx2.get(f"{address}/gradio_api/mcp/schema").json()
    assert {"shout", "ask"} <= {each["name"] for each in schema}
    kinds = {each["name"]: each["meta"]["mcp_type"] for each in schema}
    assert (kinds["shout"], kinds["ask"]) == ("tool", "prompt")


def test_a_page_without_tools_shows_none() -> None:
    web = TestClient(mount(gr.Interface(shout, "text", "text"), HttpSettings()))
    assert web.get("http://localhost/config").json()["mcp_server"] is False
    assert web.post("http://localhost/mcp", json={}).status_code in (404, 405)


async def test_tools_require_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_SECRET", "the whales sing in the deep blue sea")
    page = gr.Interface(greet, "text", "text", api_name="greet")
    launch = Launch(auth=("ada", "pw"), mcp_server=True)
    with in_thread(mount(page, HttpSettings(), launch)) as url:
        assert httpx2.post(f"{url}/mcp", json={}).status_code == 401
        assert httpx2.post(f"{url}/mcp", json={}, auth=("ada", "wrong")).status_code == 401
        http_client = httpx2.AsyncClient(auth=("ada", "pw"), headers={"x-whale": "Bob"})
        async with Client(streamable_http_client(f"{url}/mcp", http_client=http_client)) as client:
            result = await client.call_tool("greet", {"text": "Hello"})
    assert texts(result) == ["Hello from Bob, ada"]


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
def test_a_dropdown_is_described_with_its_choices(
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
async def test_each_of_several_return_values_is_a_separate_text(several: object) -> None:
    async def count(_: str) -> AsyncGenerator[object, None]:
        yield several

    page = gr.Interface(count, "text", ["text", "text"], api_name="count")
    with in_thread(mount(page, HttpSettings(mcp=True))) as url:
        async with Client(f"{url}/mcp") as client:
            result = await client.call_tool("count", {"_": ""})
    assert texts(result) == ["one", "two"]


async def test_calls_share_the_queue_limits_of_the_page() -> None:
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
