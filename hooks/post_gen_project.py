"""Keeps the files for the chosen answers, and prints the next steps.

If a file has several variants, their names contain the answers, as in `app.parallel.py`. The
answers are removed from the name of the chosen variant. One variant may have no answer in its
name, such as `README.md` next to `README.own.md`. Cookiecutter runs this file in the rendered
project.
"""

import json
import re
import shutil
import sys
import tempfile
from io import TextIOWrapper
from pathlib import Path

ANSWERS: dict[str, object] = json.loads(r"""{{ cookiecutter | tojson }}""")
PACKAGE = "src/{{ cookiecutter.__package }}"

OWN = ".own" if ANSWERS["page"] == "own" else ""
NAMES = OWN or (".votes" if ANSWERS["votes"] else "")
LAYOUT = "own" if OWN else "parallel" if ANSWERS["parallel_models"] else "wrap"
# Few small models on the hub are trained for chat.
TASK = "chat" if (ANSWERS["page"], ANSWERS["models"]) == ("chat", "hub") else ANSWERS["task"]
# With page=own, there is no models.py.
MODELS = f"{PACKAGE}/models.{ANSWERS['models']}.{TASK}.{LAYOUT}.py"

CHOSEN = {
    f"{PACKAGE}/app.{LAYOUT}.py": f"{PACKAGE}/app.py",
    f"{PACKAGE}/page.{ANSWERS['page']}.py": f"{PACKAGE}/page.py",
    **({} if OWN else {MODELS: f"{PACKAGE}/models.py"}),
    f"{PACKAGE}/serving/__init__{OWN}.py": f"{PACKAGE}/serving/__init__.py",
    f"{PACKAGE}/serving/__init__{NAMES}.pyi": f"{PACKAGE}/serving/__init__.pyi",
    f"tests/conftest{OWN}.py": "tests/conftest.py",
    f"tests/load/locustfile{OWN}.py": "tests/load/locustfile.py",
    f"tests/test_app{OWN}.py": "tests/test_app.py",
    f"tests/test_page.{ANSWERS['page']}.py": "tests/test_page.py",
    f"README{OWN}.md": "README.md",
    f"LICENSE.{ANSWERS['license']}": "LICENSE",
}
"""The chosen variants of files, and their final names."""

UNWANTED: dict[str, dict[object, list[str]]] = {
    "page": {
        "compare": [],
        "chat": [],
        "own": [
            *(f"{PACKAGE}/models.*.py", f"{PACKAGE}/serving/answers.py"),
            *(f"{PACKAGE}/serving/protocol.py", f"{PACKAGE}/serving/telemetry/metrics.py"),
            *(f"{PACKAGE}/serving/http/{name}.py" for name in ("api_ingress", "openai_api")),
            *(
                f"{PACKAGE}/serving/{folder}"
                for folder in ("deployments", "engine", "pages", "votes")
            ),
            # The code in serving/ is the same as in other projects, which test it.
            *("tests/__init__.py", "tests/serving", "tests/support", "tests/test_models.py"),
            "tests/load/locustfile_api.py",
        ],
    },
    "models": {
        "bundled": [],
        "hub": [f"{PACKAGE}/serving/engine/bundled.py", "tests/serving/engine/test_bundled.py"],
    },
    "votes": {
        True: [],
        False: [
            *(f"{PACKAGE}/serving/votes", "tests/serving/votes"),
            *("tests/support/databases.py", "tests/support/voting_page.py"),
        ],
    },
    "deploy": {
        "local": [
            *("Dockerfile", ".dockerignore", "deploy", "config/kustomization.yml"),
            *("tests/serving/telemetry/test_monitoring.py", ".github/workflows/release.yml"),
        ],
        "docker": [
            *("deploy/kubernetes", "config/kustomization.yml"),
            *(f"deploy/monitoring/{name}.yaml" for name in ("kustomization", "pod-monitor")),
        ],
        "kubernetes": [],
    },
    "ci": {
        "github": [".gitlab", ".gitlab-ci.yml"],
        "gitlab": [".github"],
        "none": [".github", ".gitlab", ".gitlab-ci.yml"],
    },
}


def main() -> None:
    choose(Path.cwd())
    remove_unwanted(Path.cwd())
    # A terminal may not support every character in the project's name.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if not is_update(Path.cwd()):
        print(next_steps())


def is_update(project: Path) -> bool:
    """Whether cruft renders this project for an update, rather than to create a new one.

    Only cruft passes the template's commit. It creates a project in the given directory, but
    renders an update into two of Python's temporary directories, which it removes.
    """
    output = project.resolve().parent
    return (
        "_commit" in ANSWERS
        and output.parent == Path(tempfile.gettempdir()).resolve()
        and re.fullmatch("tmp[a-z0-9_]{8}", output.name) is not None
    )


def choose(project: Path) -> None:
    for chosen, name in CHOSEN.items():
        (project / chosen).replace(project / name)
        # Remove the other variants.
        path = project / name
        for other in path.parent.glob(f"{path.stem}.*{path.suffix}"):
            other.unlink()


def remove_unwanted(project: Path) -> None:
    for question, unwanted in UNWANTED.items():
        for name in unwanted[ANSWERS[question]]:
            # Another answer may have removed the directory already.
            for path in [*project.glob(name)]:
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

When the page is up, open http://127.0.0.1:8000."""


if __name__ == "__main__":
    main()
