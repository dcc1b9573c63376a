"""`nox -s benchmark` compares the rendered project with what a user would pick instead.

Usage: python -m benchmarks PROJECT ENVIRONMENT MODEL [quick]
"""

import itertools
import sys
from pathlib import Path

from tests.generated.project import Project

from .contenders import original, project, tutorial
from .measures import (
    Load,
    cost_of_users,
    engines_alone,
    first_text_beside_a_slow_pane,
    median_load,
    memory,
    scale,
    second_start,
    under_load,
)
from .report import Ratio, Results, write

QUICK = "quick"
CLEARLY_LOST = 0.8
"""Part of a figure's goal below which the quick run fails: it measures once, on any machine."""


def main() -> None:
    root, environment, model, *options = sys.argv[1:]
    rendered = Project(Path(root), Path(environment), {"RAY_TMPDIR": "/tmp"})  # noqa: S108
    if QUICK in options:
        finish_quick(quick(rendered, Path(model)))
    else:
        write(full(rendered, Path(model)))


def quick(rendered: Project, model: Path) -> list[Ratio]:
    say("the project at 8 users")
    [ours] = under_load("project", project(rendered, "auto"), [8])
    say("the guide's pattern at 8 users")
    [theirs] = under_load("tutorial", tutorial(rendered, model, "float32"), [8])
    say("the engine alone, and generate on a padded batch")
    alone = engines_alone(rendered, model, "float32", processes=1, rounds=2)
    return [
        *against_tutorial(ours, theirs),
        Ratio(
            "engine alone at 8 requests / generate on a batch of 8",
            alone.engine / (alone.generate or 0),
            0.95,
        ),
    ]


def full(rendered: Project, model: Path, rounds: int = 3) -> Results:
    loads: dict[tuple[str, int], list[Load]] = {}
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}")
        # Once is enough for what takes minutes: the rivals answer one after another, so they
        # show with 32 users what they show with 8.
        users = [1, 8, 32] if number == 1 else [1, 8]
        rivals = [
            under_load("tutorial, float32", tutorial(rendered, model, "float32"), users),
            under_load("project, float32", project(rendered, "float32"), users),
        ]
        if number == 1:
            rivals.append(
                under_load("original, float32", original(rendered, model, "float32"), [8])
            )
        ours = under_load("project, auto", project(rendered, "auto"), [1, 8, 32])
        for load in [*ours, *itertools.chain(*rivals)]:
            say(str(load))
            loads.setdefault((load.contender, load.users), []).append(load)
    say("the engine alone")
    return Results(
        loads=[median_load(each) for each in loads.values()],
        alone_auto=engines_alone(rendered, model, "auto", processes=2, rounds=rounds),
        alone_float32=engines_alone(rendered, model, "float32", processes=1, rounds=rounds),
        alone_bfloat16=engines_alone(rendered, model, "bfloat16", processes=1, rounds=rounds),
        scale=scale(rendered, [1, 2, 4, 8]),
        cost=cost_of_users(rendered, [1, 8, 32, 100]),
        fast_pane=first_text_beside_a_slow_pane(rendered),
        memory=memory(rendered),
        start=second_start(rendered, rounds),
    )


def against_tutorial(ours: Load, theirs: Load) -> list[Ratio]:
    users = ours.users
    goal = {8: 6.0, 32: 10.0}[users]
    return [
        Ratio(
            f"tokens/s at {users} users / the guide's pattern",
            ours.tokens_per_second / theirs.tokens_per_second,
            goal,
        ),
        Ratio(
            f"first text at {users} users: the guide's pattern / ours",
            theirs.first_text / ours.first_text,
            20,
        ),
    ]


def finish_quick(ratios: list[Ratio]) -> None:
    for ratio in ratios:
        print(f"{ratio.measure}: {ratio.value:.2f} (goal {ratio.goal:g})")
    lost = [ratio.measure for ratio in ratios if ratio.value < CLEARLY_LOST * ratio.goal]
    if lost:
        sys.exit(f"clearly lost: {'; '.join(lost)}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
