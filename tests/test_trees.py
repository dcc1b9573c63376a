"""A project has exactly the files that its answers ask for."""

from pathlib import Path

import pytest

from .answers import CHOICES, PROJECT, TEMPLATE, Answers, every_pair_of_answers, in_words
from .conftest import Render

ALWAYS = set(
    """
    .gitattributes .gitignore .pre-commit-config.yaml AGENTS.md CONTRIBUTING.md LICENSE README.md
    SECURITY.md pyproject.toml
    config/local.yaml config/production.yaml
    src/our_app/__init__.py src/our_app/__main__.py src/our_app/answers.py src/our_app/app.py
    src/our_app/attention.py src/our_app/browser.py src/our_app/decoders.py
    src/our_app/disconnects.py src/our_app/encoder_decoders.py src/our_app/engine.py
    src/our_app/errors.py src/our_app/generation.py src/our_app/guard.py src/our_app/hosts.py
    src/our_app/ingress.py src/our_app/login.py src/our_app/logs.py src/our_app/mcp_server.py
    src/our_app/mount.py src/our_app/openai_server.py
    src/our_app/page.py src/our_app/preview.py src/our_app/routing.py src/our_app/sampling.py
    src/our_app/settings.py src/our_app/task.py src/our_app/telemetry.py src/our_app/weights.py
    tests/__init__.py tests/chat_page.py tests/conftest.py tests/counting_page.py
    tests/file_page.py tests/loopback_hub.py
    tests/pictures.py tests/servers.py tests/stand_ins.py tests/test_answers.py tests/test_app.py
    tests/test_config.py tests/test_disconnects.py tests/test_engine.py tests/test_guard.py
    tests/test_hosts.py tests/test_logs.py tests/test_mcp_server.py tests/test_mount.py
    tests/test_openai_server.py tests/test_page.py tests/test_preview.py
    tests/test_routing.py tests/test_sampling.py tests/test_served.py tests/test_sessions.py
    tests/test_settings.py tests/test_start.py tests/test_telemetry.py tests/test_weights.py
    tests/tiny_models.py
    """.split()  # noqa: SIM905 - a line for each would bury the rest
)

IMAGE = {
    *("Dockerfile", ".dockerignore", "tests/test_monitoring.py"),
    *("deploy/monitoring/alerts.yaml", "deploy/monitoring/grafana-dashboard.json"),
}

BROUGHT: dict[str, dict[str | bool, set[str]]] = {
    "task": {"text-generation": set(), "summarization": set()},
    "parallel_models": {
        True: {"src/our_app/deployments.py", "tests/test_deployments.py", "tests/test_faults.py"},
        False: set(),
    },
    "models": {"bundled": {"src/our_app/bundled.py", "tests/test_bundled.py"}, "hub": set()},
    "accelerator": {"cpu": set(), "gpu": set()},
    "deploy": {
        "local": set(),
        "docker": IMAGE,
        "kubernetes": IMAGE
        | {
            "deploy/kubernetes/ingress.yaml",
            "deploy/kubernetes/network-policy.yaml",
            "deploy/kubernetes/rayservice.yaml",
        }
        | {"tests/test_rayservice.py"},
    },
    "ci": {
        "github": {".github/dependabot.yml", ".github/workflows/ci.yml"},
        "gitlab": {".gitlab-ci.yml"},
        "none": set(),
    },
    "license": {"MIT": set(), "Apache-2.0": set(), "BSD-3-Clause": set(), "Proprietary": set()},
}


def test_the_files_of_each_answer_are_known() -> None:
    assert {question: list(answers) for question, answers in BROUGHT.items()} == CHOICES


@pytest.mark.parametrize("answers", every_pair_of_answers(), ids=in_words)
def test_has_the_files_of_its_answers_and_no_others(answers: Answers, render: Render) -> None:
    brought = [BROUGHT[question][answer] for question, answer in answers.items()]

    assert files_of(render(project_slug="our-app", **answers)) == ALWAYS.union(*brought)


def files_of(project: Path) -> set[str]:
    """Returns the paths of the files, and of folders that hold nothing."""
    return {
        path.relative_to(project).as_posix()
        for path in project.rglob("*")
        if not path.is_dir() or not any(path.iterdir())
    }


def test_no_path_of_the_template_is_a_link() -> None:
    """Windows makes none without rights; and what is rendered is made of these files."""
    for directory in (PROJECT, *(TEMPLATE / name for name in ("hooks", "templates", "tests"))):
        assert not [path for path in directory.rglob("*") if path.is_symlink()]
