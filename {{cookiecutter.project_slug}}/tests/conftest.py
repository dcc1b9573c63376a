import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from .counting_page import PAGE_REPLICAS, PASSWORD, USER
from .servers import config_of, free_port, served
from .tiny_models import save_tiny_decoder, save_tiny_encoder_decoder

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="session")
def tiny_encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder_decoder(tmp_path_factory.mktemp("encoder-decoder"))


@pytest.fixture(scope="session")
def pages(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Addresses of the application and of one that counts and has a login, on one cluster.

    Both are behind a route prefix, where a page has more to get right than at the root.
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
    config["applications"].append(counting)
    directory, variables = tmp_path_factory.mktemp("served"), {"PAGE_PASSWORD": PASSWORD}
    with served(config, directory, variables) as addresses:
        yield addresses


@pytest.fixture
def words(pages: list[str]) -> str:
    """Address of the application."""
    return pages[0]


@pytest.fixture
def counting(pages: list[str]) -> str:
    return pages[1]


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
