"""A project of the last release, changed by its team, is updated to the current template.

The team follows docs/updates.md, in its own repository and in a folder of a larger one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from ..answers import PROJECT, TEMPLATE
from ..generated.project import Project
from ..tools import run

PACKAGE = "src/our_app"
MANIFEST = "deploy/kubernetes/rayservice.yaml"
GONE = {f"{PACKAGE}/settings.py", f"{PACKAGE}/task.py", MANIFEST}
CONFLICTS = GONE | {
    "config/local.yaml",
    "config/production.yaml",
    f"{PACKAGE}/page.py",
}
TOUCHED = {
    "pyproject.toml",
    "config/production.yaml",
    f"{PACKAGE}/models.py",
    f"{PACKAGE}/page.py",
}
OWN = {f"{PACKAGE}/welcome.py", "tests/test_welcome.py"}
# Changes of the next template version, in a file that the team edited and in others.
NEXT = {
    f"{PACKAGE}/page.py": ("\nLAUNCH = ", "\n# Next.\nLAUNCH = "),
    "SECURITY.md": ("# Security\n", "# Security\n\nNext.\n"),
    "pyproject.toml": ("[tool.ruff]\n", "# Next.\n[tool.ruff]\n"),
}
DEPENDENCIES = {
    "pyyaml>": "python-dateutil>=2.9,<3",
    "types-pyyaml>": "types-python-dateutil>=2.9,<3",
}
TEAM = {
    "GIT_AUTHOR_NAME": "Team",
    "GIT_AUTHOR_EMAIL": "team@example.org",
    "GIT_COMMITTER_NAME": "Team",
    "GIT_COMMITTER_EMAIL": "team@example.org",
    "GIT_EDITOR": "true",
}


@dataclass(frozen=True)
class Template:
    """A copy of this repository: its history, and a commit with the working tree."""

    root: Path

    def git(self, *arguments: str) -> str:
        return git(self.root, *arguments)

    def last_release(self) -> str:
        """Returns its tag or, in a clone without tags, the commit with its changelog entry."""
        tags = self.git("tag", "--list", "v*", "--sort=-version:refname", "--merged").split()
        if tags:
            return tags[0]
        commits = self.git("log", "--format=%H", "-G", "^## [0-9]", "--", "CHANGELOG.md").split()
        assert commits, "this clone has no release: git fetch --unshallow --tags"
        return commits[0]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    root = tmp_path_factory.mktemp("template") / "copy"
    git(TEMPLATE, "clone", "--quiet", str(TEMPLATE), str(root))
    template = Template(root)
    for name in names(git(TEMPLATE, "ls-files", "--deleted", "-z")):
        (root / name).unlink()
    for name in names(
        git(TEMPLATE, "ls-files", "--modified", "--others", "--exclude-standard", "-z")
    ):
        if (TEMPLATE / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TEMPLATE / name, root / name)
    for name, (before, after) in NEXT.items():
        template_name = name.replace("our_app", "{{cookiecutter.__package}}")
        path = root / PROJECT.name / template_name.replace("page.py", "page.compare.py")
        edit(path, before, after)
    commit(root, "The working tree, and a change")
    return template


@dataclass(frozen=True)
class Update:
    project: Project
    conflicts: set[str]
    """The files whose conflicts git left to the team."""
    set_aside: str
    """The team's edits, as the history shows them."""


@pytest.fixture(scope="module")
def made(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of the last release, before its team has changed it."""
    return make_project(template, template.last_release(), tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def alone(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Update:
    """The project in its own repository, updated to the working tree."""
    directory = tmp_path_factory.mktemp("alone")
    root = directory / "our-app"
    shutil.copytree(made, root)
    git(root, "init", "--quiet")
    update = updated(root, directory)
    git(root, "revert", "--continue")
    return update


@pytest.fixture(scope="module")
def inside(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Update:
    """The project in a folder of a larger repository, with hooks for its commits."""
    directory = tmp_path_factory.mktemp("inside")
    repository = directory / "all"
    root = repository / "services" / "chat"
    shutil.copytree(made, root)
    (repository / "README.md").write_text("# All \n", "utf-8")
    git(repository, "init", "--quiet")
    update = updated(root, directory)
    update.project.run("uv", "sync")
    update.project.run("uv", "run", "prek", "install", "--force")
    update.project.run("git", "add", "--all")
    update.project.run("git", "revert", "--continue")
    return update


def updated(root: Path, directory: Path) -> Update:
    """Updates a project that its team has changed, until git waits for the commit."""
    commit(root, "What the template made")
    change_as_a_team(root)
    commit(root, "Our model, our page, our dependency")
    assert follow_the_docs(root).returncode == 1
    conflicts = set(names(git(root, "diff", "--name-only", "--diff-filter=U", "--relative", "-z")))
    set_aside = git(root, "show", "-R", "REVERT_HEAD", "--", ".")
    finish_as_a_team(root)
    git(root, "add", "--all")
    variables = {**TEAM, "PREK_HOME": str(directory / "prek")}
    return Update(Project(root, directory / "venv", variables), conflicts, set_aside)


def follow_the_docs(root: Path) -> subprocess.CompletedProcess[str]:
    """Runs the commands of "From 0.1.0"; the last one ends with conflicts."""
    docs = (TEMPLATE / "docs" / "updates.md").read_text("utf-8").partition("## From 0.1.0")[2]
    commands = docs.partition("```sh\n")[2].partition("```")[0].replace("uvx cruft", "cruft")
    assert commands.count("cruft") == 2
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["sh", "-ec", commands],
        cwd=root,
        env={**os.environ, **TEAM, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    print(result.stdout, result.stderr)
    return result


@pytest.fixture(scope="module")
def rendered(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same answers rendered from the working tree."""
    root = make_project(template, "HEAD", tmp_path_factory.mktemp("rendered"))
    git(root, "init", "--quiet")
    return root


def make_project(template: Template, version: str, directory: Path) -> Path:
    # Its default was different in the last release.
    description = "A Gradio page with models that run in parallel on Ray Serve."
    answers = json.dumps(
        {"project_slug": "our-app", "deploy": "kubernetes", "description": description}
    )
    source = ("--checkout", version, template.root)
    run(
        *("cruft", "create", "--no-input", "--default-config"),
        *("--output-dir", directory, "--extra-context", answers, *source),
    )
    return directory / "our-app"


def test_the_conflicts_are_those_that_the_docs_describe(alone: Update) -> None:
    assert alone.conflicts == CONFLICTS


def test_no_file_is_in_conflict_afterwards(alone: Update) -> None:
    assert not git(alone.project.root, "status", "--porcelain")
    for name, text in texts(alone.project.root).items():
        assert not name.endswith((".rej", ".orig"))
        assert not re.search("^(<{7}|={7}|>{7})", text, re.MULTILINE), name


def test_untouched_files_match_the_new_template(alone: Update, rendered: Path) -> None:
    root = alone.project.root
    assert files(root) == files(rendered) | OWN
    for name in files(rendered) - TOUCHED - {".cruft.json"}:
        assert (root / name).read_bytes() == (rendered / name).read_bytes(), name


def test_edits_of_the_team_and_the_template_are_both_kept(alone: Update) -> None:
    found = texts(alone.project.root)

    assert 'name="ours"' in found[f"{PACKAGE}/models.py"]
    assert "- name: ours" in found["config/production.yaml"]
    assert "max_replicas: 8" in found["config/production.yaml"]
    assert "smollm2-lively" not in "".join(found.values())
    assert "gr.Markdown(welcome())" in found[f"{PACKAGE}/page.py"]
    assert '"Ask us"' in found[f"{PACKAGE}/page.py"]
    assert "python-dateutil" in found["pyproject.toml"]
    for name, (_, after) in NEXT.items():
        assert after in found[name]


def test_discarded_edits_can_be_read_during_the_merge(alone: Update) -> None:
    added = {line[1:].strip() for line in alone.set_aside.splitlines() if line.startswith("+")}

    assert {'name="ours",', 'BUTTON = "Ask us"', "gr.Markdown(welcome())"} <= added


def test_the_project_records_the_new_template_version(alone: Update, template: Template) -> None:
    state = json.loads((alone.project.root / ".cruft.json").read_text("utf-8"))

    assert state["commit"] == template.git("rev-parse", "HEAD").strip()


def test_an_update_in_a_subfolder_has_the_same_result(alone: Update, inside: Update) -> None:
    assert inside.conflicts == alone.conflicts
    assert texts(inside.project.root) == texts(alone.project.root)


def test_the_checks_of_the_project_pass_in_the_subfolder(inside: Update) -> None:
    inside.project.run("uv", "run", "prek", "run", "--all-files")
    # The other tests cover files that equal the working tree's; `generated` runs those.
    tests = [f"tests/serving/test_{name}.py" for name in ("config", "settings")]
    tests += [f"tests/test_{name}.py" for name in ("app", "models", "page", "welcome")]
    inside.project.run("uv", "run", "pytest", "-q", "-m", "not served and not browser", *tests)


def test_hooks_of_a_subfolder_run_for_commits_of_its_files(inside: Update) -> None:
    root = inside.project.root
    (root / PACKAGE / "unused.py").write_text("import json\n", "utf-8")
    (root.parents[1] / "README.md").write_text("# Everything \n", "utf-8")
    git(root.parents[1], "add", "--all")
    commands = ("git", "commit", "--message")
    with pytest.raises(AssertionError, match="git commit"):
        inside.project.run(*commands, "An import that is not used")
    git(root, "rm", "--quiet", "--force", f"{PACKAGE}/unused.py")

    # The README with its trailing space is not a file of the project.
    inside.project.run(*commands, "Beside the project")


def files(root: Path) -> set[str]:
    """Returns the files that are, or would be, under version control, except the lock."""
    found = names(git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z"))
    return set(found) - {"uv.lock"}


def texts(root: Path) -> dict[str, str]:
    return {name: (root / name).read_text("utf-8") for name in files(root)}


def names(listed: str) -> list[str]:
    return [name for name in listed.split("\0") if name]


def change_as_a_team(root: Path) -> None:
    package = root / PACKAGE
    production = root / "config" / "production.yaml"
    manifest = root / MANIFEST
    for path in (package / "settings.py", manifest, *(root / "config").iterdir()):
        edit(path, "smollm2-lively", "ours")
    for path in (production, manifest):
        edit(path, "max_replicas: 4", "max_replicas: 8")
    edit(package / "task.py", '"Generate"', '"Ask us"')
    edit(
        package / "page.py",
        "        gr.Markdown(",
        "        gr.Markdown(welcome())\n        gr.Markdown(",
    )
    edit(
        package / "page.py",
        "PROMPT_LABEL, PROMPT_PLACEHOLDER\n",
        "PROMPT_LABEL, PROMPT_PLACEHOLDER\nfrom .welcome import welcome\n",
    )
    (package / "welcome.py").write_text(WELCOME, "utf-8")
    (root / "tests" / "test_welcome.py").write_text(TEST_WELCOME, "utf-8")
    pyproject = root / "pyproject.toml"
    for beside, ours in DEPENDENCIES.items():
        edit(pyproject, f'    "{beside}', f'    "{ours}",\n    "{beside}')


def finish_as_a_team(root: Path) -> None:
    """Does the manual steps of "From 0.1.0"."""
    package = root / PACKAGE
    edit(package / "models.py", "smollm2-lively", "ours")
    edit(package / "page.py", 'BUTTON = "Generate"', 'BUTTON = "Ask us"')
    for name in GONE:
        git(root, "rm", "--quiet", name)
    keep("HEAD", package / "page.py", root / "config" / "local.yaml")
    edit(package / "page.py", "\n)\n\nTITLE", "\n)\nfrom .welcome import welcome\n\nTITLE")
    keep("ours", root / "config" / "production.yaml")
    edit(package / "welcome.py", "from .settings import", "from .serving import")


def keep(side: Literal["HEAD", "ours"], *paths: Path) -> None:
    """Keeps one side of each conflict, the template's or the team's."""
    conflict = re.compile(r"^<{7}.*\n((?:.*\n)*?)={7}\n((?:.*\n)*?)>{7}.*\n", re.MULTILINE)
    for path in paths:
        text = path.read_text("utf-8")
        path.write_text(conflict.sub(r"\1" if side == "HEAD" else r"\2", text), "utf-8")


WELCOME = '''"""What the page says first."""

from dateutil.relativedelta import relativedelta

from .settings import GenerationOptions


def welcome() -> str:
    tokens = GenerationOptions().max_new_tokens
    return f"For {relativedelta(years=3).years} years, in {tokens} tokens."
'''

TEST_WELCOME = """from our_app.welcome import welcome


def test_welcomes() -> None:
    assert welcome() == "For 3 years, in 100 tokens."
"""


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text("utf-8")
    assert before in text, path
    path.write_text(text.replace(before, after, 1), "utf-8")


def commit(root: Path, message: str) -> str:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(root, "rev-parse", "HEAD").strip()


def git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments],
        cwd=root,
        env={**os.environ, **TEAM},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
