import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support.collector import Collector, collecting
from ..support.compare_page import KEY, MODELS
from ..support.counting_page import PAGE_REPLICAS, PASSWORD, USER
from ..support.file_page import WIKI
from ..support.leaving_page import NOTES
from ..support.servers import Served, free_port, served
from ..support.tiny_models import save_tiny_encoder_decoder

# Lets replicas import the pages of the tests.
PYTHONPATH = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="session")
def tiny_encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder_decoder(tmp_path_factory.mktemp("encoder-decoder"))


@pytest.fixture(scope="session")
def kept_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the served file pages store uploads."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="session")
def leaving_notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file in which a served page records closed tabs."""
    return tmp_path_factory.mktemp("leaving") / "notes"


@pytest.fixture(scope="session")
def second_model(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the second model of the served page."""
    return shutil.copytree(tiny_decoder, tmp_path_factory.mktemp("second") / "model")


@pytest.fixture(scope="session")
def served_collector() -> Iterator[Collector]:
    """Receives the traces of the served compare page."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="session")
def served_pages(
    served_collector: Collector,
    tiny_decoder: Path,
    second_model: Path,
    kept_files: Path,
    leaving_notes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """The served applications: compare, counting, chat, files, leaving and the API alone.

    All but one have a route prefix, since that is harder to get right than the root.
    """
    arguments = {"title": "Words", "description": "", "mcp": True, "openai_api": True}
    sources = (tiny_decoder, second_model)
    models = [
        {"name": name, "source": str(source)} for name, source in zip(MODELS, sources, strict=True)
    ]
    # Tiny models finish too quickly to see.
    limits = {"update_seconds": 0}
    config = {
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "logging_config": {"encoding": "JSON"},
        "tracing_config": {"enabled": True, "sampling_ratio": 1.0},
        "applications": [
            application(
                "compare",
                "/behind/a/prefix",
                {
                    **arguments,
                    "models": models,
                    "limits": limits,
                    "traces": {"endpoint": served_collector.url},
                },
                dict.fromkeys(["GradioServer", *MODELS], 1),
            ),
            application(
                "counting", "/counting", {"login_user": USER}, {"GradioServer": PAGE_REPLICAS}
            ),
            application("chat", "/chat", {}, {"GradioServer": 1}),
            application("file", "/", {}, {"GradioServer": 1}),
            {
                **application("file", "/files/behind", {"origins": [WIKI]}, {"GradioServer": 2}),
                "name": "behind",
            },
            application("leaving", "/leaving", {}, {"GradioServer": PAGE_REPLICAS}),
            {
                **application(
                    "compare",
                    "/api",
                    {**arguments, "models": models[:1]},
                    {"ApiServer": 1, MODELS[0]: 1},
                ),
                "name": "api",
                "import_path": "tests.support.compare_page:api",
            },
        ],
    }
    # Set for all, since Ray starts more processes for an application with its own variables.
    variables = {
        "API_KEYS": f"ada:{KEY}",
        "GRADIO_TEMP_DIR": str(kept_files),
        "PAGE_PASSWORD": PASSWORD,
        "PAGE_SECRET": "the whales sing in the deep blue sea",
        NOTES: str(leaving_notes),
        "PYTHONPATH": PYTHONPATH,
    }
    with served(config, tmp_path_factory.mktemp("served"), variables) as pages:
        yield pages


def application(
    name: str, prefix: str, arguments: dict[str, Any], replicas: dict[str, int]
) -> dict[str, Any]:
    """Returns the application of `tests/support/NAME_page.py`, sized for any machine."""
    return {
        "name": name,
        "route_prefix": prefix,
        "import_path": f"tests.support.{name}_page:build",
        "args": arguments,
        "deployments": [
            {"name": each, "num_replicas": number, "ray_actor_options": {"num_cpus": 0.1}}
            for each, number in replicas.items()
        ],
    }


@pytest.fixture
def words(served_pages: Served) -> str:
    """URL of the compare page."""
    return served_pages.addresses[0]


@pytest.fixture
def api(served_pages: Served) -> str:
    """URL of the models without a page."""
    return served_pages.addresses[6]


@pytest.fixture
def counting(served_pages: Served) -> str:
    return served_pages.addresses[1]


@pytest.fixture
def chat(served_pages: Served) -> str:
    return served_pages.addresses[2]


@pytest.fixture
def files(served_pages: Served) -> str:
    return served_pages.addresses[3]


@pytest.fixture
def files_behind_a_prefix(served_pages: Served) -> str:
    return served_pages.addresses[4]


@pytest.fixture
def leaving(served_pages: Served) -> str:
    return served_pages.addresses[5]
