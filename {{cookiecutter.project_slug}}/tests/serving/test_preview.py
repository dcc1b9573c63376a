"""The preview: without Ray, and reloaded after each change."""

import html
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import create_server

import httpx
import psutil
import pytest
from playwright.sync_api import Browser, expect

import {{ cookiecutter.__package }}
from {{ cookiecutter.__package }}.serving.deployments.builders import Echo
from {{ cookiecutter.__package }}.serving.protocol import (
    End,
    GenerationOptions,
    Message,
)

from ..support import compare_page
from ..support.compare_page import BUTTON, MODELS, PROMPT_LABEL
from ..support.servers import free_port
from ..support.stand_ins import pieces_of

SECONDS = 120
UP = "The preview is up: "
FOLLOWS = "It reloads on changes"
PASSWORD = "a wet whale"  # noqa: S105

APP = """
from ray.serve import Application

from .models import MODELS
from .page import LAUNCH, build_page
from .serving import GradioServer, ModelSettings, PageOfModels, PageSettings, deployments_of


class Settings(PageSettings):
    title: str = "Words"
    description: str = ""
    models: tuple[ModelSettings, ...] = MODELS


def build(settings: Settings) -> Application:
    page = PageOfModels(settings, build_page)
    return GradioServer.bind(settings, page, *deployments_of(settings), launch=LAUNCH)
"""

# What a team may add to app.py: a field, a route, middleware, and a header.
OWN_PARTS = """
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route


class Whale:
    def __init__(self, app, name):
        self.app, self.name = app, name

    async def __call__(self, scope, receive, send):
        async def send_named(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-whale", self.name.encode())]
            await send(message)

        await self.app(scope, receive, send_named)


def build(settings: Settings) -> Application:
    return GradioServer.bind(
        settings,
        PageOfModels(settings, build_page),
        launch=LAUNCH,
        middleware=[Middleware(Whale, name="Ada")],
        routes=[Route("/beside", PlainTextResponse("beside the page"))],
    )
"""

# A custom page that calls its own deployment.
OWN_PAGE = """
import gradio as gr
from ray import serve


@serve.deployment
class Shouter:
    def shout(self, text):
        return text.upper()


def shouting_page(shouter):
    async def shout(text):
        return await shouter.shout.remote(text)

    return gr.Interface(shout, "text", "text", api_name="shout")


def build(settings: Settings) -> Application:
    return GradioServer.bind(settings, shouting_page, Shouter.bind())
"""


@dataclass
class Preview:
    url: str
    package: Path
    log: Path
    process: subprocess.Popen[bytes]

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def change(self, file: str, old: str, new: str) -> None:
        """Saves a file like an editor; an empty `old` appends."""
        path = self.package / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new) if old else text + new, encoding="utf-8")

    def ask(self, method: str = "GET", path: str = "", host: str = "") -> httpx.Response:
        """Retries if the page is replaced, which cancels running requests."""
        deadline = time.monotonic() + SECONDS
        headers = {"host": host} if host else None
        while True:
            with suppress(httpx.RemoteProtocolError, httpx.ReadError):
                return httpx.request(method, self.url + path, headers=headers)
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def until(self, happened: Callable[[httpx.Response], bool]) -> httpx.Response:
        """Reloads the page until it matches."""
        deadline = time.monotonic() + SECONDS
        while not happened(answer := self.ask()):
            assert time.monotonic() < deadline, f"{answer.text}\n{self.said()}"
            time.sleep(0.1)
        return answer


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A modifiable copy of the package with a page of the tests."""
    [source] = {{ cookiecutter.__package }}.__path__
    package = shutil.copytree(source, tmp_path / Path(source).name)
    (package / "app.py").write_text(APP, encoding="utf-8")
    shutil.copy(compare_page.__file__, package / "page.py")
    models = "".join(f'    ModelSettings(name="{name}", source="none"),\n' for name in MODELS)
    text = f"from .serving import ModelSettings\n\nMODELS = (\n{models})\n"
    (package / "models.py").write_text(text, encoding="utf-8")
    return package


@contextmanager
def preview_of(package: Path, stop: signal.Signals = signal.SIGINT) -> Iterator[Preview]:
    """Yields the preview once it is up; checks that it exits cleanly and leaves no process."""
    port, log = free_port(), package.parent / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", package.name, "preview", "--port", str(port)],
            cwd=package.parent,
            env={**os.environ, "PAGE_PASSWORD": PASSWORD, "PYTHONPATH": str(package.parent)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    preview = Preview(f"http://127.0.0.1:{port}/", package, log, process)
    try:
        deadline = time.monotonic() + SECONDS
        while FOLLOWS not in preview.said():
            assert process.poll() is None, preview.said()
            assert time.monotonic() < deadline, preview.said()
            time.sleep(0.2)
        yield preview
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(stop)
        assert process.wait(SECONDS) == 0
        assert psutil.wait_procs(started, timeout=SECONDS)[1] == []
        assert preview.said().endswith("Stopped.\n")
        assert preview.said().count(preview.url) == 1
    finally:
        process.terminate()
        process.wait(SECONDS)


async def test_a_stand_in_repeats_the_last_user_message() -> None:
    conversation = [
        Message("user", "whales"),
        Message("assistant", "eat"),
        Message("user", "and sing"),
        Message("assistant", "They"),
    ]
    options = GenerationOptions(min_new_tokens=0, max_new_tokens=3)
    pieces = await pieces_of(Echo("echo").stream(conversation, options))
    assert "".join(piece.text for piece in pieces) == "and sing and "
    *_, end = [each async for each in Echo("echo").stream(conversation, options)]
    assert end == End("length", prompt_tokens=2)


def test_an_open_page_shows_changes_and_keeps_typed_text(package: Path, browser: Browser) -> None:
    with preview_of(package) as preview, browser.new_page() as page:
        page.goto(preview.url)
        page.get_by_label(PROMPT_LABEL).fill("whales sing")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        panes = page.locator("[id^=pane-] textarea")
        for number in range(len(MODELS)):
            expect(panes.nth(number)).to_have_value("whales sing " * 50)
        preview.change("page.py", f'BUTTON = "{BUTTON}"', 'BUTTON = "Sing"')
        button = page.get_by_role("button", name="Sing", exact=True)
        expect(button).to_be_visible(timeout=SECONDS * 1000)
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("whales sing")
        preview.change("page.py", "css=PANE_STYLES", 'css="button { color: rgb(1, 2, 3) }"')
        expect(button).to_have_css("color", "rgb(1, 2, 3)", timeout=SECONDS * 1000)
        preview.change("page.py", "", '\nraise OSError("<b>no whales</b>")\n')
        cause = page.locator(".cause")
        expect(cause).to_have_text("OSError: <b>no whales</b>", timeout=SECONDS * 1000)
        preview.change("page.py", '\nraise OSError("<b>no whales</b>")\n', "")
        expect(button).to_be_visible(timeout=SECONDS * 1000)
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("whales sing")


def test_each_error_is_shown_until_it_is_corrected(
    package: Path,
) -> None:
    files = {path: path.read_text(encoding="utf-8") for path in package.glob("*.py")}
    errors = [
        ("models.py", "import whales", "ModuleNotFoundError: No module named"),
        ("page.py", "def build_page(]", "def build_page(]"),
        ("app.py", "def (", "SyntaxError"),
        ("app.py", "build = None", "TypeError"),
        ("app.py", "import os; os._exit(7)", "ended with exit status 7"),
    ]

    def save(broken: str = "", error: str = "") -> None:
        for path, text in files.items():
            path.write_text(f"{text}\n{error}\n" if path.name == broken else text, "utf-8")

    # The message starts with the first error.
    save(*errors[0][:2])
    with preview_of(package, signal.SIGTERM) as preview:
        for file, error, cause in errors:
            save(file, error)
            answer = preview.until(partial(shows, cause))
            assert answer.status_code == 500
            assert cause in preview.said()
            assert preview.ask("POST", "gradio_api/call/generate").status_code == 500
            assert preview.ask(host="evil.example.org").status_code == 400
        save()
        preview.until(lambda answer: answer.status_code == 200)


def shows(cause: str, answer: httpx.Response) -> bool:
    return html.escape(cause) in answer.text


def test_the_preview_has_the_routes_and_middleware_of_the_app(package: Path) -> None:
    (package / "app.py").open("a", encoding="utf-8").write(OWN_PARTS)
    with preview_of(package) as preview:
        answer = httpx.get(f"{preview.url}beside")
        assert answer.text == "beside the page"
        assert answer.headers["x-whale"] == "Ada"
        refused = httpx.post(f"{preview.url}beside", headers={"sec-fetch-site": "cross-site"})
        assert refused.status_code == 403
        # Other files are watched too.
        version = preview.ask(path="preview-version").text
        (package / "looks.css").write_text("", encoding="utf-8")
        preview.until(lambda _: preview.ask(path="preview-version").text != version)
        preview.change("app.py", 'name="Ada"', 'nome="Ada"')
        error = preview.until(lambda answer: answer.status_code == 500)
        assert "unexpected keyword argument" in error.text


def test_the_preview_asks_for_the_login_in_the_settings(package: Path) -> None:
    app = package / "app.py"
    text = app.read_text(encoding="utf-8")
    field = '    title: str = "Words"\n'
    assert field in text
    app.write_text(text.replace(field, f'{field}    login_user: str | None = "ada"\n'), "utf-8")
    with preview_of(package) as preview:
        assert httpx.get(preview.url).status_code == 401
        assert httpx.get(preview.url, auth=("ada", PASSWORD)).status_code == 200


def test_a_custom_page_may_call_its_own_deployments(package: Path) -> None:
    (package / "app.py").open("a", encoding="utf-8").write(OWN_PAGE)
    with preview_of(package) as preview:
        call = f"{preview.url}gradio_api/run/shout"
        answer = httpx.post(call, json={"data": ["whales sing"]}, timeout=60)
        assert answer.json()["data"] == ["WHALES SING"]


def test_a_port_in_use_is_reported_in_one_line(package: Path) -> None:
    with create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        refused = subprocess.run(
            [sys.executable, "-m", package.name, "preview", "--port", port],
            cwd=package.parent,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: port {port} cannot be used: ")
    assert refused.stderr.count("\n") == 1
