"""What a project is deployed with: the image and the RayService."""

import re
import shlex
import sys
import tomllib
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from packaging.requirements import Requirement

from .answers import TEMPLATE, Answers, every_answer_to, in_words
from .conftest import Render
from .dockerfile import Instruction, flags_and_rest, instructions
from .tools import run

CRD = TEMPLATE / "tests" / "data" / "kuberay" / "ray.io_rayservices.yaml"

any_cluster = pytest.mark.parametrize(
    "answers",
    every_answer_to("page", "parallel_models", "accelerator", "models", "ci"),
    ids=in_words,
    scope="module",
)
any_image = pytest.mark.parametrize(
    "answers", every_answer_to("page", "models", "accelerator"), ids=in_words, scope="module"
)


@any_cluster
def test_the_rayservice_is_one_that_kuberay_takes(answers: Answers, rendered: Render) -> None:
    service = rayservice(rendered(deploy="kubernetes", **answers))

    errors = Draft202012Validator(schema_of(service["apiVersion"])).iter_errors(service)

    assert service["kind"] == "RayService"
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize("slug", ["our_app", "our.app", "our.big_app-2", "a" * 47])
def test_the_rayservice_has_a_name_that_kuberay_takes(slug: str, rendered: Render) -> None:
    name = rayservice(rendered(deploy="kubernetes", project_slug=slug))["metadata"]["name"]

    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 47


@any_cluster
def test_the_rayservice_serves_the_production_config(answers: Answers, rendered: Render) -> None:
    project = rendered(deploy="kubernetes", **answers)

    served = yaml.safe_load(rayservice(project)["spec"]["serveConfigV2"])

    assert served == yaml.safe_load((project / "config" / "production.yaml").read_text("utf-8"))


@any_cluster
def test_the_rayservice_asks_for_gpus_where_the_models_do(
    answers: Answers, rendered: Render
) -> None:
    service = rayservice(rendered(deploy="kubernetes", **answers))

    limits = [
        container["resources"]["limits"]
        for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        for container in group["template"]["spec"]["containers"]
    ]

    assert any("nvidia.com/gpu" in limit for limit in limits) == (answers["accelerator"] == "gpu")


@pytest.mark.parametrize("slug", ["our_app", "our.app", "a" * 47])
def test_the_ingress_is_one_that_kubernetes_takes_and_leads_to_the_page(
    slug: str, rendered: Render
) -> None:
    project = rendered(deploy="kubernetes", project_slug=slug)
    path = project / "deploy" / "kubernetes" / "ingress.yaml"
    ingress = yaml.safe_load(path.read_text("utf-8"))

    run("kubernetes-validate", "--strict", path)
    [rule] = ingress["spec"]["rules"]
    [path_of_rule] = rule["http"]["paths"]
    service = path_of_rule["backend"]["service"]
    name = rayservice(project)["metadata"]["name"]
    assert service == {"name": f"{name}-serve-svc", "port": {"number": 8000}}
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]


@pytest.mark.parametrize("slug", ["our_app", "our.app", "a" * 47])
def test_the_network_policy_is_one_that_kubernetes_takes_and_is_for_every_pod(
    slug: str, rendered: Render
) -> None:
    project = rendered(deploy="kubernetes", project_slug=slug)
    path = project / "deploy" / "kubernetes" / "network-policy.yaml"
    policy = yaml.safe_load(path.read_text("utf-8"))["spec"]
    cluster = rayservice(project)["spec"]["rayClusterConfig"]

    run("kubernetes-validate", "--strict", path)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"] == policy["podSelector"]["matchLabels"]
    own, anybody, operator = policy["ingress"]
    assert own == {"from": [{"podSelector": policy["podSelector"]}]}
    assert "from" not in anybody
    assert [port["port"] for port in anybody["ports"]] == [8000, 8080]
    assert [port["port"] for port in operator["ports"]] == [8265]


def test_the_rayservice_needs_no_feature_that_the_operator_has_off(rendered: Render) -> None:
    cluster = rayservice(rendered(deploy="kubernetes"))["spec"]["rayClusterConfig"]

    # KubeRay 1.7 refuses it, where RayClusterNetworkPolicy is not switched on.
    assert "networkPolicy" not in cluster


def test_the_rayservice_runs_the_ray_that_the_project_requires(rendered: Render) -> None:
    project = rendered(deploy="kubernetes")
    metadata = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    [ray] = [r for r in map(Requirement, metadata["dependencies"]) if r.name == "ray"]

    assert rayservice(project)["spec"]["rayClusterConfig"]["rayVersion"] in ray.specifier


@pytest.mark.skipif(sys.platform != "linux", reason="its package has no wheel for every Mac")
@any_image
def test_the_image_passes_hadolint(answers: Answers, rendered: Render) -> None:
    run("hadolint", "--no-color", rendered(deploy="docker", **answers) / "Dockerfile")


@any_image
def test_the_image_copies_only_what_is_there(answers: Answers, rendered: Render) -> None:
    project = rendered(deploy="docker", **answers)
    sources = sources_of_copies(project / "Dockerfile")

    assert sources
    for source in sources:
        # Only `uv lock` writes it, with the versions of its day.
        assert source == "uv.lock" or list(project.glob(source)), source


@any_image
def test_the_image_is_given_everything_that_it_copies(answers: Answers, rendered: Render) -> None:
    project = rendered(deploy="docker", **answers)
    patterns = (project / ".dockerignore").read_text("utf-8").splitlines()

    assert [s for s in sources_of_copies(project / "Dockerfile") if is_ignored(s, patterns)] == []


@any_image
def test_the_image_runs_as_a_user_without_rights(answers: Answers, rendered: Render) -> None:
    stage = last_stage(rendered(deploy="docker", **answers) / "Dockerfile")

    users = [value for instruction, value in stage if instruction == "USER"]

    assert users
    assert users[-1].split(":")[0] not in ("0", "root")


@any_image
def test_the_image_says_whether_it_is_healthy(answers: Answers, rendered: Render) -> None:
    stage = last_stage(rendered(deploy="docker", **answers) / "Dockerfile")

    [check] = [value for instruction, value in stage if instruction == "HEALTHCHECK"]

    assert "CMD" in check


def rayservice(project: Path) -> dict[str, Any]:
    """Returns the only RayService among the documents of the manifest."""
    text = (project / "deploy" / "kubernetes" / "rayservice.yaml").read_text("utf-8")
    [service] = [
        document for document in yaml.safe_load_all(text) if document["kind"] == "RayService"
    ]
    return dict(service)


@cache
def schema_of(api_version: str) -> dict[str, Any]:
    with CRD.open("rb") as file:
        definition = yaml.load(file, Loader=yaml.CSafeLoader)
    [schema] = [
        version["schema"]["openAPIV3Schema"]
        for version in definition["spec"]["versions"]
        if f"{definition['spec']['group']}/{version['name']}" == api_version
    ]
    return without_unknown_fields(schema)


def without_unknown_fields(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuses fields that the schema does not name; Kubernetes would drop them silently."""
    strict = dict(schema)
    if "properties" in schema:
        strict["properties"] = {
            name: without_unknown_fields(field) for name, field in schema["properties"].items()
        }
        strict["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        strict["additionalProperties"] = without_unknown_fields(schema["additionalProperties"])
    if "items" in schema:
        strict["items"] = without_unknown_fields(schema["items"])
    return strict


def last_stage(dockerfile: Path) -> list[Instruction]:
    found = instructions(dockerfile)
    starts = [index for index, (name, _) in enumerate(found) if name == "FROM"]
    return found[starts[-1] :]


def sources_of_copies(dockerfile: Path) -> list[str]:
    """Returns the files of the build context that COPY, ADD and bind mounts name."""
    sources = []
    for name, value in instructions(dockerfile):
        flags, rest = flags_and_rest(value)
        if name in ("COPY", "ADD") and not any(flag.startswith("--from=") for flag in flags):
            sources += shlex.split(rest)[:-1]
        elif name == "RUN":
            for flag in flags:
                mount = dict(
                    part.partition("=")[::2] for part in flag.removeprefix("--mount=").split(",")
                )
                if mount.get("type") == "bind" and "from" not in mount:
                    sources.append(mount["source"])
    return sources


def is_ignored(source: str, patterns: list[str]) -> bool:
    """Says whether Docker leaves it out of the build context; the last match decides."""
    ignored = False
    for pattern in patterns:
        if fnmatch(source.rstrip("/"), pattern.lstrip("!").strip("/")):
            ignored = not pattern.startswith("!")
    return ignored
