"""Requests that no honest client sends, byte by byte, and what came back."""

import asyncio
import gzip
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

HANGS_SECONDS = 30.0
AT_ONCE = 8
OVERSIZED = 2**21
METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "WALK")
ROUTES = (
    *("", "config", "theme.css", "manifest.json", "monitoring", "login", "logout"),
    *("gradio_api/info", "gradio_api/queue/join", "gradio_api/queue/data?session_hash=me"),
    *("gradio_api/call/generate", "gradio_api/run/generate", "gradio_api/call/generate/me"),
    *("gradio_api/upload", "gradio_api/component_server", "gradio_api/cancel"),
    *("gradio_api/heartbeat/me", "gradio_api/dev/reload", "gradio_api/reset"),
)
FILE_ROUTES = (
    *("", "static/", "assets/", "svelte/", "theme.css/", "gradio_api/file=", "gradio_api/file/"),
    *("gradio_api/proxy=", "gradio_api/custom_component/1/client/component/"),
)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """Below the application's own."""
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    length: bool = True
    """Whether the length of the body is announced."""

    def encode(self, host: str, prefix: str) -> bytes:
        lines = [f"{self.method} {prefix}/{self.path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.length and self.method != "GET":
            lines.append(f"Content-Length: {len(self.body)}")
        head = "\r\n".join([*lines, "Connection: close", "", ""])
        return head.encode("utf-8", "surrogateescape") + self.body


@dataclass(frozen=True)
class Answer:
    request: Request
    status: int
    """0 when the connection was closed without one."""
    body: bytes = field(repr=False)


def hostile_requests(files: Sequence[str], cookie: str, number: int) -> list[Request]:
    """Returns as many requests, the same ones each time.

    Args:
        files: absolute paths that are no business of the page.
        cookie: name of the cookie that the page sets.
    """
    chance = random.Random(number)  # noqa: S311
    kinds: list[Callable[[], Request]] = [
        lambda: traversal(chance, files),
        lambda: named_file(chance, files),
        lambda: broken_body(chance),
        lambda: header_trick(chance),
        lambda: forged_cookie(chance, cookie),
    ]
    return [kinds[turn % len(kinds)]() for turn in range(number)]


def traversal(chance: random.Random, files: Sequence[str]) -> Request:
    up = chance.choice(["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%252e%252e%252f", "..;/"])
    up = chance.choice([up, "..\\", "..%5c", "....//", "%c0%ae%c0%ae/", "", "/", "./"])
    file = chance.choice(files)
    target = chance.choice(
        [
            up * chance.randrange(1, 12) + file.lstrip("/"),
            file,
            file.replace("/", "%2f"),
            f"file://{file}",
            f"{file}%00.svg",
            f"x/../..{file}",
            f"http://127.0.0.1/{file}",
        ]
    )
    return Request(chance.choice(["GET", "HEAD"]), chance.choice(FILE_ROUTES) + target)


def named_file(chance: random.Random, files: Sequence[str]) -> Request:
    """A call that names a file of the server as one that it has uploaded."""
    file: dict[str, object] = {"path": chance.choice([*files, "http://127.0.0.1:8000/config"])}
    if chance.random() < 0.8:
        file["meta"] = {"_type": "gradio.FileData"}
    value = chance.choice([file, [file], {"deep": [file]}, {"text": "a", "files": [file]}])
    call = {"data": [value, 1, 1, "1", "1"], "fn_index": 0, "session_hash": "me"}
    route = chance.choice(["run/generate", "call/generate", "queue/join"])
    headers = [("Content-Type", "application/json")]
    return Request("POST", f"gradio_api/{route}", headers, json.dumps(call).encode())


def broken_body(chance: random.Random) -> Request:
    call: dict[str, object] = {
        "data": chance.choice([[], ["a"], ["a", 1, 1, "1", "1"], {"a": 1}, "a", None, [[[]]]]),
        "fn_index": chance.choice([0, 1, -1, 99, 10**40, "1", None, 1.5, True]),
        "session_hash": chance.choice(["me", "", "m" * 10_000, None, {}, 1, "../../me", "\0"]),
        "event_id": chance.choice(["me", None, [], 3]),
        "fn_name": chance.choice(["__init__", "../x", None]),
        "component_id": chance.choice([1, -1, "1", None]),
    }
    whole = json.dumps(call).encode()
    bodies = [
        whole,
        whole[: chance.randrange(len(whole))],
        whole.replace(b'"a"', b'"\xff\xfe"'),
        whole.replace(b'"a"', rb'"\ud800"'),
        whole.replace(b'"a"', b"NaN"),
        b"[" * 50_000,
        b"null",
        bytes(chance.randrange(256) for _ in range(200)),
        b"0" * chance.choice([100, OVERSIZED]),
        gzip.compress(bytes(OVERSIZED)),
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../x"\r\n\r\nx\r\n--x--',
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="\0"\r\n\r\nx\r\n--x--',
        b"--x\r\nContent-Disposition: form-data\r\n\r\nx",
        b"--x\r\n",
    ]
    kinds = ["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "x"]
    headers = [("Content-Type", chance.choice(kinds))]
    if chance.random() < 0.1:
        headers.append(("Content-Encoding", "gzip"))
    body = chance.choice(bodies)
    if chance.random() < 0.2:
        size = chance.choice([f"{len(body):x}", "0", "-1", "ffffffffffff", "zz"])
        chunked = f"{size}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        headers.append(("Transfer-Encoding", "chunked"))
        return Request("POST", chance.choice(ROUTES), headers, chunked, length=False)
    return Request("POST", chance.choice(ROUTES), headers, body)


def header_trick(chance: random.Random) -> Request:
    tricks = [
        ("Host", "elsewhere.example"),
        ("X-Forwarded-Host", "elsewhere.example, elsewhere.example"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Proto", "javascript"),
        ("X-Forwarded-Prefix", "/../../etc"),
        ("X-Original-URL", "/config"),
        ("X-Rewrite-URL", "/config"),
        ("X-Session-Lost", "1"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("Content-Length", "-1"),
        ("Content-Length", "5, 6"),
        ("Content-Length", "9" * 30),
        ("Transfer-Encoding", "chunked, identity"),
        ("Authorization", "Basic"),
        ("Authorization", "Basic " + "=" * 1000),
        ("Authorization", "Basic YWRhOg=="),
        ("Authorization", "Bearer " + "a" * 500),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade, keep-alive"),
        ("Range", "bytes=-1,0-,5-1"),
        ("Accept-Language", "\x7f" * 10),
        ("Accept", "x" * 30_000),
        ("Origin", "null"),
        ("Origin", "http://elsewhere.example"),
        ("Referer", "http://elsewhere.example/?deep_link=../../x"),
        ("serve_multiplexed_model_id", "../x"),
        ("X-Request-ID", "1\x00;2"),
        ("X-Request-ID", "1" * 30_000),
        ("traceparent", "00-zz-zz-zz"),
        ("Bad Name", "1"),
        ("", "1"),
    ]
    headers = chance.sample(tricks, chance.randrange(1, 4))
    if chance.random() < 0.05:
        headers += [(f"X-{number}", "1") for number in range(300)]
    return Request(chance.choice(METHODS), chance.choice(ROUTES), headers)


def forged_cookie(chance: random.Random, name: str) -> Request:
    value = chance.choice(
        [
            *("", ".", "..", "a.b", "." * 100, "a" * 5000, "../../x", "null", "%00", "a=b=c"),
            *('"', '"a', "a;b", "é", "\x01", "gASVAAAA.", quote("cos\nsystem\n(S'id'\ntR."), "'--"),
        ]
    )
    other = chance.choice([name, f"{name}x", "access-token", "session", "username", "a b"])
    cookies = chance.choice(
        [f"{other}={value}", f"{other}={value}; {name}=x.y", f"{value}; {name}"]
    )
    headers = [("Cookie", cookies)] * chance.choice([1, 1, 1, 2, 50])
    path = chance.choice([*ROUTES, "gradio_api/call/count", "gradio_api/run/count"])
    return Request(chance.choice(["GET", "POST"]), path, headers)


def send_all(url: str, requests: Iterable[Request]) -> list[Answer]:
    """Raises TimeoutError, with the request, when one of them hangs."""

    async def send_some_at_once() -> list[Answer]:
        places = asyncio.Semaphore(AT_ONCE)

        async def send_one(request: Request) -> Answer:
            async with places:
                try:
                    async with asyncio.timeout(HANGS_SECONDS):
                        return await send(url, request)
                except TimeoutError as error:
                    raise TimeoutError(f"{request!r}"[:1000]) from error

        return await asyncio.gather(*(send_one(request) for request in requests))

    return asyncio.run(send_some_at_once())


async def send(url: str, request: Request) -> Answer:
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    received = bytearray()
    try:
        writer.write(request.encode(where.netloc, where.path))
        await writer.drain()
        # An event stream goes on for as long as its reader stays.
        while b"text/event-stream" not in received.lower() and (part := await reader.read(2**16)):
            received += part
    except ConnectionError:
        # What is refused early is not read to its end.
        pass
    finally:
        writer.close()
    line, _, rest = bytes(received).partition(b"\r\n")
    words = line.split()
    return Answer(request, int(words[1]) if len(words) > 1 else 0, rest)
