"""Keeps the files that the answers ask for and says what to do next.

A file of which there are several has the answer in its name, as in `task.summarization.py`;
the chosen one loses it. Cookiecutter runs this file in the rendered project.
"""

import json
import shutil
import sys
from io import TextIOWrapper
from pathlib import Path

ANSWERS: dict[str, object] = json.loads(r"""{{ cookiecutter | tojson }}""")
PACKAGE = "src/{{ cookiecutter.__package }}"

CHOSEN: dict[str, dict[object, dict[str, str]]] = {
    "task": {
        "text-generation": {f"{PACKAGE}/task.text-generation.py": f"{PACKAGE}/task.py"},
        "summarization": {f"{PACKAGE}/task.summarization.py": f"{PACKAGE}/task.py"},
    },
    "parallel_models": {
        True: {
            f"{PACKAGE}/app.parallel.py": f"{PACKAGE}/app.py",
            "tests/test_app.parallel.py": "tests/test_app.py",
        },
        False: {
            f"{PACKAGE}/app.wrap.py": f"{PACKAGE}/app.py",
            "tests/test_app.wrap.py": "tests/test_app.py",
        },
    },
    "license": {
        "MIT": {"LICENSE.MIT": "LICENSE"},
        "Apache-2.0": {"LICENSE.Apache-2.0": "LICENSE"},
        "BSD-3-Clause": {"LICENSE.BSD-3-Clause": "LICENSE"},
        "Proprietary": {"LICENSE.Proprietary": "LICENSE"},
    },
}

UNWANTED: dict[str, dict[object, list[str]]] = {
    "parallel_models": {
        True: [],
        False: [
            f"{PACKAGE}/deployments.py",
            "tests/test_deployments.py",
            "tests/test_faults.py",
        ],
    },
    "models": {
        "bundled": [],
        "hub": [f"{PACKAGE}/bundled.py", "tests/test_bundled.py"],
    },
    "deploy": {
        "local": [
            *("Dockerfile", ".dockerignore", "deploy"),
            *("tests/test_monitoring.py", "tests/test_rayservice.py"),
        ],
        "docker": ["deploy/kubernetes", "tests/test_rayservice.py"],
        "kubernetes": [],
    },
    "ci": {
        "github": [".gitlab-ci.yml"],
        "gitlab": [".github"],
        "none": [".github", ".gitlab-ci.yml"],
    },
}


def main() -> None:
    choose(Path.cwd())
    remove_unwanted(Path.cwd())
    # A terminal may not know every character of the project's name.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    print(next_steps())


def choose(project: Path) -> None:
    for question, variants in CHOSEN.items():
        for answer, files in variants.items():
            for variant, name in files.items():
                if answer == ANSWERS[question]:
                    (project / variant).replace(project / name)
                else:
                    (project / variant).unlink()


def remove_unwanted(project: Path) -> None:
    for question, unwanted in UNWANTED.items():
        for name in unwanted[ANSWERS[question]]:
            path = project / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def next_steps() -> str:
    return f"""
{ANSWERS["project_name"]} is in {ANSWERS["project_slug"]}/. Next:

    cd {ANSWERS["project_slug"]}
    git init
    uv run python -m {{ cookiecutter.__package }}

and open http://127.0.0.1:8000 when it says that the page is up."""


if __name__ == "__main__":
    main()
