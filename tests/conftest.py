"""Each test renders into a separate folder, with a separate Cookiecutter configuration."""

import importlib.util
import inspect
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

import httpx
import httpx2
import pytest
from click.testing import CliRunner, Result
from cookiecutter.cli import main
from cookiecutter.generate import generate_context
from cookiecutter.main import cookiecutter
from cookiecutter.prompt import prompt_for_config
from cookiecutter.utils import create_env_with_context
from playwright.sync_api import Browser, expect

from programs import can_make_networks

from .answers import DEFAULTS, QUESTIONS, TEMPLATE, Answers
from .chromium import chromium

# Tests share two cores with a starting Ray.
expect.set_options(timeout=30_000)
for library in (httpx, httpx2):
    # The default timeout of httpx, which Gradio's client also uses, is five seconds.
    bound = inspect.signature(library.get).parameters["timeout"].default
    bound.connect = bound.read = bound.write = bound.pool = 60


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "makes_networks: needs Linux and root")


def pytest_report_header() -> list[str]:
    return [] if can_make_networks() else ["left out: tests that make networks, as root on Linux"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not can_make_networks():
        left_out = [item for item in items if item.get_closest_marker("makes_networks")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


class Render(Protocol):
    def __call__(self, **answers: str | bool) -> Path: ...


class Answer(Protocol):
    def __call__(self, **answers: str | bool) -> dict[str, object]: ...


class LoadHook(Protocol):
    def __call__(self, name: str, **answers: str | bool) -> ModuleType: ...


class Command:
    """Cookiecutter's command line, which writes to `output`.

    `in_this_process` starts no new Python; the output of hooks is then only in `capfd`.
    """

    def __init__(self, directory: Path, template: Path = TEMPLATE) -> None:
        self._template = template
        self.output = directory / "output"
        self.output.mkdir()
        config = directory / "config.yaml"
        config.write_text(f"replay_dir: {directory}\ncookiecutters_dir: {directory}\n", "utf-8")
        self._environment = {
            **os.environ,
            "COOKIECUTTER_CONFIG": str(config),
            "PYTHONUTF8": "1",
        }

    def __call__(
        self, *arguments: str, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cookiecutter", "-o", self.output, self._template, *arguments],
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            env=self._environment | environment,
            timeout=60,
            check=False,
        )

    def in_this_process(self, *arguments: str, stdin: str = "") -> Result:
        return CliRunner(env=self._environment).invoke(
            main,
            ["-o", str(self.output), str(self._template), *arguments],
            input=stdin,
            catch_exceptions=False,
        )


def typed(**answers: str) -> str:
    """Returns what a user types: the answers, and Enter for the other questions."""
    return "".join(answers.get(question, "") + "\n" for question in QUESTIONS)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Renders a project; other questions keep their defaults."""

    def render_answers(**answers: str | bool) -> Path:
        return render_into(tmp_path, answers)

    return render_answers


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Render]:
    """Renders like `render`, once per set of answers, for tests that only read."""
    directory = tmp_path_factory.mktemp("rendered")
    projects: dict[frozenset[tuple[str, str | bool]], Path] = {}
    as_rendered: dict[Path, int] = {}

    def render_answers(**answers: str | bool) -> Path:
        key = frozenset((DEFAULTS | answers).items())
        if key not in projects:
            projects[key] = render_into(directory, answers)
            as_rendered.update(times_of_changes(projects[key]))
        return projects[key]

    yield render_answers

    left = times_of_changes(directory)
    changed = [path for path, time in as_rendered.items() if left.get(path) != time]
    assert not changed, f"use `render` where a test writes: {changed}"


def render_into(directory: Path, answers: Answers) -> Path:
    project = cookiecutter(
        str(TEMPLATE),
        no_input=True,
        extra_context=answers,
        output_dir=tempfile.mkdtemp(dir=directory),
        default_config={"replay_dir": str(directory), "cookiecutters_dir": str(directory)},
    )
    return Path(project)


def times_of_changes(directory: Path) -> dict[Path, int]:
    """Includes folders, because adding or removing a file changes its folder."""
    return {path: path.stat().st_mtime_ns for path in (directory, *directory.rglob("*"))}


@pytest.fixture
def answer() -> Answer:
    """Returns the context of the templates, with private variables, without rendering."""

    def answer_questions(**answers: str | bool) -> dict[str, object]:
        context = generate_context(str(TEMPLATE / "cookiecutter.json"), extra_context=answers)
        return dict(prompt_for_config(context, no_input=True))

    return answer_questions


@pytest.fixture
def load_hook(tmp_path: Path, answer: Answer) -> LoadHook:
    """Imports a hook that was rendered with these answers, without running its main()."""

    def load(name: str, **answers: str | bool) -> ModuleType:
        # Set afterwards, because Cookiecutter would render values that are passed to it.
        context = {"cookiecutter": answer() | answers}
        source = (TEMPLATE / "hooks" / f"{name}.py").read_text("utf-8")
        path = tmp_path / f"{name}.py"
        path.write_text(create_env_with_context(context).from_string(source).render(context))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser
