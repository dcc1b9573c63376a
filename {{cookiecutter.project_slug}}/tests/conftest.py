import inspect
import os
import shutil
{% if cookiecutter.__votes %}
import tempfile
{% endif %}
from collections.abc import Iterator
from pathlib import Path

import httpx
import httpx2
import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from .support.tiny_models import save_tiny_decoder

# On a busy machine, a browser may need more than Playwright's default of five seconds.
BROWSER_MILLISECONDS = 120_000
expect.set_options(timeout=BROWSER_MILLISECONDS)
for library in (httpx, httpx2):
    # The default timeout of httpx, five seconds, is too short on a busy machine.
    bound = inspect.signature(library.get).parameters["timeout"].default
    bound.connect = bound.read = bound.write = bound.pool = 60

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
{% if cookiecutter.__votes %}
# The default folder of the votes database.
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="votes-")
{% endif %}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
    order = {path: number for number, path in enumerate(dict.fromkeys(each.path for each in items))}

    def place(item: pytest.Item) -> tuple[bool, int, bool]:
        # The shared pages on Ray take a quarter of a core from their first test on. A browser
        # keeps an event loop running, and asynchronous tests need their own.
        served, browser = (bool(item.get_closest_marker(name)) for name in ("served", "browser"))
        return served, order[item.path], browser

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, or the one from `playwright install chromium`."""
    installed = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=installed,
            args=["--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        browser.on("context", lambda each: each.set_default_timeout(BROWSER_MILLISECONDS))
        yield browser
        browser.close()
