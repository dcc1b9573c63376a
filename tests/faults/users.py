"""Users who ask repeatedly, in a separate process, and report the outcome of each call.

`python -m tests.faults.users` prints an outcome for each call, as JSON.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.users import Call, Message, messages, open_page

from ..answers import TEMPLATE

HANGS_SECONDS = 60.0
PAUSE_SECONDS = 0.5
ALL_BEGUN_SECONDS = 2.0
PANE_FAILURE = "⚠"


@dataclass(frozen=True)
class Outcome:
    """One call of one user; times are wall-clock seconds."""

    user: int
    began: float
    ended: float
    first_text: float = 0.0
    failure: str | None = None
    answer: list[str | int | float | None] = field(default_factory=list)


class Crowd:
    def __init__(self, users: int, log: Path, process: subprocess.Popen[bytes]) -> None:
        self._users = users
        self._log = log
        self.process = process

    def wait_until_all_are_answered(self) -> list[Outcome]:
        """Returns the outcomes once each user has one."""
        deadline = time.monotonic() + HANGS_SECONDS
        while len({outcome.user for outcome in self.outcomes()}) < self._users:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return self.outcomes()

    def outcomes(self) -> list[Outcome]:
        """Returns the outcomes of the calls that have ended so far."""
        *lines, _ = self._log.read_text("utf-8").split("\n")
        return [Outcome(**json.loads(line)) for line in lines]

    def leave(self) -> list[Outcome]:
        """Stops the users after their current calls, and returns all outcomes."""
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(HANGS_SECONDS + 30) == 0
        return self.outcomes()


@contextmanager
def crowd(call: Call, users: int, directory: Path) -> Iterator[Crowd]:
    log = directory / f"users-{uuid.uuid4().hex}"
    command = [sys.executable, "-m", "tests.faults.users", json.dumps(asdict(call)), str(users)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, cwd=TEMPLATE)
    try:
        yield Crowd(users, log, process)
    finally:
        process.kill()
        process.wait()


class Tab:
    """A page in a browser: one session, whose answers arrive in one stream while it is open."""

    def __init__(self, browser: httpx2.AsyncClient, call: Call, user: int, function: int) -> None:
        self._browser = browser
        self._call = call
        self._user = user
        self._function = function
        self._session = uuid.uuid4().hex
        self._stream: asyncio.Task[bool] | None = None
        self._received = asyncio.Queue[Message | None]()

    async def ask(self, data: list[Any] | None = None) -> Outcome:
        """Sends the call, with other data if given."""
        if data is not None:
            self._call = replace(self._call, data=data)
        began = time.time()
        try:
            async with asyncio.timeout(HANGS_SECONDS):
                first_text, failure, answer = await self._answer()
        except TimeoutError:
            first_text, failure, answer = 0, f"it hung for {HANGS_SECONDS:.0f} s", []
        except (httpx2.HTTPError, json.JSONDecodeError) as error:
            first_text, failure, answer = 0, repr(error)[:200], []
        if failure is not None:
            # Like a browser, which reloads the page.
            if self._stream is not None:
                self._stream.cancel()
            self._session, self._stream = uuid.uuid4().hex, None
        if failure is None and PANE_FAILURE in str(answer):
            failure = str(answer)[-200:]
        return Outcome(self._user, began, time.time(), first_text, failure, answer)

    async def _answer(self) -> tuple[float, str | None, list[Any]]:
        question = {
            "data": self._call.data,
            "fn_index": self._function,
            "session_hash": self._session,
        }
        joined = await self._browser.post(f"{self._call.url}/gradio_api/queue/join", json=question)
        if joined.status_code != 200:
            return 0, f"{joined.status_code}: {joined.text[:200]}", []
        first_text = 0.0
        answer: list[Any] = []
        async for message in self._messages(joined.json()["event_id"]):
            answer = message.output.get("data") or answer
            if not first_text and any(answer):
                first_text = time.time()
            if message.msg == "process_completed":
                failure = None if message.success else str(message.output)[:200]
                return first_text, failure, answer
        return first_text, "the stream ended before the answer", answer

    async def _messages(self, event: str) -> AsyncIterator[Message]:
        """Ends early if the stream ends before the answer is complete."""
        if self._stream is None or self._stream.done():
            self._stream = self._open_stream()
        while True:
            message = await self._received.get()
            if message is None:
                if not await self._stream:
                    return
                self._stream = self._open_stream()
            elif message.event == event:
                yield message

    def _open_stream(self) -> asyncio.Task[bool]:
        self._received = asyncio.Queue()
        stream = asyncio.create_task(self._read(self._received))
        # Between two calls, nobody checks how the stream ended.
        stream.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return stream

    async def _read(self, received: asyncio.Queue[Message | None]) -> bool:
        """Returns whether the server closed the stream because no answers were pending."""
        url = f"{self._call.url}/gradio_api/queue/data"
        try:
            async for message in messages(self._browser, url, self._session):
                if message.msg == "close_stream":
                    return True
                received.put_nowait(message)
            return False
        finally:
            received.put_nowait(None)


async def ask_until(call: Call, user: int, users: int, enough: asyncio.Event) -> None:
    # Start one at a time, so that some of them are always waiting for an answer.
    await asyncio.sleep(ALL_BEGUN_SECONDS * user / users)
    async with httpx2.AsyncClient(timeout=HANGS_SECONDS) as browser:
        tab = Tab(browser, call, user, await open_page(browser, call))
        while not enough.is_set():
            print(json.dumps(asdict(await tab.ask())), flush=True)
            await asyncio.sleep(PAUSE_SECONDS)


async def run(call: Call, users: int) -> None:
    enough = asyncio.Event()
    asking = [asyncio.create_task(ask_until(call, user, users, enough)) for user in range(users)]
    await asyncio.to_thread(sys.stdin.read)
    enough.set()
    await asyncio.gather(*asking)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("call", type=lambda text: Call(**json.loads(text)))
    parser.add_argument("users", type=int)
    options = parser.parse_args()
    asyncio.run(run(options.call, options.users))


if __name__ == "__main__":
    main()
