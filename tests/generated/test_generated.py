"""Every combination, as its team would use it: installed, checked, tested and served."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from ..answers import CHOICES, TEMPLATE, Answers, every_pair_of_answers, in_words, name_of
from ..conftest import LoadHook, Render
from .newest import lift_bounds, versions_beyond
from .project import (
    COMMAND_SECONDS,
    PROMPT,
    Project,
    answers,
    ask,
    ask_example,
    cluster_with_a_gpu,
    importable_names,
    loopback_hub,
    ray_directory,
    serve_config,
    serve_import_path,
)

ASKED_BY_PYTHON = ("task", "parallel_models", "models")
TESTS_OF_ANSWERS = (
    *("test_app.py", "test_models.py", "test_page.py"),
    *("serving/test_config.py", "serving/test_settings.py"),
)
"""Tests that read files that depend on the answers; the others read what every project has."""
TESTS_OF_ONE_ANSWER = {
    "models": ("serving/engine/test_bundled.py", "serving/engine/test_weights.py"),
    "deploy": ("serving/telemetry/test_monitoring.py",),
    "votes": tuple(
        f"serving/votes/test_{name}.py"
        for name in ("command", "page", "rating", "replicas", "store")
    ),
}
"""Tests that read files that depend on one question; they run once for each of its answers."""


@pytest.mark.timeout(2 * COMMAND_SECONDS)
@pytest.mark.parametrize("choice", every_pair_of_answers(), ids=name_of)
def test_a_project_can_be_installed_checked_tested_and_served(
    choice: Answers,
    render: Render,
    load_hook: LoadHook,
    environment: Path,
    newest: bool,
    tmp_path: Path,
) -> None:
    with told_how_to_repeat(choice, tmp_path), ray_directory(tmp_path / "ray-logs") as ray:
        caches = environment.parent
        variables = {
            "RAY_TMPDIR": ray,
            "MYPY_CACHE_DIR": str(caches / "mypy"),
            "PREK_HOME": str(caches / "prek"),
        }
        project = Project(render(**choice), environment, variables)
        install(project, newest)
        check_that_no_library_can_be_hidden(environment, load_hook("pre_gen_project"))
        check_as_a_commit(project)
        if choice == compares_models()[0]:
            check_a_page_without_types(project)
            # On a machine with a GPU, it must work at the first attempt.
            script = TEMPLATE / "benchmarks" / "gpu.py"
            project.run("uv", "run", "python", str(script), str(project.root), "--small")
        project.run(
            "uv",
            "run",
            "pytest",
            "-q",
            "--durations=5",
            *which_tests(choice, project.root / "tests"),
        )
        with what_it_needs(project, choice, tmp_path) as ready:
            # Ray can start it in two ways; test one with each project.
            serve = serve_import_path if choice["deploy"] == "local" else serve_config
            with serve(ready) as url:
                check_page(url, choice)
                if choice == of_page("own")[0]:
                    check_that_it_serves_two_users(project, url)


@contextmanager
def told_how_to_repeat(choice: Answers, directory: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"Render it by hand: cookiecutter --no-input . {in_words(choice)}")
        error.add_note(f"Run it alone: nox -s generated -- -k {name_of(choice)}")
        error.add_note(f"The project and its logs: {directory}")
        raise


def install(project: Project, newest: bool) -> None:
    bounds = lift_bounds(project.root / "pyproject.toml") if newest else []
    project.run("uv", "sync", "--quiet")
    for version in versions_beyond(bounds, project.root / "uv.lock"):
        print(f"REPORT beyond its bound: {version}")


def check_that_no_library_can_be_hidden(environment: Path, hook: ModuleType) -> None:
    """A package with the name of a library would be imported instead of it."""
    names = importable_names(environment)
    allowed = {name for name in names if not list(hook.problems_of_package(name))}

    assert names
    assert not allowed, " ".join(sorted(allowed))


def check_as_a_commit(project: Project) -> None:
    """Makes the first commit: its checks must find nothing to change."""
    project.run("git", "init", "--quiet")
    project.run("git", "add", "--all")
    project.run("uv", "run", "prek", "run", "--all-files")
    # The commit contains what was added.
    project.run("git", "diff", "--exit-code")
    project.run("sh", "-c", 'test -z "$(git ls-files --others --exclude-standard)"')


def check_a_page_without_types(project: Project) -> None:
    """A custom page without type hints passes the project's checks."""
    page = project.root / "src" / project.package / "page.py"
    ours = page.read_text("utf-8")
    page.write_text(PAGE_WITHOUT_TYPES, "utf-8")
    project.run("uv", "run", "ruff", "check")
    project.run("uv", "run", "lint-imports")
    # The team's tests are removed with its page.
    project.run("uv", "run", "mypy", "src", "tests/serving", "tests/support")
    page.write_text(ours, "utf-8")


PAGE_WITHOUT_TYPES = """\
import os
import random

import gradio as gr

from .serving import GenerationOptions, Launch

TITLE = "Ours"
DESCRIPTION = "A page from before there was Ray."
LAUNCH = Launch()
OPTIONS = GenerationOptions()
seen = {}


def greet(name, intensity, history):
    if name in seen:
        return "Again!"
    else:
        seen[name] = open(os.path.join("greetings", "first.txt")).read()
    return "Hello, " + name + "!" * int(intensity) + random.choice(seen[name])


shout = lambda text: text.upper()


def build_page(settings, models):
    with gr.Blocks() as demo:
        input = gr.Textbox()
        gr.Button().click(greet, [input, input, input], input)
        gr.Button().click(shout, input, input)
    return demo
"""


def which_tests(choice: Answers, tests: Path) -> list[str]:
    """All tests for one project, and for the others those that depend on an answer.

    Each project is also served. The other tests and the files that they read are the same in
    every project with models. A project with its own page has few tests.
    """
    if choice["page"] == "own" or choice == compares_models()[0]:
        return []
    names = [*TESTS_OF_ANSWERS]
    for question, of_one_answer in TESTS_OF_ONE_ANSWER.items():
        if choice in with_every_answer([question]):
            names += of_one_answer
    files = [f"tests/{name}" for name in names if (tests / name).exists()]
    [chat, *_] = of_page("chat")
    opens_browser = choice in [
        *with_every_answer(ASKED_BY_PYTHON),
        *with_every_answer(["votes"]),
        chat,
    ]
    return ["-m", "not served" if opens_browser else "not served and not browser", *files]


def compares_models() -> list[Answers]:
    return of_page("compare")


def of_page(page: str) -> list[Answers]:
    return [choice for choice in every_pair_of_answers() if choice["page"] == page]


def with_every_answer(questions: Sequence[str]) -> list[Answers]:
    """Returns a few combinations that contain each answer to these questions."""
    missing = {(question, answer) for question in questions for answer in CHOICES[question]}
    found: list[Answers] = []
    while missing:
        found.append(max(compares_models(), key=lambda each: len(missing & each.items())))
        missing -= found[-1].items()
    return found


@contextmanager
def what_it_needs(project: Project, choice: Answers, directory: Path) -> Iterator[Project]:
    with ExitStack() as around:
        if choice["page"] != "own" and choice["models"] == "hub":
            project = around.enter_context(loopback_hub(project, directory / "cache"))
        if choice["accelerator"] == "gpu":
            project = around.enter_context(cluster_with_a_gpu(project))
        yield project


def check_page(url: str, choice: Answers) -> None:
    assert answers(f"{url}/")
    assert answers(f"{url}/theme.css")
    if choice["page"] == "own":
        numbered = ask_example(url)
        assert numbered.text == f"1 {PROMPT}\n"
        assert numbered.texts == "2 in this session"
        return
    answered = ask(url, "/chat" if choice["page"] == "chat" else "/generate")
    assert len(answered.texts) == (2 if choice["parallel_models"] else 1)
    for text in answered.texts:
        assert text
        # The tiny models of the loopback hub may finish before the first update.
        if choice["models"] == "bundled":
            assert answered.updates > 1, "the text did not stream"
            assert len(re.findall(r"\b[A-Za-z]{2,}\b", text)) > 8, f"no English: {text!r}"


def check_that_it_serves_two_users(project: Project, url: str) -> None:
    """Runs the load test; its numbers are tested elsewhere."""
    options = ("--host", url, "--users", "2", "--step-seconds", "1")
    project.run("uv", "run", "--only-group", "load", "locust", *options)
