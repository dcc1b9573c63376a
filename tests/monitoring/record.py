"""Records the series that the alerts are tested with: `nox -s series`.

A real Prometheus scrapes a served project every second during load and faults. A second
represents a minute, so an hour-long fault takes a minute.
"""

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from gradio_client.exceptions import AppError

from ..generated.project import Project
from .prometheus import Prometheus, Series, prometheus
from .served import Crowd, Served, served

STANDS_FOR = {"dying": 10, "to_zero": 10}
"""Scenarios in which a second represents only this many: a replica takes ten of them to start."""
RECORDINGS = Path(__file__).parents[1] / "data" / "series"
JOB = "gradio-on-ray"
"""The job of the project with the default answers."""
LABELS = {
    *("job", "instance", "deployment", "replica", "model", "endpoint", "outcome", "le", "route"),
    *("error_code", "method", "application"),
}
"""The labels that rules use to tell series apart."""
SELECTOR = re.compile(r"(?:\bray_\w+|\bup)(?:{[^}]*})?")
WELL = "go on"
REPLICAS = {"stand-in": 2, "GradioServer": 1}
USERS, MANY, TOO_MANY = 6, 12, 24
BEFORE, FAULT, AFTER = 25, 35, 45
RESTART_SECONDS = 8


@dataclass(frozen=True)
class Recording:
    seconds: int
    """From one sample to the next."""
    fault: int
    """The sample at which the fault begins."""
    after: int
    """The sample at which the fault ends."""
    series: dict[str, str]
    """The values of each series, in promtool's notation."""


@dataclass
class Stage:
    served: Served
    crowd: Crowd
    stop: Callable[[], None]
    marks: list[float] = field(default_factory=list)

    def asks(self, prompt: str, seconds: float, users: int = USERS) -> None:
        """A part of the recording; the second part is the fault."""
        self.marks.append(time.time())
        self.crowd.ask(prompt, users)
        time.sleep(seconds)


def slow(stage: Stage) -> None:
    stage.asks(WELL, BEFORE)
    stage.asks("wait 11", FAULT, MANY)
    stage.asks(WELL, AFTER)


def failing(stage: Stage) -> None:
    stage.asks(WELL, BEFORE)
    stage.asks("fail", FAULT)
    stage.asks(WELL, AFTER)


def one_fails_at_night(stage: Stage) -> None:
    for prompt, seconds in ((WELL, BEFORE), ("fail", FAULT), (WELL, AFTER)):
        stage.marks.append(time.time())
        asked = time.monotonic()
        # There are no other calls.
        with suppress(AppError):
            stage.served.ask(prompt)
        time.sleep(seconds - (time.monotonic() - asked))


def dying(stage: Stage) -> None:
    stage.asks(WELL, BEFORE)
    stage.asks(WELL, 0)
    for _ in range(FAULT // RESTART_SECONDS):
        # On a busy machine, it takes a while until the previous replica is replaced.
        stage.served.wait_for(REPLICAS[stage.served.deployment])[0].kill()
        time.sleep(RESTART_SECONDS)
    stage.asks(WELL, AFTER)


def gone(stage: Stage) -> None:
    stage.asks(WELL, BEFORE)
    stage.served.hindrance.touch()
    for replica in stage.served.wait_for(REPLICAS[stage.served.deployment]):
        replica.kill()
    stage.asks(WELL, FAULT)
    stage.served.hindrance.unlink()
    stage.asks(WELL, AFTER)


def away(stage: Stage) -> None:
    stage.asks(WELL, BEFORE)
    stage.asks(WELL, 0)
    stage.stop()
    time.sleep(FAULT)
    stage.asks(WELL, 0)


def to_zero(stage: Stage) -> None:
    stage.asks(WELL, BEFORE)
    stage.asks("", 0)
    stage.served.wait_for(0)
    time.sleep(FAULT)
    stage.asks(WELL, AFTER)


def waiting(stage: Stage) -> None:
    stage.asks(WELL, BEFORE)
    stage.asks("wait 6", FAULT, MANY)
    stage.asks(WELL, AFTER)


def full(stage: Stage) -> None:
    stage.asks(WELL, BEFORE)
    stage.asks("wait 6", FAULT, TOO_MANY)
    stage.asks(WELL, AFTER)


SCENARIOS: dict[str, tuple[Callable[[Stage], None], ...]] = {
    "compare": (slow, failing, one_fails_at_night, dying, gone, away, to_zero),
    "own": (waiting, full, failing, gone),
}
"""By the answer to `page`."""


def main() -> None:
    """Takes the folders of a compare project and of one with its own page.

    After them, it takes names of scenarios, such as `own-full`, to record only these.
    """
    names = sys.argv[3:]
    for page, root in zip(SCENARIOS, map(Path, sys.argv[1:3]), strict=True):
        # A longer path would make the paths of Ray's sockets too long.
        project = Project(root, root / ".venv", {"RAY_TMPDIR": "/tmp"})  # noqa: S108
        path = RECORDINGS / f"{page}.json"
        recordings = json.loads(path.read_text("utf-8")) if path.exists() else {}
        for act in SCENARIOS[page]:
            if not names or f"{page}-{act.__name__}" in names:
                recordings[act.__name__] = asdict(recorded(project, page, act))
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(recordings, indent=1) + "\n", "utf-8")


def recorded(project: Project, page: str, act: Callable[[Stage], None]) -> Recording:
    with tempfile.TemporaryDirectory() as name, ExitStack() as server:
        page_served = server.enter_context(
            served(project, page, Path(name), scales_to_zero=act is to_zero)
        )
        with (
            prometheus(page_served.metrics, Path(name), 1, JOB) as asked,
            crowd(page_served) as users,
        ):
            stage = Stage(page_served, users, server.close)
            # Wait until each function was called: without a call there is no series.
            page_served.ask(WELL)
            time.sleep(5)
            act(stage)
            seconds = STANDS_FOR.get(act.__name__, 60)
            return recording(asked, project.root, [*stage.marks, time.time()], seconds)


@contextmanager
def crowd(page: Served) -> Iterator[Crowd]:
    users = Crowd(page)
    try:
        yield users
    finally:
        users.leave()


def recording(asked: Prometheus, root: Path, marks: list[float], seconds: int) -> Recording:
    start, fault, after, end = (round(mark) for mark in marks)
    series: dict[str, str] = {}
    for selector in selectors(root):
        for each in asked.over(selector, start, end, 1):
            name, values = name_of(each), notation(each, start, end)
            # Selectors may overlap, but series must be unique.
            assert series.setdefault(name, values) == values, name
    return Recording(seconds, fault - start, after - start, dict(sorted(series.items())))


def selectors(root: Path) -> list[str]:
    """Returns the selectors in the rules of a project."""
    rules = yaml.safe_load((root / "deploy" / "monitoring" / "alerts.yaml").read_text("utf-8"))
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return sorted({found for each in expressions for found in SELECTOR.findall(each)})


def name_of(series: Series) -> str:
    labels = [
        f"{name}={json.dumps(value)}"
        for name, value in sorted(series.labels.items())
        if name in LABELS
    ]
    return f"{series.labels['__name__']}{{{','.join(labels)}}}"


def notation(series: Series, start: int, end: int) -> str:
    """Formats a sample for each second in promtool's notation."""
    values = {round(moment): value for moment, value in series.samples}
    said: list[tuple[str, int]] = []
    for moment in range(start, end + 1):
        word = f"{values[moment]:.12g}" if moment in values else "_"
        if word == "_" and said and said[-1][0] not in ("_", "stale"):
            # Prometheus marks the end of a series.
            word = "stale"
        if said and said[-1][0] == word:
            said[-1] = (word, said[-1][1] + 1)
        else:
            said.append((word, 1))
    return " ".join(map(repeated, said))


def repeated(run: tuple[str, int]) -> str:
    word, times = run
    if word == "_":
        return f"_x{times}"
    return word if times == 1 else f"{word}+0x{times - 1}"


if __name__ == "__main__":
    main()
