"""A model hub on loopback that implements the protocol for downloads.

`python -m tests.support.loopback_hub` serves tiny models under the names of the settings until it
is interrupted or its standard input closes, and prints the HF_ENDPOINT to use.
"""

import hashlib
import json
import re
import ssl
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

from .tiny_models import save_tiny_decoder, save_tiny_encoder_decoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DECODERS = [
    *("gpt2", "distilgpt2"),
    *("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
]
ENCODER_DECODERS = ["t5-small", "google/flan-t5-small"]
ROUTE = re.compile(
    r"^(?:/api/models/(?P<api>.+?)/(?P<listing>revision|tree)/(?P<revision>[^/]+)"
    r"|/(?P<model>.+?)/resolve/[^/]+/(?P<file>.+))$"
)


@contextmanager
def loopback_hub(
    models: Path,
    *,
    commit: str = COMMIT,
    refusing: HTTPStatus | None = None,
    certificate: Path | None = None,
) -> Iterator[str]:
    """Serves each directory in `models` at its path and yields the HF_ENDPOINT.

    Args:
        commit: the commit of its main branch.
        refusing: a status with which it answers every request.
        certificate: a self-signed certificate with its key.
    """

    class Handler(_Handler):
        root, main, refusal = models, commit, refusing

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def save_tiny_hub(models: Path) -> Path:
    """Saves a tiny model under each name that the settings may use."""
    for name in DECODERS:
        save_tiny_decoder(models / name)
    for name in ENCODER_DECODERS:
        save_tiny_encoder_decoder(models / name)
    return models


class _Handler(BaseHTTPRequestHandler):
    root: Path
    main: str
    refusal: HTTPStatus | None

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _answer(self, *, with_body: bool) -> None:
        if self.refusal:
            self._send(self.refusal, b"", {}, with_body)
            return
        match = ROUTE.match(unquote(urlsplit(self.path).path))
        model = self.root / (match["api"] or match["model"]) if match else self.root
        if match is None or not model.is_dir():
            self._send(HTTPStatus.NOT_FOUND, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
        elif match["listing"] and match["revision"] not in ("main", self.main):
            self._send(HTTPStatus.NOT_FOUND, b"", {"X-Error-Code": "RevisionNotFound"}, with_body)
        elif match["listing"] == "revision":
            siblings = [{"rfilename": each["path"]} for each in _entries(model)]
            self._send_json({"id": match["api"], "sha": self.main, "siblings": siblings}, with_body)
        elif match["listing"] == "tree":
            self._send_json(_entries(model), with_body)
        elif (model / match["file"]).is_file():
            content = (model / match["file"]).read_bytes()
            headers = {"X-Repo-Commit": self.main, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}  # noqa: S324
            self._send(HTTPStatus.OK, content, headers, with_body)
        else:
            self._send(HTTPStatus.NOT_FOUND, b"", {"X-Error-Code": "EntryNotFound"}, with_body)

    def _send_json(self, value: object, with_body: bool) -> None:
        content = json.dumps(value).encode()
        self._send(HTTPStatus.OK, content, {"Content-Type": "application/json"}, with_body)

    def _send(
        self, status: HTTPStatus, content: bytes, headers: dict[str, str], with_body: bool
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)


def _entries(model: Path) -> list[dict[str, str | int]]:
    return [
        {
            "type": "file",
            "path": str(file.relative_to(model)),
            "size": file.stat().st_size,
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),  # noqa: S324
        }
        for file in sorted(model.rglob("*"))
        if file.is_file()
    ]


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        loopback_hub(save_tiny_hub(Path(directory))) as endpoint,
    ):
        print(f"HF_ENDPOINT={endpoint}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
