"""The page for who changes it: without Ray, and anew with each change."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from {{ cookiecutter.__package }} import task
from {{ cookiecutter.__package }}.page import BUTTON, PROMPT_LABEL

from ..support.servers import free_port

START_SECONDS = 60
UP = "The page is up"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to change."""
    source = Path(task.__file__).parent
    return shutil.copytree(source, tmp_path / source.name)


@pytest.fixture
def preview(package: Path, tmp_path: Path) -> Iterator[str]:
    """Yields its address; leaves no process behind."""
    port, log = free_port(), tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{package.name}.preview", "--port", str(port)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while UP not in log.read_text(encoding="utf-8"):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def test_an_open_page_shows_what_was_changed(preview: str, package: Path, browser: Browser) -> None:
    with browser.new_page() as page:
        page.goto(preview)
        page.get_by_label(PROMPT_LABEL).fill("whales sing")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(page.locator("[id^=pane-] textarea").first).to_have_value("whales sing " * 50)
        words = package / "task.py"
        words.write_text(words.read_text(encoding="utf-8").replace(BUTTON, "Sing"))
        button = page.get_by_role("button", name="Sing", exact=True)
        expect(button).to_be_visible(timeout=START_SECONDS * 1000)
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("whales sing")
