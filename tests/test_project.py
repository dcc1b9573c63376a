"""Rendered projects look hand-written."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from .answers import (
    CHOICES,
    CONTEXT,
    PROJECT,
    TEMPLATE,
    Answers,
    every_answer_to,
    every_pair_of_answers,
    in_words,
)
from .conftest import LoadHook, Render
from .tools import check_with_ruff

LICENSES = {
    "MIT": "Permission is hereby granted, free of charge, to any person obtaining a copy",
    "Apache-2.0": "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION",
    "BSD-3-Clause": "Neither the name of the copyright holder nor the names of its contributors",
    "Proprietary": "All rights reserved.",
}

any_answers = pytest.mark.parametrize(
    "answers", every_pair_of_answers(), ids=in_words, scope="module"
)
any_graph = pytest.mark.parametrize(
    "answers",
    every_answer_to("page", "task", "parallel_models", "models", "accelerator"),
    ids=in_words,
    scope="module",
)


@any_answers
def test_has_no_trace_of_the_template(
    answers: Answers, rendered: Render, load_hook: LoadHook
) -> None:
    project = rendered(**answers)

    for name, text in texts(project).items():
        assert "cookiecutter" not in f"{name}\n{text}".lower()
        # GitHub's expressions and dashboard labels look like Jinja.
        left = re.sub(r"\$\{\{.*?\}\}", "", text) if ".github" in name else text
        if name.endswith("dashboard.json"):
            left = re.sub(r"\{\{\w+\}\}", "", left)
        # The chat templates of models are Jinja too.
        if not name.endswith(("test_history.py", "test_prompts.py")):
            assert not re.search(r"\{\{|\{%|\{#", f"{name}\n{left}"), name
    chosen = load_hook("post_gen_project", **answers).CHOSEN
    assert not [one for one, name in chosen.items() if one != name and (project / one).exists()]


@any_answers
def test_text_is_tidy(answers: Answers, rendered: Render) -> None:
    for name, text in texts(rendered(**answers)).items():
        assert "\r" not in text, name
        assert "\t" not in text, name
        assert not re.search(r"[ \t]$", text, re.MULTILINE), name
        assert not text.startswith("\n"), name
        # Ruff formats Python, also in documents.
        prose = re.sub(r"^ *```python\n.*?^ *```$", "…", text, flags=re.DOTALL | re.MULTILINE)
        assert name.endswith(".py") or "\n\n\n" not in prose, name
        assert text.endswith("\n") or is_package_mark(name, text), name
        assert not text.endswith("\n\n"), name


@any_answers
def test_ruff_has_nothing_to_change(answers: Answers, rendered: Render) -> None:
    check_with_ruff(rendered(**answers))


@pytest.mark.parametrize("slug", ["a", "w" * 47], ids=["a short name", "a long name"])
@pytest.mark.parametrize(
    "answers", every_answer_to("page", "parallel_models", "models"), ids=in_words
)
def test_a_name_of_any_length_needs_no_reformatting(
    answers: Answers, slug: str, rendered: Render
) -> None:
    check_with_ruff(rendered(project_slug=slug, **answers))


def test_tests_of_serving_use_neither_the_page_nor_the_models_of_the_team(rendered: Render) -> None:
    project = rendered()
    theirs = re.compile(r"gradio_on_ray\.(page|models)\b|gradio_on_ray import (page|models)\b")

    for path in project.glob("tests/serving/**/*.py"):
        assert not theirs.search(path.read_text("utf-8")), path


@any_answers
def test_yaml_and_toml_can_be_read(answers: Answers, rendered: Render) -> None:
    for name, text in texts(rendered(**answers)).items():
        if name.endswith((".yaml", ".yml")):
            assert list(yaml.safe_load_all(text)), name
        elif name.endswith(".toml"):
            assert tomllib.loads(text), name


def test_files_copied_without_rendering_contain_no_jinja() -> None:
    # As Cookiecutter matches them, below the project.
    copied = [
        path
        for pattern in CONTEXT["_copy_without_render"]
        for path in PROJECT.glob(f"{pattern}/**/*.py")
    ]
    assert len(copied) > 20
    assert not [path for path in copied if re.search(r"{[{%#]", path.read_text("utf-8"))]


def test_rendering_is_not_much_slower_than_starting_cookiecutter(
    tmp_path: Path,
) -> None:
    # Relative to the command's start, since other work slows both down: rendering takes between
    # 2.4 times as long on a busy machine and 4.9 times on an idle one, where it takes 0.8 seconds.
    start = [sys.executable, "-c", "import cookiecutter.main"]
    render = [
        *(sys.executable, "-m", "cookiecutter", "--no-input", "--default-config"),
        *("--overwrite-if-exists", "--output-dir", str(tmp_path), str(TEMPLATE)),
    ]
    ratios = [processor_seconds(render) / processor_seconds(start) for _ in range(3)]

    assert 1 < min(ratios) < 6


def processor_seconds(command: Sequence[str]) -> float:
    """Returns the CPU seconds of the command and its child processes."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


@pytest.mark.parametrize("name", CHOICES["license"])
def test_has_the_chosen_license(name: str, rendered: Render) -> None:
    project = rendered(license=name, author="Ada & Co")
    text = " ".join((project / "LICENSE").read_text("utf-8").split())
    metadata = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]

    assert [chosen for chosen, words in LICENSES.items() if words in text] == [name]
    assert "Ada & Co" in text or name == "Apache-2.0"
    assert metadata.get("license", "Proprietary") == name
    assert [path.name for path in project.glob("LICENSE*")] == ["LICENSE"]


@any_graph
def test_only_the_models_file_names_a_model(answers: Answers, rendered: Render) -> None:
    project = rendered(deploy="kubernetes", **answers)
    models = names_of_models(project)
    named = [*project.glob("config/*"), *project.glob("deploy/**/*.yaml")]

    number = 2 if answers["parallel_models"] else 1
    assert len(set(models)) == (number if answers["page"] != "own" else 0)
    assert len(named) > 2
    for path in named:
        assert not [name for name in models if name in path.read_text("utf-8")], path


@any_graph
def test_the_configs_name_no_model(answers: Answers, rendered: Render) -> None:
    project = rendered(deploy="kubernetes", **answers)

    for path in project.glob("config/*.yaml"):
        text = path.read_text("utf-8")
        assert [name for name in names_of_models(project) if name in text] == []


@any_graph
def test_the_configs_fit_on_two_cores_and_one_gpu(answers: Answers, rendered: Render) -> None:
    project = rendered(project_slug="our.big-app", **answers)
    models = len(names_of_models(project)) if answers["parallel_models"] else 0
    # The default of app.py or of `GradioServer`.
    alone = 1 if answers["page"] != "own" and not models else 0.4
    for config in configs(project):
        asked = resources_at_start(config, models, alone)
        assert 0 < asked["num_cpus"] <= 2
        assert asked["num_gpus"] <= 1
        assert (asked["num_gpus"] > 0) == (answers["accelerator"] == "gpu")


@pytest.mark.parametrize("accelerator", CHOICES["accelerator"])
def test_a_third_model_still_fits_on_two_cores_and_one_gpu(
    accelerator: str, rendered: Render
) -> None:
    local, _ = configs(rendered(accelerator=accelerator))

    asked = resources_at_start(local, models=3, page_cpus=0.4)

    assert asked["num_cpus"] <= 2
    assert asked["num_gpus"] <= 1


@any_graph
def test_the_configs_import_the_package_of_the_project(answers: Answers, rendered: Render) -> None:
    project = rendered(project_slug="our.big-app", **answers)

    for config in configs(project):
        [application] = config["applications"]
        module, name = application["import_path"].split(":")
        path = project.joinpath("src", *module.split(".")).with_suffix(".py")
        assert name in names_in_module(path)


def test_only_the_local_config_is_bound_to_this_machine(rendered: Render) -> None:
    project = rendered()

    [local, production] = [
        yaml.safe_load((project / "config" / name).read_text("utf-8"))["http_options"]["host"]
        for name in ("local.yaml", "production.yaml")
    ]
    assert ip_address(local).is_loopback
    assert ip_address(production).is_unspecified


@pytest.mark.parametrize("deploy", CHOICES["deploy"])
def test_rendering_twice_gives_the_same_bytes(deploy: str, render: Render) -> None:
    assert contents(render(deploy=deploy)) == contents(render(deploy=deploy))


def test_file_names_of_a_project_are_legal_on_windows(rendered: Render) -> None:
    project = rendered(deploy="kubernetes")

    assert illegal_on_windows(project) == []


def test_file_names_of_the_template_are_legal_on_windows() -> None:
    for directory in (PROJECT, TEMPLATE / "hooks", TEMPLATE / "tests"):
        assert illegal_on_windows(directory) == []


def test_files_of_the_template_have_unix_line_endings() -> None:
    for directory in (PROJECT, TEMPLATE / "hooks"):
        for path in files(directory):
            assert b"\r" not in path.read_bytes(), path


def files(directory: Path) -> list[Path]:
    """Returns the files that are, or would be, under version control."""
    caches = {"__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache"}
    return sorted(
        path for path in directory.rglob("*") if path.is_file() and not caches & set(path.parts)
    )


def texts(project: Path) -> dict[str, str]:
    return {
        path.relative_to(project).as_posix(): path.read_bytes().decode("utf-8")
        for path in files(project)
    }


def contents(project: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(project).as_posix(): (path.stat().st_mode, path.read_bytes())
        for path in files(project)
    }


def is_package_mark(name: str, text: str) -> bool:
    return text == "" and name.endswith(("/__init__.py", "/py.typed"))


def configs(project: Path) -> list[dict[str, Any]]:
    paths = sorted(project.glob("config/*.yaml"))
    assert [path.name for path in paths] == ["local.yaml", "production.yaml"]
    return [yaml.safe_load(path.read_text("utf-8")) for path in paths]


def resources_at_start(config: dict[str, Any], models: int, page_cpus: float) -> dict[str, float]:
    """Adds the config to the defaults of the code, which the projects' tests check."""
    [application] = config["applications"]
    page: dict[str, float] = {"num_cpus": page_cpus}
    replicas = 1
    for deployment in application.get("deployments", []):
        assert deployment["name"] == "GradioServer"
        page = deployment["ray_actor_options"]
        replicas = deployment.get("num_replicas", 1)
    each = {"num_cpus": 0.5, "num_gpus": 0, "min_replicas": 1}
    each |= application["args"].get("deployment", {})
    return {
        resource: replicas * page.get(resource, 0) + models * each["min_replicas"] * each[resource]
        for resource in ("num_cpus", "num_gpus")
    }


def names_of_models(project: Path) -> list[str]:
    return [
        ast.literal_eval(keyword.value)
        for path in project.glob("src/*/models.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "name"
    ]


def names_in_module(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def illegal_on_windows(directory: Path) -> list[str]:
    paths = [path.relative_to(directory.parent).as_posix() for path in files(directory)]
    spelled = Counter(path.lower() for path in paths)
    return [
        path
        for path in paths
        if spelled[path.lower()] > 1
        or any(
            re.search(r'[<>:"\\|?*\x00-\x1f]|[. ]$', part)
            or re.fullmatch(r"(?i)(aux|con|nul|prn|(com|lpt)[0-9])(\..*)?", part)
            for part in path.split("/")
        )
    ]
