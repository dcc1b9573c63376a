"""Locust users of a deployed application, and the steps that increase their number.

The locustfiles in this folder define what they ask.
"""

import json
import os
import time
import uuid
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gevent
import requests
from locust import LoadTestShape, User, between, events, task
from locust.env import Environment

BEGIN_SECONDS = 10.0
"""Later answers are late. It is `le` in deploy/monitoring/alerts.yaml, if there is one."""
SHARE = 0.99
"""Share of answers that must start in time, and that must succeed: `objective:share` there."""
STEP_SECONDS = 30.0
GROWTH = 1.5
"""Growth from one step to the next, if no number of users is given."""
PARTS_OF_GOAL = (0.25, 0.5, 1.0)
MOST_USERS = 1000
"""The most users that one Locust process can simulate, however many the application can serve."""
SPAWN_SECONDS = 5.0
"""Seconds over which the new users of a step start, so that they do not all ask at once."""
ANSWER_SECONDS = 600.0
CONNECT_SECONDS = 10.0
REASON_CHARACTERS = 100
PASSED, FAILED, NOT_RUN = 0, 1, 2
HINT = " (set PAGE_USER and PAGE_PASSWORD for a login, or API_KEY for a key)"
ASKED = "asked"
STREAM, AGAIN = "x-stream", ":again"
"""How the page's own script reconnects after `stream_seconds` has ended a request."""


class BadAnswerError(Exception):
    """A short reason why an answer is bad. Locust groups equal reasons."""


FAILURES = (BadAnswerError, requests.RequestException, ValueError)


def users(number: int) -> str:
    return f"{number} user{'s' if number != 1 else ''}"


def short(error: Exception) -> BadAnswerError:
    # The text of other errors may differ from call to call.
    return error if isinstance(error, BadAnswerError) else BadAnswerError(type(error).__name__)


class Asker(User):
    """Asks, reads the whole answer, waits, and repeats."""

    abstract = True
    wait_time = between(1, 5)

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.session = requests.Session()

    def prepare(self) -> None:
        """Finds out how users of this class ask.

        Raises:
            BadAnswerError: the application does not accept requests.
        """
        raise NotImplementedError

    def open(self) -> None:
        """Prepares the user for its first request."""

    def read_answer(self, begin: Callable[[], None]) -> None:
        """Asks, calls `begin` when the answer starts, and returns when it ends."""
        raise NotImplementedError

    def on_start(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self.open()
            except FAILURES as error:
                self._tell("end", began, error)
                self.wait()
            else:
                return

    @task
    def ask(self) -> None:
        with self._answer() as begin:
            self.read_answer(begin)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        response = self.session.request(
            method,
            f"{self.environment.host.rstrip('/')}{path}",
            timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
            **options,
        )
        if response.status_code >= 400:
            reason = " ".join(response.text.split())[:REASON_CHARACTERS]
            hint = HINT if response.status_code == 401 else ""
            raise BadAnswerError(
                f"{path.partition('?')[0]} responds with {response.status_code}: {reason}{hint}"
            )
        return response

    @contextmanager
    def _answer(self) -> Iterator[Callable[[], None]]:
        """Reports to Locust when an answer starts or is late, and how it ends."""
        asked, begun = time.monotonic(), False
        seconds = self.environment.parsed_options.begin_seconds

        def begin(late: BadAnswerError | None = None) -> None:
            nonlocal begun
            if not begun:
                begun = True
                self._tell("begin", asked, late)

        # A late answer counts immediately, since it may never arrive.
        late = gevent.spawn_later(seconds, begin, BadAnswerError(f"not begun within {seconds:g} s"))
        unending = BadAnswerError(f"not finished within {ANSWER_SECONDS:g} s")
        try:
            with gevent.Timeout(ANSWER_SECONDS, unending):
                yield begin
        except FAILURES as error:
            self._tell("end", asked, error)
        else:
            begin()
            self._tell("end", asked)
        finally:
            late.kill(block=False)

    def _tell(self, kind: str, asked: float, failure: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=type(self).__name__,
            response_time=1000 * (time.monotonic() - asked),
            response_length=0,
            exception=failure and short(failure),
            context={ASKED: asked},
        )


@dataclass(frozen=True)
class Function:
    """A function of a page, as Gradio describes it."""

    number: int
    names: tuple[str | None, ...]
    """Argument names; None stands for an input that clients do not send, such as a `gr.State`."""
    defaults: dict[str, Any]

    def data(self, arguments: dict[str, Any]) -> list[Any]:
        names = {name for name in self.names if name is not None}
        unknown, missing = arguments.keys() - names, names - self.defaults.keys() - arguments.keys()
        if unknown or missing:
            raise BadAnswerError(
                f"the endpoint takes {sorted(names)}. Unknown: {sorted(unknown)}. "
                f"Missing: {sorted(missing)}"
            )
        given = {**self.defaults, **arguments}
        return [None if name is None else given[name] for name in self.names]


class PageUser(Asker):
    """Opens the page, joins the queue and reads the stream like a browser."""

    abstract = True
    endpoint: ClassVar[str]
    """The `api_name` of a function, with a leading slash."""
    begins_with: ClassVar[Literal["start", "text"]]
    """When an answer counts as started: when its call leaves the queue, or when text is shown."""
    function: ClassVar[Function]

    def arguments(self) -> dict[str, Any]:
        """Returns the values to send, by argument name."""
        raise NotImplementedError

    def failure_in(self, data: list[Any]) -> str | None:
        """Returns what is wrong with an answer, if anything."""
        return None

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Uploads a file and returns the argument for it."""
        files = {"files": (name, content)}
        [path] = self.request("POST", "/gradio_api/upload", files=files).json()
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def prepare(self) -> None:
        self.open()
        config = self.request("GET", "/config").json()
        described = self.request("GET", "/gradio_api/info").json()["named_endpoints"]
        if self.endpoint not in described:
            raise BadAnswerError(f"no endpoint {self.endpoint}. Use one of {', '.join(described)}")
        left_out = {each["id"] for each in config["components"] if each["skip_api"]}
        parameters = described[self.endpoint]["parameters"]
        names = iter([each["parameter_name"] for each in parameters])
        [found] = [
            each for each in config["dependencies"] if f"/{each['api_name']}" == self.endpoint
        ]
        type(self).function = Function(
            found["id"],
            tuple(None if each in left_out else next(names) for each in found["inputs"]),
            {
                each["parameter_name"]: each["parameter_default"]
                for each in parameters
                if each["parameter_has_default"]
            },
        )

    def open(self) -> None:
        user, password = os.environ.get("PAGE_USER"), os.environ.get("PAGE_PASSWORD")
        if user and password:
            self.request("POST", "/login", data={"username": user, "password": password})
        # Keeps the cookie of the session's replica.
        self.request("GET", "/")
        self.tab = uuid.uuid4().hex

    def read_answer(self, begin: Callable[[], None]) -> None:
        question = {
            "data": self.function.data(self.arguments()),
            "fn_index": self.function.number,
            "session_hash": self.tab,
        }
        self.request("POST", "/gradio_api/queue/join", json=question)
        completed = False
        for message in self._messages():
            output = message.get("output") or {}
            data = output.get("data") or []
            if any(data) or (message["msg"], self.begins_with) == ("process_starts", "start"):
                begin()
            if message["msg"] == "process_completed":
                completed = True
                failure = self.failure_in(data) if message["success"] else str(output.get("error"))
                if failure is not None:
                    raise BadAnswerError(failure[:REASON_CHARACTERS])
        if not completed:
            raise BadAnswerError("the stream ended before the answer did")

    def _messages(self) -> Iterator[dict[str, Any]]:
        name, last = "new", AGAIN
        while last == AGAIN:
            last = ""
            with self.request(
                "GET",
                f"/gradio_api/queue/data?session_hash={self.tab}",
                headers={STREAM: name},
                stream=True,
            ) as stream:
                for line in stream.iter_lines(decode_unicode=True):
                    last = line or last
                    if line.startswith("data:"):
                        yield json.loads(line.removeprefix("data:"))
                name = stream.headers.get(STREAM, name)


@dataclass
class Step:
    """The answers requested at one number of users."""

    users: int
    seconds: float
    settled: float | None = None
    """When the last of the users had started."""
    begun: int = 0
    late: int = 0
    ended: int = 0
    bad: int = 0

    def count(self, kind: str, failure: Exception | None) -> None:
        if kind == "begin":
            self.begun += 1
            self.late += failure is not None
        else:
            self.ended += 1
            self.bad += failure is not None

    def is_within(self) -> bool:
        return (
            self.ended > 0
            and self.begun - self.late >= SHARE * self.begun
            and self.ended - self.bad >= SHARE * self.ended
        )

    def is_over(self) -> bool:
        """Whether the step was long enough for each user to get an answer."""
        if self.settled is None:
            return False
        lasted = time.monotonic() - self.settled
        if lasted < self.seconds:
            return False
        missed = self.late + self.bad > 0 and not self.is_within()
        return missed or self.ended >= self.users or lasted > self.seconds + ANSWER_SECONDS

    def __str__(self) -> str:
        began = f"{self.late} of {self.begun} answers began late"
        return f"{users(self.users)}: {began}, {self.bad} of {self.ended} failed"


class Steps(LoadTestShape):
    """Raises the number of users until they miss the objectives, or up to `--users`."""

    use_common_options = True

    def __init__(self) -> None:
        super().__init__()
        self.goal: int | None = None
        self.step: Step | None = None
        self.served = 0
        self.verdict = "Interrupted before there was a result."
        events.init.add_listener(self._begin)
        events.spawning_complete.add_listener(self._settle)
        events.request.add_listener(self._count)
        events.quit.add_listener(self._say)

    def tick(self) -> tuple[int, float] | None:
        """Runs once a second; returning None ends the test."""
        if self.step is None:
            problem = self._problem()
            if problem is not None:
                self.verdict = problem
                return None
            self.step = self._next_step()
        elif self.step.is_over():
            print(self.step, flush=True)
            if not self.step.is_within():
                self._judge(f" With {self.step}.")
                return None
            self.served = self.step.users
            if self.served >= (self.goal or MOST_USERS):
                self._judge()
                return None
            self.step = self._next_step()
        coming = self.step.users - self.served
        return self.step.users, max(1.0, coming / SPAWN_SECONDS)

    def _next_step(self) -> Step:
        if self.goal is None:
            users = min(max(self.served + 1, int(self.served * GROWTH)), MOST_USERS)
        else:
            parts = [max(1, int(self.goal * part)) for part in PARTS_OF_GOAL]
            users = next(part for part in parts if part > self.served)
        return Step(users, self._options.step_seconds)

    def _problem(self) -> str | None:
        """Returns what is wrong before the first request."""
        environment = self._environment
        if not environment.host:
            return "Set the address of the application: --host https://page.example.org"
        for user_class in environment.user_classes:
            try:
                user_class(environment).prepare()
            except FAILURES as error:
                return f"{user_class.__name__} cannot use {environment.host}: {short(error)}"
        return None

    def _judge(self, last_step: str = "") -> None:
        passed = self.served >= (self.goal or 1)
        self._environment.process_exit_code = PASSED if passed else FAILED
        goal = "" if self.goal is None else f" Goal: {users(self.goal)}."
        self.verdict = (
            f"{'PASSED' if passed else 'FAILED'}: it can serve {users(self.served)} within the "
            f"objectives: {SHARE:.0%} of the answers begin within {self._options.begin_seconds:g} s, "
            f"and {SHARE:.0%} succeed.{goal}{last_step}"
        )

    def _begin(self, environment: Environment, **_: object) -> None:
        self._environment, self._options = environment, environment.parsed_options
        # Must run before Locust sets its own default.
        self.goal = self._options.num_users
        environment.process_exit_code = NOT_RUN

    def _settle(self, **_: object) -> None:
        if self.step is not None:
            self.step.settled = time.monotonic()

    def _count(
        self,
        request_type: str,
        exception: Exception | None,
        context: dict[str, float],
        **_: object,
    ) -> None:
        step = self.step
        if step is not None and step.settled is not None and context[ASKED] >= step.settled:
            step.count(request_type, exception)

    def _say(self, **_: object) -> None:
        print(self.verdict, flush=True)


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--begin-seconds",
        type=float,
        default=BEGIN_SECONDS,
        help="An answer that begins later is late (default: %(default)g).",
    )
    parser.add_argument(
        "--step-seconds",
        type=float,
        default=STEP_SECONDS,
        help="The minimum duration of a step (default: %(default)g).",
    )
