"""Arguments of `launch()` and `Blocks()`, and every kind of page, without Ray."""

import inspect
import json
import logging
import pickle
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr
import httpx2
import pytest
from fastapi import Request
from gradio_client import Client
from ray import cloudpickle
from starlette.testclient import TestClient

from {{ cookiecutter.__package }}.serving import (
    GradioServer,
    HttpSettings,
    Launch,
    StartError,
)
from {{ cookiecutter.__package }}.serving.base import (
    LoginError,
    explain_pickling_errors,
)
from {{ cookiecutter.__package }}.serving.config import deployments_in
from {{ cookiecutter.__package }}.serving.http import ingress
from {{ cookiecutter.__package }}.serving.http.launch import REFUSED, built
from {{ cookiecutter.__package }}.serving.http.login import SignedLogins
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.preview import load_page
from {{ cookiecutter.__package }}.serving.start import main

from ...support.stand_ins import in_thread

HERE = "http://localhost"
PACKAGE = "{{ cookiecutter.__package }}"
SECRET = "the whales sing in the deep blue sea"  # noqa: S105
LAUNCH_ONLY_INSIDE = {"app", "blocks", "self", "_app", "_frontend"}
"""Parameters that say what `mount_gradio_app` mounts where, and internal ones of `launch()`."""


def visitor(page: Any, launch: Launch = Launch(), **settings: Any) -> TestClient:  # noqa: B008
    web = mount(page, HttpSettings(**settings), launch)
    return TestClient(web, base_url=HERE, raise_server_exceptions=False)


def plain() -> gr.Interface:
    return gr.Interface(str.upper, "text", "text", api_name="shout")


@pytest.mark.parametrize("function", [gr.Blocks.launch, gr.Server.launch, gr.mount_gradio_app])
def test_each_parameter_of_gradio_is_accepted_or_refused(function: Callable[..., object]) -> None:
    given = set(inspect.signature(function).parameters) - LAUNCH_ONLY_INSIDE
    taken = {each.name for each in fields(Launch)}
    assert given - taken - set(REFUSED) == set()
    assert taken & set(REFUSED) == set()


def test_launch_has_no_parameter_that_gradio_lacks() -> None:
    known = set(inspect.signature(gr.Blocks.launch).parameters)
    known |= set(inspect.signature(gr.mount_gradio_app).parameters)
    assert {*(each.name for each in fields(Launch)), *REFUSED} <= known


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_parameters_that_serve_replaces_are_refused_with_the_alternative(name: str) -> None:
    given: dict[str, Any] = {name: None}
    with pytest.raises(StartError, match=f"Launch does not accept {name}: [^\n]+[.]$"):
        Launch(**given)


def test_defaults_are_those_of_gradio() -> None:
    gradios = inspect.signature(gr.Blocks.launch).parameters
    for each in fields(Launch):
        # Except for paths.
        assert each.default == gradios[each.name].default or each.default == (), each.name


@pytest.mark.parametrize(
    "name", ["css_paths", "head_paths", "favicon_path", "allowed_paths", "blocked_paths"]
)
@pytest.mark.parametrize("make", [str, Path])
def test_relative_paths_are_refused(name: str, make: Callable[[str], str | Path]) -> None:
    reason = re.escape("Start it with /, or write it as Path(__file__).parent / 'models'")
    given: dict[str, Any] = {name: make("models")}
    if name != "favicon_path":
        given = {name: [make("models")]}
    with pytest.raises(StartError, match=reason):
        Launch(**given)


def test_launch_reaches_a_replica_unchanged() -> None:
    given = Launch(theme=gr.themes.Soft(), i18n=gr.I18n(en={"a": "b"}), allowed_paths=["/srv"])
    sent = pickle.loads(cloudpickle.dumps(given))  # noqa: S301
    assert sent.theme.name == "soft"
    assert sent.allowed_paths == ["/srv"]
    assert sent.i18n.translations == {"en": {"a": "b"}}


LOOKS = {
    "css": ("#out { border: 3px solid crimson }", "3px solid crimson"),
    "head": ("<meta name='mine'>", "<meta name='mine'>"),
    "js": ("() => { document.title = 'mine' }", "document.title = 'mine'"),
}


def made_with(**looks: Any) -> gr.Blocks:
    """A page with the arguments of Gradio 5, which `launch()` still accepts."""
    with pytest.warns(UserWarning, match="moved from the Blocks constructor"):
        return gr.Blocks(**looks)


@pytest.mark.parametrize(("name", "value", "shown"), [(n, *v) for n, v in LOOKS.items()])
def test_looks_apply_wherever_gradio_accepted_them(name: str, value: str, shown: str) -> None:
    looks: dict[str, Any] = {name: value}
    others: dict[str, Any] = {name: value.replace("mine", "ours").replace("3px", "9px")}
    assert shown in _looks(made_with(**looks))
    assert shown in _looks(gr.Blocks(), Launch(**looks))
    assert shown not in _looks(made_with(**looks), Launch(**others))


def _looks(page: gr.Blocks, launch: Launch = Launch()) -> str:  # noqa: B008
    config = visitor(page, launch).get("/config").json()
    return "".join(str(config[name]) for name in LOOKS)


def test_a_theme_applies_wherever_gradio_accepted_it() -> None:
    monochrome, soft = gr.themes.Monochrome(), gr.themes.Soft()
    of_blocks = visitor(made_with(theme=monochrome))
    assert of_blocks.get("/theme.css").text == monochrome._get_theme_css()
    of_launch = visitor(made_with(theme=monochrome), Launch(theme=soft))
    assert of_launch.get("/theme.css").text == soft._get_theme_css()


def test_css_and_head_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "mine.css").write_text("#mine { color: teal }")
    (tmp_path / "mine.html").write_text("<meta name='mine'>")
    (tmp_path / "mine.ico").write_bytes(b"an icon")
    launch = Launch(
        css_paths=tmp_path / "mine.css",
        head_paths=[tmp_path / "mine.html"],
        favicon_path=tmp_path / "mine.ico",
    )
    page = visitor(plain(), launch)
    assert "color: teal" in json.dumps(page.get("/config").json())
    assert page.get("/config").json()["head"].strip() == "<meta name='mine'>"
    assert page.get("/favicon.ico").content == b"an icon"


def test_a_page_without_looks_has_the_default_looks() -> None:
    own, gradios = visitor(plain()), gr.themes.Default()
    assert own.get("/theme.css").text == gradios._get_theme_css()
    config = own.get("/config").json()
    assert config["css"] in (None, "")
    assert config["footer_links"] == ["api", "gradio", "settings", "runs"]


def test_other_launch_parameters_reach_the_page(tmp_path: Path) -> None:
    i18n = gr.I18n(en={"greeting": "Hello, whale"})
    with gr.Blocks(title="Whales") as page:
        gr.Markdown(i18n("greeting"))
    launch = Launch(
        i18n=i18n,
        footer_links=["settings"],
        pwa=True,
        max_threads=7,
        state_session_capacity=9,
        app_kwargs={"docs_url": "/docs", "openapi_url": "/openapi.json"},
        allowed_paths=[tmp_path],
    )
    (tmp_path / "song.txt").write_text("whales sing")
    with visitor(page, launch) as web:
        config = web.get("/config").json()
        assert config["i18n_translations"] == {"en": {"greeting": "Hello, whale"}}
        assert config["footer_links"] == ["settings"]
        assert web.get("/manifest.json").json()["name"] == "Whales"
        assert web.get("/docs").status_code == 200
        assert web.get(f"/gradio_api/file={tmp_path}/song.txt").text == "whales sing"
    assert page.limiter.total_tokens == page._queue.max_thread_count == 7
    assert page.state_holder.capacity == 9


def test_an_idle_queue_uses_little_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page, looks = plain(), 0
    waiting: Callable[[Any], int] = type(page._queue).__len__

    def count(queue: Any) -> int:
        nonlocal looks
        looks += queue is page._queue
        return waiting(queue)

    monkeypatch.setattr(type(page._queue), "__len__", count)
    with visitor(page) as web:
        assert web.get("/config").status_code == 200
        before = looks
        time.sleep(1)
        assert 0 < looks - before < 300


def test_a_call_does_not_search_the_disk_for_missing_libraries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_for: list[str] = []

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            looked_for.append(name)

    with visitor(plain()) as web:
        # Imports of the first call are cached.
        for _ in range(2):
            looked_for.clear()
            with monkeypatch.context() as patched:
                patched.setattr(sys, "meta_path", [Finder, *sys.meta_path])
                answer = web.post("/gradio_api/run/shout", json={"data": ["whale"]})
            assert answer.json()["data"] == ["WHALE"]
    assert looked_for == []


def test_allowed_paths_in_the_environment_apply_as_with_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "song.txt").write_text("whales sing")
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", f"/srv/none, {tmp_path}")
    assert visitor(plain()).get(f"/gradio_api/file={tmp_path}/song.txt").text == "whales sing"


@pytest.mark.parametrize(("shown", "said"), [(True, "a wet whale"), (False, None)])
def test_show_error_shows_an_error_and_the_log_always_has_its_traceback(
    shown: bool, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: str) -> str:
        raise ValueError("a wet whale")

    page = gr.Interface(fail, "text", "text", api_name="fail")
    with (
        visitor(page, Launch(show_error=shown)) as web,
        caplog.at_level(logging.ERROR, "ray.serve"),
    ):
        assert _called(web, "fail", "x").get("error") == said
    assert "fail failed" in caplog.text
    assert "ValueError: a wet whale" in caplog.text


def test_a_gradio_error_of_the_page_is_not_logged_as_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(_: str) -> str:
        raise gr.Error("Not today", print_exception=False)

    with visitor(gr.Interface(refuse, "text", "text", api_name="refuse")) as web:
        assert _called(web, "refuse", "x")["error"] == "Not today"
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_max_file_size_of_launch_limits_uploads() -> None:
    page = gr.Interface(lambda file: file, gr.File(), gr.File())
    with visitor(page, Launch(max_file_size="2kb")) as web:
        sizes = {
            size: web.post("/gradio_api/upload", files={"files": ("a", bytes(size))}).status_code
            for size in (1000, 3000)
        }
    assert sizes == {1000: 200, 3000: 413}


def test_enable_monitoring_turns_on_the_monitoring_page() -> None:
    assert visitor(plain()).get("/monitoring").status_code == 403
    assert visitor(plain(), Launch(enable_monitoring=True)).get("/monitoring").status_code == 200
    hidden = visitor(plain(), Launch(enable_monitoring=False))
    assert hidden.get("/monitoring/summary").status_code == 403


def _called(web: httpx2.Client, function: str, *values: object) -> Any:
    """Returns the last message of the call: the values or the error."""
    event = web.post(f"/gradio_api/call/{function}", json={"data": values}).json()["event_id"]
    *_, last = web.get(f"/gradio_api/call/{function}/{event}").text.strip().split("\n\n")
    return json.loads(last.partition("data: ")[2])


# A login.


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PAGE_SECRET", SECRET)
    return SECRET


def greeting() -> gr.Blocks:
    def greet(request: gr.Request) -> str:
        return f"Hello {request.username}"

    with gr.Blocks() as page:
        gr.Button().click(greet, None, gr.Textbox(), api_name="greet")
    return page


async def knows(user: str, password: str) -> bool:
    return (user, password) == ("ada", "pw")


@pytest.mark.usefixtures("secret")
@pytest.mark.parametrize("auth", [("ada", "pw"), [("ada", "pw"), ("bob", "b")], knows])
def test_a_login_is_valid_on_each_replica(auth: Any) -> None:
    launch = Launch(auth=auth, auth_message="Whales only")
    # Each process has its own page.
    one, other = (visitor(greeting(), launch) for _ in range(2))
    with one, other:
        assert "Whales only" in one.get("/").text
        assert _refused(other)
        for wrong in (("ada", "wrong"), ("", ""), ("eve", "pw")):
            assert _log_in(one, *wrong) == 400
        assert _log_in(one, "ada", "pw") == 200
        other.cookies.update(one.cookies)
        for page in (one, other):
            assert _called(page, "greet") == ["Hello ada"]
        other.get("/logout")
        assert _refused(other)


def _log_in(page: TestClient, user: str, password: str) -> int:
    return page.post("/login", data={"username": user, "password": password}).status_code


def _refused(page: TestClient) -> bool:
    return page.post("/gradio_api/call/greet", json={"data": []}).status_code == 401


@pytest.mark.usefixtures("secret")
def test_gradios_client_logs_in() -> None:
    with in_thread(mount(greeting(), HttpSettings(), Launch(auth=("ada", "pw")))) as url:
        assert (
            Client(url, auth=("ada", "pw"), verbose=False).predict(api_name="/greet") == "Hello ada"
        )
        with pytest.raises(Exception, match=r"[Ll]ogin|credentials|auth"):
            Client(url, verbose=False)


async def test_expired_changed_and_foreign_tokens_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logins = SignedLogins({"ada": "pw", "bob": "b"}, "key")
    token = await logins.log_in("ada", "pw")
    assert token is not None
    name, until, signature = token.split(".")
    assert logins.get(token) == "ada"
    forged = [
        None,
        "",
        "..",
        name,
        f"{name}.{int(until) + 1}.{signature}",
        f"Ym9i.{until}.{signature}",
        f"{name}.{until}.{signature[:-1]}",
        f"{name}.whale.{signature}",
        f"\xff.{until}.{signature}",
        f"{name}.{until}.\xff",
    ]
    assert [logins.get(each) for each in forged] == [None] * len(forged)
    assert SignedLogins({"ada": "pw"}, "other").get(token) is None
    assert SignedLogins({"ada": "changed"}, "key").get(token) is None
    assert SignedLogins({"bob": "b"}, "key").get(token) is None
    monkeypatch.setattr("time.time", lambda: int(until) + 1.0)
    assert logins.get(token) is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "needs PAGE_SECRET to sign logins"), ("short", "fewer than 32 characters")],
)
def test_a_login_without_a_secret_is_refused_with_instructions(
    value: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAGE_SECRET", raising=False)
    if value is not None:
        monkeypatch.setenv("PAGE_SECRET", value)
    with pytest.raises(LoginError, match=reason):
        visitor(greeting(), Launch(auth=("ada", "pw")))


def test_an_auth_dependency_gets_the_user_from_the_request() -> None:
    async def user(request: Request) -> str | None:
        return request.headers.get("x-user")

    with visitor(greeting(), Launch(auth_dependency=user), mcp=True) as page:
        assert _refused(page)
        listing = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        accept = {"accept": "application/json, text/event-stream"}
        assert page.post("/mcp", json=listing, headers=accept).status_code == 401
        page.headers["x-user"] = "ada"
        assert _called(page, "greet") == ["Hello ada"]
        assert page.post("/mcp", json=listing, headers=accept).status_code == 200


def test_a_page_may_have_only_one_kind_of_login() -> None:
    with pytest.raises(StartError, match="auth or auth_dependency, not both"):
        Launch(auth=("ada", "pw"), auth_dependency=lambda _: "ada")


# Browser state.


def _states(page: gr.Blocks, name: str = "page", **settings: Any) -> list[tuple[str, str]]:
    mount(page, HttpSettings(**settings), name=name)
    states = [block for block in page.blocks.values() if isinstance(block, gr.BrowserState)]
    return [(state.storage_key, state.secret) for state in states]


def chat() -> gr.ChatInterface:
    return gr.ChatInterface(lambda message, _: message, save_history=True)


def test_a_saved_history_is_the_same_on_each_replica_and_after_a_deploy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PAGE_SECRET", raising=False)
    [(key, secret)] = _states(chat())
    assert [(key, secret)] == _states(chat())
    # Pages on one host share the browser's storage.
    [(other_key, other_secret)] = _states(chat(), "other")
    assert key != other_key
    assert secret != other_secret
    monkeypatch.setenv("PAGE_SECRET", SECRET)
    [(same_key, better)] = _states(chat())
    assert same_key == key
    assert better != secret


def test_without_a_login_browser_state_does_not_depend_on_the_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAGE_PASSWORD", "of another page")
    open_to_all = _states(chat())
    monkeypatch.setenv("PAGE_PASSWORD", "pw")
    # A page without a login would send it to everybody.
    assert _states(chat()) == open_to_all
    assert _states(chat(), login_user="ada") != open_to_all


def test_custom_storage_keys_and_secrets_are_kept() -> None:
    with gr.Blocks() as page:
        gr.BrowserState(1, storage_key="mine", secret="a whale of a tale")  # noqa: S106
        gr.BrowserState(2)
        gr.BrowserState(3, storage_key="other")
    mine, drawn, other = _states(page)
    assert mine == ("mine", "a whale of a tale")
    assert drawn[0] == "page-state-1"
    assert other[0] == "other"
    assert len({mine[1], drawn[1], other[1]}) == 3


# Builders.


def launching_server() -> gr.Server:
    server = gr.Server()
    server.launch()
    return server


def failing() -> gr.Blocks:
    raise KeyError("whale\nof two lines")


@pytest.mark.parametrize(
    ("builder", "reason"),
    [
        (
            lambda: plain().launch(),
            "calls launch.., but Serve starts the page. Return the page instead",
        ),
        (lambda: plain().queue().launch(share=True), "Return the page instead"),
        (launching_server, "launching_server calls launch"),
        (lambda: None, "returns nothing, not a page"),
        (lambda: (plain(), 1), "returns a tuple, not a page"),
        (str, "str returns a str, not a page"),
    ],
)
def test_a_builder_that_returns_no_page_gets_instructions(
    builder: Callable[..., Any], reason: str
) -> None:
    with pytest.raises(StartError, match=reason) as caught:
        built(builder)
    assert "\n" not in str(caught.value)


def test_a_failing_builder_is_reported_with_its_line() -> None:
    with pytest.raises(
        StartError, match=r"failing failed with KeyError: .*, at .*test_launch"
    ) as caught:
        ingress._built(failing)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_launch_works_again_after_a_refusal() -> None:
    own = gr.Blocks.launch
    with pytest.raises(StartError):
        built(lambda: plain().launch())
    mount(plain(), HttpSettings())
    assert gr.Blocks.launch is own


@pytest.mark.parametrize("kind", [gr.Blocks, gr.Server])
def test_a_page_that_cannot_be_pickled_is_refused_with_instructions(
    kind: Callable[[], gr.Blocks | gr.Server],
) -> None:
    page = kind()
    for builder in (page, lambda: page):
        with (
            pytest.raises(StartError, match=r"Import the page inside the function"),
            explain_pickling_errors(),
        ):
            deployments_in(GradioServer.bind(HttpSettings(), builder))


APP = """
import gradio as gr

from {{ cookiecutter.__package }}.serving import GradioServer, HttpSettings, Launch

def demo():
    return gr.Interface(str.upper, "text", "text")

def build_page():
    {page}

def build(settings: HttpSettings):
    return GradioServer.bind(settings, build_page{bound})

{top}
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes an app module, and returns its import path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(page: str = "return demo()", bound: str = "", top: str = "") -> str:
        name = f"app_{secrets.token_hex(4)}"
        (tmp_path / f"{name}.py").write_text(APP.format(page=page, bound=bound, top=top))
        return f"{name}:build"

    return write


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"page": "demo().launch()"}, "build_page calls launch"),
        ({"page": "demo()"}, "build_page returns nothing"),
        ({"top": "demo().launch()"}, ":build calls launch"),
        ({"bound": ", launch=Launch(share=True)"}, "Launch does not accept share: Serve listens"),
        ({"top": "LAUNCH = Launch(css_paths='a.css')"}, "'a.css' is not absolute"),
    ],
)
def test_the_preview_gives_instructions_in_one_line(
    app: Callable[..., str], parts: dict[str, str], reason: str
) -> None:
    with pytest.raises(StartError, match=reason) as caught:
        load_page(app(**parts), engine=False, version="1")
    assert "\n" not in str(caught.value)


def test_the_start_refuses_a_module_that_launches_on_import(
    app: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["app"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main(app(top="demo().launch()")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "calls launch(), but Serve starts the page" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("before", ["", "import gradio"])
def test_under_serve_run_launch_fails_on_import(before: str, tmp_path: Path) -> None:
    """`serve run` imports the application and would block in `launch()`."""
    top = "import gradio as gr\nwith gr.Blocks() as demo:\n    gr.Textbox()\n"
    (tmp_path / "my_demo.py").write_text(f"{top}demo.launch()\n")
    run = python(
        f"""{before}
import {PACKAGE}
{PACKAGE}.__path__.append({str(tmp_path)!r})
from {PACKAGE}.my_demo import demo
"""
    )
    assert run.returncode == 1
    [*_, line] = run.stderr.splitlines()
    assert (
        f": {PACKAGE}.my_demo calls launch() when it is imported, but Serve starts the page."
        in line
    )
    # A script may call launch() itself.
    run = python(f"import {PACKAGE}\n{top}demo.launch(prevent_thread_lock=True)\ndemo.close()\n")
    assert run.returncode == 0, run.stderr
    assert "Running on local URL" in run.stdout


@pytest.mark.parametrize("before", ["", "import gradio"])
def test_no_type_stub_is_written_for_your_own_component(before: str, tmp_path: Path) -> None:
    """Gradio writes one beside the source, and parses its own components, at each import."""
    ours = "import gradio as gr\n\n\nclass Ours(gr.Textbox):\n    pass\n"
    (tmp_path / "ours.py").write_text(ours)
    run = python(
        f"""{before}
import {PACKAGE}
{PACKAGE}.__path__.append({str(tmp_path)!r})
from {PACKAGE}.ours import Ours
print(Ours().get_block_name())
"""
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "ours\n"
    assert not (tmp_path / "ours.pyi").exists()


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_launch_in_the_main_block_of_a_module_is_allowed(app: Callable[..., str]) -> None:
    path = app(top='if __name__ == "__main__":\n    demo().launch()')
    assert TestClient(load_page(path, engine=False, version="1")).get(HERE).status_code == 200


def test_the_preview_shows_the_looks_of_blocks(app: Callable[..., str]) -> None:
    path = app(page="return gr.Blocks(head='<meta name=\\'mine\\'>')")
    with pytest.warns(UserWarning, match="moved"):
        web = load_page(path, engine=False, version="1")
    head = TestClient(web).get(f"{HERE}/config").json()["head"]
    assert "<meta name='mine'>" in head
    assert "preview-version" in head


# Kinds of page.


def blocks() -> gr.Blocks:
    with gr.Blocks() as page:
        state, box = gr.State(1), gr.Textbox()
        gr.Button().click(lambda s, t: (s + 1, t * s), [state, box], [state, box], api_name="call")
    return page


def chat_with_files() -> gr.ChatInterface:
    return gr.ChatInterface(
        lambda message, _: message["text"] * 2, multimodal=True, api_name="call"
    )


def tabs() -> gr.TabbedInterface:
    double = gr.Interface(lambda text: text * 2, "text", "text", api_name="call")
    return gr.TabbedInterface([double, plain()], ["a", "b"])


def pages() -> gr.Blocks:
    with gr.Blocks() as page:
        gr.Markdown("first")
    with page.route("Second", "/second"):
        box = gr.Textbox()
        gr.Button().click(lambda text: text * 2, box, box, api_name="call")
    return page


def rendered() -> gr.Blocks:
    with gr.Blocks() as page:
        box, out = gr.Textbox(), gr.Textbox()
        gr.Timer(60).tick(lambda: "tick", None, out)

        @gr.render(inputs=box)
        def show(text: str) -> None:
            gr.Markdown(text)

        gr.Button().click(lambda text: text * 2, box, out, api_name="call")
    return page


def server() -> gr.Server:
    server = gr.Server()

    @server.api(name="call")
    def double(text: str) -> str:
        return text * 2

    @server.get("/hello")
    def hello() -> dict[str, str]:
        return {"hello": "whale"}

    return server


KINDS: list[tuple[Callable[[], Any], list[object], list[object]]] = [
    (lambda: gr.Interface(lambda text: text * 2, "text", "text", api_name="call"), ["a"], ["aa"]),
    (blocks, ["a"], ["a"]),
    (chat_with_files, [{"text": "a", "files": []}], ["aa"]),
    (tabs, ["a"], ["aa"]),
    (pages, ["a"], ["aa"]),
    (rendered, ["a"], ["aa"]),
    (server, ["a"], ["aa"]),
]


@pytest.mark.parametrize(("make", "given", "returned"), KINDS)
def test_every_kind_of_page_is_served(
    make: Callable[[], Any], given: list[object], returned: list[object]
) -> None:
    with visitor(built(make)) as web:
        result = _called(web, "call", *given)
        assert [value for value in result if value is not None][: len(returned)] == returned
        assert web.get("/").status_code == 200


def test_each_page_of_a_multipage_app_has_a_url() -> None:
    with visitor(pages()) as web:
        assert web.get("/second").status_code == 200
        assert web.get("/config?page=second").status_code == 200


def test_a_server_keeps_its_routes_and_works_with_gradios_client() -> None:
    with in_thread(mount(server(), HttpSettings(), Launch(show_error=True))) as url:
        assert httpx2.get(f"{url}/hello").json() == {"hello": "whale"}
        assert httpx2.get(f"{url}/openapi.json").status_code == 200
        assert Client(url, verbose=False).predict("a", api_name="/call") == "aa"


def test_a_workflow_keeps_its_looks() -> None:
    def double(text: str) -> str:
        return text * 2

    with visitor(gr.Workflow(bind=[double])) as web:
        assert web.get("/").status_code == 200
        assert web.get("/config").json()["css"]
