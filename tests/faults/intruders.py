"""Hostile requests, sent byte by byte, and the responses to them."""

import asyncio
import base64
import gzip
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote, urlsplit

HANGS_SECONDS = 30.0
AT_ONCE = 8
OVERSIZED = 2**21
MEGABYTE = 2**20
BROWSER = (
    ("Accept", "text/html"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-Dest", "document"),
)
NOT_TEXT = "\udcff\udcfe"
"""Bytes that are invalid text in every common encoding."""
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
    """The path below the application's."""
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    length: bool = True
    """Whether to send a Content-Length header."""
    host: str | None = None
    """Replaces the page's host."""
    foreign: bool = False
    """Whether the request must be refused with or without a login."""

    def encode(self, host: str, prefix: str) -> bytes:
        own = host if self.host is None else self.host
        lines = [f"{self.method} {prefix}/{self.path} HTTP/1.1", f"Host: {own}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.length and self.method != "GET":
            lines.append(f"Content-Length: {len(self.body)}")
        head = "\r\n".join([*lines, "Connection: close", "", ""])
        return head.encode("utf-8", "surrogateescape") + self.body


@dataclass(frozen=True)
class Answer:
    request: Request
    status: int
    """0 if the connection was closed without a response."""
    body: bytes = field(repr=False)


def hostile_requests(files: Sequence[str], cookie: str, number: int) -> list[Request]:
    """Returns this many requests, the same ones each time.

    Args:
        files: absolute paths that the page must not read.
        cookie: name of the cookie that the page sets.
    """
    chance = random.Random(number)  # noqa: S311
    kinds: list[Callable[[], Request]] = [
        lambda: traversal(chance, files),
        lambda: named_file(chance, files),
        lambda: broken_body(chance),
        lambda: header_trick(chance),
        lambda: forged_cookie(chance, cookie),
        lambda: other_site(chance),
        lambda: forged_key(chance, ()),
        lambda: megabyte(chance),
    ]
    return in_turns(kinds, number)


@dataclass(frozen=True)
class Begun:
    """A login that an attacker has started but cannot finish."""

    cookie: str
    """Name of its cookie."""
    value: str
    state: str

    @property
    def session(self) -> str:
        """Returns the name of the session cookie."""
        return self.cookie.rpartition("-")[0]


def hostile_logins(
    begun: Sequence[Begun], sessions: Sequence[str], keys: Sequence[str], number: int
) -> list[Request]:
    """Returns this many requests to a page with a login at a provider.

    Args:
        sessions: session cookie values of other pages.
        keys: valid keys of its API.
    """
    chance = random.Random(number)  # noqa: S311
    kinds: list[Callable[[], Request]] = [
        lambda: forged_callback(chance, chance.choice(begun)),
        lambda: forged_session(chance, chance.choice(begun), sessions),
        lambda: other_target(chance),
        lambda: forged_key(chance, keys),
        lambda: megabyte(chance),
        lambda: broken_body(chance),
    ]
    return in_turns(kinds, number)


def hostile_files(
    files: Sequence[str], functions: Sequence[str], session: str, number: int
) -> list[Request]:
    """Returns this many requests from a logged-in user of a page that accepts uploads.

    Args:
        files: absolute paths that the page must not read.
        session: the session cookie of the user.
    """
    chance = random.Random(number)  # noqa: S311
    kinds: list[Callable[[], Request]] = [
        lambda: traversal(chance, files),
        lambda: named_file(chance, files, functions),
        lambda: hostile_upload(chance, files),
    ]
    return [
        replace(each, headers=[*each.headers, ("Cookie", session)])
        for each in in_turns(kinds, number)
    ]


def in_turns(kinds: Sequence[Callable[[], Request]], number: int) -> list[Request]:
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


def named_file(
    chance: random.Random, files: Sequence[str], functions: Sequence[str] = ("generate",)
) -> Request:
    """A call that refers to a server file as an upload."""
    file: dict[str, object] = {"path": chance.choice([*files, "http://127.0.0.1:8000/config"])}
    if chance.random() < 0.8:
        file["meta"] = {"_type": "gradio.FileData"}
    value: object = chance.choice([file, [file], {"deep": [file]}, {"text": "a", "files": [file]}])
    function = chance.choice(functions)
    data = [value, 1, 1, "1", "1"] if function == "generate" else [value]
    number = functions.index(function)
    call = {"data": data, "fn_index": number, "session_hash": "me"}
    route = chance.choice([f"run/{function}", f"call/{function}", "queue/join"])
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


def other_site(chance: random.Random) -> Request:
    """A browser request from a site that resolves to this machine, or from another site."""
    path = chance.choice([*ROUTES, "v1/models", "mcp"])
    if chance.random() < 0.5:
        host = chance.choice(
            [
                *(
                    "elsewhere.example",
                    "127.0.0.1.elsewhere.example",
                    "localhost.elsewhere.example",
                ),
                *("127.1", "0x7f000001", "2130706433", "0177.0.0.1", "[::1].elsewhere.example"),
                *("localhost@elsewhere.example", "127.0.0.1:80@elsewhere.example", "localhost:x"),
                *("localhost/", "localhost#", "localhost, elsewhere.example", "l\xf6calhost"),
                *("elsewhere.example:8000", "localhost\\.elsewhere.example", "", "*", "a" * 300),
                *("xn--lcalhost-o4a", "127.0.0.1%00.elsewhere.example", f"{NOT_TEXT}localhost"),
            ]
        )
        method = chance.choice(["GET", "POST", "HEAD", "OPTIONS"])
        return Request(method, path, BROWSER, host=host, foreign=True)
    origin = chance.choice(
        [
            *("http://elsewhere.example", "https://elsewhere.example", "null", "file://"),
            *("http://127.0.0.1.elsewhere.example", "http://localhost.elsewhere.example", "x"),
            *("http://127.0.0.1:1", "http://elsewhere.example@127.0.0.1", "http://[::1", "*"),
            *("http://127.0.0.1/..", "http://elsewhere.example http://127.0.0.1", "a" * 10_000),
        ]
    )
    headers = [("Origin", origin), ("Content-Type", "text/plain")]
    body = json.dumps({"data": ["a", 1, 1, "1", "1"], "fn_index": 0, "session_hash": "me"})
    method = chance.choice(["POST", "PUT", "DELETE", "PATCH"])
    return Request(method, path, headers, body.encode(), foreign=True)


def forged_key(chance: random.Random, keys: Sequence[str]) -> Request:
    """A forged key."""
    own = chance.choice([*keys, "whale"])
    value = chance.choice(
        [
            *(
                "",
                "Bearer",
                "Bearer ",
                "bearer\t",
                "Basic",
                "Digest x",
                "Negotiate",
                ":",
                "Bearer :",
            ),
            *("Bearer null", "Bearer undefined", "Bearer *", "Bearer ' OR 1=1", "Bearer \x01"),
            *("Bearer \xe9\xff", f"Bearer {NOT_TEXT}", "Bearer \x00", f"Bearer {own}\x00"),
            *(f"Bearer {own}x", f"Bearer {own[:-1]}", f"Bearer {own.swapcase()}", f"Basic {own}"),
            *(f"Bearer {own}, Bearer {own}", f"Bearer Bearer {own}", f"Bearer{own}", own),
            *(f"Bearer robot:{own}", f"Bearer {quote(f' {own}')}", "Bearer " + "a" * MEGABYTE),
            *(f"Bearer {'eyJhbGciOiJub25lIn0.e30.'}", "Basic OmE=", "Basic " + "=" * 65_000),
        ]
    )
    headers = [("Authorization", value)]
    if chance.random() < 0.2:
        headers += [("Authorization", "Bearer x"), ("X-API-Key", own), ("Api-Key", own)]
    path = chance.choice(
        ["v1/models", "v1/chat/completions", "v1/models/x", "mcp", "mcp/", "config"]
    )
    method = "GET" if path == "config" else chance.choice(["GET", "POST"])
    chat = {"model": "stand-in", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    body = json.dumps(chat).encode() if method == "POST" else b""
    return Request(method, path, [*headers, ("Content-Type", "application/json")], body)


def megabyte(chance: random.Random) -> Request:
    """A header of one megabyte, or many with that total size."""
    much = chance.choice(
        ["a", "a=b; ", '"\\', "127.0.0.1, ", "%00", "gzip;q=0.1,", "\xff", "[", "."]
    )
    text = much * (MEGABYTE // len(much))
    headers = chance.choice(
        [
            *([(name, text)] for name in ("Cookie", "Authorization", "X-Forwarded-For", "Accept")),
            *([(name, text)] for name in ("X-Forwarded-Host", "Origin", "Referer", "User-Agent")),
            *([(name, text)] for name in ("X-Request-ID", "traceparent", "Accept-Language")),
            *([(name, text)] for name in ("Content-Type", "Range", "If-None-Match", "Forwarded")),
            [("A" * MEGABYTE, "1")],
            [(f"X-{number}", "1" * 100) for number in range(MEGABYTE // 110)],
            [("Cookie", f"page-{number}={text[:1000]}") for number in range(1000)],
            [("X-Forwarded-For", text[:1000])] * 1000,
        ]
    )
    path = chance.choice([*ROUTES, "v1/models", "oidc/callback?state=a&code=b"])
    return Request(chance.choice(["GET", "GET", "POST"]), path, [*BROWSER, *headers])


def forged_callback(chance: random.Random, begun: Begun) -> Request:
    """The callback of a login that never succeeded, or of another user."""
    code = chance.choice(
        [
            *("", "a", "a" * 60_000, "%00", "%ff", NOT_TEXT, "../../token", "%0d%0aSet-Cookie:a=b"),
            *("a&code=b", "a&code[]=b", "a%26grant_type=client_credentials", quote("é" * 500)),
        ]
    )
    state = chance.choice([begun.state, begun.state, begun.state[:-1], "", "a" * 60_000, NOT_TEXT])
    more = chance.choice(
        [
            *("", "&iss=http://elsewhere.example", "&error=access_denied", "&state=x", "&state="),
            *("&id_token=eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0.", "&next=//elsewhere.example"),
            *("&redirect_uri=http://elsewhere.example", "&access_token=a&user=ada"),
        ]
    )
    cookie = f"{begun.cookie}={changed(chance, begun.value)}"
    headers = [*BROWSER] + ([("Cookie", cookie)] if chance.random() < 0.8 else [])
    path = chance.choice(["oidc/callback", "oidc/callback/", "oidc/callback//", "oidc//callback"])
    method = chance.choice(["GET", "GET", "GET", "POST", "HEAD"])
    return Request(method, f"{path}?state={state}&code={code}{more}", headers)


def forged_session(chance: random.Random, begun: Begun, sessions: Sequence[str]) -> Request:
    value = changed(chance, chance.choice([*sessions, begun.value]))
    name = chance.choice([begun.session, begun.session, begun.cookie, f"{begun.session}-(x"])
    cookies = chance.choice(
        [
            f"{name}={value}",
            f"{name}=; {name}={value}",
            "; ".join(f"{begun.session}-{number:016x}={value[:20]}" for number in range(2000)),
            "; ".join(f"{begun.session}-({number}=a" for number in range(10)),
        ]
    )
    path = chance.choice([*ROUTES, "logout", "oidc/logged-out", "mcp", "v1/models"])
    headers = [*BROWSER] if chance.random() < 0.7 else []
    return Request(chance.choice(["GET", "GET", "POST"]), path, [*headers, ("Cookie", cookies)])


def changed(chance: random.Random, sealed: str) -> str:
    """Returns the value of a cookie, possibly tampered with."""
    place = chance.randrange(len(sealed))
    first, *rest = sealed.split(".")

    def headed(header: object) -> str:
        text = base64.urlsafe_b64encode(json.dumps(header).encode()).decode().rstrip("=")
        return ".".join([text, *rest])

    return chance.choice(
        [
            sealed,
            sealed,
            sealed[:place],
            f"{sealed[:place]}x{sealed[place + 1 :]}",
            f"{first}....",
            headed({"alg": "none"}),
            headed({"alg": {}, "enc": []}),
            headed(["alg", "enc"]),
            headed("alg and enc"),
            headed({"alg": "PBES2-HS256+A128KW", "enc": "A256GCM", "p2c": 10**8, "p2s": "AAAA"}),
            headed({"alg": "dir", "enc": "A256GCM", "zip": "DEF"}),
            base64.urlsafe_b64encode(b"[" * 700).decode() + "....",
            sealed * 50,
            NOT_TEXT,
            f'"{sealed}',
        ]
    )


def other_target(chance: random.Random) -> Request:
    """A login or logout that tries to redirect to another site."""
    away = "//elsewhere.example"
    path = chance.choice(
        [
            *(
                away,
                f"/{away}",
                "\\\\elsewhere.example",
                "%5c%5celsewhere.example",
                "@elsewhere.example",
            ),
            *(
                "%0d%0aLocation:%20http:%2f%2felsewhere.example",
                f"?next={away}",
                f"?url=http:{away}",
            ),
            *(f"logout?post_logout_redirect_uri=http:{away}", f"logout?back={away}", "a" * 100_000),
            *(f"?{NOT_TEXT}", f"%ff%fe?{NOT_TEXT}={NOT_TEXT}", "?" + "a=1&" * 10_000, "?%", "?#"),
            *(
                f"oidc/logged-out?x={NOT_TEXT}",
                "oidc/callback?" + "state=a&" * 5000,
                f"login?to={away}",
            ),
        ]
    )
    more = chance.choice(
        [
            [],
            [("Referer", f"http:{away}/")],
            [("X-Forwarded-Proto", "javascript"), ("X-Forwarded-Port", "80@elsewhere.example")],
            [("X-Forwarded-Prefix", away), ("X-Original-URL", away)],
            [("Sec-Fetch-Site", "cross-site")],
        ]
    )
    return Request("GET", path, [*BROWSER, *more])


def hostile_upload(chance: random.Random, files: Sequence[str]) -> Request:
    file = chance.choice(files)
    name = chance.choice(
        [
            *(
                "../" * 9 + f"{file.lstrip('/')}-uploaded",
                f"{file}-uploaded",
                "..",
                ".",
                "",
                "/",
                "~",
            ),
            *(
                "..\\..\\x",
                "C:\\x",
                "x\0.txt",
                "a" * 10_000,
                "é" * 300,
                NOT_TEXT,
                "a/../../b",
                "\u202e",
            ),
            *(
                "x\r\ny: z",
                '"',
                "con",
                ".bashrc",
                "-rf",
                "%2e%2e%2fx",
                f"{file}%00.txt",
                " ",
                "x.html",
            ),
        ]
    )
    field = chance.choice(["files", "files", "files", "file", "", "f" * 10_000])
    kind = chance.choice(["text/plain", "text/html", "x", "image/svg+xml\0", "a" * 10_000])
    part = (
        f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        f"Content-Type: {kind}\r\n\r\n<script>alert(1)</script>\r\n"
    ).encode("utf-8", "surrogateescape")
    body = part * chance.choice([1, 1, 2, 50]) + chance.choice([b"--x--", b"--x--", b""])
    given = chance.choice(["", "", f"?upload_id=../..{file}", "?upload_id=" + "a" * 10_000])
    headers = [("Content-Type", "multipart/form-data; boundary=x")]
    return Request("POST", f"gradio_api/upload{given}", headers, body)


def send_all(url: str, requests: Iterable[Request]) -> list[Answer]:
    """Raises TimeoutError with the request if one hangs."""

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
        # An event stream continues as long as its reader stays connected.
        while b"text/event-stream" not in received.lower() and (part := await reader.read(2**16)):
            received += part
    except ConnectionError:
        # The server may refuse a request before it has read it all.
        pass
    finally:
        writer.close()
    line, _, rest = bytes(received).partition(b"\r\n")
    words = line.split()
    return Answer(request, int(words[1]) if len(words) > 1 else 0, rest)
