"""Text with special characters of any language arrives unchanged everywhere in a project."""

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from .answers import CONTEXT
from .conftest import Command, typed
from .test_documents import assert_clean_headings
from .test_project import contents
from .tools import check_with_ruff

HOSTILE = {
    "double quotes": 'say "hi"',
    "single quotes": "it's 'ours'",
    "triple quotes": "a \"\"\" b ''' c",
    "a quote at the end": 'ends with "',
    "backslashes": r"C:\new\table \u0041 \\ \x \d \N{DASH}",
    "a backslash at the end": "ends with \\",
    "braces": "{a} {{ b }} {% c %} {# d #} {0} ${e} %(f)s %s",
    "the context": "{{ cookiecutter.author }}",
    "markup": "<b>R&D</b> <script>alert(1)</script> [bold]x[/] <!-- # --> |",
    "YAML": "- a: b, #c & *d ! e | f > g % @ `",
    "a leading dash": "--name",
    "emoji": "page 🎉 👩‍👩‍👧 ☃️",
    "right to left": "דף מודלים صفحة",
    "other scripts": "模型 Ğ ß ﬁ \u00a0 é",
    "typographic": "Ada’s “best” page – in Москва…",  # noqa: RUF001 - people type these
    "300 characters": "word " * 60 + "!",
    "a path": "../../etc/passwd",
    "a device": "CON",
    "a list": "1. first",
    "a list with parentheses": "2) second",
    "digits first": "3D viewer 2048",
    "digits alone": "2048",
    "a dot first": ".NET for us",
    "dots alone": "...",
    "a plus first": "+ plus +",
    "an underline": "===",
    "C#": "C#",
    "underscores": "snake_case_name __init__",
    "stars": "2 * 3 * 4 **bold**",
    "tildes": "~~old~~ ~/new",
    "a formula": "$a_1 + b_2$ for $5",
    "a footnote": "[^1]: not one",
    "a task": "[ ] to do",
    "a picture": "![x](y.png)",
    "an address": "ada@example.org @ada #12",
    "a table": "a | b",
    "a quote of a mail": "> said",
    "an emoji alone": "🚀",
    "a rule": "---",
    "a heading": "# not one #",
    "code of Python": "__import__('os').system('touch hacked')",
    "code of a shell": "$(touch hacked) `touch hacked`; touch hacked & | touch hacked",
    "code of Jinja": "{{ cycler.__init__.__globals__.os.mkdir('hacked') }}",
    "a code fence": "```sh",
    "a link": "[here](https://example.org) https://example.org <https://example.org>",
    "an entity": "&lt; &amp; &#65;",
}

# Special characters of shells, encodings and prompts.
OF_A_TERMINAL = ["backslashes", "emoji", "right to left", "code of a shell"]


@pytest.fixture(scope="module", params=HOSTILE.values(), ids=list(HOSTILE))
def text(request: pytest.FixtureRequest) -> str:
    hostile: str = request.param
    return hostile


@pytest.fixture(scope="module")
def project(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with this text as the answer to each text question. Tests only read it."""
    command = Command(tmp_path_factory.mktemp("project"))

    result = command.in_this_process(stdin=typed_everywhere(text))

    assert result.exit_code == 0, result.output
    return command.output / "our-app"


def typed_everywhere(text: str) -> str:
    return typed(
        project_name=text,
        project_slug="our-app",
        description=text,
        author=text,
        parallel_models="no",
        ci="2",
    )


def test_a_hostile_text_arrives_unchanged(text: str, project: Path) -> None:
    output = project.parent
    assert [path.name for path in output.iterdir()] == ["our-app"]
    assert not list(output.parent.rglob("*hacked*"))
    metadata = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    assert metadata["description"] == text
    assert metadata["authors"] == [{"name": text}]
    words = constants_of(project / "src" / "our_app" / "page.py")
    assert words["TITLE"] == text
    assert words["DESCRIPTION"] == text
    assert beginning_of_markdown(project / "README.md") == [
        ("h1", text.strip()),
        ("p", text.strip()),
    ]
    assert text in (project / "LICENSE").read_text("utf-8")
    for config in project.glob("config/*.yaml"):
        [application] = yaml.safe_load(config.read_text("utf-8"))["applications"]
        assert application["name"] == "our-app"


def test_python_with_hostile_texts_runs_and_is_formatted(project: Path) -> None:
    for path in project.rglob("*.py"):
        compile(path.read_bytes(), path, "exec")
    check_with_ruff(project)


def test_the_readme_has_a_clean_title_for_any_name(text: str, project: Path) -> None:
    assert assert_clean_headings(project / "README.md")[0] == text.strip()


def test_the_link_command_has_the_version_and_answers_of_the_project(
    text: str, project: Path
) -> None:
    page = (project / "CONTRIBUTING.md").read_text("utf-8")
    [line] = re.findall(r"^uvx cruft link .*$", page, re.MULTILINE)
    [*_, checkout, version, no_input, extra, answers] = shlex.split(line)
    assert (checkout, no_input, extra) == ("--checkout", "--no-input", "--extra-context")
    assert version == f"v{CONTEXT['_template_version']}"
    linked = json.loads(answers)
    assert set(linked) == {name for name in CONTEXT if not name.startswith("_")}
    assert linked["project_name"] == linked["description"] == linked["author"] == text
    assert linked["parallel_models"] is False
    assert linked["ci"] == "gitlab"


@pytest.mark.parametrize("name", OF_A_TERMINAL)
def test_a_separate_process_reads_input_in_the_same_way(
    name: str, command: Command, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = Command(tmp_path_factory.mktemp("here"))
    stdin = typed_everywhere(HOSTILE[name])

    result = command(stdin=stdin)

    assert result.returncode == 0, result.stderr
    assert here.in_this_process(stdin=stdin).exit_code == 0
    assert contents(command.output) == contents(here.output)
    assert not list(command.output.parent.rglob("*hacked*"))


def beginning_of_markdown(path: Path) -> list[tuple[str, str]]:
    """Returns the types and the plain texts of the first two blocks."""
    [*first, rest] = MarkdownIt().parse(path.read_text("utf-8"))[:7]
    assert rest.type == "paragraph_open"
    blocks = [first[:3], first[3:]]
    for _, inline, _ in blocks:
        assert {part.type for part in inline.children or []} == {"text"}
    return [
        (start.tag, "".join(part.content for part in inline.children or []))
        for start, inline, _ in blocks
    ]


def constants_of(path: Path) -> dict[str, object]:
    """Returns the names in a module whose values are literals."""
    return {
        target.id: statement.value.value
        for statement in ast.parse(path.read_text("utf-8")).body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
