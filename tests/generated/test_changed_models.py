"""A team changes only its models, following the project's README."""

import re
from pathlib import Path

import pytest
import yaml

from ..conftest import Render
from .project import START_SECONDS, Project, free_port, ray_directory

ENTRY = re.compile(r"    ModelSettings\(\n.*?\n    \),\n", re.DOTALL)
CHECK = """
import sys
from pathlib import Path
from {package}.serving.config import check_deployments, plan, read_config
for path in map(Path, sys.argv[1:]):
    [application] = plan(read_config(path), path, alone=True)
    check_deployments(application, path)
    assert "{name}" in [model.name for model in application.settings.models], path
"""


@pytest.mark.timeout(3600)
def test_a_project_with_changed_models_starts_and_passes_its_tests(
    render: Render, environment: Path, tmp_path: Path
) -> None:
    with ray_directory(tmp_path / "ray-logs") as ray:
        root = render(deploy="kubernetes")
        project = Project(root, environment, {"RAY_TMPDIR": ray})
        project.run("uv", "sync", "--quiet")
        models = root / "src" / project.package / "models.py"
        readme = (root / "README.md").read_text("utf-8").partition("### Change the models")[2]
        [entry] = ENTRY.findall(snippet(readme, "python"))
        said = yaml.safe_load(snippet(readme, "yaml"))
        # Tests cannot reach the hub.
        source = re.findall(r'source="(.+)"', models.read_text("utf-8"))[0]
        entry = re.sub(r'source=".+"', f'source="{source}"', entry)

        add(entry, models)
        add(entry.replace('name="ours"', 'name="theirs"'), models)
        rename_first(models, "renamed")
        check(project, "renamed", configs(project))
        remove_second(models)
        check(project, "renamed", configs(project))
        project.run("uv", "run", "ruff", "check", "src")
        # The other tests do not use the team's models.
        of_the_team = [f"tests/test_{name}.py" for name in ("app", "models", "page")]
        paths = [*of_the_team, "tests/serving/test_config.py"]
        project.run("uv", "run", "pytest", "-q", "-m", "not served", *paths)
        with project.started("python", "-m", project.package, "--port", str(free_port())) as start:
            start.wait_for(lambda log: "The page is up" in log, START_SECONDS)

        for model in said["args"]["models"]:
            model["source"] = source
        for path in configs(project):
            config = yaml.safe_load(path.read_text("utf-8"))
            config["applications"][0]["args"] |= said["args"]
            path.write_text(yaml.safe_dump(config), "utf-8")
        check(project, "ours", configs(project))


def snippet(text: str, language: str) -> str:
    """Returns the first code block in that language."""
    return text.partition(f"```{language}\n")[2].partition("```")[0]


def add(entry: str, models: Path) -> None:
    text = models.read_text("utf-8")
    models.write_text(text.removesuffix(")\n") + entry + ")\n", "utf-8")


def rename_first(models: Path, name: str) -> None:
    text = re.sub(r'name=".+"', f'name="{name}"', models.read_text("utf-8"), count=1)
    models.write_text(text, "utf-8")


def remove_second(models: Path) -> None:
    first, _, *others = ENTRY.findall(models.read_text("utf-8"))
    head = models.read_text("utf-8").partition("MODELS = (\n")[0]
    models.write_text(f"{head}MODELS = (\n{''.join([first, *others])})\n", "utf-8")


def configs(project: Project) -> list[Path]:
    return sorted(project.root.glob("config/*.yaml"))


def check(project: Project, name: str, paths: list[Path]) -> None:
    code = CHECK.format(package=project.package, name=name)
    project.run("uv", "run", "python", "-c", code, *map(str, paths))
