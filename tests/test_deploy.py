"""Deployment files of a project: the image and the Kubernetes manifests."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from packaging.requirements import Requirement

from .answers import CHOICES, TEMPLATE, Answers, every_answer_to, in_words
from .conftest import Render
from .dockerfile import Instruction, flags_and_rest, instructions
from .kustomize import Manifest, compose
from .test_documents import anchor_of
from .tools import run

CRDS = TEMPLATE / "tests" / "data" / "crds"
OVERLAYS = ("staging", "production")
SLUGS = ["our_app", "our.app", "our.big_app-2", "a" * 47]
IMAGE = f"registry.example.org/page@sha256:{64 * 'a'}"
ANSWER_SECONDS = 600
"""The longest that an answer may take, unless a config says otherwise."""

any_cluster = pytest.mark.parametrize(
    "answers",
    every_answer_to("page", "parallel_models", "accelerator", "models"),
    ids=in_words,
    scope="module",
)
any_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
any_image = pytest.mark.parametrize(
    "answers", every_answer_to("page", "models", "accelerator"), ids=in_words, scope="module"
)


@any_cluster
@any_overlay
def test_kubernetes_accepts_every_object_of_an_overlay(
    overlay: str, answers: Answers, rendered: Render
) -> None:
    manifests = composed(rendered(deploy="kubernetes", **answers), overlay)

    assert [complaint for each in manifests for complaint in complaints(each)] == []


@any_overlay
def test_objects_that_kubernetes_would_refuse_or_change_fail_the_check(
    overlay: str, rendered: Render
) -> None:
    for manifest in composed(rendered(deploy="kubernetes"), overlay):
        misspelt = {**manifest, "spce": {}}
        assert complaints(misspelt), manifest["kind"]


@any_overlay
def test_an_overlay_has_the_expected_kinds(overlay: str, rendered: Render) -> None:
    kinds = {each["kind"] for each in composed(rendered(deploy="kubernetes"), overlay)}

    more = {"ConfigMap", "PodDisruptionBudget", "PodMonitor", "PrometheusRule"}
    assert kinds == {"Gateway", "HTTPRoute", "NetworkPolicy", "RayService"} | (
        more if overlay == "production" else set()
    )


@pytest.mark.parametrize("slug", SLUGS)
def test_kubernetes_and_kuberay_accept_every_name(slug: str, rendered: Render) -> None:
    for each in composed(rendered(deploy="kubernetes", project_slug=slug)):
        name = each["metadata"]["name"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= (47 if each["kind"] == "RayService" else 63)
        assert complaints(each) == []


def test_each_overlay_has_its_own_namespace(rendered: Render) -> None:
    found = [
        {each["metadata"]["namespace"] for each in composed(rendered(deploy="kubernetes"), overlay)}
        for overlay in OVERLAYS
    ]

    assert [len(names) for names in found] == [1, 1]
    assert found[0].isdisjoint(found[1])


@any_cluster
@any_overlay
def test_the_rayservice_serves_the_production_config(
    overlay: str, answers: Answers, rendered: Render
) -> None:
    project = rendered(deploy="kubernetes", **answers)
    config = project / "config" / "production.yaml"

    assert rayservice(project, overlay)["spec"]["serveConfigV2"] == config.read_text("utf-8")


def test_changing_the_production_config_is_enough_to_change_the_rayservice(render: Render) -> None:
    project = render(deploy="kubernetes")
    config = project / "config" / "production.yaml"
    config.write_text(config.read_text("utf-8").replace("max_replicas: 4", "max_replicas: 8"))

    assert "max_replicas: 8" in rayservice(project)["spec"]["serveConfigV2"]
    written = [
        path for path in project.glob("deploy/**/*.yaml") if "GradioServer" in path.read_text()
    ]
    assert written == []


@any_cluster
def test_the_rayservice_requests_gpus_if_the_models_do(answers: Answers, rendered: Render) -> None:
    service = rayservice(rendered(deploy="kubernetes", **answers))

    limits = [
        container["resources"]["limits"]
        for pod in pods(service)
        for container in pod["spec"]["containers"]
    ]

    assert any("nvidia.com/gpu" in limit for limit in limits) == (answers["accelerator"] == "gpu")


@any_overlay
def test_an_overlay_sets_image_and_host_once(overlay: str, render: Render) -> None:
    project = render(deploy="kubernetes")
    path = project / "deploy" / "kubernetes" / "overlays" / overlay / "kustomization.yaml"
    text = path.read_text("utf-8")
    [hosts] = re.findall(r"[a-z.-]+\.example\.com$", text, re.MULTILINE)
    [image] = re.findall(r"newName: (.*)", text)
    text = text.replace(hosts, "page.example.org").replace(image, "ghcr.io/org/page")
    text = text.replace("newTag: 0.1.0", "digest: sha256:abc")
    path.write_text(text, "utf-8")

    manifests = composed(project, overlay)
    [route] = of_kind("HTTPRoute", manifests)
    [service] = of_kind("RayService", manifests)
    containers = [each for pod in pods(service) for each in pod["spec"]["containers"]]
    assert {each["image"] for each in containers} == {"ghcr.io/org/page@sha256:abc"}
    assert route["spec"]["hostnames"] == ["page.example.org"]
    assert variables(worker(service))["PAGE_HOSTS"] == "page.example.org"
    assert "page.invalid" not in json.dumps(manifests)


@any_overlay
@pytest.mark.parametrize("slug", SLUGS)
def test_the_route_goes_through_the_gateway_and_has_no_stream_timeout(
    slug: str, overlay: str, rendered: Render
) -> None:
    manifests = composed(rendered(deploy="kubernetes", project_slug=slug), overlay)
    [gateway], [route], [service] = (
        of_kind(kind, manifests) for kind in ("Gateway", "HTTPRoute", "RayService")
    )

    assert route["spec"]["parentRefs"] == [{"name": gateway["metadata"]["name"]}]
    [rule] = route["spec"]["rules"]
    name = f"{service['metadata']['name']}-serve-svc"
    assert rule["backendRefs"] == [{"name": name, "port": 8000}]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    assert [each["protocol"] for each in gateway["spec"]["listeners"]] == ["HTTPS"]


def test_the_network_policy_covers_every_pod_and_allows_only_prometheus_to_scrape(
    rendered: Render,
) -> None:
    manifests = composed(rendered(deploy="kubernetes"))
    [policy], [service] = (of_kind(kind, manifests) for kind in ("NetworkPolicy", "RayService"))

    chosen = policy["spec"]["podSelector"]
    for pod in pods(service):
        assert pod["metadata"]["labels"] == chosen["matchLabels"]
    own, anybody, prometheus, operator = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": chosen}]}
    assert "from" not in anybody
    assert ports(anybody) == [8000]
    assert ports(prometheus) == [8080]
    [asks] = prometheus["from"]
    assert asks["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}
    assert ports(operator) == [8265]


def test_the_monitor_and_the_budget_select_the_pods(rendered: Render) -> None:
    manifests = composed(rendered(deploy="kubernetes"))
    [monitor], [budget], [service] = (
        of_kind(kind, manifests) for kind in ("PodMonitor", "PodDisruptionBudget", "RayService")
    )

    for pod in pods(service):
        assert (
            monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        )
    # KubeRay adds the second.
    label, kind = budget["spec"]["selector"]["matchLabels"].items()
    assert label in worker_pod(service)["metadata"]["labels"].items()
    assert kind == ("ray.io/node-type", "worker")
    # If the budget required all pods, no node could be drained.
    assert group(service)["minReplicas"] > budget["spec"]["minAvailable"]
    # Kubernetes accepts nothing else for pods of an unknown kind.
    assert budget["spec"].keys() == {"minAvailable", "selector"}


def test_prometheus_and_grafana_get_the_files_in_monitoring(rendered: Render) -> None:
    project = rendered(deploy="kubernetes")
    manifests = composed(project)
    [rule], [dashboard] = (of_kind(kind, manifests) for kind in ("PrometheusRule", "ConfigMap"))
    as_image = rendered(deploy="docker") / "deploy" / "monitoring"

    assert rule["spec"] == yaml.safe_load((as_image / "alerts.yaml").read_text("utf-8"))
    board = dashboard["data"]["grafana-dashboard.json"]
    assert json.loads(board) == json.loads((as_image / "grafana-dashboard.json").read_text("utf-8"))
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize("page", CHOICES["page"])
@pytest.mark.parametrize("deploy", ["docker", "kubernetes"])
def test_each_alert_links_to_a_section_with_instructions(
    page: str, deploy: str, rendered: Render
) -> None:
    project = rendered(page=page, deploy=deploy)
    sections = (project / "docs/operations.md").read_text("utf-8").split("\n### ")
    by_anchor = {anchor_of(each.partition("\n")[0]): each for each in sections}

    alerts = [rule for rule in rules_of(project) if "alert" in rule]
    assert alerts
    for alert in alerts:
        path, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert path == "docs/operations.md"
        assert "\n**Look at** " in by_anchor[anchor], alert["alert"]
        assert "\n**Do**: " in by_anchor[anchor], alert["alert"]


@pytest.mark.parametrize("page", CHOICES["page"])
@pytest.mark.parametrize("deploy", ["docker", "kubernetes"])
def test_the_runbook_lists_each_alert_by_its_name_with_its_severity_and_its_section(
    page: str, deploy: str, rendered: Render
) -> None:
    project = rendered(page=page, deploy=deploy)
    text = (project / "docs/operations.md").read_text("utf-8")
    rules = rules_of(project)
    # An alert without a severity takes those of the objectives that it looks at.
    missed = [rule["labels"]["severity"] for rule in rules if "missed" in rule.get("record", "")]

    listed = {
        name: (set(re.findall(r"`(\w+)`", severities)), anchor)
        for name, severities, anchor in re.findall(
            r"(?m)^\| `(\w+)` \| (.*?) \| \[.*?\]\(#(.*?)\) \|$", text
        )
    }
    assert listed == {
        rule["alert"]: (
            {rule["labels"]["severity"]} if "labels" in rule else set(missed),
            rule["annotations"]["runbook"].partition("#")[2],
        )
        for rule in rules
        if "alert" in rule
    }


def test_the_load_test_has_the_objectives_of_the_alerts(rendered: Render) -> None:
    project = rendered(deploy="docker")
    alerts = (project / "deploy/monitoring/alerts.yaml").read_text("utf-8")
    users = (project / "tests/load/locust_users.py").read_text("utf-8")

    names = ("BEGIN_SECONDS", "SHARE")
    [seconds], [share] = (re.findall(rf"(?m)^{name} = (.*)", users) for name in names)
    assert set(re.findall(r'le="(.*?)"', alerts)) == {seconds}
    assert re.findall(r"expr: vector\((0.*)\)", alerts) == [share, share]


def test_the_alerts_select_the_job_that_prometheus_scrapes(rendered: Render) -> None:
    # A slug may contain characters that Kubernetes labels do not allow.
    slug = "our_app"
    as_image = rendered(deploy="docker", project_slug=slug)
    manifests = composed(rendered(deploy="kubernetes", project_slug=slug))
    [monitor], [service] = (of_kind(kind, manifests) for kind in ("PodMonitor", "RayService"))
    said = (as_image / "docs/operations.md").read_text("utf-8")
    [told] = re.findall(r"job_name: (\S+)", said)

    for pod in pods(service):
        assert pod["metadata"]["labels"][monitor["spec"]["jobLabel"]] == told
    rules = rules_of(as_image)
    for rule in rules:
        assert set(re.findall(r'job="([^"]+)"', rule["expr"])) <= {told}
        # Metrics of other projects must not be mixed in: Ray's metrics all have this job.
        for name, labels in re.findall(r"\b(ray_\w+|up)({[^}]*})?", rule["expr"]):
            assert f'job="{told}"' in labels, (name, rule)


def rules_of(project: Path) -> list[dict[str, Any]]:
    manifest = yaml.safe_load((project / "deploy/monitoring/alerts.yaml").read_text("utf-8"))
    groups = manifest.get("spec", manifest)["groups"]
    return [rule for group in groups for rule in group["rules"]]


@any_cluster
def test_workers_are_spread_across_nodes(answers: Answers, rendered: Render) -> None:
    service = rayservice(rendered(deploy="kubernetes", **answers))

    [spread] = worker_pod(service)["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert group(service)["minReplicas"] == 2
    assert group(service)["maxReplicas"] >= 2


@any_cluster
def test_no_timeout_is_shorter_than_the_longest_answer(answers: Answers, rendered: Render) -> None:
    project = rendered(deploy="kubernetes", **answers)
    service = rayservice(project)
    [application] = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    deployments = [*application["deployments"], application["args"].get("deployment")]

    for each in filter(None, deployments):
        assert each["graceful_shutdown_timeout_s"] >= ANSWER_SECONDS
    assert service["spec"]["rayClusterDeletionDelaySeconds"] > ANSWER_SECONDS
    drains = float(variables(worker(service))["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    grace = worker_pod(service)["spec"]["terminationGracePeriodSeconds"]
    assert ANSWER_SECONDS < drains < grace


def test_the_longest_answer_time_is_the_default_of_the_settings(rendered: Render) -> None:
    [settings] = rendered().glob("src/*/serving/pages/settings.py")

    assert f"answer_seconds: float = Field(default={ANSWER_SECONDS}," in settings.read_text("utf-8")


@pytest.mark.parametrize(
    ("raylet", "proxy", "ready"),
    [("success", "success", True), (None, "success", False), ("success", None, False)],
)
def test_a_worker_is_ready_when_its_raylet_and_proxy_are_ready(
    raylet: str | None, proxy: str | None, ready: bool, rendered: Render
) -> None:
    probe = worker(rayservice(rendered(deploy="kubernetes")))["readinessProbe"]
    python, *arguments = probe["exec"]["command"]
    assert python == "python"

    with (
        answering("/api/local_raylet_healthz", raylet) as of_raylet,
        answering("/-/healthz", proxy) as of_proxy,
    ):
        script = (
            arguments[-1].replace(":52365/", f":{of_raylet}/").replace(":8000/", f":{of_proxy}/")
        )
        command = [sys.executable, *arguments[:-1], script]
        status = subprocess.run(command, capture_output=True, check=False, timeout=60).returncode
    assert (status == 0) == ready


@pytest.mark.skipif(sys.platform == "win32", reason="it is a script of a container's shell")
@any_overlay
def test_the_deploy_uses_the_image_digest_and_waits_for_the_rollout(
    overlay: str, render: Render, tmp_path: Path
) -> None:
    project, said = render(deploy="kubernetes", project_slug="our.app"), tmp_path / "said"
    programs = tmp_path / "programs"
    programs.mkdir()
    for program in ("kustomize", "kubectl"):
        script = programs / program
        script.write_text(f'#!/bin/sh\necho "{program} $*" >> "{said}"\necho 7\n')
        script.chmod(0o755)
    subprocess.run(
        ["sh", "deploy/kubernetes/apply.sh", overlay, IMAGE],
        cwd=project,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
    )

    edited, applied, asked, *waited = said.read_text().splitlines()
    assert edited == f"kustomize edit set image page={IMAGE}"
    assert applied == "kubectl apply --kustomize ."
    named = rayservice(project, overlay)["metadata"]
    for each in (asked, *waited):
        assert each.startswith(f"kubectl --namespace {named['namespace']} ")
        assert f" rayservice {named['name']} " in each
    assert [each.rpartition("--for ")[2] for each in waited] == [
        "jsonpath={.status.observedGeneration}=7",
        "condition=UpgradeInProgress=false",
        "condition=Ready",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="it is a script of a container's shell")
def test_the_log_container_prints_the_logs_of_serve(rendered: Render, tmp_path: Path) -> None:
    service = rayservice(rendered(deploy="kubernetes"))
    ray_containers = [pod["spec"]["containers"][0] for pod in pods(service)]
    readers = [pod["spec"]["containers"][1] for pod in pods(service)]
    [mount] = readers[0]["volumeMounts"]
    assert all(mount in each["volumeMounts"] for each in ray_containers)
    assert readers[0] == readers[1]

    logs = tmp_path / "ray" / "session_2026-11-28" / "logs" / "serve"
    logs.mkdir(parents=True)
    (logs / "controller.log").write_text("first\n")
    [script] = readers[0]["args"]
    script = script.replace("/tmp/", f"{tmp_path}/").replace("sleep 5", "sleep 0.2")  # noqa: S108
    with (tmp_path / "out").open("wb") as out:
        reader = subprocess.Popen(
            [*readers[0]["command"], script], stdout=out, start_new_session=True
        )
    try:
        wait_for_lines(tmp_path / "out", {"first"})
        (logs / "replica.log").write_text("second\n")
        with (logs / "controller.log").open("a") as log:
            log.write("third\n")
        wait_for_lines(tmp_path / "out", {"first", "second", "third"})
        time.sleep(1)
        assert sorted((tmp_path / "out").read_text().split()) == ["first", "second", "third"]
    finally:
        os.killpg(reader.pid, signal.SIGKILL)
        reader.wait()


def test_kuberay_accepts_the_incremental_upgrade(rendered: Render) -> None:
    project = rendered(deploy="kubernetes")
    path = project / "deploy" / "kubernetes" / "base" / "rayservice.yaml"
    text = path.read_text("utf-8").replace("    type: NewCluster\n", "")
    text = re.sub(
        r"^    # ((?:type: New|clusterUp|  \w+: ).*)$", r"    \1", text, flags=re.MULTILINE
    )
    service = yaml.safe_load(text.partition("# gcsFault")[0])
    manifests = composed(project)
    [gateway], [whole] = (of_kind(kind, manifests) for kind in ("Gateway", "RayService"))

    strategy = service["spec"]["upgradeStrategy"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"
    whole["spec"]["upgradeStrategy"] = strategy
    assert complaints(whole) == []
    of_gateway = gateway["spec"]["gatewayClassName"]
    assert strategy["clusterUpgradeOptions"]["gatewayClassName"] == of_gateway


def test_the_rayservice_needs_no_feature_that_is_off_by_default(rendered: Render) -> None:
    cluster = rayservice(rendered(deploy="kubernetes"))["spec"]["rayClusterConfig"]

    # KubeRay 1.7 refuses it unless RayClusterNetworkPolicy is enabled.
    assert "networkPolicy" not in cluster


def test_the_rayservice_runs_the_ray_version_of_the_project(rendered: Render) -> None:
    project = rendered(deploy="kubernetes")
    metadata = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]
    [ray] = [r for r in map(Requirement, metadata["dependencies"]) if r.name == "ray"]

    assert rayservice(project)["spec"]["rayClusterConfig"]["rayVersion"] in ray.specifier


@pytest.mark.skipif(sys.platform != "linux", reason="its package has no wheel for every Mac")
@any_image
def test_the_image_passes_hadolint(answers: Answers, rendered: Render) -> None:
    run("hadolint", "--no-color", rendered(deploy="docker", **answers) / "Dockerfile")


@any_image
def test_the_image_copies_only_existing_files(answers: Answers, rendered: Render) -> None:
    project = rendered(deploy="docker", **answers)
    sources = sources_of_copies(project / "Dockerfile")

    assert sources
    for source in sources:
        # Only `uv lock` writes it, with the current versions.
        assert source == "uv.lock" or list(project.glob(source)), source


@any_image
def test_no_copied_file_is_left_out_of_the_build_context(
    answers: Answers, rendered: Render
) -> None:
    project = rendered(deploy="docker", **answers)
    patterns = (project / ".dockerignore").read_text("utf-8").splitlines()

    assert [s for s in sources_of_copies(project / "Dockerfile") if is_ignored(s, patterns)] == []


@any_image
def test_the_image_runs_as_an_unprivileged_user(answers: Answers, rendered: Render) -> None:
    stage = last_stage(rendered(deploy="docker", **answers) / "Dockerfile")

    users = [value for instruction, value in stage if instruction == "USER"]

    assert users
    assert users[-1].split(":")[0] not in ("0", "root")


@any_image
def test_the_image_has_a_health_check(answers: Answers, rendered: Render) -> None:
    stage = last_stage(rendered(deploy="docker", **answers) / "Dockerfile")

    [check] = [value for instruction, value in stage if instruction == "HEALTHCHECK"]

    assert "CMD" in check


def composed(project: Path, overlay: str = "production") -> list[Manifest]:
    return compose(project / "deploy" / "kubernetes" / "overlays" / overlay)


def of_kind(kind: str, manifests: list[Manifest]) -> list[Manifest]:
    return [each for each in manifests if each["kind"] == kind]


def rayservice(project: Path, overlay: str = "production") -> Manifest:
    [service] = of_kind("RayService", composed(project, overlay))
    return service


def group(service: Manifest) -> Manifest:
    [workers] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return dict(workers)


def pods(service: Manifest) -> list[Manifest]:
    """Returns the templates of the head and of the workers."""
    return [service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"], worker_pod(service)]


def worker_pod(service: Manifest) -> Manifest:
    return dict(group(service)["template"])


def worker(service: Manifest) -> Manifest:
    return dict(worker_pod(service)["spec"]["containers"][0])


def variables(container: Manifest) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def ports(rule: Manifest) -> list[int]:
    return [port["port"] for port in rule["ports"]]


def complaints(manifest: Manifest) -> list[str]:
    """Returns what the cluster would refuse or silently drop."""
    schema = schemas().get((manifest["apiVersion"], manifest["kind"]))
    if schema is None:
        # A built-in kind of Kubernetes, or an unknown one.
        try:
            kubernetes_validate.validate(
                manifest, kubernetes_validate.latest_version(), strict=True
            )
        except (
            kubernetes_validate.ValidationError,
            kubernetes_validate.SchemaNotFoundError,
        ) as error:
            return [f"{manifest['kind']}: {error}"]
        return []
    errors = Draft202012Validator(schema).iter_errors(manifest)
    return [f"{manifest['kind']}: {error.json_path}: {error.message}" for error in errors]


@cache
def schemas() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for path in CRDS.glob("*.yaml"):
        with path.open("rb") as file:
            spec = yaml.load(file, Loader=yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            schema = without_unknown_fields(version["schema"]["openAPIV3Schema"])
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


@contextmanager
def answering(path: str, answer: str | None) -> Iterator[int]:
    """Yields a port at which that path returns this answer, or where nothing listens."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == path else 404)
            self.end_headers()
            self.wfile.write((answer or "").encode())

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if answer is None:
        server.server_close()
        yield server.server_port
        return
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def wait_for_lines(path: Path, lines: set[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not lines <= set(path.read_text().split()):
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.1)


def without_unknown_fields(schema: dict[str, Any]) -> dict[str, Any]:
    """Refuses fields that are not in the schema; Kubernetes would drop them silently."""
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
    """Returns whether Docker leaves it out of the build context; the last match decides."""
    ignored = False
    for pattern in patterns:
        if fnmatch(source.rstrip("/"), pattern.lstrip("!").strip("/")):
            ignored = not pattern.startswith("!")
    return ignored
