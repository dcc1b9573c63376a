"""The files and URLs that a caller can read through the page, with and without Ray."""

import contextlib
import hashlib
import http.server
import importlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import gradio as gr
import httpx2
import pytest
import safehttpx
from gradio import processing_utils
from PIL import Image
from playwright.sync_api import Browser, Error, FilePayload, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient

from {{ cookiecutter.__package }}.serving import Launch
from {{ cookiecutter.__package }}.serving.http import files
from {{ cookiecutter.__package }}.serving.http.files import (
    NOT_UPLOADED,
    is_public,
)
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.http.sessions import (
    SessionCookieMiddleware,
)
from {{ cookiecutter.__package }}.serving.http.settings import (
    HttpSettings,
    RequestLimits,
)

from ...support.file_page import (
    MADE_BY_THE_PAGE,
    WIKI,
    Way,
    ask,
    download,
    file_page,
    named,
    places,
    result,
    said,
    shown,
    upload,
)
from ...support.servers import Served, free_port
from ...support.stand_ins import in_thread

SONG = b"whales sing"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has Gradio's cache, an allowed folder, and private files."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "allowed" / "private").mkdir(parents=True)
    for place in (folder, folder / "allowed", folder / "allowed" / "private"):
        (place / "song.txt").write_bytes(SONG)
    Image.new("RGB", (8, 8), "navy").save(folder / "picture.png")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[TestClient]:
    allowed = str(folder / "allowed")
    launch = Launch(allowed_paths=[allowed], blocked_paths=[f"{allowed}/private"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        web = mount(file_page(), HttpSettings(), launch)
        with TestClient(web, base_url="http://localhost", raise_server_exceptions=False) as client:
            yield client


def kept(uploads: Path) -> set[Path]:
    return {path for path in uploads.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("path", "way"),
    [
        *(("{folder}/picture.png", way) for way in Way),
        ("{folder}/uploads/../picture.png", Way.DIRECT),
        ("/proc/self/environ", Way.DIRECT),
        ("{folder}", Way.DIRECT),
        ("{folder}/uploads", Way.DIRECT),
        ("file://{folder}/picture.png", Way.DIRECT),
    ],
)
def test_a_path_instead_of_a_file_returns_nothing(
    page: TestClient, folder: Path, path: str, way: Way
) -> None:
    path = path.format(folder=folder)
    before = kept(folder / "uploads")
    for function, value in places(named(path)):
        with contextlib.suppress(httpx2.HTTPStatusError):
            ask(page, way, function, value)
        assert kept(folder / "uploads") == before, (function, value)
    assert download(page, path).status_code == 403


def test_the_refusal_gives_instructions_and_contains_no_path(
    page: TestClient, capfd: pytest.CaptureFixture[str]
) -> None:
    events = ask(page, Way.QUEUED, "file", named("/proc/self/environ"))
    assert NOT_UPLOADED in events
    assert "/proc" not in events
    assert "/proc" not in "".join(capfd.readouterr())


@pytest.fixture
def opened() -> Iterator[set[str]]:
    """Records the files that Python opens."""
    names: set[str] = set()
    watching = True

    def watch(event: str, details: tuple[object, ...]) -> None:
        if watching and event == "open":
            names.add(str(details[0]))

    # Audit hooks cannot be removed.
    sys.addaudithook(watch)
    yield names
    watching = False


@pytest.mark.parametrize("kind", ["image", "video"])
def test_component_arguments_in_a_message_open_no_file(
    page: TestClient, folder: Path, opened: set[str], kind: str
) -> None:
    picture = (folder / "picture.png").read_bytes()
    sent = {"image": ("picture.png", picture), "video": ("song.mp4", b"0000ftypmp42")}
    opened.clear()
    value = named(upload(page, *sent[kind]))
    for path in (str(folder / "picture.png"), str(folder / "song.txt")):
        message = {**shown(kind, value), "constructor_args": {"watermark": path}}
        [said_back] = result(page, "chatbot", said(message))
        # The function gets the message, but the component is built without the file.
        assert said_back["content"][0]["constructor_args"] == {"watermark": path}
    assert {path for path in opened if path.startswith(str(folder))}
    assert not opened & {str(folder / "picture.png"), str(folder / "song.txt")}


def test_a_label_in_a_message_opens_no_file(
    page: TestClient, folder: Path, opened: set[str]
) -> None:
    figures = folder / "figures.json"
    figures.write_text("{}")
    opened.clear()
    for component in ("label", "Label"):
        with pytest.raises(httpx2.HTTPStatusError):
            result(page, "chatbot", said(shown(component, {"label": str(figures)})))
    assert str(figures) not in opened
    assert result(page, "chatbot", said(shown("label", {"label": "whale"})))


def test_text_that_contains_paths_stays_text(page: TestClient) -> None:
    tree = {"path": "/", "children": [{"path": "/etc"}]}
    assert result(page, "json", tree) == tree
    assert result(page, "api", tree) == tree
    assert result(page, "textbox", "/etc/passwd") == "/etc/passwd"


@pytest.mark.parametrize("way", Way)
def test_an_uploaded_file_is_accepted_and_returned(page: TestClient, way: Way) -> None:
    path = upload(page, "song.txt", SONG)
    assert download(page, path).content == SONG
    for function, value in (
        ("file", named(path)),
        ("files", [named(path)]),
        ("multimodal", {"text": "whale", "files": [named(path)]}),
        ("json", {"deep": [named(path)]}),
    ):
        assert path in ask(page, way, function, value), function


def test_an_uploaded_picture_is_accepted(page: TestClient, folder: Path) -> None:
    path = upload(page, "picture.png", (folder / "picture.png").read_bytes())
    assert result(page, "image", named(path))["path"]
    gallery = [{"image": named(path), "caption": None}]
    assert result(page, "gallery", gallery)[0]["image"]["path"]


def test_files_that_a_function_returns_can_be_downloaded_from_allowed_folders(
    page: TestClient, folder: Path
) -> None:
    assert download(page, result(page, "made")["path"]).text == MADE_BY_THE_PAGE
    song = folder / "allowed" / "song.txt"
    assert download(page, result(page, "returned", str(song))["path"]).content == SONG
    assert download(page, str(song)).content == SONG
    assert download(page, str(folder / "song.txt")).status_code == 403
    for secret in (folder / "allowed" / "private" / "song.txt", Path("/etc/passwd")):
        assert download(page, str(secret)).status_code == 403
        with pytest.raises(httpx2.HTTPStatusError):
            result(page, "returned", str(secret))


@pytest.mark.parametrize("blocked", ["private", "Private"])
@pytest.mark.parametrize("link", ["link", "Link"])
def test_blocked_paths_are_blocked_through_links_too(
    tmp_path: Path, blocked: str, link: str
) -> None:
    for name in (blocked, "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "song.txt").write_bytes(SONG)
    (tmp_path / link).symlink_to(tmp_path / blocked)
    (tmp_path / f"{link}-to-open").symlink_to(tmp_path / "open")
    launch = Launch(allowed_paths=[str(tmp_path)], blocked_paths=[str(tmp_path / blocked)])
    web = mount(file_page(), HttpSettings(), launch)
    with TestClient(web, base_url="http://localhost", raise_server_exceptions=False) as page:
        for name in (blocked, link, f"open/../{link}"):
            path = f"{tmp_path}/{name}/song.txt"
            assert download(page, path).status_code == 403, path
            with pytest.raises(httpx2.HTTPStatusError):
                result(page, "returned", path)
        for name in ("open", f"{link}-to-open"):
            assert download(page, f"{tmp_path}/{name}/song.txt").content == SONG


APPS = """
import gradio as gr

def double(text: str) -> str:
    return text * 2

def workflow() -> gr.Blocks:
    return gr.Workflow(bind=[double])

def reader() -> gr.Blocks:
    return gr.Interface(lambda path: path, "text", gr.File(), api_name="returned")
"""
LAUNCH_APPS = """
import sys, apps

for make, port in zip((apps.workflow, apps.reader), sys.argv[1:]):
    make().launch(prevent_thread_lock=True, quiet=True, inbrowser=False, server_port=int(port))
print("up", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def launched(folder: Path) -> Iterator[list[httpx2.Client]]:
    """The apps on plain Gradio, in a process without the project."""
    ports = [free_port(), free_port()]
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCH_APPS, *map(str, ports)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "up\n"
            yield [httpx2.Client(base_url=f"http://127.0.0.1:{port}") for port in ports]
        finally:
            process.kill()


def readable(pages: Sequence[httpx2.Client], paths: dict[str, str]) -> set[str]:
    """The files that a visitor can download, and those that a function can read."""
    workflow, reader = pages
    found = set()
    for name, path in paths.items():
        for route in ("gradio_api/file=", "gradio_api/file/", "file=", "static/", "assets/"):
            # A failing server closes the connection.
            answer = workflow.get(f"{route}{path}", headers={"connection": "close"})
            # A page has its own answer for unknown paths.
            if answer.status_code == 200 and answer.content == SONG:
                found.add(f"{name} by address")
        with contextlib.suppress(httpx2.HTTPStatusError):
            answer = download(reader, result(reader, "returned", path)["path"])
            assert answer.content == SONG
            found.add(f"{name} by a function")
    return found


def test_a_visitor_reads_no_file_that_launch_refuses_and_none_of_rays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apps.py").write_text(APPS)
    work, temporary, uploads = (tmp_path / name for name in ("work", "temporary", "uploads"))
    files = {
        "elsewhere": tmp_path / "elsewhere" / "song.txt",
        "of the working directory": work / "config" / "song.txt",
        "hidden": work / ".env",
        "temporary": temporary / "song.txt",
        "of Ray": temporary / "ray" / "session_1" / "logs" / "song.txt",
    }
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SONG)
    uploads.mkdir()
    for folder in (work, temporary, uploads):
        (folder / "link").symlink_to(files["elsewhere"].parent)
    (temporary / "to-ray").symlink_to(temporary / "ray")
    paths = {name: str(path) for name, path in files.items()} | {
        "linked from uploads": f"{uploads}/link/song.txt",
        "linked from what is temporary": f"{temporary}/link/song.txt",
        "linked from the working directory": f"{work}/link/song.txt",
        "of Ray through a link": f"{temporary}/to-ray/session_1/logs/song.txt",
        "of Ray through dots": f"{uploads}/../temporary/ray/session_1/logs/song.txt",
        "elsewhere through dots": f"{uploads}/../elsewhere/song.txt",
        "elsewhere through coded dots": f"{uploads}/%2e%2e/elsewhere/song.txt",
        "elsewhere from the process": f"/proc/self/root{files['elsewhere']}",
        "the environment": "/proc/self/environ",
        "code of the app": str(tmp_path / "apps.py"),
        "code of Gradio": gr.__file__,
        "relative": "../elsewhere/song.txt",
        "with a scheme": f"file://{files['temporary']}",
    }
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(tmp_path))
    apps = importlib.import_module("apps")
    with launched(tmp_path) as plain:
        by_launch = readable(plain, paths)
    with contextlib.ExitStack() as stack:
        ours = [
            stack.enter_context(TestClient(web, "http://localhost", raise_server_exceptions=False))
            for web in (mount(make(), HttpSettings()) for make in (apps.workflow, apps.reader))
        ]
        by_us = readable(ours, paths)
    assert by_us == {
        "temporary by address",
        "temporary by a function",
        "of the working directory by a function",
    }
    of_ray = {each for each in by_launch if each.startswith("of Ray")}
    # Plain Gradio differs only in that it also serves Ray's files.
    assert len(of_ray) == 6
    assert by_launch == by_us | of_ray


def test_allowed_paths_may_be_nested_lists(tmp_path: Path) -> None:
    (tmp_path / "song.txt").write_bytes(SONG)
    folders: Any = [[str(tmp_path)]]
    with TestClient(
        mount(file_page(), HttpSettings(), Launch(allowed_paths=folders)), "http://localhost"
    ) as page:
        assert download(page, f"{tmp_path}/song.txt").content == SONG


def test_rays_working_directory_is_readable_only_if_allowed_explicitly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    sent = tmp_path / "ray" / "session_1" / "working_dir" / "pictures"
    sent.mkdir(parents=True)
    (sent / "song.txt").write_bytes(SONG)
    for allowed, status in ((sent, 200), (tmp_path, 403)):
        web = mount(file_page(), HttpSettings(), Launch(allowed_paths=[str(allowed)]))
        with TestClient(web, "http://localhost") as page:
            assert download(page, f"{sent}/song.txt").status_code == status


def draw(page: TestClient, **fields: object) -> int:
    """Sends part of an edited picture, as the editor does before a call; returns the status."""
    components = page.get("config").json()["components"]
    [editor] = [each["id"] for each in components if each["type"] == "imageeditor"]
    drawn = {"component_id": editor, "session_hash": "me", "fn_name": "accept_blobs"}
    drawn |= {"id": "whale", "type": "layer", "index": "0", **fields}
    blob = drawn.pop("blob", b"blob")
    body = {name: str(value) for name, value in drawn.items()}
    return page.post(
        "gradio_api/component_server", data=body, files={"file": ("blob", blob)}
    ).status_code


def edited(name: str) -> dict[str, object]:
    """The argument that refers to an edited picture."""
    return {"background": None, "layers": [], "composite": None, "id": name}


@pytest.mark.parametrize("index", [100, 20_000_000, -1, "whale"])
def test_an_edited_picture_has_a_limited_number_of_layers(page: TestClient, index: object) -> None:
    assert 400 <= draw(page, index=index) < 500
    assert draw(page, index=99) == 200
    assert draw(page, type="background", index="null") == 200


def test_an_edited_picture_arrives_with_its_layers(page: TestClient, folder: Path) -> None:
    picture = (folder / "picture.png").read_bytes()
    for kind, index in (("background", "null"), ("layer", 0), ("composite", "null")):
        assert draw(page, id="drawn", type=kind, index=index, blob=picture) == 200
    drawn = result(page, "editor", edited("drawn"))
    assert drawn["composite"]["path"]
    assert len(drawn["layers"]) == 1


def test_only_the_newest_unused_edited_pictures_are_kept(
    page: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = (folder / "picture.png").read_bytes()
    monkeypatch.setattr(files, "MAX_EDITS", 3)
    for edit in range(5):
        assert draw(page, id=edit, type="composite", index="null", blob=picture) == 200
    there = [edit for edit in range(5) if result(page, "editor", edited(str(edit)))["composite"]]
    assert there == [2, 3, 4]


def test_edited_pictures_have_a_limited_total_size(
    page: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_EDITED_BYTES", 10_000)
    assert draw(page, id="first", blob=bytes(6000)) == 200
    assert draw(page, id="second", blob=bytes(6000)) == 200
    assert draw(page, id="second", index=1, blob=bytes(6000)) == 413
    assert draw(page, id="second", blob=bytes(6000)) == 200


def test_an_example_can_be_chosen(page: TestClient) -> None:
    example = result(page, "load_example", 0)["value"]
    assert download(page, example["path"]).text == Path(file_page.__code__.co_filename).read_text()
    assert example["path"] in ask(page, Way.DIRECT, "file", example)


def test_a_known_file_does_not_reveal_the_path_of_another_upload(
    page: TestClient, folder: Path
) -> None:
    known = b"whales hum"
    mine, theirs = (upload(page, "hum.txt", known) for _ in range(2))
    assert mine != theirs
    content = hashlib.sha256(processing_utils.hash_seed + known).hexdigest()
    guessed = folder / "uploads" / content / "hum.txt"
    assert not guessed.exists()
    assert download(page, str(guessed)).status_code == 403


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.100.100.200", False),
        ("0.0.0.0", False),  # noqa: S104
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00:ec2::254", False),
        ("fec0::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("whale", False),
    ],
)
def test_only_public_internet_addresses_count_as_public(address: str, public: bool) -> None:
    assert is_public(address) == public


class Reached(http.server.BaseHTTPRequestHandler):
    """Redirects `/to/ADDRESS` there, and answers other requests itself."""

    def do_GET(self) -> None:
        elsewhere = self.path.partition("/to/")[2]
        self.server.paths.append(self.path)  # type: ignore[attr-defined]
        self.send_response(302 if elsewhere else 200)
        self.send_header("Location", elsewhere)
        self.end_headers()
        self.wfile.write(SONG)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def reached() -> Iterator[tuple[int, list[str]]]:
    """A server on every address of this machine: its port, and the requested paths."""
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Reached)  # noqa: S104
    server.paths = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, server.paths  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433", "127.1"],  # noqa: S104
)
def test_a_url_instead_of_a_file_reaches_no_private_address(
    page: TestClient, reached: tuple[int, list[str]], host: str
) -> None:
    port, paths = reached
    url = f"http://{host}:{port}/picture.png"
    for function, value in places(named(url)):
        with contextlib.suppress(httpx2.HTTPStatusError):
            ask(page, Way.DIRECT, function, value)
    for route in ("file", "proxy"):
        assert page.get(f"gradio_api/{route}={url}").status_code >= 400
    assert paths == []


def test_a_redirect_reaches_no_private_address_either(
    page: TestClient, reached: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safehttpx, "is_public_ip", lambda address: address == "127.0.0.2")
    port, paths = reached
    public, private = f"http://127.0.0.2:{port}", f"http://127.0.0.1:{port}/private"
    assert download(page, result(page, "file", named(f"{public}/song.txt"))["path"]).content == SONG
    assert download(page, f"{public}/song.txt").content == SONG
    with pytest.raises(httpx2.HTTPStatusError):
        result(page, "file", named(f"{public}/to/{private}"))
    assert download(page, f"{public}/to/{private}").status_code == 403
    assert "/private" not in paths


def noise(width: int, height: int, kind: str) -> bytes:
    """An incompressible picture."""
    written = BytesIO()
    mode = "RGB" if kind == "JPEG" else "RGBA"
    pixels = os.urandom(width * height * len(mode))
    Image.frombytes(mode, (width, height), pixels).save(written, kind, quality=95)
    return written.getvalue()


def test_photos_large_tables_and_large_drawings_are_accepted_by_default(page: TestClient) -> None:
    photo = noise(2000, 1500, "JPEG")
    assert len(photo) > 3_000_000
    assert result(page, "image", named(upload(page, "photo.jpg", photo)))["path"]
    rows = [[number, "a song of whales", number / 7] for number in range(20_000)]
    table = {"headers": ["number", "song", "depth"], "data": rows, "metadata": None}
    assert len(result(page, "dataframe", table)["data"]) == 20_000
    drawing = noise(2000, 2000, "PNG")
    for kind, index in (("background", "null"), ("layer", 0), ("composite", "null")):
        assert draw(page, id="large", type=kind, index=index, blob=drawing) == 200
    assert result(page, "editor", edited("large"))["composite"]["path"]


FORWARDED = {"x-forwarded-host": "pages.example.org:8080", "x-forwarded-proto": "http"}


@pytest.mark.parametrize(
    ("root_path", "public_url", "headers", "address"),
    [
        ("", None, {}, "http://localhost"),
        ("/chat", None, {}, "http://localhost/chat"),
        # A proxy that keeps the path prefix.
        ("/chat", None, FORWARDED, "http://pages.example.org:8080/chat"),
        ("", None, FORWARDED, "http://pages.example.org:8080"),
        # Proxies that remove or replace it.
        ("", "/chat", FORWARDED, "http://pages.example.org:8080/chat"),
        ("", "/chat", {}, "http://localhost/chat"),
        ("", "https://pages.example.org/chat", {}, "https://pages.example.org/chat"),
        ("/inner", "https://pages.example.org/chat", {}, "https://pages.example.org/chat"),
        ("/inner", "https://pages.example.org", FORWARDED, "https://pages.example.org"),
    ],
)
def test_a_file_has_a_url_that_its_visitor_can_reach(
    root_path: str, public_url: str | None, headers: dict[str, str], address: str
) -> None:
    settings = HttpSettings(hosts=("pages.example.org",), public_url=public_url)
    with TestClient(
        mount(file_page(), settings),
        base_url=f"http://localhost{root_path}",
        root_path=root_path,
        headers=headers,
    ) as page:
        assert page.get("config").json()["root"] == address
        assert f'"root":"{address}"' in page.get("").text.replace('": "', '":"')
        for way in Way:
            answer = ask(page, way, "made")
            found = re.findall(r'"(https?://[^"]*)/gradio_api/file=([^"]+)"', answer)
            assert {each for each, _ in found} == {address}
            [(_, path)] = set(found)
            assert download(page, path).text == MADE_BY_THE_PAGE


def test_old_files_are_removed_except_those_of_the_page_and_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    of_a_lost_replica = tmp_path / ("0" * 64) / "song.txt"
    of_others = tmp_path / "deep_links" / "song.txt"
    for path in (of_a_lost_replica, of_others):
        path.parent.mkdir()
        path.write_bytes(SONG)
    blocks = file_page()
    pictures = Path(gr.__file__).with_name("media_assets") / "images"
    with blocks:
        gr.Button(icon=str(pictures / "tower.jpg"))
        gr.Examples([[str(pictures / "cheetah1.jpg")]], gr.Image(str(pictures / "lion.jpg")))
    of_the_page = kept(tmp_path) - {of_a_lost_replica, of_others}
    assert {path.name for path in of_the_page} >= {"file_page.py", "lion.jpg", "cheetah1.jpg"}
    with TestClient(
        mount(blocks, HttpSettings(keep_files_seconds=1)), base_url="http://localhost"
    ) as page:
        mine = Path(upload(page, "song.txt", SONG))
        made = Path(result(page, "made")["path"])
        assert mine.exists()
        assert made.exists()
        deadline = time.monotonic() + 60
        while mine.parents[1].exists() or made.exists() or of_a_lost_replica.exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert kept(tmp_path) == of_the_page | {of_others}
        # The file of a result is recreated if it was removed.
        assert download(page, result(page, "made")["path"]).text == MADE_BY_THE_PAGE


UPLOAD = """
element.querySelector("input").onchange = async (event) => {
    const { path } = await upload(event.target.files[0])
    element.querySelector("output").textContent = path
}
"""


@pytest.mark.parametrize("links", [False, True])
def test_a_session_keeps_its_last_values_only_for_deep_links(links: bool, tmp_path: Path) -> None:
    with gr.Blocks() as page:
        box, counts = gr.Textbox(), gr.State(0)
        if links:
            gr.DeepLinkButton()
        gr.Button().click(
            lambda text, calls: (f"{text} {calls + 1}", calls + 1),
            [box, counts],
            [box, counts],
            api_name="count",
        )
    with patch.dict(os.environ, GRADIO_TEMP_DIR=str(tmp_path)):
        browser = TestClient(mount(page, HttpSettings()), "http://localhost")
    for number in (1, 2):
        call = {"data": ["whale", None], "session_hash": "ours"}
        answer = browser.post("/gradio_api/run/count", json=call).json()
        assert answer["data"][0] == f"whale {number}"
    saved = browser.get("/gradio_api/deep_link?session_hash=ours").json()
    [state] = tmp_path.rglob(f"{saved}/state.json")
    assert ("whale 2" in state.read_text("utf-8")) is links


def page_that_makes_places_for_files() -> gr.Blocks:
    with gr.Blocks() as blocks:
        kind = gr.Radio(["text", "file"], value="text", label="Kind")

        @gr.render(inputs=kind)
        def show(kind: str) -> None:
            if kind == "file":
                file, size = gr.File(), gr.Number(label="Bytes")
                file.upload(lambda path: Path(path).stat().st_size, file, size)

        gr.HTML("<input type=file class=own><output></output>", js_on_load=UPLOAD)
        gr.HTML("<embed src='data:text/html,hi'>")
    return blocks


def song(content: bytes) -> FilePayload:
    return {"name": "song.txt", "mimeType": "text/plain", "buffer": content}


def test_in_the_browser_files_can_be_uploaded_wherever_the_page_has_an_input(
    browser: Browser,
) -> None:
    settings = HttpSettings(limits=RequestLimits(file_bytes=5000))
    web = mount(page_that_makes_places_for_files(), settings)
    with in_thread(web) as url, browser.new_page() as page:
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(url)
        page.locator("input.own").set_input_files(song(SONG))
        expect(page.locator("output")).to_contain_text("song.txt")
        page.get_by_label("file", exact=True).check()
        place = page.get_by_test_id("file-upload")
        place.set_input_files(song(bytes(5001)))
        expect(page.get_by_text("exceed the maximum allowed size of 4.9 Kb")).to_be_visible()
        place.set_input_files(song(bytes(4999)))
        expect(page.get_by_label("Bytes")).to_have_value("4999")
        # With `object-src`, the browser would log that it refuses the other page.
        assert page.locator("embed").count() == 1
        assert not [text for text in said if "Content Security Policy" in text]


ELEMENT = """<!doctype html>
<script type="module" src="/gradio.js"></script>
<gradio-app src="{page}"></gradio-app>
"""
CALL = """async ([page, credentials]) => {
    const config = await (await fetch(`${page}/config`, {credentials})).json()
    const ask = async (path, options) => {
        const answer = await fetch(`${config.root}/gradio_api/${path}`, {credentials, ...options})
        if (!answer.ok) throw new Error(answer.status)
        return answer
    }
    const files = new FormData()
    files.append("files", new Blob(["whales sing"]), "song.txt")
    const [path] = await (await ask("upload", {method: "POST", body: files})).json()
    const call = {
        data: [{path, meta: {_type: "gradio.FileData"}}],
        fn_index: config.dependencies[0].id,
        session_hash: "whale",
    }
    const headers = {"content-type": "application/json"}
    await ask("queue/join", {method: "POST", body: JSON.stringify(call), headers})
    const events = await (await ask("queue/data?session_hash=whale")).text()
    const url = JSON.parse(events.match(/"url":("[^"]+")/)[1])
    return await (await fetch(url, {credentials})).text()
}"""


def test_in_the_browser_only_listed_sites_embed_and_call_the_page(
    browser: Browser,
) -> None:
    markup = ""

    async def show(_: Request) -> HTMLResponse:
        return HTMLResponse(markup)

    gradio = StaticFiles(directory=Path(gr.__file__).parent / "templates" / "frontend")
    site = Starlette(routes=[Route("/", show), Mount("/", gradio)])
    given = gr.Interface(lambda file: file, gr.File(label="Song"), gr.File(label="Sung"))
    replica = SimpleNamespace(app_name="page", replica_tag="first")
    with in_thread(site) as wiki, in_thread(site) as elsewhere:
        # For browsers, this is another site than the page.
        wiki, elsewhere = (url.replace("127.0.0.1", "localhost") for url in (wiki, elsewhere))
        web = mount(given, HttpSettings(origins=(wiki,)))
        web.add_middleware(
            SessionCookieMiddleware, embedded=True, origins=(wiki,), context=lambda: replica
        )
        with in_thread(web) as url:
            markup = ELEMENT.format(page=url)
            with browser.new_page() as page:
                page.goto(wiki)
                page.get_by_test_id("file-upload").first.set_input_files(song(SONG))
                page.get_by_role("button", name="Submit").click()
                link = page.locator("a[href*='song.txt']").last
                expect(link).to_have_attribute("href", re.compile(f"^{url}/~first[.]"))
                for credentials in ("omit", "include"):
                    assert page.evaluate(CALL, [url, credentials]) == SONG.decode()
            with browser.new_page() as page:
                page.goto(elsewhere)
                for credentials in ("omit", "include"):
                    with pytest.raises(Error, match="Failed to fetch"):
                        page.evaluate(CALL, [url, credentials])
                # Requests that browsers send without a preflight are refused by the page.
                send = "url => fetch(url, {method: 'POST', mode: 'no-cors', body: '{}'})"
                with page.expect_response(lambda answer: "/queue/join" in answer.url) as sent:
                    page.evaluate(send, f"{url}/gradio_api/queue/join")
                assert sent.value.status == 403


@pytest.fixture(params=["files", "files_behind_a_prefix"])
def served_page(request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=request.getfixturevalue(request.param), timeout=60) as client:
        # The cookie keeps later requests on one replica.
        client.get("config")
        yield client


@pytest.mark.served
@pytest.mark.parametrize("way", Way)
def test_on_ray_paths_return_nothing_and_uploads_are_accepted(
    served_page: httpx2.Client, served_pages: Served, kept_files: Path, folder: Path, way: Way
) -> None:
    before = kept(kept_files)
    for function, value in places(named(str(folder / "picture.png"))):
        with contextlib.suppress(httpx2.HTTPStatusError):
            ask(served_page, way, function, value)
        assert kept(kept_files) == before, (function, value)
    assert NOT_UPLOADED not in ask(served_page, way, "file", None)
    path = upload(served_page, "song.txt", SONG)
    assert path.startswith(str(kept_files))
    assert path in ask(served_page, way, "file", named(path))
    assert download(served_page, path).content == SONG
    assert download(served_page, "/proc/self/environ").status_code == 403
    made = result(served_page, "made")["path"]
    assert download(served_page, made).text == MADE_BY_THE_PAGE
    # A temporary file, which a function may return.
    [*_, log] = served_pages.logs.glob("serve/*.log")
    with pytest.raises(httpx2.HTTPStatusError):
        result(served_page, "returned", str(log))


@pytest.mark.served
def test_on_ray_an_embedded_page_keeps_its_session_without_a_cookie(
    files_behind_a_prefix: str,
) -> None:
    headers = {"origin": WIKI, "sec-fetch-site": "cross-site"}
    replicas = set()
    for _ in range(6):
        found = httpx2.get(f"{files_behind_a_prefix}/config", headers=headers)
        assert found.headers["access-control-allow-origin"] == WIKI
        root = found.json()["root"]
        replicas.add(root.rpartition("/~")[2].partition(".")[0])
        with httpx2.Client(base_url=root, headers=headers, timeout=60) as page:
            for way in (Way.QUEUED, Way.CALL):
                page.cookies.clear()
                [address] = set(re.findall(r'"(http[^"]*/file=[^"]+)"', ask(page, way, "made")))
                assert address.startswith(f"{root}/gradio_api/file=")
                assert httpx2.get(address, headers=headers).text == MADE_BY_THE_PAGE
    assert len(replicas) == 2
    refused = {"origin": "https://elsewhere.example"}
    assert httpx2.post(f"{root}/gradio_api/run/made", headers=refused).status_code == 403


@pytest.mark.served
def test_on_ray_flags_and_cached_examples_are_saved_where_ray_was_started(files: str) -> None:
    with httpx2.Client(base_url=files, timeout=60) as page:
        assert result(page, "folder") == str(Path.cwd())
