"""`nox -s benchmark` compares the rendered project with its alternatives."""

import argparse
import itertools
import sys
from pathlib import Path

from tests.generated.project import Project

from .contenders import original, project, tutorial
from .engines import engines_in_turns
from .measures import (
    Load,
    cost_of_users,
    cost_of_ways,
    delivery,
    engines_alone,
    first_text_beside_a_slow_pane,
    median_load,
    memory,
    scale,
    scale_of_the_page,
    second_start,
    short_calls,
    starts_of_an_own_page,
    under_load,
)
from .quality import qualities
from .report import (
    GUIDE,
    ORIGINAL,
    OURS,
    SAME_DTYPE,
    Api,
    Delivery,
    Engines,
    Footprint,
    Growth,
    Own,
    Qualities,
    Ratio,
    Users,
    write,
)

PARTS = ["users", "growth", "footprint", "own", "api", "delivery", "engines", "quality"]
QUICK = "quick"
ROUNDS = 3
ENGINE_ROUNDS = 5
CALLS = 15
CLEARLY_LOST = 0.8
"""Share of a goal below which the quick run fails, since it measures once, on any machine."""


def main() -> None:
    options = read(sys.argv[1:])
    # A longer path would make the paths of Ray's sockets too long.
    rendered = Project(options.project, options.environment, {"RAY_TMPDIR": "/tmp"})  # noqa: S108
    if QUICK in options.parts:
        finish_quick(quick(rendered, options.model))
    if "users" in options.parts:
        measured = users(rendered, options.model)
        write("users", measured)
        # Imported here, because only the benchmark environment has its library.
        from .plot import plot

        plot(measured.loads)
    if "growth" in options.parts:
        write("growth", growth(rendered))
    if "footprint" in options.parts:
        write("footprint", Footprint(memory(rendered), second_start(rendered, ROUNDS)))
    if "own" in options.parts:
        own = Project(options.own, options.own / ".venv", rendered.variables)
        starts = starts_of_an_own_page(own, ROUNDS)
        write("own", Own(starts, short_calls(own, CALLS)))
    if "api" in options.parts:
        write("api", Api(*cost_of_ways(rendered, ROUNDS)))
    if "delivery" in options.parts:
        write("delivery", Delivery(*delivery(rendered, ROUNDS)))
    if "engines" in options.parts:
        alone = engines_in_turns(
            rendered, options.model, options.rivals, ENGINE_ROUNDS, threads=[1, 2]
        )
        write("engines", Engines(*alone))
    if "quality" in options.parts:
        write("quality", Qualities(qualities(rendered, options.model, options.rivals)))


def read(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path, help="a rendered project")
    parser.add_argument("environment", type=Path, help="where it is installed")
    parser.add_argument("model", type=Path, help="SmolLM2 as safetensors")
    parser.add_argument("own", type=Path, help="a project rendered with page=own")
    parser.add_argument("rivals", type=Path, help="the Python with the rivals' engines")
    # No `choices`: Python 3.11 would refuse an empty list of parts.
    parser.add_argument("parts", nargs="*", help=", ".join([*PARTS, QUICK]))
    options = parser.parse_args(arguments)
    for part in options.parts:
        if part not in [*PARTS, QUICK]:
            parser.error(
                f"{part!r} is not a part of the benchmark. Choose from {', '.join([*PARTS, QUICK])}."
            )
    options.parts = options.parts or PARTS
    return options


def users(rendered: Project, model: Path) -> Users:
    loads: dict[tuple[str, int], list[Load]] = {}
    for number in range(1, ROUNDS + 1):
        say(f"round {number} of {ROUNDS}")
        # Once is enough for slow runs: the rivals answer one at a time, so they
        # behave the same with 32 users as with 8.
        at_once = [1, 8, 32] if number == 1 else [1, 8]
        parts = [
            under_load(OURS, project(rendered, "auto"), [1, 8, 32]),
            under_load(GUIDE, tutorial(rendered, model, "float32"), at_once),
            under_load(SAME_DTYPE, project(rendered, "float32"), at_once),
        ]
        if number == 1:
            parts.append(under_load(ORIGINAL, original(rendered, model, "float32"), [8]))
        for load in itertools.chain(*parts):
            say(str(load))
            loads.setdefault((load.contender, load.users), []).append(load)
    say("the engine alone")
    return Users(
        loads=[median_load(each) for each in loads.values()],
        alone_auto=engines_alone(rendered, model, "auto", processes=2, rounds=ROUNDS),
        alone_float32=engines_alone(rendered, model, "float32", processes=1, rounds=ROUNDS),
        alone_bfloat16=engines_alone(rendered, model, "bfloat16", processes=1, rounds=ROUNDS),
    )


def growth(rendered: Project) -> Growth:
    return Growth(
        scale=scale(rendered, [1, 2, 4, 8]),
        page=scale_of_the_page(rendered, [1, 2, 4]),
        cost=cost_of_users(rendered, [1, 8, 32, 100]),
        fast_pane=first_text_beside_a_slow_pane(rendered),
    )


def quick(rendered: Project, model: Path) -> list[Ratio]:
    say("the project at 8 users")
    [ours] = under_load(OURS, project(rendered, "auto"), [8])
    say("the guide's pattern at 8 users")
    [theirs] = under_load(GUIDE, tutorial(rendered, model, "float32"), [8])
    say("the engine alone, and generate on a padded batch")
    alone = engines_alone(rendered, model, "float32", processes=1, rounds=2)
    return [
        Ratio("tokens/s / the guide's", ours.tokens_per_second / theirs.tokens_per_second, 6),
        Ratio("first text: the guide's / ours", theirs.first_text / ours.first_text, 20),
        Ratio(
            "engine alone / generate on a batch of 8", alone.engine / (alone.generate or 0), 0.95
        ),
    ]


def finish_quick(ratios: list[Ratio]) -> None:
    for ratio in ratios:
        print(f"{ratio.measure}: {ratio.value:.2f} (goal {ratio.goal:g})")
    lost = [ratio.measure for ratio in ratios if ratio.value < CLEARLY_LOST * ratio.goal]
    if lost:
        sys.exit(f"clearly below the goal: {'; '.join(lost)}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
