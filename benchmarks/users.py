"""Simulated users, who use a Gradio page as a browser does, or the OpenAI API.

`python -m benchmarks.users` runs some users in one process and prints an answer for each.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2

PROCESSES = 4
LEAD_SECONDS = 0.5
"""Seconds from the last opened page to the first request, so that all users start together."""
ANSWER_SECONDS = 600.0


@dataclass(frozen=True)
class Call:
    """An endpoint of a page with its arguments, or a model behind the OpenAI API."""

    url: str
    api_name: str
    data: list[str | int | float | None]
    model: str | None = None
    """Model to call at `/v1`, with the first item of the data as the prompt."""


@dataclass(frozen=True)
class Answer:
    """Times are in seconds since the call was due."""

    first_text: float
    end: float
    failure: str | None = None


def ask_at_once(call: Call, users: int, calls: int = 1, pause: float | None = None) -> list[Answer]:
    """Runs that many users in separate processes, and returns an answer for each call.

    Args:
        pause: seconds between calls of a user, with staggered starts;
            without it, all users call at once.

    Raises:
        RuntimeError: some users could not open the page.
    """
    processes = min(users, PROCESSES)
    shares = [users // processes + (number < users % processes) for number in range(processes)]
    command = [sys.executable, "-m", "benchmarks.users", json.dumps(asdict(call))]
    step = 0 if pause is None else pause / users
    started = [
        subprocess.Popen(
            [*command, str(share), str(calls), str(pause or 0), str(processes * step)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )
        for share in shares
    ]
    try:
        if not all(process.stdout and process.stdout.readline() for process in started):
            raise RuntimeError(f"Users could not open {call.url}.")
        begin = time.time() + LEAD_SECONDS
        for number, process in enumerate(started):
            print(begin + number * step, file=process.stdin, flush=True)
        outputs = [process.communicate(timeout=ANSWER_SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [Answer(**answer) for output in outputs for answer in json.loads(output)]


async def run_users(call: Call, users: int, calls: int, pause: float, step: float) -> list[Answer]:
    """Reports when all users have opened the page, and reads the start time from stdin.

    Each user starts `step` seconds after the previous one.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncHTTPTransport(limits=limits) as connections:
        # One client per user, because cookies identify users.
        browsers = [
            httpx2.AsyncClient(timeout=ANSWER_SECONDS, transport=connections) for _ in range(users)
        ]
        functions = await asyncio.gather(*(open_page(browser, call) for browser in browsers))
        print("ready", flush=True)
        begin = float(await asyncio.to_thread(sys.stdin.readline))
        answers = await asyncio.gather(
            *(
                ask_again(browser, call, function, begin + number * step, calls, pause)
                for number, (browser, function) in enumerate(zip(browsers, functions, strict=True))
            )
        )
        return [answer for each in answers for answer in each]


async def ask_again(
    browser: httpx2.AsyncClient,
    call: Call,
    function: int,
    begin: float,
    calls: int,
    pause: float,
) -> list[Answer]:
    answers = []
    for number in range(calls):
        due = begin + number * pause
        await asyncio.sleep(due - time.time())
        answers.append(await ask(browser, call, function, due))
    return answers


async def open_page(browser: httpx2.AsyncClient, call: Call) -> int:
    """Returns the number of the endpoint on the page; API calls have none."""
    if call.model is not None:
        return 0
    config = (await browser.get(f"{call.url}/config")).raise_for_status().json()
    [function] = [
        dependency["id"]
        for dependency in config["dependencies"]
        if dependency["api_name"] == call.api_name
    ]
    return int(function)


async def ask(client: httpx2.AsyncClient, call: Call, function: int, begin: float) -> Answer:
    if call.model is not None:
        return await complete(client, call, begin)
    first = 0.0
    session = uuid.uuid4().hex
    question = {"data": call.data, "fn_index": function, "session_hash": session}
    joined = await client.post(f"{call.url}/gradio_api/queue/join", json=question)
    if joined.status_code != 200:
        return Answer(0, time.time() - begin, f"{joined.status_code}: {joined.text[:200]}")
    async for message in messages(client, f"{call.url}/gradio_api/queue/data", session):
        if not first and any(message.output.get("data") or []):
            first = time.time() - begin
        if message.msg == "process_completed":
            failure = None if message.success else str(message.output)[:200]
            return Answer(first, time.time() - begin, failure)
    return Answer(first, time.time() - begin, "the stream ended before the answer")


async def complete(client: httpx2.AsyncClient, call: Call, begin: float) -> Answer:
    first = 0.0
    messages = [{"role": "user", "content": call.data[0]}]
    asked = {"model": call.model, "messages": messages, "stream": True}
    url = f"{call.url}/v1/chat/completions"
    async with client.stream("POST", url, json=asked) as events:
        if events.status_code != 200:
            said = (await events.aread()).decode()
            return Answer(0, time.time() - begin, f"{events.status_code}: {said[:200]}")
        async for line in events.aiter_lines():
            if line == "data: [DONE]":
                return Answer(first, time.time() - begin)
            if line.startswith("data:"):
                said = json.loads(line.removeprefix("data:"))
                if "error" in said:
                    return Answer(first, time.time() - begin, str(said)[:200])
                if not first and any(each["delta"].get("content") for each in said["choices"]):
                    first = time.time() - begin
    return Answer(first, time.time() - begin, "the stream ended before the answer")


@dataclass(frozen=True)
class Message:
    """The relevant parts of a message from Gradio's queue."""

    msg: str
    event: str | None
    success: bool
    output: dict[str, list[object]]


async def messages(client: httpx2.AsyncClient, url: str, session: str) -> AsyncIterator[Message]:
    async with client.stream("GET", url, params={"session_hash": session}) as events:
        async for line in events.aiter_lines():
            if line.startswith("data:"):
                said = json.loads(line.removeprefix("data:"))
                event, success = said.get("event_id"), said.get("success", True)
                yield Message(said["msg"], event, success, said.get("output") or {})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("call", type=lambda text: Call(**json.loads(text)))
    parser.add_argument("users", type=int)
    parser.add_argument("calls", type=int)
    parser.add_argument("pause", type=float)
    parser.add_argument("step", type=float)
    options = parser.parse_args(arguments)
    answers = asyncio.run(
        run_users(options.call, options.users, options.calls, options.pause, options.step)
    )
    print(json.dumps([asdict(answer) for answer in answers]))


if __name__ == "__main__":
    main()
