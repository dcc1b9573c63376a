import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from .counting_page import PAGE_REPLICAS, PASSWORD, USER
from .servers import Served, config_of, free_port, served
from .tiny_models import save_tiny_decoder, save_tiny_encoder_decoder

# A browser beside other work may take longer than Playwright's five seconds.
expect.set_options(timeout=60_000)

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def tiny_encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder_decoder(tmp_path_factory.mktemp("encoder-decoder"))


@pytest.fixture(scope="session")
def kept_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the served pages of files keep them."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="session")
def served_pages(
    tiny_decoder: Path, kept_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The application, one that counts and has a login, a chat, and two of files, on one cluster.

    All but one are behind a route prefix, where a page has more to get right than at the root.
    """
    config = config_of(tiny_decoder, free_port())
    [application] = config["applications"]
    application["route_prefix"] = "/behind/a/prefix"
    page = {**application["deployments"][0], "num_replicas": PAGE_REPLICAS}
    application["deployments"][0]["num_replicas"] = 2
    import_path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    counting = {
        **application,
        "name": "counting",
        "route_prefix": "/counting",
        "import_path": "tests.counting_page:build",
        "args": {**application["args"], "login_user": USER},
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(import_path)}},
        "deployments": [page],
    }
    chat = {
        **counting,
        "name": "chat",
        "route_prefix": "/chat",
        "import_path": "tests.chat_page:build",
        # Its own models would be looked for on the hub.
        "args": {"models": application["args"]["models"]},
        "deployments": [{**page, "num_replicas": 1}],
    }
    keeping = {**counting["runtime_env"]["env_vars"], "GRADIO_TEMP_DIR": str(kept_files)}
    files = {
        **chat,
        "name": "files",
        "route_prefix": "/",
        "import_path": "tests.file_page:build",
        "runtime_env": {"env_vars": keeping},
    }
    files_behind = {**files, "name": "files-behind", "route_prefix": "/files/behind"}
    application["args"]["mcp"] = True
    config["applications"] += [counting, chat, files, files_behind]
    config["logging_config"] = {"encoding": "JSON"}
    config["tracing_config"] = {"enabled": True, "sampling_ratio": 1.0}
    directory, variables = tmp_path_factory.mktemp("served"), {"PAGE_PASSWORD": PASSWORD}
    with served(config, directory, variables) as pages:
        yield pages


@pytest.fixture
def words(served_pages: Served) -> str:
    """Address of the application."""
    return served_pages.addresses[0]


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The machine's Chromium, or the one that `playwright install chromium` brought."""
    installed = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=installed,
            args=["--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        yield browser
        browser.close()
