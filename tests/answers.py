"""The questions of cookiecutter.json, and sets of answers computed from them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

from covertable import make

TEMPLATE = Path(__file__).parents[1]
PROJECT = TEMPLATE / "{{cookiecutter.project_slug}}"

Answers = dict[str, str | bool]
Pair = frozenset[tuple[str, str | bool]]

GRAPH = ("page", "models", "parallel_models")
# Of the first 1,200 salts, this one gives the fewest sets, 14. All of them cover every pair.
SALT = "0"


@dataclass(frozen=True)
class Matrix:
    """The possible answers, and the combinations that are excluded."""

    choices: dict[str, list[Any]]
    forbidden: list[Answers]
    """The hook refuses these."""
    repeated: list[Answers]
    """These are the same as other combinations, because one of their answers has no effect."""

    def rows(self) -> list[Answers]:
        """Returns a small number of sets that together contain every allowed pair of answers.

        Answers that decide the graph appear in every combination.
        """
        constraints = [
            {
                "operator": "fn",
                "requires": list(combination),
                "evaluate": lambda row, combination=combination: not is_in(combination, row),
            }
            for combination in (*self.forbidden, *self.repeated)
        ]
        together = [{"fields": list(GRAPH), "strength": len(GRAPH)}]
        rows = make(self.choices, salt=SALT, constraints=constraints, sub_models=together)
        return sorted(({name: row[name] for name in self.choices} for row in rows), key=str)

    def pairs(self) -> set[Pair]:
        """Returns each pair of answers that occurs in an allowed set."""
        return {
            frozenset({(one, this), (other, that)})
            for one, other in combinations(self.choices, 2)
            for this, that in product(self.choices[one], self.choices[other])
            if any(self.allowed({one: this, other: that}))
        }

    def allowed(self, fixed: Answers) -> Iterator[Answers]:
        """Yields the allowed sets that contain these answers."""
        free = {name: values for name, values in self.choices.items() if name not in fixed}
        for values in product(*free.values()):
            answers = {**fixed, **dict(zip(free, values, strict=True))}
            if not any(is_in(each, answers) for each in (*self.forbidden, *self.repeated)):
                yield answers


def is_in(combination: Answers, answers: Answers) -> bool:
    return combination.items() <= answers.items()


def pairs_in(answers: Answers) -> set[Pair]:
    return {frozenset(pair) for pair in combinations(answers.items(), 2)}


def matrix_of(context: dict[str, Any]) -> Matrix:
    """Returns the matrix of the content of a cookiecutter.json."""
    choices = {
        name: default if isinstance(default, list) else [default, not default]
        for name, default in context.items()
        if not name.startswith("_") and isinstance(default, list | bool)
    }
    forbidden = [forbidden["answers"] for forbidden in context["_forbidden"]]
    repeated = [
        {**each["answers"], question: answer}
        for each in context["_without_effect"]
        for question in each["questions"]
        for answer in choices[question][1:]
    ]
    return Matrix(choices, forbidden, repeated)


CONTEXT: dict[str, Any] = json.loads((TEMPLATE / "cookiecutter.json").read_text("utf-8"))
QUESTIONS = {name: default for name, default in CONTEXT.items() if not name.startswith("_")}
MATRIX = matrix_of(CONTEXT)
CHOICES = MATRIX.choices
DEFAULTS: Answers = QUESTIONS | {question: choices[0] for question, choices in CHOICES.items()}


def every_answer_to(*questions: str) -> list[Answers]:
    """Returns all combinations of the answers to these questions, the defaults first.

    Refused combinations and duplicates are left out.
    """
    every = [
        dict(zip(questions, values, strict=True))
        for values in product(*(CHOICES[question] for question in questions))
    ]
    left_out = (*MATRIX.repeated, *MATRIX.forbidden)
    return [each for each in every if not any(is_in(other, each) for other in left_out)]


@cache
def every_pair_of_answers() -> tuple[Answers, ...]:
    return tuple(MATRIX.rows())


def in_words(answers: Answers) -> str:
    """Formats a set of answers as arguments of Cookiecutter, for the id of a test."""
    return " ".join(f"{question}={answer}" for question, answer in answers.items())


def name_of(answers: Answers) -> str:
    """Names a set of answers so that `pytest -k` can pick it by its parts."""
    return "-".join(
        answer if isinstance(answer, str) else question if answer else f"no_{question}"
        for question, answer in answers.items()
    )
