"""Users who ask again and again, in a process of their own, and say how each call went.

`python -m tests.faults.users` prints an outcome for each call, as JSON.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx2

from benchmarks.users import Call, messages, open_page

from ..answers import TEMPLATE

HANGS_SECONDS = 60.0
PAUSE_SECONDS = 0.5
PANE_FAILURE = "⚠"


@dataclass(frozen=True)
class Outcome:
    """One call of one user; times are seconds of the clock on the wall."""

    user: int
    began: float
    ended: float
    first_text: float = 0.0
    failure: str | None = None
    answer: list[str | int | float | None] = field(default_factory=list)


class Crowd:
    def __init__(self, log: Path, process: subprocess.Popen[bytes]) -> None:
        self._log = log
        self.process = process

    def outcomes(self) -> list[Outcome]:
        """Of the calls that have ended by this time."""
        *lines, _ = self._log.read_text("utf-8").split("\n")
        return [Outcome(**json.loads(line)) for line in lines]

    def leave(self) -> list[Outcome]:
        """Returns how all calls went, after each user has ended the one in hand."""
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
        yield Crowd(log, process)
    finally:
        process.kill()
        process.wait()


async def ask_until(call: Call, user: int, enough: asyncio.Event) -> None:
    async with httpx2.AsyncClient(timeout=HANGS_SECONDS) as browser:
        function = await open_page(browser, call)
        session = uuid.uuid4().hex
        while not enough.is_set():
            outcome = await ask(browser, call, function, user, session)
            print(json.dumps(asdict(outcome)), flush=True)
            await asyncio.sleep(PAUSE_SECONDS)


async def ask(
    browser: httpx2.AsyncClient, call: Call, function: int, user: int, session: str
) -> Outcome:
    began = time.time()
    first_text = 0.0
    answer: list[str | int | float | None] = []
    failure: str | None = "the stream ended before the answer"
    try:
        async with asyncio.timeout(HANGS_SECONDS):
            question = {"data": call.data, "fn_index": function, "session_hash": session}
            joined = await browser.post(f"{call.url}/gradio_api/queue/join", json=question)
            if joined.status_code != 200:
                failure = f"{joined.status_code}: {joined.text[:200]}"
                return Outcome(user, began, time.time(), failure=failure)
            url = f"{call.url}/gradio_api/queue/data"
            async for message in messages(browser, url, session):
                answer = json.loads(json.dumps(message.output.get("data") or []))
                if not first_text and any(answer):
                    first_text = time.time()
                if message.msg == "process_completed":
                    failure = None if message.success else str(message.output)[:200]
                    break
    except TimeoutError:
        failure = f"it hung for {HANGS_SECONDS:.0f} s"
    except (httpx2.HTTPError, json.JSONDecodeError) as error:
        failure = repr(error)[:200]
    if failure is None and PANE_FAILURE in str(answer):
        failure = str(answer)[-200:]
    return Outcome(user, began, time.time(), first_text, failure, answer)


async def run(call: Call, users: int) -> None:
    enough = asyncio.Event()
    asking = [asyncio.create_task(ask_until(call, user, enough)) for user in range(users)]
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
