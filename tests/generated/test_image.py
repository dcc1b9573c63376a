"""The image of a project, built and run step by step without a container engine."""

import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from ..conftest import Render
from ..faults.nodes import hosts
from .image import Stage, image
from .project import START_SECONDS, Project, ask

UNUSED = ("accelerate", "gguf", "nvidia", "torch", "triton")

pytestmark = pytest.mark.makes_networks

MOST_BYTES = 1_030_000_000
"""What an image may add to its base: libraries without PyTorch, and the saved graph.

It adds 1.0 GB, and a library's next release may be a little larger.
"""


def test_the_image_is_small_and_serves_the_page_as_its_user(
    render: Render, environment: Path, tmp_path: Path
) -> None:
    project = Project(render(deploy="docker"), environment)
    project.run("uv", "lock")
    with hosts(1) as [host], image(project.root / "Dockerfile", tmp_path) as stage:
        assert stage.user == "1000:1000"
        assert only_what_is_served(stage)
        assert bytes_in(stage.layer) < MOST_BYTES
        graphs = kept_graphs(stage)
        assert len(graphs) == 1
        address = f"{host.address} {socket.gethostname()}\n"
        (stage.root / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{address}")
        within = stage.within(*host.within)
        container = replace(project, environment=Path("/app/.venv"), within=within)
        with container.started(*stage.command) as server:
            server.wait_for(lambda _: is_healthy(stage, within), START_SECONDS)
            texts = ask(f"http://{host.address}:8000").texts
            metrics = f"http://{host.address}:8080/metrics"
            counted = "ray_model_answers_total"
            server.wait_for(lambda _: counted in httpx2.get(metrics).text, START_SECONDS)
            # Otherwise they would have built another graph.
            assert kept_graphs(stage) == graphs
    assert len(texts) == 2
    assert all(texts)


def kept_graphs(stage: Stage) -> set[str]:
    """Returns the graphs that replicas on this machine use unchanged."""
    return {each.name for each in stage.path("/models/converted/int8").iterdir() if each.is_dir()}


def bytes_in(directory: Path) -> int:
    """Returns the size of its files, each counted once."""
    files = {
        (status.st_dev, status.st_ino): status.st_size
        for path in directory.glob("**/*")
        if path.is_file() and not path.is_symlink()
        for status in [path.stat()]
    }
    return sum(files.values())


def is_healthy(stage: Stage, within: tuple[str, ...]) -> bool:
    check = subprocess.run([*within, *stage.health_check], capture_output=True, check=False)
    return check.returncode == 0


def only_what_is_served(stage: Stage) -> bool:
    """Asserts that caches, PyTorch, plain weights and build tools are not in the image."""
    files = {str(path.relative_to(stage.layer)) for path in stage.layer.glob("**/*")}
    unwanted = ("root/.cache", "usr/local/bin/uv", "app/src", "app/tests", "app/pyproject.toml")
    libraries = [name for name in files if "/site-packages/" in name]
    return (
        bool(libraries)
        and files.isdisjoint(unwanted)
        # Ray has its own folders with these names.
        and not any(f"/site-packages/{name}/" in each for each in libraries for name in UNUSED)
        and not any(name.endswith((".gguf", ".safetensors")) for name in files)
    )
