"""Every combination as its team would meet it: installed, checked, tested and served."""

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ..answers import CHOICES, Answers, every_pair_of_answers, in_words, name_of
from ..conftest import Render
from .project import (
    Project,
    answers,
    ask,
    cluster_with_a_gpu,
    loopback_hub,
    serve_config,
    serve_import_path,
)

ASKED_BY_PYTHON = ("task", "models", "parallel_models")
"""The other answers choose files that no test starts Ray with."""


def test_every_pair_of_answers_is_covered() -> None:
    for one, other in itertools.combinations(CHOICES, 2):
        wanted = set(itertools.product(CHOICES[one], CHOICES[other]))
        assert wanted == {(row[one], row[other]) for row in every_pair_of_answers()}


@pytest.mark.usefixtures("ray_directory")
@pytest.mark.parametrize("choice", every_pair_of_answers(), ids=name_of)
def test_a_project_is_installed_checked_tested_and_served(
    choice: Answers, render: Render, environment: Path, tmp_path: Path
) -> None:
    print(f"cookiecutter --no-input . {in_words(choice)}")
    project = Project(render(**choice), environment)
    project.run("uv", "sync")
    project.run("uv", "run", "ruff", "check")
    project.run("uv", "run", "ruff", "format", "--check")
    project.run("uv", "run", "mypy", "--cache-dir", str(environment.parent / "mypy"))
    project.run("uv", "run", "pytest", "-q", "--durations=5", *which_tests(choice))
    with what_it_needs(project, choice, tmp_path) as ready:
        # Both of Ray's ways to start it, one for each project.
        serve = serve_import_path if choice["deploy"] == "local" else serve_config
        with serve(ready) as url:
            check_page(url, choice)


def which_tests(choice: Answers) -> list[str]:
    """All of them, but those that start Ray only where no earlier project has the same Python.

    It is served afterwards in any case.
    """
    same_code = [
        other
        for other in every_pair_of_answers()
        if all(other[question] == choice[question] for question in ASKED_BY_PYTHON)
    ]
    return [] if same_code[0] == choice else ["-m", "not served"]


@contextmanager
def what_it_needs(project: Project, choice: Answers, directory: Path) -> Iterator[Project]:
    with ExitStack() as around:
        if choice["models"] == "hub":
            project = around.enter_context(loopback_hub(project, directory / "cache"))
        if choice["accelerator"] == "gpu":
            project = around.enter_context(cluster_with_a_gpu(project))
        yield project


def check_page(url: str, choice: Answers) -> None:
    assert answers(f"{url}/")
    assert answers(f"{url}/theme.css")
    texts = ask(url)
    assert len(texts) == (2 if choice["parallel_models"] else 1)
    for text in texts:
        assert text
        if choice["models"] == "bundled":
            assert len(re.findall(r"\b[A-Za-z]{2,}\b", text)) > 8, f"no English: {text!r}"
