"""Writes the docs that are generated from a source: `nox -s docs`."""

import ast
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from cookiecutter.main import cookiecutter

from tests.answers import CHOICES, CONTEXT, TEMPLATE

WRITTEN = "<!-- Written by `nox -s docs`. Edit its source instead: {source}. -->"
SAID_BY_NAME = {
    "pyproject.toml": "the dependencies, and the settings of the tools",
    "LICENSE": "the license that you chose",
    "README.md": "how to start, call, change, test and deploy the project",
    "CONTRIBUTING.md": "how to check a change, and where to find things",
    "SECURITY.md": "what the page promises, and what it doesn't",
    "__init__.pyi": "the names that you may rely on",
    "__main__.py": "`python -m our_app`: starts the application that `build` in `app.py` describes",
    "conftest.py": "fixtures, and settings for all tests",
    "AGENTS.md": "for coding agents and newcomers: imports, conventions, tests",
    "changing.md": "how to add your own models, page, headers, routes, metrics and settings",
    "operations.md": "how to deploy, monitor and scale the project",
    "CODEOWNERS": "who reviews a change, once you add names",
    ".pre-commit-config.yaml": "the checks that run on each commit",
    "ci.yml": "runs the checks and the tests",
    "dependabot.yml": "updates the dependencies each week",
    ".gitignore": "what git ignores",
    ".gitattributes": "line endings",
    ".dockerignore": "what the image leaves out",
}
ROOT = "Top-level folder"
SAID_OF_FOLDER = {
    "src/our_app": "Your files: the page, the models, and the application that connects them.",
    "src/our_app/serving": "The machinery, which template updates replace. Its folders follow.",
    "tests": "Your tests. Change them, or copy from them.",
    "tests/load": "The load test. Locust runs it, and pytest ignores it.",
    "tests/serving": "The machinery's tests.",
}


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, "utf-8")
        print(path.relative_to(TEMPLATE))


def pages() -> dict[Path, str]:
    """Returns the text of each generated page."""
    return {
        TEMPLATE / "docs" / "questions.md": "\n".join(questions()) + "\n",
        TEMPLATE / "docs" / "tree.md": "\n".join(tree_page()) + "\n",
    }


def questions() -> Iterator[str]:
    source = WRITTEN.format(source="cookiecutter.json")
    yield from ("# Questions", "", source, "")
    yield "Cookiecutter asks these questions when you create a project. The default comes first."
    for name, prompt in CONTEXT["__prompts__"].items():
        default = CONTEXT[name]
        words = prompt["__prompt__"] if isinstance(prompt, dict) else prompt
        yield from ("", f"## `{name}`", "", f"{words}.", "")
        if isinstance(default, list):
            yield from ("| Answer | What you get |", "| --- | --- |")
            for answer in default:
                yield f"| `{answer}` | {prompt[answer].removeprefix(f'{answer}: ')} |"
        elif isinstance(default, bool):
            yield f"Answer `{'yes' if default else 'no'}` (the default) or `{'no' if default else 'yes'}`."
        elif "{{" in default:
            yield "The default is derived from your previous answers."
        else:
            yield f"Default: `{default}`"
    yield from ("", "## Refused combinations", "")
    forbidden = CONTEXT["_forbidden"]
    for each in forbidden:
        named = " and ".join(f"`{name}={answer}`" for name, answer in each["answers"].items())
        yield f"- {named}: {each['because']}"
    if not forbidden:
        yield "None: you can combine any answers."
    yield from ("", "## Questions without effect", "")
    for each in CONTEXT["_without_effect"]:
        named = " and ".join(f"`{name}={answer}`" for name, answer in each["answers"].items())
        *others, last = [f"`{question}`" for question in each["questions"]]
        unused = f"{', '.join(others)} and {last}" if others else last
        yield f"- With {named}, your answers to {unused} change nothing."


def tree_page() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        default = render(Path(directory))
        source = WRITTEN.format(source="docs/write.py, or the file itself")
        yield from ("# Files of a project", "", source, "")
        yield "With the default answers, a project has these files, listed by folder."
        yield from folders(default)
        yield from ("## Other answers", "", "Other answers add files or leave some out:", "")
        yield from ("| Answer | Added | Left out |", "| --- | --- | --- |")
        for question, answers in CHOICES.items():
            for answer in answers[1:]:
                project = render(Path(directory), **{question: answer})
                added, left_out = files(project) - files(default), files(default) - files(project)
                if added or left_out:
                    spelled = {True: "yes", False: "no"}.get(answer, answer)
                    whole = whole_folders(left_out, files(project))
                    yield f"| `{question}={spelled}` | {listed(added)} | {listed(whole)} |"


def render(directory: Path, **answers: str | bool) -> Path:
    return Path(
        cookiecutter(
            str(TEMPLATE),
            no_input=True,
            extra_context={"project_slug": "our-app", **answers},
            output_dir=tempfile.mkdtemp(dir=directory),
            default_config={"replay_dir": str(directory), "cookiecutters_dir": str(directory)},
        )
    )


def files(project: Path) -> set[str]:
    return {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}


def folders(project: Path) -> Iterator[str]:
    """Yields a table for each folder that has files, with the description of each file."""
    paths = sorted(project / name for name in files(project))
    for folder, inside in groupby(sorted(paths, key=by_folder), lambda path: path.parent):
        name = folder.relative_to(project).as_posix()
        described = [(path.name, said_by(path)) for path in inside]
        # An empty file that only makes the folder a package.
        rows = [row for row in described if row != ("__init__.py", "")]
        if rows:
            yield from ("", f"## {ROOT if name == '.' else f'`{name}/`'}", "")
            if name in SAID_OF_FOLDER:
                yield from (f"{SAID_OF_FOLDER[name]}", "")
            yield from ("| File | What it contains |", "| --- | --- |")
            for file, said in rows:
                yield f"| `{file}` | {said} |"
    yield ""


def by_folder(path: Path) -> tuple[tuple[str, ...], str]:
    return path.parent.parts, path.name


def said_by(path: Path) -> str:
    """Returns the first sentence of a module's docstring, a comment or a heading."""
    text = path.read_text("utf-8")
    if path.name in SAID_BY_NAME:
        said = SAID_BY_NAME[path.name]
    elif path.suffix == ".py":
        said = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    elif text.startswith("# "):
        said = text.split("\n")[0].removeprefix("# ")
    else:
        said = ""
    return said.partition(". ")[0].rstrip(".")


def whole_folders(left_out: set[str], kept: set[str]) -> set[str]:
    """Replaces files by the name of their folder if none of its files is kept."""
    folders = {f"{folder}/" for name in kept for folder in Path(name).parents}
    return {
        next(
            (
                f"{folder}/"
                for folder in reversed(Path(name).parents[:-1])
                if f"{folder}/" not in folders
            ),
            name,
        )
        for name in left_out
    }


def listed(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


if __name__ == "__main__":
    main()
