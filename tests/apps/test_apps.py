"""Each app behaves the same on Ray and with plain `launch()`."""

import csv
import re
import time
from pathlib import Path

import grpc
import httpx2
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page
from ray.serve.generated import serve_pb2, serve_pb2_grpc

from .app import App, all_apps
from .compare import Served, differences, readable, transcript
from .conftest import OnRay, Plain

APPS = all_apps()
SETTLE_SECONDS = 30
STEP_MILLISECONDS = 300
UNCHANGED = 5
PROGRESS = re.compile(r"^(processing \| )?[0-9.]+(/[0-9.]+)?(s|%)\n", re.MULTILINE)
IN_A_BROWSER = {name: app for name, app in APPS.items() if app.use}


def test_there_are_enough_apps() -> None:
    assert len(APPS) >= 40
    assert len(IN_A_BROWSER) >= 15


@pytest.mark.parametrize("name", APPS)
def test_an_app_has_the_same_config_api_values_files_and_errors(
    name: str, plain: Plain, on_ray: OnRay, files: Path
) -> None:
    asks = APPS[name].asks
    expected = transcript(plain.app(name), asks, files)
    found = differences(expected, transcript(on_ray.app(name), asks, files))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", IN_A_BROWSER)
def test_a_browser_shows_the_same_page_and_logs_no_new_errors(
    name: str, plain: Plain, on_ray: OnRay, browser: Browser
) -> None:
    shown, complaints = visit(browser, plain.app(name), APPS[name])
    shown_on_ray, complaints_on_ray = visit(browser, on_ray.app(name), APPS[name])
    assert shown_on_ray == shown
    assert complaints_on_ray - complaints == set()


def test_flags_and_cached_examples_are_saved_where_ray_was_started(
    on_ray: OnRay,
) -> None:
    """A container's user can write there."""
    served = on_ray.app("flagged")
    names = [f"whale {number}" for number in range(8)]
    replicas = set[str]()
    for name in names:
        # Each call is a new visitor.
        with httpx2.Client(base_url=served.url, headers=dict(served.headers), timeout=60) as page:
            called = page.post("gradio_api/call/Flag", json={"data": [name, f"Hello {name}"]})
            event = called.raise_for_status().json()["event_id"]
            assert "event: complete" in page.get(f"gradio_api/call/Flag/{event}").text
            [cookie] = page.cookies.values()
            replicas.add(cookie.partition(".")[0])
    assert len(replicas) == 2
    kept = on_ray.folder / ".gradio" / "flagged"
    rows = [row for each in kept.iterdir() for row in csv.DictReader(each.open())]
    assert sorted(row["name"] for row in rows) == names
    assert {row["output"] for row in rows} == {f"Hello {name}" for name in names}
    cached = served.uploads / "examples" / "flagged"
    assert {
        row["output"] for each in cached.rglob("log.csv") for row in csv.DictReader(each.open())
    } == {
        "Hello Ada",
        "Hello Bo",
    }


def test_the_port_of_a_replica_requires_the_token_of_the_cluster(on_ray: OnRay) -> None:
    """At this port, Serve's proxy bypasses the page's guards."""
    replicas = on_ray.replicas()
    assert len(replicas) == 2
    for replica in replicas:
        ports = [each for each in replica.net_connections("tcp") if each.status == "LISTEN"]
        # One of the ports belongs to Ray itself, which does not have this method.
        assert {asked_for_a_page(each.laddr.port) for each in ports} == {
            grpc.StatusCode.UNAUTHENTICATED,
            grpc.StatusCode.UNIMPLEMENTED,
        }


def asked_for_a_page(port: int) -> grpc.StatusCode:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = serve_pb2_grpc.ASGIServiceStub(channel).HandleRequestWithRejectionStreaming
        try:
            list(ask(serve_pb2.ASGIRequest(), timeout=30))
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK


def visit(browser: Browser, served: Served, app: App) -> tuple[str, set[str]]:
    """Returns the text of the page after its use, and the errors in the browser console."""
    complaints: set[str] = set()

    def hear(message: ConsoleMessage) -> None:
        # On Ray, the server root, where browsers request an icon, is not part of the app.
        if message.type == "error" and not message.location["url"].endswith("/favicon.ico"):
            complaints.add(readable(f"{message.text} {message.location['url']}", served))

    context = browser.new_context(extra_http_headers=dict(served.headers), locale="en-US")
    page = context.new_page()
    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.add(readable(str(error), served)))
    page.goto(served.url)
    page.locator("main .block").first.wait_for(state="attached")
    settled(page)
    assert app.use
    app.use(page)
    shown = settled(page)
    context.close()
    return readable(shown, served), complaints


def settled(page: Page) -> str:
    """Returns the text of the page once it no longer changes and no call is running."""
    texts: list[str] = []
    deadline = time.monotonic() + SETTLE_SECONDS
    while not (len(texts) > UNCHANGED and len(set(texts[-UNCHANGED:])) == 1):
        assert time.monotonic() < deadline, f"it does not come to rest: {texts[-1]}"
        page.wait_for_timeout(STEP_MILLISECONDS)
        texts.append(PROGRESS.sub("", page.locator("main").first.inner_text()))
    return texts[-1]
