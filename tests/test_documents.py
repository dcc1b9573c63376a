"""A project's documents are correct for every set of answers."""

import ast
import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from packaging.version import Version

from .answers import CONTEXT, TEMPLATE, Answers, every_pair_of_answers, in_words
from .conftest import Render

PACKAGE = "src/our_app"
# Folders in which a reader looks for a file that is named without a folder.
FOLDERS = ("", "docs/", f"{PACKAGE}/", f"{PACKAGE}/serving/", "tests/support/")
# Created later by uv and cruft.
NOT_YET = {"uv.lock", ".cruft.json"}
LINES_OF_README = 150


@pytest.fixture(scope="module", params=every_pair_of_answers(), ids=in_words)
def answers(request: pytest.FixtureRequest) -> Answers:
    chosen: Answers = request.param
    return chosen


@pytest.fixture
def project(answers: Answers, rendered: Render) -> Path:
    return rendered(project_slug="our-app", **answers)


def documents(project: Path) -> list[Path]:
    return [*sorted(project.glob("*.md")), *sorted(project.glob("docs/*.md"))]


def test_the_readme_is_short(project: Path) -> None:
    lines = (project / "README.md").read_text("utf-8").splitlines()

    assert len(lines) < LINES_OF_README


def test_a_document_has_one_title_and_no_duplicate_headings(project: Path) -> None:
    for document in documents(project):
        assert_clean_headings(document)


def assert_clean_headings(document: Path) -> list[str]:
    """Returns the headings, the title first."""
    tokens = parsed(document)
    levels = [token.tag for token in tokens if token.type == "heading_open"]
    titles = headings(document)
    assert levels[0] == "h1", document
    assert levels.count("h1") == 1, document
    assert all(title.strip() for title in titles), document
    assert len(set(titles)) == len(titles), document
    return titles


def test_every_path_in_a_document_exists(project: Path) -> None:
    for document in documents(project):
        named = set(paths_in(document))
        assert named or document.name == "SECURITY.md"
        for name in named - NOT_YET:
            assert any(list(project.glob(folder + name)) for folder in FOLDERS), (document, name)


def test_every_link_in_a_document_leads_to_a_file_and_heading(project: Path) -> None:
    for document in documents(project):
        for target in links_in(document):
            name, _, anchor = target.partition("#")
            path = document.parent / name if name else document
            assert path.is_file(), (document, target)
            assert not anchor or anchor in map(anchor_of, headings(path)), (document, target)


def test_the_readme_only_asks_to_change_files_of_the_team(answers: Answers, project: Path) -> None:
    rows = rows_of(project / "README.md", "Change it")
    own = answers["page"] == "own"

    assert len(rows) >= (13 if answers["deploy"] != "local" else 12) - 2 * own
    for what, where in rows:
        spans = re.findall(r"`([^`]+)`", where)
        files = [span for span in spans if re.search(r"\.(py|yaml)$", span)]
        assert len(files) == 1, what
        found = [path for folder in FOLDERS[:3] for path in project.glob(folder + files[0])]
        assert found, what
        assert not [path for path in found if "serving" in path.parts], what
        for name in set(spans) - set(files) - {"launch()", "Counter"}:
            # Arguments and config fields are defined where they are used.
            settings = "http/settings.py" if own else "pages/settings.py"
            takes = {"=": "http/ingress.py", ":": settings}.get(name[-1])
            places = [*found, *([project / PACKAGE / "serving" / takes] if takes else [])]
            wanted = name.rstrip("=:")
            assert any(wanted in path.read_text("utf-8") for path in places), name


def test_the_limits_page_has_all_names_and_defaults(answers: Answers, project: Path) -> None:
    serving = project / PACKAGE / "serving"
    limits = defaults_of(serving / "http/settings.py", "RequestLimits")
    rows = rows_of(project / "docs/changing.md", "Limits")
    said = {name.strip("`"): default for name, default, _ in rows}

    if answers["page"] != "own":
        limits |= defaults_of(serving / "pages/settings.py", "Limits")
        limits |= defaults_of(serving / "engine/settings.py", "ModelLimits")
        for name in ("cache_tokens", "prompt_tokens"):
            assert said.pop(name) == "depends on memory"
            assert limits.pop(name) is None
    assert limits
    assert said == {name: str(value) for name, value in limits.items()}


def test_options_with_a_default_are_documented_with_it(rendered: Render) -> None:
    project = rendered(project_slug="our-app")
    options = defaults_of(project / PACKAGE / "serving/protocol.py", "GenerationOptions")
    text = (project / "docs/changing.md").read_text("utf-8")

    chosen = {name: value for name, value in options.items() if isinstance(value, int)}
    assert chosen
    for name, value in chosen.items():
        assert re.search(rf"`{name}` \({value}\b", text), name


def test_the_yaml_in_documents_uses_existing_settings(answers: Answers, project: Path) -> None:
    serving = project / PACKAGE / "serving"
    classes = {
        "args": {"http/settings.py": "HttpSettings", "telemetry/traces.py": "TracedSettings"},
        "traces": {"telemetry/traces.py": "Traces"},
        "limits": {"http/settings.py": "RequestLimits"},
        "models": {},
    }
    if answers["page"] != "own":
        classes["args"] |= {
            "pages/settings.py": "PageSettings",
            "deployments/settings.py": "ModelsSettings",
        }
        if answers["votes"]:
            classes["args"] |= {"votes/settings.py": "PageSettings"}
        classes["limits"] |= {"pages/settings.py": "Limits", "engine/settings.py": "ModelLimits"}
        classes["models"] = {
            "deployments/settings.py": "ModelSettings",
            "engine/settings.py": "EngineSettings",
        }
    fields = {
        place: {field for path, name in found.items() for field in fields_of(serving / path, name)}
        for place, found in classes.items()
    }

    read = [yaml.safe_load(text) for text in fences(project / "docs", "yaml")]
    arguments = [each["args"] for each in read if isinstance(each, dict) and "args" in each]
    models = [model for each in read if isinstance(each, list) for model in each]
    assert arguments
    assert bool(models) == bool(fields["models"])
    for each in arguments:
        assert set(each) <= fields["args"]
        assert set(each.get("limits", {})) <= fields["limits"]
        assert set(each.get("traces", {})) <= fields["traces"]
    for model in [*models, *(model for each in arguments for model in each.get("models", []))]:
        assert set(model) <= fields["models"]


def test_the_python_in_documents_imports_only_public_names(project: Path) -> None:
    offered = names_at_the_door(project)

    snippets = [*fences(project, "python"), *fences(project / "docs", "python")]
    imports = [
        node
        for snippet in snippets
        for node in ast.walk(ast.parse(snippet))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert imports
    for node in imports:
        if node.module in ("app", "page", "my_demo"):
            # The team's files.
            continue
        assert node.module == "serving"
        assert {alias.name for alias in node.names} <= offered


def test_the_serving_docstring_has_at_most_ten_lines(project: Path) -> None:
    package = ast.parse((project / PACKAGE / "serving/__init__.py").read_text("utf-8"))
    said = ast.get_docstring(package) or ""

    assert 3 <= len(said.splitlines()) <= 10
    named = set(re.findall(r"`([A-Za-z]\w+)`", said))
    assert named
    assert named <= names_at_the_door(project)


@pytest.mark.parametrize(
    ("ci", "name"), [("github", ".github/CODEOWNERS"), ("gitlab", ".gitlab/CODEOWNERS")]
)
def test_code_owners_cover_both_parts_and_are_commented_out(
    ci: str, name: str, rendered: Render
) -> None:
    project = rendered(project_slug="our-app", ci=ci)
    text = (project / name).read_text("utf-8")

    assert [path.relative_to(project).as_posix() for path in project.rglob("CODEOWNERS")] == [name]
    # Only lines that start like this are comments on both hosts.
    assert all(line.startswith("# ") for line in text.splitlines() if line)
    lines = re.findall(r"^# (\S+) (@\w[\w-]*/\w[\w-]*)$", text, re.MULTILINE)
    [everything, *machinery] = [pattern for pattern, _ in lines]
    assert everything == "*"
    assert f"/{PACKAGE}/serving/" in machinery
    for pattern in machinery:
        assert (project / pattern.strip("/")).is_dir(), pattern


def test_without_ci_there_are_no_code_owners(rendered: Render) -> None:
    assert list(rendered(ci="none").rglob("CODEOWNERS")) == []


def test_projects_record_the_latest_version_in_the_changelog() -> None:
    pyproject = tomllib.loads((TEMPLATE / "pyproject.toml").read_text("utf-8"))
    changelog = (TEMPLATE / "CHANGELOG.md").read_text("utf-8")
    version = Version(pyproject["project"]["version"])
    released = max(map(Version, re.findall(r"^## (\d\S*)", changelog, re.MULTILINE)))

    assert CONTEXT["_template_version"] == str(version)
    if "\n## Unreleased\n" in changelog:
        assert version > released
    else:
        assert version == released


def parsed(document: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(document.read_text("utf-8"))


def headings(document: Path) -> list[str]:
    tokens = parsed(document)
    return [
        "".join(part.content for part in inline.children or [])
        for start, inline in pairwise(tokens)
        if start.type == "heading_open"
    ]


def anchor_of(heading: str) -> str:
    """Returns the anchor that GitHub and GitLab create."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def inline_parts(document: Path) -> Iterator[Token]:
    for token in parsed(document):
        yield from token.children or []


def paths_in(document: Path) -> Iterator[str]:
    for part in inline_parts(document):
        if part.type == "code_inline" and re.fullmatch(
            r"[\w.*][\w.*/-]*(/|\.(py|pyi|md|yaml|yml|toml|lock|json))"
            r"|(src|tests|config|deploy|docs|serving|\.github|\.gitlab)/[\w.*/-]+"
            r"|Dockerfile|LICENSE|\.(github|gitlab)/CODEOWNERS",
            part.content,
        ):
            yield part.content.rstrip("/")


def links_in(document: Path) -> Iterator[str]:
    for part in inline_parts(document):
        target = str(part.attrs.get("href", ""))
        if target and "://" not in target:
            yield target


def rows_of(document: Path, heading: str) -> list[list[str]]:
    """Returns the cells of the table below a heading, without the header."""
    text = document.read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][2:]


def fences(folder: Path, language: str) -> list[str]:
    """Returns the code blocks in one language in the documents of a folder."""
    return [
        token.content
        for document in sorted(folder.glob("*.md"))
        for token in parsed(document)
        if token.type == "fence" and token.info == language
    ]


def class_body(path: Path, name: str) -> list[ast.stmt]:
    [body] = [
        node.body
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    return body


def fields_of(path: Path, name: str) -> set[str]:
    return {
        statement.target.id
        for statement in class_body(path, name)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def defaults_of(path: Path, name: str) -> dict[str, object]:
    """Returns what `Field(default=…)` says in a class of a module."""
    defaults: dict[str, object] = {}
    for statement in class_body(path, name):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Call):
            [default] = [each.value for each in statement.value.keywords if each.arg == "default"]
            assert isinstance(statement.target, ast.Name)
            # A number may be written as a power.
            code = compile(ast.Expression(default), path.name, "eval")
            defaults[statement.target.id] = eval(code, {"__builtins__": {}})  # noqa: S307
    return defaults


def names_at_the_door(project: Path) -> set[str]:
    stub = ast.parse((project / PACKAGE / "serving/__init__.pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}
