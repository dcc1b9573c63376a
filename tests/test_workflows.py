"""The workflows of the template and of its projects, on GitHub and GitLab."""

import re
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from .answers import CHOICES, TEMPLATE, Answers, every_answer_to, in_words
from .conftest import Render
from .tools import run

RELEASE = ("build", "staging", "production")
LOAD = "uv run --only-group load locust"
STARTS = {"docker": ["docker run"], "kubernetes": ["apply.sh staging"]}
ENDS = {"docker": ":production", "kubernetes": "apply.sh production"}

any_github_project = pytest.mark.parametrize(
    "answers",
    every_answer_to("page", "deploy", "accelerator", "votes"),
    ids=in_words,
    scope="module",
)


def test_the_templates_workflows_are_valid() -> None:
    check_schema("vendor.github-workflows", *workflows(TEMPLATE))
    check_schema("vendor.dependabot", TEMPLATE / ".github" / "dependabot.yml")


def test_the_issue_forms_are_valid() -> None:
    folder = TEMPLATE / ".github" / "ISSUE_TEMPLATE"

    check_schema("vendor.github-issue-forms", folder / "bug.yml", folder / "idea.yml")
    check_schema("vendor.github-issue-config", folder / "config.yml")


def test_the_templates_workflows_are_safe() -> None:
    audit(TEMPLATE)


@any_github_project
def test_a_projects_workflows_on_github_are_valid(answers: Answers, rendered: Render) -> None:
    project = rendered(ci="github", **answers)

    check_schema("vendor.github-workflows", *workflows(project))
    check_schema("vendor.dependabot", project / ".github" / "dependabot.yml")


@any_github_project
def test_a_projects_workflows_on_github_are_safe(answers: Answers, rendered: Render) -> None:
    audit(rendered(ci="github", **answers))


@pytest.mark.parametrize(
    "answers",
    # The checks, and the release.
    [*every_answer_to("page", "votes"), *every_answer_to("deploy", "accelerator")],
    ids=in_words,
)
def test_a_projects_pipeline_on_gitlab_is_valid(answers: Answers, rendered: Render) -> None:
    project = rendered(ci="gitlab", **answers)

    check_schema("vendor.gitlab-ci", project / ".gitlab-ci.yml")


@pytest.mark.parametrize("page", CHOICES["page"])
def test_github_and_gitlab_run_the_same_checks(page: str, rendered: Render) -> None:
    github, gitlab = checks(rendered, page=page)

    # GitLab's image installs packages first.
    steps = [step["run"] for step in github["steps"] if "apt-get" not in step.get("run", "apt-get")]
    assert steps == gitlab["script"]


@pytest.mark.parametrize("page", CHOICES["page"])
@pytest.mark.parametrize("votes", CHOICES["votes"])
def test_with_votes_both_have_a_database_service(page: str, votes: bool, rendered: Render) -> None:
    github, gitlab = checks(rendered, page=page, votes=votes)

    if page == "own" or not votes:
        assert "services" not in github | gitlab
        assert "TEST_DATABASE_URL" not in str(github) + str(gitlab)
        return
    service, [same] = github["services"]["postgresql"], gitlab["services"]
    assert same == {"name": service["image"], "alias": "postgresql"}
    assert service["ports"] == ["5432:5432"]
    urls = github["env"]["TEST_DATABASE_URL"], gitlab["variables"]["TEST_DATABASE_URL"]
    assert [url.replace("localhost", "postgresql") for url in urls] == [urls[1]] * 2
    asks = service["env"]["POSTGRES_HOST_AUTH_METHOD"]
    # There is no password.
    assert asks == gitlab["variables"]["POSTGRES_HOST_AUTH_METHOD"] == "trust"
    assert urlsplit(urls[0]).netloc == "postgres@localhost:5432"


@pytest.mark.parametrize("accelerator", CHOICES["accelerator"])
@pytest.mark.parametrize("deploy", ["docker", "kubernetes"])
def test_a_github_release_tests_a_scanned_image_and_waits_for_approval(
    deploy: str, accelerator: str, rendered: Render
) -> None:
    project = rendered(ci="github", deploy=deploy, accelerator=accelerator)
    workflow = yaml.safe_load((project / ".github/workflows/release.yml").read_text("utf-8"))
    build, staging, production = (workflow["jobs"][each] for each in RELEASE)

    # `on` is true in YAML 1.1.
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    assert [staging["environment"], production["environment"]] == ["staging", "production"]
    assert (staging["needs"], production["needs"]) == ("build", ["build", "staging"])
    told = [str(step.get("uses", step.get("run"))).partition("@")[0] for step in build["steps"]]
    assert_in_order("\n".join(told), "docker build", "anchore/scan-action", "docker push")
    for job in (staging, production):
        images = [step["env"]["IMAGE"] for step in job["steps"] if "IMAGE" in step.get("env", {})]
        assert images == ["${{ needs.build.outputs.image }}"]
    assert "@sha256:" in build["steps"][-1]["run"]
    ran = "\n".join(step.get("run", "") for step in staging["steps"])
    assert_in_order(ran, *STARTS[deploy], LOAD)
    assert ENDS[deploy] in production["steps"][-1]["run"]


@pytest.mark.parametrize("deploy", ["docker", "kubernetes"])
def test_a_gitlab_release_tests_a_scanned_image_and_waits_for_approval(
    deploy: str, rendered: Render
) -> None:
    project = rendered(ci="gitlab", deploy=deploy)
    pipeline = yaml.safe_load((project / ".gitlab-ci.yml").read_text("utf-8"))
    build, production = pipeline["build"], pipeline["production"]
    tagged = {"if": "$CI_COMMIT_TAG"}

    assert pipeline["stages"] == ["test", *RELEASE]
    assert [build["rules"], production["rules"]] == [[tagged], [{**tagged, "when": "manual"}]]
    told = "\n".join(build["script"])
    assert_in_order(told, "docker build", "anchore/grype", "docker push", "@sha256:")
    tried = [job for job in pipeline.values() if LOAD in str(job)]
    assert [job["stage"] for job in tried] == ["staging"]
    assert production["stage"] == production["environment"] == "production"
    ended = pipeline[".apply"] if deploy == "kubernetes" else production
    [command] = ended["script"]
    deploys = 'apply.sh "$CI_ENVIRONMENT_NAME" "$IMAGE"'
    assert (deploys if deploy == "kubernetes" else ENDS[deploy]) in command
    assert "$IMAGE" in command


def test_a_project_without_an_image_has_no_release_workflow(rendered: Render) -> None:
    pipeline = yaml.safe_load((rendered(ci="gitlab") / ".gitlab-ci.yml").read_text("utf-8"))

    assert [path.name for path in workflows(rendered(ci="github"))] == ["ci.yml"]
    assert list(pipeline) == ["check"]


def test_the_template_and_its_projects_use_the_same_actions(rendered: Render) -> None:
    ours = actions(TEMPLATE)

    for name, pins in actions(rendered(ci="github", deploy="kubernetes")).items():
        assert ours.get(name, pins) == pins
        assert len(pins) == 1
    assert all(len(pins) == 1 for pins in ours.values())


def test_the_workflow_of_the_template_runs_the_nox_sessions() -> None:
    noxfile = (TEMPLATE / "noxfile.py").read_text("utf-8")
    [ran] = re.findall(r"nox\.options\.sessions = \[(.*)\]", noxfile)
    text = "".join(path.read_text("utf-8") for path in workflows(TEMPLATE))
    [whole] = re.findall(r"session: \[(.*)\]", text)
    named = set(whole.split(", ")) | set(
        chain(*(line.split(" -- ")[0].split()[2:] for line in re.findall(r"nox -s .*", text)))
    )

    # Each session installs the programs that it needs.
    assert {name.strip('"') for name in ran.split(", ")} - {"prepare"} <= named


def checks(rendered: Render, **answers: str | bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the job that checks a project on GitHub, and the one on GitLab."""
    [workflow] = workflows(rendered(ci="github", **answers))
    pipeline = rendered(ci="gitlab", **answers) / ".gitlab-ci.yml"
    jobs = yaml.safe_load(workflow.read_text("utf-8"))["jobs"]
    return jobs["check"], yaml.safe_load(pipeline.read_text("utf-8"))["check"]


def assert_in_order(text: str, *parts: str) -> None:
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def workflows(project: Path) -> list[Path]:
    found = sorted((project / ".github" / "workflows").glob("*.yml"))
    assert found
    return found


def actions(project: Path) -> dict[str, set[str]]:
    """Returns the pins of each action, with the version in their comment."""
    pins: dict[str, set[str]] = {}
    for path in workflows(project):
        for name, pin in re.findall(r"uses: (\S+)@(\S+ # \S+)", path.read_text("utf-8")):
            pins.setdefault(name, set()).add(pin)
    assert pins
    return pins


def check_schema(schema: str, *files: Path) -> None:
    run("check-jsonschema", "--builtin-schema", schema, *files)


def audit(project: Path) -> None:
    """Checks for broad permissions, unpinned actions and code injection."""
    run("zizmor", "--offline", "--no-config", project / ".github")
