"""uv can resolve a project on each Python and system. Uses the package index."""

import re
import shlex
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote

import pytest

from .answers import Answers, every_pair_of_answers
from .conftest import LoadHook, Render
from .test_versions import PYTHONS, requirements
from .tools import uv

SYSTEMS = {
    "Linux": "x86_64-unknown-linux-gnu",
    "macOS": "aarch64-apple-darwin",
    "Windows": "x86_64-pc-windows-msvc",
}
CUDA = re.compile("nvidia-.*|cuda-.*|triton")
WHEEL = "torch-2.13.0+cpu-py3-none-manylinux_2_28_x86_64.whl"


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_each_python_has_a_wheel_of_every_library(
    python: str, system: str, rendered: Render, tmp_path: Path
) -> None:
    failure = failure_to_resolve(rendered(), python, system, tmp_path / "resolved.txt")

    assert failure == ""


def test_the_next_python_lacks_some_wheels(rendered: Render, tmp_path: Path) -> None:
    """Otherwise `requires-python` can be raised."""
    major, minor = PYTHONS[-1].split(".")
    after = f"{major}.{int(minor) + 1}"
    failure = failure_to_resolve(rendered(), after, "Linux", tmp_path / "resolved.txt")

    assert "has no wheels with a matching Python ABI tag" in " ".join(failure.split())


def failure_to_resolve(project: Path, python: str, system: str, resolved: Path) -> str:
    result = uv(
        project,
        f"pip compile pyproject.toml --group dev --group load --group pytorch --python-version {python} --python-platform "
        f"{SYSTEMS[system]} --only-binary :all: --no-sources --quiet "
        f"--output-file {shlex.quote(str(resolved))}",
        # PyTorch's wheels require this version or later.
        MACOSX_DEPLOYMENT_TARGET="14.0",
    )
    return result.stderr if result.returncode else ""


def test_pytorch_stays_small_when_a_team_adds_or_upgrades_a_library(
    render: Render, tmp_path: Path
) -> None:
    project = render(accelerator="cpu")
    with pytorch_index(tmp_path / "index") as index:
        use_index(project, index)
        for command in ("lock", "add --no-sync six", "lock --upgrade"):
            result = uv(project, command)
            assert result.returncode == 0, result.stderr
            locked = locked_in(project)
            assert (index, "2.13.0+cpu") in locked["torch"], command
            assert not with_cuda(locked), command
        assert "six" in (project / "pyproject.toml").read_text("utf-8")


def test_pytorch_includes_cuda_in_projects_with_gpus(render: Render) -> None:
    project = render(accelerator="gpu")
    declared = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))

    assert not declared["tool"]["uv"].keys() & {"index", "sources"}
    assert uv(project, "lock").returncode == 0
    assert with_cuda(locked_in(project))


def test_a_machine_without_access_to_the_index_can_skip_it(render: Render) -> None:
    project = render(accelerator="cpu")
    use_index(project, "http://127.0.0.1:9")

    refused = uv(project, "lock", UV_HTTP_RETRIES="0")
    left_aside = uv(project, "lock", UV_NO_SOURCES="1")

    assert "Failed to fetch: http://127.0.0.1:9/torch/" in re.sub("`", "", refused.stderr)
    assert left_aside.returncode == 0, left_aside.stderr


def test_refuses_the_name_of_every_locked_package(
    render: Render, rendered: Render, load_hook: LoadHook
) -> None:
    hook = load_hook("pre_gen_project")
    missing: set[str] = set()
    for answers in answers_with_most_libraries(rendered):
        project = render(project_slug="our-app", **answers)
        # With all CUDA packages.
        result = uv(project, "lock", UV_NO_SOURCES="1")
        assert result.returncode == 0, result.stderr
        names = locked_in(project).keys() - {"our-app"}
        missing |= {name for name in names if not list(hook.problems_of_slug(name))}

    assert not missing, " ".join(sorted(missing))


def answers_with_most_libraries(rendered: Render) -> list[Answers]:
    """Returns answers for each set of libraries that is not a subset of another."""
    found = {
        frozenset(requirements(rendered(project_slug="our-app", **answers))): answers
        for answers in every_pair_of_answers()
    }
    return [
        answers for names, answers in found.items() if not any(names < others for others in found)
    ]


def locked_in(project: Path) -> dict[str, set[tuple[str, str]]]:
    """Returns the sources and versions of each package, which may differ between systems."""
    found: dict[str, set[tuple[str, str]]] = {}
    for package in tomllib.loads((project / "uv.lock").read_text("utf-8"))["package"]:
        source = package["source"].get("registry", "")
        found.setdefault(package["name"], set()).add((source, package["version"]))
    return found


def with_cuda(locked: dict[str, set[tuple[str, str]]]) -> set[str]:
    return {name for name in locked if CUDA.fullmatch(name)}


def use_index(project: Path, index: str) -> None:
    """Replaces PyTorch's index with another."""
    pyproject = project / "pyproject.toml"
    text = pyproject.read_text("utf-8")
    [declared] = tomllib.loads(text)["tool"]["uv"]["index"]
    pyproject.write_text(text.replace(declared["url"], index), "utf-8")


@contextmanager
def pytorch_index(folder: Path) -> Iterator[str]:
    """Serves a wheel that represents PyTorch's CPU build, like PyTorch's index."""
    page = folder / "torch" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<!DOCTYPE html><a href="{quote(WHEEL)}">{WHEEL}</a>', "utf-8")
    with zipfile.ZipFile(page.parent / WHEEL, "w") as wheel:
        about = "torch-2.13.0+cpu.dist-info"
        needs = "Requires-Dist: filelock\nRequires-Dist: sympy>=1.13.3\n"
        wheel.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n{needs}"
        )
        wheel.writestr(
            f"{about}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-manylinux_2_28_x86_64\n",
        )
        wheel.writestr(f"{about}/RECORD", "")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
