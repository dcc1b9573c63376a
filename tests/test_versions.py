"""The project's pyproject.toml is the only source of tested versions."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from .answers import CHOICES, PROJECT, TEMPLATE
from .conftest import Render
from .generated.newest import lift_bounds, versions_beyond

UV = r"(?:astral-sh/uv:|version: )(\d+\.\d+\.\d+)"
PYTHON = r"(?:python:|python-version: \"|-python)(\d\.\d+)"
PYTHONS_OF_A_MATRIX = r"(?i)python: (\[.*\])"
[REQUIRES_PYTHON] = re.findall(
    r'(?m)^requires-python = "(.*)"', (PROJECT / "pyproject.toml").read_text("utf-8")
)
PYTHONS = [
    python
    for python in (f"3.{minor}" for minor in range(100))
    if SpecifierSet(REQUIRES_PYTHON).contains(python)
]
"""The versions that a project may run on, the lowest first."""


def test_the_template_and_its_projects_require_the_same_versions(rendered: Render) -> None:
    ours = requirements(TEMPLATE)
    theirs = requirements(rendered())

    assert ours.keys() & theirs.keys()
    for name in ours.keys() & theirs.keys():
        assert ours[name] == theirs[name], name


@pytest.mark.parametrize("models", CHOICES["models"])
def test_every_dependency_has_a_lower_and_an_upper_bound(models: str, rendered: Render) -> None:
    for requirement in requirements(rendered(models=models)).values():
        assert re.fullmatch(r"<[^,]+,>=[^,]+", str(requirement.specifier)), requirement


@pytest.mark.parametrize("pattern", [UV, PYTHON], ids=["uv", "Python"])
def test_one_version_is_used_everywhere(pattern: str, rendered: Render) -> None:
    assert len(set(named(pattern, rendered))) == 1


def test_workflows_test_the_lowest_and_highest_python(rendered: Render) -> None:
    found = [tuple(json.loads(each)) for each in named(PYTHONS_OF_A_MATRIX, rendered)]

    # Two jobs of the template, and one of a project on GitHub and on GitLab.
    assert found == [(PYTHONS[0], PYTHONS[-1])] * 4


def test_nox_uses_the_pytorch_index(rendered: Render) -> None:
    declared = tomllib.loads((rendered() / "pyproject.toml").read_text("utf-8"))
    [index] = declared["tool"]["uv"]["index"]

    noxfile = (TEMPLATE / "noxfile.py").read_text("utf-8")
    assert f'PYTORCH_INDEX = ("{index["name"]}", "{index["url"]}")' in noxfile


def named(pattern: str, rendered: Render) -> list[str]:
    """Returns the matches in workflows, manifests and images."""
    projects = [rendered(ci=ci, deploy="kubernetes") for ci in CHOICES["ci"]]
    return [
        match
        for directory in [*projects, TEMPLATE / ".github"]
        for path in directory.rglob("*")
        if path.suffix in {".yml", ".yaml"} or path.name == "Dockerfile"
        for match in re.findall(pattern, path.read_text("utf-8"))
    ]


def test_upper_bounds_of_a_project_can_be_removed(render: Render) -> None:
    pyproject = render() / "pyproject.toml"
    before = requirements(pyproject.parent)
    lifted = lift_bounds(pyproject)
    after = requirements(pyproject.parent)

    assert [str(each) for each in lifted] == [str(each) for each in before.values()]
    assert after.keys() == before.keys()
    assert "<" not in "".join(str(each.specifier) for each in after.values())
    assert f'requires-python = "{REQUIRES_PYTHON}"' in pyproject.read_text("utf-8")


def test_a_version_above_its_bound_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "uv.lock"
    lock.write_text(
        '[[package]]\nname = "ray"\nversion = "3.0"\n[[package]]\nname = "torch"\nversion = "2.13"\n'
    )

    beyond = versions_beyond([Requirement("ray>=2,<3"), Requirement("torch>=2,<3")], lock)

    assert beyond == ["ray<3,>=2 became 3.0"]


def requirements(project: Path) -> dict[str, Requirement]:
    declared = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))
    listed = [*declared["project"].get("dependencies", [])]
    for group in declared["dependency-groups"].values():
        listed += [each for each in group if isinstance(each, str)]
    return {each.name: each for each in map(Requirement, listed)}
