"""A page that returns every kind of input unchanged, and helpers to call it."""

import json
import os
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Any

import gradio as gr
import httpx2
from ray.serve import Application

from {{ cookiecutter.__package }}.serving import GradioServer, HttpSettings

File = dict[str, Any]
MADE_BY_THE_PAGE = "a song of whales"
WIKI = "https://wiki.example.org"
"""A site that may call the page if the settings allow it."""


def build(settings: HttpSettings) -> Application:
    return GradioServer.bind(settings, file_page)


def file_page() -> gr.Blocks:
    inputs = {
        "textbox": gr.Textbox,
        "file": gr.File,
        "files": lambda: gr.File(file_count="multiple"),
        "image": lambda: gr.Image(type="filepath"),
        "editor": gr.ImageEditor,
        "gallery": gr.Gallery,
        "multimodal": gr.MultimodalTextbox,
        "dataframe": lambda: gr.Dataframe(type="array"),
        "json": gr.JSON,
        "chatbot": gr.Chatbot,
        "audio": lambda: gr.Audio(type="filepath"),
        "video": gr.Video,
    }
    with gr.Blocks() as page:
        for name, kind in inputs.items():
            component = kind()
            gr.Button().click(lambda value: value, component, component, api_name=name)
        name, file = gr.Textbox(), gr.File()
        gr.Button().click(lambda path: path, name, file, api_name="returned")
        gr.Button().click(sing, None, file, api_name="made")
        gr.Button().click(os.getcwd, None, name, api_name="folder")
        gr.Examples([[__file__]], file)
        gr.api(give_back, api_name="api")
        gr.api(give_file_back, api_name="typed_api")
    return page


def give_back(value: dict[str, Any]) -> dict[str, Any]:
    return value


def give_file_back(value: gr.FileData) -> str:
    return Path(value["path"]).read_text()


def sing() -> str:
    song = Path(tempfile.mkdtemp()) / "song.txt"
    song.write_text(MADE_BY_THE_PAGE)
    return str(song)


def named(path: str, **fields: object) -> File:
    """The value that a browser sends for an uploaded file."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **fields}


def places(file: File) -> list[tuple[str, Any]]:
    """Every field in which Gradio expects a file, with its functions."""
    bare = {"path": file["path"]}
    return [
        ("textbox", file),
        ("textbox", [{"deep": {"in": [file]}}]),
        ("file", file),
        ("file", bare),
        ("file", {**file, "is_stream": True}),
        ("file", {**file, "url": f"/gradio_api/file={file['path']}"}),
        ("files", [file]),
        ("files", [bare]),
        ("image", file),
        ("image", bare),
        ("image", {"path": None, "url": file["path"], "meta": file["meta"]}),
        ("editor", {"background": file, "layers": [], "composite": None}),
        ("editor", {"background": bare, "layers": [], "composite": None}),
        ("editor", {"background": None, "layers": [file], "composite": None}),
        ("editor", {"background": None, "layers": [], "composite": file}),
        ("gallery", [{"image": file, "caption": None}]),
        ("gallery", [{"image": bare, "caption": None}]),
        ("gallery", [{"video": file, "caption": None}]),
        ("multimodal", {"text": "whale", "files": [file]}),
        ("multimodal", {"text": "whale", "files": [bare]}),
        ("dataframe", {"headers": ["a"], "data": [[file]], "metadata": None}),
        ("dataframe", {"headers": ["a"], "data": [["b"]], "metadata": {"styling": [[file]]}}),
        ("json", file),
        ("json", {"deep": [{"er": file}]}),
        ("chatbot", said({"type": "file", "file": file})),
        ("chatbot", said({"type": "file", "file": bare})),
        *(("chatbot", said(shown(kind, bare))) for kind in ("image", "file", "audio", "video")),
        ("chatbot", said(shown("gallery", [{"image": bare, "caption": None}]))),
        ("chatbot", said({**shown("html", ""), "constructor_args": {"value": file}})),
        *(("chatbot", said(content)) for content in made_with(file["path"])),
        ("audio", file),
        ("video", file),
        ("video", {"video": file, "subtitles": file}),
        ("video", {"path": "http://127.0.0.1:9/", "video": bare}),
        ("api", file),
        ("api", {"deep": [{"er": file}]}),
        ("typed_api", file),
        ("typed_api", bare),
    ]


def said(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [content], "metadata": None, "options": None}]


def shown(component: str, value: object) -> dict[str, Any]:
    """A component in a message, which Gradio rebuilds from the caller's data."""
    made = {"type": "component", "component": component, "value": value}
    return {**made, "constructor_args": {}, "props": {}}


def made_with(path: str) -> list[dict[str, Any]]:
    """Components in a message whose arguments contain only the path of the file."""
    return [
        {**shown("button", "whale"), "constructor_args": {"icon": path}},
        {**shown("chatbot", []), "constructor_args": {"avatar_images": [path, None]}},
        {**shown("video", None), "constructor_args": {"subtitles": path}},
        {**shown("image", None), "constructor_args": {"watermark": path}},
    ]


class Way(StrEnum):
    QUEUED = "queue/join"
    DIRECT = "run"
    CALL = "call"
    CALL_V2 = "call/v2"


def ask(page: httpx2.Client, way: Way, function: str, *values: object) -> str:
    """Returns the response, or raises `HTTPStatusError`."""
    match way:
        case Way.DIRECT:
            return _post(page, f"run/{function}", {"data": values}).text
        case Way.CALL | Way.CALL_V2:
            [name, *_] = _parameters(page, function)
            body = {"data": values} if way is Way.CALL else dict(zip([name], values, strict=False))
            event = _post(page, f"{way}/{function}", body).json()["event_id"]
            return page.get(f"gradio_api/call/{function}/{event}").text
        case Way.QUEUED:
            functions = [each["api_name"] for each in page.get("config").json()["dependencies"]]
            body = {
                "data": values,
                "fn_index": functions.index(function),
                "session_hash": "whale",
            }
            _post(page, "queue/join", body)
            return page.get("gradio_api/queue/data", params={"session_hash": "whale"}).text


def _parameters(page: httpx2.Client, function: str) -> list[str]:
    known = page.get("gradio_api/info").json()["named_endpoints"][f"/{function}"]
    return [each["parameter_name"] for each in known["parameters"]] or [""]


def _post(page: httpx2.Client, path: str, body: dict[str, Any]) -> httpx2.Response:
    return page.post(f"gradio_api/{path}", json=body).raise_for_status()


def result(page: httpx2.Client, function: str, *values: object) -> Any:
    """Calls the function, and returns its only value."""
    [value] = json.loads(ask(page, Way.DIRECT, function, *values))["data"]
    return value


def upload(page: httpx2.Client, name: str, content: bytes) -> str:
    answer = page.post("gradio_api/upload", files={"files": (name, content)})
    [path] = answer.raise_for_status().json()
    return str(path)


def download(page: httpx2.Client, path: str) -> httpx2.Response:
    return page.get(f"gradio_api/file={path}")
