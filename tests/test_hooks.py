"""The hooks: refused answers, and the files and messages for the others."""

import ast
import re
import sys
import tempfile
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from cookiecutter.generate import generate_files

from .answers import CHOICES, PROJECT, TEMPLATE, Answers, every_answer_to, in_words
from .conftest import Answer, Command, LoadHook, Render
from .test_hostile_texts import HOSTILE

REFUSED = {
    "project_name=": "project_name is empty",
    "project_name=  \u2003 ": "project_name is empty",
    "project_name=\u200b\u2060": "project_name is empty",
    "project_name=\u3164 \u2800": "project_name is empty",
    "project_name=\ufe0f": "project_name is empty",
    "description=": "description is empty",
    "description=\u00ad": "description is empty",
    "author=": "author is empty",
    "author= ": "author is empty",
    "project_name=two\nlines": "project_name contains the control character U+000A",
    "project_name=a\x1b[31mb": "project_name contains the control character U+001B",
    "description=a\x85b": "description contains the control character U+0085",
    "description=a\u2028b": "description contains the line-breaking character U+2028",
    "author=a\tb": "author contains the control character U+0009",
    "author=a\x7fb": "author contains the control character U+007F",
    "project_slug=my app": "cannot be used as a folder name and a package name",
    "project_slug=my+app": "cannot be used as a folder name and a package name",
    "project_slug=café": "cannot be used as a folder name and a package name",
    "project_slug=my-app-": "cannot be used as a folder name and a package name",
    "project_slug=.app": "cannot be used as a folder name and a package name",
    "project_slug=_app": "cannot be used as a folder name and a package name",
    "project_slug=app.": "cannot be used as a folder name and a package name",
    "project_slug=a..b": "cannot be used as a folder name and a package name",
    "project_slug=-app": "cannot be used as a folder name and a package name",
    "project_slug=a/b": "cannot be used as a folder name and a package name",
    "project_slug=../app": "cannot be used as a folder name and a package name",
    "project_slug=../../a/b": "cannot be used as a folder name and a package name",
    "project_slug=/app": "cannot be used as a folder name and a package name",
    "project_slug=$(touch hacked)": "cannot be used as a folder name and a package name",
    "project_slug='; import os": "cannot be used as a folder name and a package name",
    "project_slug=\U0001f389": "cannot be used as a folder name and a package name",
    "project_slug=\u05d3\u05e3": "cannot be used as a folder name and a package name",
    "project_slug=" + "\U0001f389" * 300: "cannot be used as a folder name and a package name",
    "project_slug=two\nlines": "cannot be used as a folder name and a package name",
    "project_slug=app\n": "cannot be used as a folder name and a package name",
    "project_slug=app\\sub": "cannot be used as a folder name and a package name",
    "project_slug=MyApp": "cannot be used as a folder name and a package name",
    "project_slug=" + "a" * 48: "has more than 47 characters",
    "project_slug=" + "a" * 300: "has more than 47 characters",
    "project_slug=CON": "cannot be used as a folder name and a package name",
    "project_slug=con": "is a reserved device name on Windows",
    "project_slug=nul.app": "is a reserved device name on Windows",
    "project_slug=com1": "is a reserved device name on Windows",
    "project_slug=lpt9.x.y": "is a reserved device name on Windows",
    "project_slug=3d-viewer": "'3d_viewer', which cannot be imported",
    "project_slug=2048": "'2048', which cannot be imported",
    "project_slug=class": "is a Python keyword",
    "project_slug=match": "is a Python keyword",
    "project_slug=type": "is a Python keyword",
    "project_slug=on": "is not read as a string in YAML",
    "project_slug=true": "is not read as a string in YAML",
    "project_slug=json": "shadows 'json' in Python's standard library",
    "project_slug=concurrent": "shadows 'concurrent' in Python's standard library",
    "project_slug=test": "shadows the tests",
    "project_slug=tests": "shadows the tests",
    "project_slug=gradio": "is the name of a library that the project needs",
    "project_slug=gradio_client": "is the name of a library that the project needs",
    "project_slug=gradio.client": "is the name of a library that the project needs",
    "project_slug=pyyaml": "is the name of a library that the project needs",
    "project_name=Ray": "is the name of a library that the project needs",
}

ACCEPTED = [
    *("a", "a1", "my-app", "my_app", "my.app", "my-3d-viewer", "gradio-on-ray", "test-app"),
    *("console", "nullable", "onward", "raytracer", "typed", "yes-men", "a" * 47),
]

# One for each question, and special characters of terminals and file systems.
REFUSED_IN_A_PROCESS = [
    *("project_name=", "author=a\tb", "description=a\x85b", "project_name=two\nlines"),
    *("project_slug=../../a/b", "project_slug=$(touch hacked)", "project_slug=\U0001f389"),
]

# These come from Cookiecutter, which knows the possible answers.
NO_ANSWERS = [
    *("task=poetry", "task=Summarization", "task=__import__('os')", "license=../LICENSE"),
    *("parallel_models=maybe", "deploy={{ 7 * 7 }}", "ci=", "models=🎉"),
]


@pytest.mark.parametrize(("answer", "sentence"), REFUSED.items(), ids=map(ascii, REFUSED))
def test_refuses_in_one_sentence_and_leaves_nothing_behind(
    answer: str, sentence: str, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    result = command.in_this_process("--no-input", answer)

    assert result.exit_code != 0
    assert_said_in_one_sentence(answer, sentence, result.stderr + capfd.readouterr().err)
    assert_nothing_is_written(command)


@pytest.mark.parametrize("answer", REFUSED_IN_A_PROCESS, ids=ascii)
def test_a_separate_process_refuses_in_the_same_way(answer: str, command: Command) -> None:
    result = command("--no-input", answer)

    assert result.returncode != 0
    assert_said_in_one_sentence(answer, REFUSED[answer], result.stderr)
    assert_nothing_is_written(command)


def assert_said_in_one_sentence(answer: str, sentence: str, stderr: str) -> None:
    [said] = stderr.splitlines()
    problem, _, remedy = said.rpartition(". ")
    assert problem.startswith(answer.split("=")[0]) or answer == "project_name=Ray"
    assert sentence in said
    assert remedy.endswith(".")


@pytest.mark.parametrize("answer", NO_ANSWERS, ids=ascii)
def test_an_unknown_answer_is_refused(answer: str, command: Command) -> None:
    result = command("--no-input", answer)

    assert result.returncode != 0
    assert answer.partition("=")[2] in result.stdout + result.stderr
    assert_nothing_is_written(command)


def assert_nothing_is_written(command: Command) -> None:
    folder = command.output.parent
    left = {path.name for path in folder.rglob("*")}
    # Cookiecutter saves the last answers in its own folder, which is here.
    assert left <= {"output", "config.yaml", f"{TEMPLATE.name}.json"}


def test_refuses_an_existing_folder_and_leaves_it_unchanged(command: Command) -> None:
    mine = command.output / "gradio" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine", "utf-8")

    result = command.in_this_process("--no-input", "--overwrite-if-exists", "project_slug=gradio")

    assert result.exit_code != 0
    assert [path for path in command.output.rglob("*") if path.is_file()] == [mine]


@pytest.mark.parametrize("slug", ACCEPTED)
def test_accepts(slug: str, command: Command) -> None:
    result = command.in_this_process("--no-input", f"project_slug={slug}")

    assert result.exit_code == 0, result.output
    assert [path.name for path in command.output.iterdir()] == [slug]


def test_refuses_the_name_of_every_declared_dependency(
    rendered: Render, load_hook: LoadHook
) -> None:
    hook = load_hook("pre_gen_project")

    for answers in every_answer_to("page", "models"):
        pyproject = tomllib.loads((rendered(**answers) / "pyproject.toml").read_text("utf-8"))
        for requirement in [
            *pyproject["build-system"]["requires"],
            *pyproject["project"]["dependencies"],
            *chain.from_iterable(pyproject["dependency-groups"].values()),
        ]:
            name = re.split(r"[\[<>=;~! ]", requirement)[0].lower()
            assert list(hook.problems_of_slug(name)), name


def test_refuses_the_name_of_every_imported_module(rendered: Render, load_hook: LoadHook) -> None:
    hook = load_hook("pre_gen_project")

    for answers in every_answer_to("page", "models"):
        project = rendered(project_slug="our-app", **answers)
        own = {path.stem for path in project.rglob("*.py")} | {"our_app"}
        for path in project.rglob("*.py"):
            for module in absolute_imports(path) - own:
                assert list(hook.problems_of_package(module.lower())), module


def absolute_imports(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules.add(node.module.split(".")[0])
    return modules


@pytest.mark.parametrize("hook", ["pre_gen_project", "post_gen_project"])
@pytest.mark.parametrize(
    "text",
    [*HOSTILE.values(), "", '"', '"""', "\\", '\\"""', "\n", "\r\n", "\0", "\u2028", "\ud800"],
    ids=ascii,
)
def test_a_hook_reads_every_answer_unchanged(text: str, hook: str, load_hook: LoadHook) -> None:
    module = load_hook(hook, project_name=text, description=text, author=text)

    for question in ("project_name", "description", "author"):
        assert module.ANSWERS[question] == text


def test_removed_files_are_declared_for_exactly_the_existing_answers(load_hook: LoadHook) -> None:
    hook = load_hook("post_gen_project")

    for question, answers in hook.UNWANTED.items():
        assert set(answers) == set(CHOICES[question]), question
        assert {type(key) for key in answers} == {type(key) for key in CHOICES[question]}


def test_each_variant_of_a_file_is_used_by_some_answers(load_hook: LoadHook) -> None:
    chosen = {
        name
        for answers in every_answer_to(
            "page", "task", "parallel_models", "models", "votes", "license"
        )
        for name in load_hook("post_gen_project", **answers).CHOSEN
    }
    package = "src/{{cookiecutter.__package}}"
    there = {*(PROJECT / package).glob("*.*.py"), *PROJECT.glob("LICENSE.*")}
    there |= {*PROJECT.rglob("*.own.*"), *PROJECT.rglob("*.votes.*")}
    there |= set(PROJECT.glob("tests/*.*.py"))
    # Their counterparts for other answers, whose names contain no answer.
    there |= {path for each in there if (path := without_answer(each)).exists()}

    found = {path.relative_to(PROJECT).as_posix() for path in there}
    package_of_chosen = load_hook("post_gen_project").PACKAGE
    assert {name.replace(package_of_chosen, package) for name in chosen} == found


def without_answer(path: Path) -> Path:
    return path.with_name(path.name.replace(".own.", "."))


def test_the_page_has_the_chosen_words_and_graph(rendered: Render) -> None:
    [generation] = rendered(task="text-generation").glob("src/*/page.py")
    [summarization] = rendered(task="summarization").glob("src/*/page.py")
    [parallel] = rendered(parallel_models=True).glob("src/*/app.py")
    [wrap] = rendered(parallel_models=False).glob("src/*/app.py")

    assert 'BUTTON = "Generate"' in generation.read_text("utf-8")
    assert 'BUTTON = "Summarize"' in summarization.read_text("utf-8")
    assert "deployments_of(settings)" in parallel.read_text("utf-8")
    assert "deployments_of" not in wrap.read_text("utf-8")


@pytest.mark.parametrize(
    "answers", every_answer_to("models", "task", "parallel_models"), ids=in_words
)
def test_the_project_has_the_chosen_models(answers: Answers, rendered: Render) -> None:
    [models] = rendered(**answers).glob("src/*/models.py")
    text = models.read_text("utf-8")

    assert text.count("ModelSettings(") == (2 if answers["parallel_models"] else 1)
    assert ("bundled:" in text) == (answers["models"] == "bundled")
    assert ("ummarize" in text) == (answers["task"] == "summarization")


def test_prints_the_next_steps_with_the_names_of_the_project(command: Command) -> None:
    result = command("--no-input", "project_slug=our.big-app")

    assert "cd our.big-app\n" in result.stdout
    assert "python -m our_big_app\n" in result.stdout
    assert result.stderr == ""


def test_prints_the_next_steps_when_cruft_creates_a_project(
    tmp_path: Path, answer: Answer, capfd: pytest.CaptureFixture[str]
) -> None:
    render_as_cruft(tmp_path, answer(project_slug="our-app"))

    assert "cd our-app\n" in capfd.readouterr().out


def test_prints_nothing_when_cruft_updates_a_project(
    answer: Answer, capfd: pytest.CaptureFixture[str]
) -> None:
    # Like cruft, in a temporary directory.
    with tempfile.TemporaryDirectory() as output:
        render_as_cruft(Path(output), answer(project_slug="our-app"))
        assert (Path(output) / "our-app" / "README.md").is_file()

    assert capfd.readouterr() == ("", "")


def test_prints_the_next_steps_in_a_temporary_directory_without_cruft(
    answer: Answer, capfd: pytest.CaptureFixture[str]
) -> None:
    with tempfile.TemporaryDirectory() as output:
        generate_files(TEMPLATE, {"cookiecutter": answer(project_slug="our-app")}, output)

    assert "cd our-app\n" in capfd.readouterr().out


def render_as_cruft(output: Path, answers: dict[str, object]) -> None:
    """Renders with the answers that cruft adds to create or update a project."""
    answers |= {"_template": str(TEMPLATE), "_commit": "0" * 40}
    generate_files(TEMPLATE, {"cookiecutter": answers}, output, overwrite_if_exists=True)


def test_prints_the_next_steps_on_an_ascii_terminal(command: Command) -> None:
    result = command(
        "--no-input", "project_name=🎉 page", "project_slug=page", PYTHONIOENCODING="ascii"
    )

    assert result.returncode == 0, result.stderr
    assert "cd page\n" in result.stdout
    assert (command.output / "page").is_dir()


def test_the_hooks_use_only_the_standard_library(load_hook: LoadHook) -> None:
    for name in ("pre_gen_project", "post_gen_project"):
        path = load_hook(name).__file__
        assert path
        imported = absolute_imports(Path(path))
        assert imported <= sys.stdlib_module_names
        # They use no network, no git and no other program.
        assert not imported & {"http", "os", "socket", "subprocess", "urllib"}
