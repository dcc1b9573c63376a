"""A project of the last release, changed by its team, takes what the template changed since."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..answers import PROJECT, TEMPLATE
from ..generated.project import Project
from ..tools import run

PACKAGE = "src/our_app"
TOUCHED = {
    "pyproject.toml",
    "config/local.yaml",
    "config/production.yaml",
    "deploy/kubernetes/rayservice.yaml",
    f"{PACKAGE}/page.py",
    f"{PACKAGE}/settings.py",
    f"{PACKAGE}/task.py",
}
OWN = {f"{PACKAGE}/welcome.py", "tests/test_welcome.py"}
# What the template changes in a next version, in a file that the team touched and in others.
NEXT = {
    f"{PACKAGE}/settings.py": ("class Limits(Strict):\n", "class Limits(Strict):\n    # Next.\n"),
    "SECURITY.md": ("# Security\n", "# Security\n\nNext.\n"),
    "pyproject.toml": ("[tool.ruff]\n", "# Next.\n[tool.ruff]\n"),
}


DEPENDENCIES = {
    "pyyaml>": "python-dateutil>=2.9,<3",
    "types-pyyaml>": "types-python-dateutil>=2.9,<3",
}


@dataclass(frozen=True)
class Template:
    """A copy of this repository: its history, and a commit with the working tree."""

    root: Path

    def git(self, *arguments: str) -> str:
        return git(self.root, *arguments)

    def last_release(self) -> str:
        """Its tag or, in a clone without tags, the commit that the changelog got it with."""
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
        path = root / PROJECT.name / name.replace("our_app", "{{cookiecutter.__package}}")
        edit(path, before, after)
    commit(root, "The working tree, and a change")
    return template


@pytest.fixture(scope="module")
def project(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of the last release, as its team has changed it, updated to the working tree."""
    directory = tmp_path_factory.mktemp("project")
    root = make_project(template, template.last_release(), directory)
    git(root, "init", "--quiet")
    commit(root, "What the template made")
    change_as_a_team(root)
    commit(root, "Our model, our page, our dependency")
    run("cruft", "update", "--project-dir", root, "--skip-apply-ask", "--refresh-private-variables")
    return Project(root, directory / "venv", {"PRE_COMMIT_HOME": str(directory / "pre-commit")})


@pytest.fixture(scope="module")
def rendered(template: Template, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the working tree makes of the same answers."""
    return make_project(template, "HEAD", tmp_path_factory.mktemp("rendered"))


def make_project(template: Template, version: str, directory: Path) -> Path:
    answers = json.dumps({"project_slug": "our-app", "deploy": "kubernetes"})
    source = ("--checkout", version, template.root)
    run(
        *("cruft", "create", "--no-input", "--default-config"),
        *("--output-dir", directory, "--extra-context", answers, *source),
    )
    return directory / "our-app"


def test_no_file_is_in_conflict(project: Project) -> None:
    assert not list(project.root.rglob("*.rej"))
    for name in files(project.root):
        assert "<<<<<<<" not in (project.root / name).read_text("utf-8"), name


def test_what_the_team_did_not_touch_is_as_the_working_tree_makes_it(
    project: Project, rendered: Path
) -> None:
    assert files(project.root) == files(rendered) | OWN
    for name in files(rendered) - TOUCHED - {".cruft.json"}:
        assert (project.root / name).read_bytes() == (rendered / name).read_bytes(), name


def test_the_edits_of_the_team_and_of_the_template_are_both_there(project: Project) -> None:
    texts = {name: (project.root / name).read_text("utf-8") for name in files(project.root)}

    assert 'name="ours"' in texts[f"{PACKAGE}/settings.py"]
    assert "- name: ours" in texts["config/local.yaml"]
    assert "- name: ours" in texts["config/production.yaml"]
    assert "gr.Markdown(welcome())" in texts[f"{PACKAGE}/page.py"]
    assert '"Ask us"' in texts[f"{PACKAGE}/task.py"]
    assert "python-dateutil" in texts["pyproject.toml"]
    for name, (_, after) in NEXT.items():
        assert after in texts[name]


def test_the_version_that_the_project_came_from_is_the_working_tree(
    project: Project, template: Template
) -> None:
    state = json.loads((project.root / ".cruft.json").read_text("utf-8"))

    assert state["commit"] == template.git("rev-parse", "HEAD").strip()


def test_the_projects_own_checks_are_green(project: Project) -> None:
    project.run("uv", "sync")
    project.run("git", "add", "--all")
    project.run("uv", "run", "pre-commit", "run", "--all-files")
    project.run("uv", "run", "pytest", "-q", "-m", "not served and not browser")


def files(root: Path) -> set[str]:
    """Returns what is, or would be, under version control, but the lock."""
    if (root / ".git").exists():
        found = names(git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z"))
    else:
        found = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return set(found) - {"uv.lock"}


def names(listed: str) -> list[str]:
    return [name for name in listed.split("\0") if name]


def change_as_a_team(root: Path) -> None:
    package = root / PACKAGE
    manifest = root / "deploy" / "kubernetes" / "rayservice.yaml"
    for path in (package / "settings.py", manifest, *(root / "config").iterdir()):
        edit(path, "smollm2-lively", "ours")
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


WELCOME = '''"""What the page says first."""

from dateutil.relativedelta import relativedelta


def welcome() -> str:
    return f"We are {relativedelta(years=3).years} years old."
'''

TEST_WELCOME = """from our_app.welcome import welcome


def test_welcomes() -> None:
    assert welcome() == "We are 3 years old."
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
    author = ("-c", "user.name=Team", "-c", "user.email=team@example.org")
    result = subprocess.run(
        ["git", *author, *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
