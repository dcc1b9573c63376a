"""Calls a served app and records the results, except for what differs between plain servers."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from .app import Ask, File

SECONDS = 60
FAILED, REFUSED = 500, 422

OF_A_PROCESS = {"app_id", "root", "username", "duration", "average_duration", "used_cache"}
"""Fields that differ between starts or replicas."""
OF_THE_TEMPLATE = {"footer_links", "max_file_size", "run_history", "secret", "storage_key"}
"""Fields that have a different value on Serve by design."""


@dataclass(frozen=True)
class Served:
    """An app on a server."""

    url: str
    headers: Mapping[str, str]
    uploads: Path
    """Where the server stores files."""


def transcript(served: Served, asks: Iterable[Ask], files: Path) -> dict[str, Any]:
    """Returns the page's config and API, and the result of each call."""
    headers = {**served.headers, "x-tests": "whale"}
    with (
        httpx2.Client(base_url=served.url, headers=headers, timeout=SECONDS) as page,
        tempfile.TemporaryDirectory() as downloads,
    ):
        config = page.get("config").raise_for_status().json()
        # A missing value is spelled in one of two ways.
        config |= {name: config[name] or None for name in ("css", "head", "js")}
        # The other replica may have to build the app first.
        patient = {"timeout": SECONDS}
        client = Client(
            served.url,
            headers=headers,
            download_files=downloads,
            verbose=False,
            httpx_kwargs=patient,
        )
        found = {
            "html": page.get("").status_code,
            "theme": digest(page.get("theme.css").content),
            "config": config,
            "api": page.get("gradio_api/info").json(),
            "calls": [
                [ask.endpoint, _call(client, ask, files), _run(page, ask, config)] for ask in asks
            ],
        }
        client.close()
        return dict(_comparable(found, served, Path(downloads)))


def differences(plain: Any, on_ray: Any, where: str = "") -> list[str]:
    """Returns a line for each place at which two transcripts differ."""
    if isinstance(plain, dict) and isinstance(on_ray, dict):
        names = {**plain, **on_ray}
        pairs = [(f"{where}.{name}", plain.get(name), on_ray.get(name)) for name in names]
    elif isinstance(plain, list) and isinstance(on_ray, list) and len(plain) == len(on_ray):
        pairs = [
            (f"{where}[{number}]", *both)
            for number, both in enumerate(zip(plain, on_ray, strict=True))
        ]
    else:
        return [] if plain == on_ray else [f"{where}: {plain!r} is {on_ray!r} on Ray"]
    return [line for at, one, other in pairs for line in differences(one, other, at)]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _call(client: Client, ask: Ask, files: Path) -> dict[str, Any]:
    """Calls through the queue, unless the app says otherwise."""
    job = client.submit(*_with_files(ask.values, files), api_name=ask.endpoint)
    came: dict[str, Any] = {}
    try:
        came["result"] = job.result(timeout=SECONDS)
    except (AppError, CancelledError, TimeoutError, ValueError, TypeError) as error:
        came["error"] = f"{type(error).__name__}: {error}"
    came["steps"] = job.outputs()
    return came


def _with_files(value: Any, files: Path) -> Any:
    if isinstance(value, File):
        return handle_file(files / value.name)
    if isinstance(value, dict):
        return {key: _with_files(each, files) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_files(each, files) for each in value)
    return value


def _run(page: httpx2.Client, ask: Ask, config: dict[str, Any]) -> list[Any] | None:
    """Calls without the queue, with unchanged values."""
    body = {"data": _with_states(ask, config)}
    try:
        text = json.dumps(body)
    except TypeError:
        # A file is uploaded first.
        return None
    answer = page.post(
        f"gradio_api/run{ask.endpoint}", content=text, headers={"content-type": "application/json"}
    )
    is_json = answer.headers["content-type"].startswith("application/json")
    status = REFUSED if ask.refused and answer.status_code == FAILED else answer.status_code
    return [status, answer.json() if is_json else answer.text]


def _with_states(ask: Ask, config: dict[str, Any]) -> list[Any]:
    """Returns the values, with a null for each state, which is not in the API."""
    types = {component["id"]: component["type"] for component in config["components"]}
    values = list(ask.values)
    for dependency in config["dependencies"]:
        if dependency["api_name"] == ask.endpoint.strip("/"):
            for place, component in enumerate(dependency["inputs"]):
                if types[component] == "state":
                    values.insert(place, None)
    return values


def _comparable(value: Any, served: Served, downloads: Path) -> Any:
    if isinstance(value, dict):
        left_out = OF_A_PROCESS | OF_THE_TEMPLATE
        return {
            key: _comparable(each, served, downloads)
            for key, each in value.items()
            if key not in left_out
        }
    if isinstance(value, list | tuple):
        return [_comparable(each, served, downloads) for each in value]
    if not isinstance(value, str):
        return value
    if value.startswith(f"{downloads}/") and Path(value).is_file():
        return f"{Path(value).name} {digest(Path(value).read_bytes())}"
    return readable(value, served)


def readable(text: str, served: Served) -> str:
    """Removes the server's address and folders from a text."""
    text = text.replace(served.url, "URL/").replace(served.url.rstrip("/"), "URL")
    text = re.sub(" at 0x[0-9a-f]+>", ">", text)
    folder = re.escape(str(served.uploads))
    return re.sub(rf"{folder}(?:/[^/\s\"')]+)*/([^/\s\"')]+)", r"FILES/\1", text)
