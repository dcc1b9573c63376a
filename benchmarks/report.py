"""Writes the results to docs/benchmarks: a table and JSON for each part, and a plot."""

import json
import platform
import statistics
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import psutil

from .contenders import NEW_TOKENS
from .engines import OURS as OUR_ENGINE
from .engines import RIVALS, EngineCost, EngineLoad
from .measures import (
    CROWD_USERS,
    PATH_USERS,
    Alone,
    Cost,
    Load,
    Memory,
    OwnStart,
    PathCost,
    PathTimes,
    Scale,
    ShortCall,
    Start,
    WayCost,
)
from .quality import FLOAT32, TOKENS, Quality

INSTRUCTION_SETS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
DIRECTORY = Path(__file__).parents[1] / "docs" / "benchmarks"
TITLES = {"api": "API", "own": "A page of your own"}
"""Titles that differ from the name of their part."""
OURS, SAME_DTYPE, GUIDE, ORIGINAL = (
    "project, auto",
    "project, float32",
    "tutorial, float32",
    "original, float32",
)


@dataclass(frozen=True)
class Ratio:
    measure: str
    value: float
    goal: float
    smaller_is_better: bool = False

    def reached(self) -> bool:
        return self.value <= self.goal if self.smaller_is_better else self.value >= self.goal


@dataclass(frozen=True)
class Users:
    """Tokens for users of the project, of its rivals and of the engine alone."""

    loads: list[Load]
    alone_auto: Alone
    """Two engines in parallel, in the number format that this machine chooses."""
    alone_float32: Alone
    alone_bfloat16: Alone

    def ratios(self) -> list[Ratio]:
        ours, same, guide = self._of(OURS), self._of(SAME_DTYPE), self._of(GUIDE)
        in_float32 = "the same, both in float32"
        return [
            Ratio("tokens/s at 8 users / the guide's pattern", _speed(ours[8], guide[8]), 15),
            Ratio(in_float32, _speed(same[8], guide[8]), 6),
            Ratio("tokens/s at 32 users / the guide's pattern", _speed(ours[32], guide[32]), 25),
            Ratio(in_float32, _speed(same[32], guide[32]), 10),
            Ratio(
                "first text at 8 users, the guide's pattern / ours",
                guide[8].first_text / ours[8].first_text,
                20,
            ),
            Ratio(in_float32, guide[8].first_text / same[8].first_text, 20),
            Ratio(
                "whole answer of one user, the guide's pattern / ours",
                guide[1].whole_answer / ours[1].whole_answer,
                1,
            ),
            Ratio(in_float32, guide[1].whole_answer / same[1].whole_answer, 1),
            Ratio(
                "tokens/s at 8 users / the guide's original approach",
                _speed(ours[8], self._of(ORIGINAL)[8]),
                1,
            ),
            Ratio(
                "tokens/s at 8 users / the two engines alone",
                ours[8].tokens_per_second / self.alone_auto.engine,
                0.9,
            ),
            Ratio(
                "engine alone / generate on a batch of 8, float32",
                _against_generate(self.alone_float32),
                0.95,
            ),
            Ratio(
                "engine alone / generate on a batch of 8, bfloat16",
                _against_generate(self.alone_bfloat16),
                0.95,
            ),
        ]

    def tables(self) -> list[str]:
        rows = [
            f"| {x.contender} | {x.users} | {x.tokens_per_second:.0f} | {x.first_text:.2f} "
            f"| {x.whole_answer:.1f} | {x.failures} |"
            for x in self.loads
        ]
        return [
            f"Two panes, {NEW_TOKENS} new tokens in each, all users at once:",
            "",
            "| contender, dtype | users | tokens/s | first text, s | whole answer, s | failures |",
            *("|---|---|---|---|---|---|", *rows),
        ]

    def _of(self, contender: str) -> dict[int, Load]:
        return {load.users: load for load in self.loads if load.contender == contender}


@dataclass(frozen=True)
class Growth:
    """The overhead of page, Serve and Ray as replicas and users increase."""

    scale: list[Scale]
    page: list[Scale]
    cost: list[Cost]
    fast_pane: tuple[float, float]
    """Seconds to the first text, alone and next to a pane ten times slower."""

    def ratios(self) -> list[Ratio]:
        alone, beside = self.fast_pane
        one, most = self.scale[0], self.scale[-1]
        return [
            Ratio(
                "first text of a fast pane next to a slow one / alone", beside / alone, 1.2, True
            ),
            Ratio(
                f"answers/s of {most.replicas} stand-in replicas / {most.replicas} times one's",
                most.answers_per_second / (most.replicas * one.answers_per_second),
                0.9,
            ),
        ]

    def tables(self) -> list[str]:
        scale = [f"| {x.replicas} | {x.answers_per_second:.2f} |" for x in self.scale]
        page = [f"| {x.replicas} | {x.answers_per_second:.2f} |" for x in self.page]
        cost = [f"| {x.users} | {x.delay:.2f} | {x.cpu_seconds:.3f} |" for x in self.cost]
        return [
            "A stand-in model that takes 4 seconds, for 4 requests at a time in each replica:",
            *("", "| replicas | answers/s |", "|---|---|", *scale, ""),
            "100 users at once, with a stand-in model that takes 4 seconds for all of them at once:",
            *("", "| replicas of the page | answers/s |", "|---|---|", *page, ""),
            "The cost per user, with a stand-in model that serves all users at once:",
            *("", "| users | delay added to the model's time, s | CPU seconds per user |"),
            *("|---|---|---|", *cost),
        ]


@dataclass(frozen=True)
class Footprint:
    """The resources of the default application."""

    memory: Memory
    start: Start

    def ratios(self) -> list[Ratio]:
        memory, start = self.memory, self.start
        parts = start.imports + start.ray
        return [
            Ratio(
                "second start / its imports and Ray's own start",
                start.page_ready / parts,
                1.1,
                True,
            ),
            Ratio("memory of all processes, GB", memory.after_1000, 2.5, True),
            Ratio(
                "memory after 1,000 requests / after 100",
                memory.after_1000 / memory.after_100,
                1.05,
                True,
            ),
            Ratio("failures of 100 users at once", memory.failures_of_100_at_once, 0, True),
        ]

    def tables(self) -> list[str]:
        start = self.start
        return [
            f"The page is ready after {start.page_ready:.1f} s; the imports take "
            f"{start.imports:.1f} s, Ray and Serve {start.ray:.1f} s."
        ]


@dataclass(frozen=True)
class Own:
    """The cost of a custom page without models, compared with plain Gradio and an empty Serve."""

    start: OwnStart
    calls: list[ShortCall]

    def ratios(self) -> list[Ratio]:
        return [
            Ratio(
                "second start / that of an empty Serve application",
                self.start.project / self.start.empty,
                1.25,
                True,
            ),
            *(
                Ratio(
                    f"ms added to a call, compared with launch(): {_who(each)}",
                    1000 * (each.on_two_replicas - each.launched),
                    15,
                    True,
                )
                for each in self.calls
            ),
        ]

    def tables(self) -> list[str]:
        rows = [
            f"| {_who(x)} | {1000 * x.launched:.0f} | {1000 * x.on_two_replicas:.0f} |"
            for x in self.calls
        ]
        return [
            f"The page is ready after {self.start.project:.1f} s, an empty application after "
            f"{self.start.empty:.1f} s.",
            "",
            "Median time of a call whose function takes 10 ms:",
            *("", "| users | `launch()`, ms | two replicas, ms |", "|---|---|---|", *rows),
        ]


@dataclass(frozen=True)
class Api:
    """The cost of an answer through the OpenAI API, compared with the page."""

    page: WayCost
    v1: WayCost

    def ratios(self) -> list[Ratio]:
        return [
            Ratio(
                "CPU seconds for 100 tokens through /v1 / through the page",
                self.v1.cpu_seconds / self.page.cpu_seconds,
                0.5,
                True,
            )
        ]

    def tables(self) -> list[str]:
        rows = [
            f"| {name} | {way.cpu_seconds:.3f} | {', '.join(f'{x:.3f}' for x in way.rounds)} |"
            for name, way in (("the page", self.page), ("`/v1`", self.v1))
        ]
        return [
            "CPU seconds of Serve's proxy and the page's replica for 100 tokens from a stand-in "
            "model, which writes them for two users at once, in 40 updates, one every tenth of a "
            "second. What both processes use when idle is left out:",
            *("", "| through | median | rounds |", "|---|---|---|", *rows),
        ]


@dataclass(frozen=True)
class Delivery:
    """The cost of delivering an answer, and the share of its speed that arrives."""

    costs: list[PathCost]
    times: PathTimes

    def ratios(self) -> list[Ratio]:
        share = statistics.median(self.times.shares)
        crowd = statistics.median(self.times.crowd_answers_per_second)
        return [
            Ratio(f"share of the tokens that reach {PATH_USERS} users", share, 0.95),
            Ratio(f"answers/s of one page replica, {CROWD_USERS} users", crowd, 20),
        ]

    def tables(self) -> list[str]:
        names = [*self.costs[0].by_process]
        rows = [
            f"| {each.way} | {' | '.join(f'{each.by_process[name]:.4f}' for name in names)} "
            f"| {each.cpu_seconds:.4f} | {_all(each.rounds, 4)} |"
            for each in self.costs
        ]
        times = [
            (f"share of the tokens that reach {PATH_USERS} users", self.times.shares, 3),
            (f"first text of {PATH_USERS} users, s", self.times.first_texts, 2),
            (f"answers/s, {CROWD_USERS} users", self.times.crowd_answers_per_second, 1),
        ]
        return [
            "CPU seconds for an answer of 100 tokens from a stand-in model, which writes them in 4 "
            f"seconds for each of {PATH_USERS} users. What the processes use when idle is left out:",
            *("", f"| through | {' | '.join(names)} | all three | rounds |"),
            f"|{'---|' * (len(names) + 3)}",
            *(*rows, "", "All users ask at the same moment:"),
            *("", "| | median | rounds |", "|---|---|---|"),
            *(
                f"| {what} | {statistics.median(each):.{digits}f} | {_all(each, digits)} |"
                for what, each, digits in times
            ),
        ]


@dataclass(frozen=True)
class Engines:
    """The engine compared with its alternatives, on the same weights."""

    loads: list[EngineLoad]
    costs: list[EngineCost]

    def ratios(self) -> list[Ratio]:
        """Ratios per CPU second are valid even if other work shares the machine."""
        return [
            Ratio(
                f"{measure} at {_requests(requests)}, {_threads(threads)}, / the better rival's",
                figures[OUR_ENGINE] / max(figures[rival] for rival in RIVALS),
                0.95,
            )
            for threads, requests in dict.fromkeys((x.threads, x.requests) for x in self.loads)
            for measure, figures in (
                ("tokens/s", self._figures(threads, requests, "tokens_per_second")),
                ("tokens/CPU second", self._figures(threads, requests, "tokens_per_cpu_second")),
            )
        ]

    def tables(self) -> list[str]:
        loads = [
            f"| {x.contender} | {x.threads} | {x.requests} | {x.tokens_per_second:.0f} "
            f"| {x.tokens_per_cpu_second:.0f} |"
            for x in self.loads
        ]
        costs = [f"| {x.contender} | {x.start:.1f} | {x.memory:.2f} |" for x in self.costs]
        return [
            f"{NEW_TOKENS} new tokens for each request, prompts included, in alternating runs. The "
            "rivals read the bundled GGUF (4 bits), and our engine reads its weights as safetensors:",
            *("", "| engine | threads | requests at once | tokens/s | tokens/CPU second |"),
            *("|---|---|---|---|---|", *loads, ""),
            "Each engine alone in its process:",
            *("", "| engine | start, s | memory, GB |", "|---|---|---|", *costs),
        ]

    def _figures(self, threads: int, requests: int, name: str) -> dict[str, float]:
        return {
            x.contender: getattr(x, name)
            for x in self.loads
            if (x.threads, x.requests) == (threads, requests)
        }


@dataclass(frozen=True)
class Qualities:
    """The quality of each engine with the same weights."""

    qualities: list[Quality]

    def ratios(self) -> list[Ratio]:
        of = {each.contender: each for each in self.qualities}
        ours, float32 = of[OUR_ENGINE], of[FLOAT32]
        return [
            Ratio(
                "perplexity / float32's",
                (ours.perplexity or 0) / (float32.perplexity or 0),
                1.03,
                True,
            ),
            Ratio(
                "share of likeliest tokens that are the same as in float32 / the better rival's",
                ours.agreement / max(of[rival].agreement for rival in RIVALS),
                1,
            ),
        ]

    def tables(self) -> list[str]:
        rows = [
            f"| {x.contender} | {_perplexity(x)} | {100 * x.agreement:.1f}% |"
            for x in self.qualities
        ]
        return [
            f"Over {TOKENS:,} tokens of a project's `docs/operations.md`, with the bundled weights. "
            "The rivals read the GGUF, and our engine reads its weights as safetensors:",
            *(
                "",
                "| engine | perplexity | same likeliest token as in float32 |",
                "|---|---|---|",
                *rows,
            ),
        ]


def write(
    name: str, part: Users | Growth | Footprint | Own | Api | Delivery | Engines | Qualities
) -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    measured = {"machine": machine(), "date": f"{date.today()}", **asdict(part)}
    (DIRECTORY / f"{name}.json").write_text(json.dumps(measured, indent=2) + "\n")
    ratios = [
        f"| {x.measure} | {x.value:.2f} | {'at most ' if x.smaller_is_better else ''}{x.goal:g} "
        f"| {'yes' if x.reached() else '**no**'} |"
        for x in part.ratios()
    ]
    lines = [
        *(f"# {TITLES.get(name, name.capitalize())}", "", f"`nox -s benchmark -- {name}`", ""),
        *(f"{machine()}; {date.today()}.", "", "| measure | figure | goal | reached |"),
        *("|---|---|---|---|", *ratios, "", *part.tables(), ""),
    ]
    (DIRECTORY / f"{name}.md").write_text("\n".join(lines))
    print("\n".join(lines), flush=True)


def machine() -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = psutil.virtual_memory().total / 2**30
    flags = Path("/proc/cpuinfo").read_text().split()
    sets = ", ".join(each for each in INSTRUCTION_SETS if each in flags)
    return (
        f"{cpu} ({sets}), {psutil.cpu_count()} cores, {memory:.0f} GiB, "
        f"Python {platform.python_version()}"
    )


def _all(rounds: list[float], digits: int) -> str:
    return ", ".join(f"{each:.{digits}f}" for each in rounds)


def _requests(number: int) -> str:
    return f"{number} {'request' if number == 1 else 'requests'}"


def _threads(number: int) -> str:
    return f"{number} {'thread' if number == 1 else 'threads'}"


def _perplexity(quality: Quality) -> str:
    return "not reported" if quality.perplexity is None else f"{quality.perplexity:.2f}"


def _who(call: ShortCall) -> str:
    users, each = ("1 user", "") if call.users == 1 else (f"{call.users} users", "each ")
    when = "all at once" if call.pause is None else f"{each}calling every {call.pause:g} s"
    return f"{users}, {when}"


def _speed(ours: Load, theirs: Load) -> float:
    return ours.tokens_per_second / theirs.tokens_per_second


def _against_generate(alone: Alone) -> float:
    return alone.engine / (alone.generate or float("nan"))
