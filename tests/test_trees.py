"""A project has exactly the files of its answers."""

from pathlib import Path

import pytest

from .answers import (
    CHOICES,
    PROJECT,
    TEMPLATE,
    Answers,
    every_answer_to,
    every_pair_of_answers,
    in_words,
)
from .conftest import Render

ALWAYS = set(
    """
    .gitattributes .gitignore .pre-commit-config.yaml AGENTS.md CONTRIBUTING.md LICENSE README.md
    SECURITY.md pyproject.toml
    config/local.yaml config/production.yaml
    docs/changing.md docs/operations.md
    src/our_app/__init__.py src/our_app/__main__.py src/our_app/app.py src/our_app/models.py
    src/our_app/page.py
    src/our_app/serving/__init__.py src/our_app/serving/__init__.pyi src/our_app/serving/answers.py
    src/our_app/serving/base.py src/our_app/serving/config.py src/our_app/serving/preview.py
    src/our_app/serving/protocol.py src/our_app/serving/start.py
    src/our_app/serving/deployments/__init__.py src/our_app/serving/deployments/builders.py
    src/our_app/serving/deployments/deployment.py src/our_app/serving/deployments/handles.py
    src/our_app/serving/deployments/openai_client.py src/our_app/serving/deployments/pinning.py
    src/our_app/serving/deployments/routing.py src/our_app/serving/deployments/scaling.py
    src/our_app/serving/deployments/settings.py
    src/our_app/serving/engine/__init__.py src/our_app/serving/engine/attention.py
    src/our_app/serving/engine/caches.py src/our_app/serving/engine/checks.py
    src/our_app/serving/engine/configured.py src/our_app/serving/engine/decoders.py
    src/our_app/serving/engine/engine.py src/our_app/serving/engine/generation.py
    src/our_app/serving/engine/facts.py src/our_app/serving/engine/families.py
    src/our_app/serving/engine/graph_paths.py
    src/our_app/serving/engine/graphs.py src/our_app/serving/engine/groups.py
    src/our_app/serving/engine/history.py
    src/our_app/serving/engine/loading.py src/our_app/serving/engine/machine.py
    src/our_app/serving/engine/paged.py
    src/our_app/serving/engine/plain.py
    src/our_app/serving/engine/prompts.py
    src/our_app/serving/engine/runtime.py
    src/our_app/serving/engine/sampling.py
    src/our_app/serving/engine/saved_graphs.py
    src/our_app/serving/engine/scores.py
    src/our_app/serving/engine/settings.py
    src/our_app/serving/engine/text.py
    src/our_app/serving/engine/text_limits.py
    src/our_app/serving/engine/thoughts.py
    src/our_app/serving/engine/vocabulary.py
    src/our_app/serving/engine/weights.py
    src/our_app/serving/http/__init__.py src/our_app/serving/http/api_ingress.py
    src/our_app/serving/http/disconnects.py
    src/our_app/serving/http/files.py src/our_app/serving/http/guard.py
    src/our_app/serving/http/hosts.py src/our_app/serving/http/ingress.py
    src/our_app/serving/http/launch.py src/our_app/serving/http/login.py
    src/our_app/serving/http/mcp_server.py src/our_app/serving/http/mount.py
    src/our_app/serving/http/oidc.py src/our_app/serving/http/openai_api.py
    src/our_app/serving/http/proxy.py src/our_app/serving/http/rate_limits.py
    src/our_app/serving/http/sessions.py
    src/our_app/serving/http/settings.py
    src/our_app/serving/pages/__init__.py src/our_app/serving/pages/asking.py
    src/our_app/serving/pages/browser.py src/our_app/serving/pages/chat.py
    src/our_app/serving/pages/compare.py src/our_app/serving/pages/conversation.py
    src/our_app/serving/pages/looks.py
    src/our_app/serving/pages/options.py src/our_app/serving/pages/panes.py
    src/our_app/serving/pages/prompt.py src/our_app/serving/pages/settings.py
    src/our_app/serving/telemetry/__init__.py src/our_app/serving/telemetry/calls.py
    src/our_app/serving/telemetry/logs.py src/our_app/serving/telemetry/metrics.py
    src/our_app/serving/telemetry/otlp.py src/our_app/serving/telemetry/traces.py
    tests/load/locust_users.py tests/load/locustfile.py tests/load/locustfile_api.py
    tests/__init__.py tests/conftest.py tests/test_app.py tests/test_models.py tests/test_page.py
    tests/serving/__init__.py tests/serving/conftest.py tests/serving/test_answers.py
    tests/serving/test_config.py tests/serving/test_preview.py tests/serving/test_public_names.py
    tests/serving/test_served.py tests/serving/test_served_config.py tests/serving/test_settings.py
    tests/serving/test_start.py
    tests/serving/test_stop.py
    tests/serving/deployments/__init__.py tests/serving/deployments/test_deployments.py
    tests/serving/deployments/test_faults.py tests/serving/deployments/test_openai_client.py
    tests/serving/deployments/test_pinning.py tests/serving/deployments/test_routing.py
    tests/serving/deployments/test_scaling.py
    tests/serving/engine/__init__.py tests/serving/engine/conftest.py
    tests/serving/engine/test_any_model.py
    tests/serving/engine/test_configured.py
    tests/serving/engine/test_engine.py
    tests/serving/engine/test_gguf.py
    tests/serving/engine/test_graphs.py
    tests/serving/engine/test_history.py
    tests/serving/engine/test_paged.py
    tests/serving/engine/test_prompts.py
    tests/serving/engine/test_sampling.py
    tests/serving/engine/test_saved_graphs.py
    tests/serving/engine/test_text_limits.py
    tests/serving/engine/test_thoughts.py
    tests/serving/engine/test_vocabulary.py
    tests/serving/engine/test_weights.py
    tests/serving/http/__init__.py tests/serving/http/test_disconnects.py
    tests/serving/http/test_guard.py tests/serving/http/test_haproxy.py
    tests/serving/http/test_hosts.py
    tests/serving/http/test_launch.py tests/serving/http/test_leaving.py
    tests/serving/http/test_mcp_server.py tests/serving/http/test_mount.py
    tests/serving/http/test_oidc.py tests/serving/http/test_openai_api.py
    tests/serving/http/test_rate_limits.py
    tests/serving/http/test_session_cookie.py tests/serving/http/test_sessions.py
    tests/serving/pages/__init__.py tests/serving/pages/test_chat.py
    tests/serving/pages/test_compare.py tests/serving/pages/test_conversation.py
    tests/serving/telemetry/__init__.py tests/serving/telemetry/test_calls.py
    tests/serving/telemetry/test_logs.py tests/serving/telemetry/test_telemetry.py
    tests/serving/telemetry/test_traces.py
    tests/support/__init__.py tests/support/accessibility.py tests/support/chat_page.py
    tests/support/collector.py tests/support/compare_page.py tests/support/conversation_page.py
    tests/support/counting_page.py tests/support/file_page.py
    tests/support/leaving_page.py tests/support/loopback_hub.py tests/support/oidc_provider.py
    tests/support/pictures.py tests/support/processes.py tests/support/redis_server.py
    tests/support/routers.py tests/support/servers.py tests/support/speakers.py
    tests/support/stand_ins.py tests/support/tiny_models.py
    """.split()  # noqa: SIM905 - a line for each would bury the rest
)

IMAGE = {
    *("Dockerfile", ".dockerignore", "tests/serving/telemetry/test_monitoring.py"),
    *("deploy/monitoring/alerts.yaml", "deploy/monitoring/grafana-dashboard.json"),
}

VOTES = set(
    """
    src/our_app/serving/votes/__init__.py src/our_app/serving/votes/ballots.py
    src/our_app/serving/votes/blind.py src/our_app/serving/votes/command.py
    src/our_app/serving/votes/page.py src/our_app/serving/votes/rating.py
    src/our_app/serving/votes/rounds.py src/our_app/serving/votes/settings.py
    src/our_app/serving/votes/store.py src/our_app/serving/votes/tables.py
    src/our_app/serving/votes/migrations/env.py
    src/our_app/serving/votes/migrations/versions/first.py
    tests/serving/votes/__init__.py tests/serving/votes/conftest.py
    tests/serving/votes/test_command.py tests/serving/votes/test_on_ray.py
    tests/serving/votes/test_page.py tests/serving/votes/test_rating.py
    tests/serving/votes/test_replicas.py tests/serving/votes/test_store.py
    tests/support/databases.py tests/support/voting_page.py
    """.split()  # noqa: SIM905 - as above
)

MODELS = tuple(
    """
    src/our_app/models.py src/our_app/serving/answers.py src/our_app/serving/protocol.py
    src/our_app/serving/deployments/ src/our_app/serving/engine/ src/our_app/serving/pages/
    src/our_app/serving/votes/
    src/our_app/serving/http/api_ingress.py src/our_app/serving/http/openai_api.py
    src/our_app/serving/telemetry/metrics.py
    tests/__init__.py tests/load/locustfile_api.py tests/serving/ tests/support/
    tests/test_models.py
    """.split()  # noqa: SIM905 - as above
)
"""Everything about text models, and the tests of code that is the same in every project."""

BROUGHT: dict[str, dict[str | bool, set[str]]] = {
    "page": {"compare": set(), "chat": set(), "own": set()},
    "task": {"text-generation": set(), "summarization": set()},
    "parallel_models": {True: set(), False: set()},
    "models": {
        "bundled": {
            "src/our_app/serving/engine/bundled.py",
            "tests/serving/engine/test_bundled.py",
        },
        "hub": set(),
    },
    "votes": {False: set(), True: VOTES},
    "accelerator": {"cpu": set(), "gpu": set()},
    "deploy": {
        "local": set(),
        "docker": IMAGE,
        "kubernetes": IMAGE
        | {
            "config/kustomization.yml",
            "deploy/kubernetes/apply.sh",
            "deploy/kubernetes/base/gateway.yaml",
            "deploy/kubernetes/base/kustomization.yaml",
            "deploy/kubernetes/base/network-policy.yaml",
            "deploy/kubernetes/base/rayservice.yaml",
            "deploy/kubernetes/overlays/production/kustomization.yaml",
            "deploy/kubernetes/overlays/production/pod-disruption-budget.yaml",
            "deploy/kubernetes/overlays/staging/kustomization.yaml",
            "deploy/monitoring/kustomization.yaml",
            "deploy/monitoring/pod-monitor.yaml",
        },
    },
    "ci": {
        "github": {".github/CODEOWNERS", ".github/dependabot.yml", ".github/workflows/ci.yml"},
        "gitlab": {".gitlab-ci.yml", ".gitlab/CODEOWNERS"},
        "none": set(),
    },
    "license": {"MIT": set(), "Apache-2.0": set(), "BSD-3-Clause": set(), "Proprietary": set()},
}


def test_the_files_of_each_answer_are_known() -> None:
    assert {question: list(answers) for question, answers in BROUGHT.items()} == CHOICES


@pytest.mark.parametrize("answers", every_pair_of_answers(), ids=in_words)
def test_has_exactly_the_files_of_its_answers(answers: Answers, rendered: Render) -> None:
    brought = [BROUGHT[question][answer] for question, answer in answers.items()]

    expected = ALWAYS.union(*brought)
    if answers["ci"] == "github" and answers["deploy"] != "local":
        expected.add(".github/workflows/release.yml")
    if answers["page"] == "own":
        expected = {name for name in expected if not name.startswith(MODELS)}
    assert files_of(rendered(project_slug="our-app", **answers)) == expected


def test_a_project_with_its_own_page_and_default_answers_has_few_files(rendered: Render) -> None:
    assert len(files_of(rendered(page="own"))) <= 51


@pytest.mark.parametrize("answers", every_answer_to("task", "parallel_models", "models", "votes"))
def test_answers_about_models_do_not_change_a_project_with_its_own_page(
    answers: Answers, rendered: Render
) -> None:
    project, other = rendered(page="own"), rendered(page="own", **answers)

    assert files_of(other) == files_of(project)
    for name in files_of(project) - {"CONTRIBUTING.md"}:
        assert (other / name).read_bytes() == (project / name).read_bytes(), name


def test_projects_with_their_own_page_share_the_serving_code_of_others(rendered: Render) -> None:
    """The tests are in the other projects."""
    own, other = rendered(page="own") / "src", rendered() / "src"
    shared = [path for path in own.glob("*/serving/**/*.py") if path.name != "__init__.py"]

    assert len(shared) > 15
    for path in shared:
        assert path.read_bytes() == (other / path.relative_to(own)).read_bytes()


def test_a_project_with_its_own_page_exports_a_subset_of_the_public_names(rendered: Render) -> None:
    own, other = rendered(page="own"), rendered()
    [stub] = own.glob("src/*/serving/__init__.pyi")
    files = [path for path in stub.parent.rglob("*.py") if path.name != "__init__.py"]
    modules = {".".join(path.relative_to(stub.parent).with_suffix("").parts) for path in files}
    whole = (other / stub.relative_to(own)).read_text("utf-8").splitlines()

    left = [line for line in whole if line.split()[1].removeprefix(".") in modules]
    assert stub.read_text("utf-8").splitlines() == left


def test_votes_do_not_change_the_public_names(rendered: Render) -> None:
    """The team's files are the same with and without votes."""
    names = []
    for votes in (True, False):
        project = rendered(votes=votes)
        [stub] = project.glob("src/*/serving/__init__.pyi")
        names.append({line.split()[-1] for line in stub.read_text("utf-8").splitlines()})
    assert names[0] == names[1]


def files_of(project: Path) -> set[str]:
    """Returns the paths of files and empty folders."""
    return {
        path.relative_to(project).as_posix()
        for path in project.rglob("*")
        if not path.is_dir() or not any(path.iterdir())
    }


def test_the_template_contains_no_symbolic_links() -> None:
    """Creating them on Windows needs special rights, and projects are rendered from these files."""
    for directory in (PROJECT, *(TEMPLATE / name for name in ("hooks", "templates", "tests"))):
        assert not [path for path in directory.rglob("*") if path.is_symlink()]
