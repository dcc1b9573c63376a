"""Writes the pages that have a source elsewhere: `nox -s docs`."""

import ast
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from cookiecutter.main import cookiecutter

from tests.answers import CHOICES, CONTEXT, TEMPLATE

WRITTEN = "<!-- Written by `nox -s docs`: edit the source that it names instead. -->"
SAID_BY_NAME = {
    "pyproject.toml": "dependencies, and the settings of tools",
    "LICENSE": "the licence that was chosen",
    "README.md": "how to start, ask, change, test and deploy it",
    "CONTRIBUTING.md": "how to check a change, and where a thing lives",
    "SECURITY.md": "what the page promises, and what not",
    "__init__.pyi": "the names that a team may rely on",
    "__main__.py": "`python -m our_app`: hands `build` to the machinery",
    "conftest.py": "what tests are given, and what is true of all of them",
    "AGENTS.md": "who may import what, the conventions, and where tests are",
    "changing.md": "a page, a header, a route, a metric and settings of your own",
    "operations.md": "how to deploy, monitor and scale it",
    "CODEOWNERS": "who is asked to review a change, once you name them",
    ".pre-commit-config.yaml": "the checks of each commit",
    "ci.yml": "runs the checks",
    "dependabot.yml": "keeps the versions fresh",
    ".gitignore": "what git leaves out",
    ".gitattributes": "line ends",
    ".dockerignore": "what the image leaves out",
}
ROOT = "The top"
SAID_OF_FOLDER = {
    "src/our_app": "The team's room: its page, its models, and what is made of them.",
    "src/our_app/serving": "The machinery, which updates replace. Its folders follow.",
    "tests": "The team's tests, to change and to copy from.",
    "tests/load": "The load test, which Locust runs and pytest does not.",
    "tests/serving": "The machinery's tests.",
}


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, "utf-8")
        print(path.relative_to(TEMPLATE))


def pages() -> dict[Path, str]:
    """Returns the text of each page that is written."""
    return {
        TEMPLATE / "docs" / "questions.md": "\n".join(questions()) + "\n",
        TEMPLATE / "docs" / "tree.md": "\n".join(tree_page()) + "\n",
    }


def questions() -> Iterator[str]:
    yield from ("# The questions", "", WRITTEN, "", "From `cookiecutter.json`, the default first.")
    for name, prompt in CONTEXT["__prompts__"].items():
        default = CONTEXT[name]
        words = prompt["__prompt__"] if isinstance(prompt, dict) else prompt
        yield from ("", f"## `{name}`", "", f"{words}.", "")
        if isinstance(default, list):
            yield from ("| Answer | |", "| --- | --- |")
            for answer in default:
                yield f"| `{answer}` | {prompt[answer].removeprefix(f'{answer}: ')} |"
        elif isinstance(default, bool):
            yield f"`{'yes' if default else 'no'}` or `{'no' if default else 'yes'}`."
        elif "{{" in default:
            yield "Made of the answers before it, unless you type another."
        else:
            yield f"`{default}`, unless you type another."
    yield from ("", "## Combinations that are refused", "")
    forbidden = CONTEXT["_forbidden"]
    for each in forbidden:
        named = " and ".join(f"`{name}={answer}`" for name, answer in each["answers"].items())
        yield f"- {named}: {each['because']}"
    if not forbidden:
        yield "None: every answer goes with every other."
    yield from ("", "## Answers without effect", "")
    for each in CONTEXT["_without_effect"]:
        named = " and ".join(f"`{name}={answer}`" for name, answer in each["answers"].items())
        questions = ", ".join(f"`{question}`" for question in each["questions"])
        yield f"- With {named}, whatever you answer to {questions} makes the same project."


def tree_page() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        default = render(Path(directory))
        yield from ("# What comes out", "", WRITTEN, "")
        yield "The default answers make these files, folder by folder."
        yield from folders(default)
        yield from ("## Other answers", "", "They take files of it away, or add some:", "")
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
    """Yields a table for each folder that holds files, with what each file says of itself."""
    paths = sorted(project / name for name in files(project))
    for folder, inside in groupby(sorted(paths, key=by_folder), lambda path: path.parent):
        name = folder.relative_to(project).as_posix()
        described = [(path.name, said_by(path)) for path in inside]
        # What marks a package, and says nothing.
        rows = [row for row in described if row != ("__init__.py", "")]
        if rows:
            yield from ("", f"## {ROOT if name == '.' else f'`{name}/`'}", "")
            if name in SAID_OF_FOLDER:
                yield from (f"{SAID_OF_FOLDER[name]}", "")
            yield from ("| File | |", "| --- | --- |")
            for file, said in rows:
                yield f"| `{file}` | {said} |"
    yield ""


def by_folder(path: Path) -> tuple[tuple[str, ...], str]:
    return path.parent.parts, path.name


def said_by(path: Path) -> str:
    """The first sentence of a module's docstring, a comment or a heading."""
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
    """Puts the name of a folder in the place of its files, where none of them is kept."""
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
