"""The questions of cookiecutter.json, and sets of answers computed from them."""

import json
from itertools import product
from pathlib import Path
from typing import Any

from covertable import make

TEMPLATE = Path(__file__).parents[1]
PROJECT = TEMPLATE / "{{cookiecutter.project_slug}}"

Answers = dict[str, str | bool]

CONTEXT: dict[str, Any] = json.loads((TEMPLATE / "cookiecutter.json").read_text("utf-8"))

QUESTIONS = {name: default for name, default in CONTEXT.items() if not name.startswith("_")}

CHOICES: dict[str, list[Any]] = {
    name: default if isinstance(default, list) else [default, not default]
    for name, default in QUESTIONS.items()
    if isinstance(default, list | bool)
}


def every_answer_to(*questions: str) -> list[Answers]:
    """Returns all combinations of the answers to these questions, the defaults first."""
    return [
        dict(zip(questions, values, strict=True))
        for values in product(*(CHOICES[question] for question in questions))
    ]


# The fewest sets, 12, of the first 300 salts; any other covers every pair as well.
SALT = "11"


def every_pair_of_answers() -> list[Answers]:
    """Returns few sets in which any two answers to two questions meet."""
    rows = make(CHOICES, salt=SALT)
    return sorted(({name: row[name] for name in CHOICES} for row in rows), key=str)


def in_words(answers: Answers) -> str:
    """Names a set of answers in the identifier of a test."""
    return " ".join(f"{question}={answer}" for question, answer in answers.items())


def name_of(answers: Answers) -> str:
    """Names a set of answers so that `pytest -k` can pick it by its parts."""
    return "-".join(
        answer if isinstance(answer, str) else question if answer else f"no_{question}"
        for question, answer in answers.items()
    )
