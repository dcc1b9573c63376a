"""The README's first command, as a new user runs it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, expect

from .answers import TEMPLATE

# The first start installs the project and converts the model.
START_SECONDS = 900
ANSWER_SECONDS = 60
STOP_SECONDS = 120
# Of the words in each of 300 answers from each model, at least 0.23 were among these.
COMMON_WORD = re.compile(
    r"\b(the|of|and|a|to|in|is|it|that|are|as|for|from|by|this|with|which|can|be)\b", re.IGNORECASE
)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[str]:
    """Yields the page's URL; at the end, asserts that Ctrl-C leaves no process behind."""
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "nox", "-s", "demo"],
            cwd=TEMPLATE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Background processes of a script would ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
    started: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + START_SECONDS
        while "The page is up: " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        started = psutil.Process(process.pid).children(recursive=True)
        yield log.read_text().split("The page is up: ")[1].split()[0]
    finally:
        if process.poll() is None:
            # Interrupt the whole group, like Ctrl-C in a terminal.
            os.killpg(process.pid, signal.SIGINT)
            process.wait(STOP_SECONDS)
        print(log.read_text())
    _, left = psutil.wait_procs(started, timeout=STOP_SECONDS)
    assert started
    assert left == []


def test_the_demo_streams_sensible_english_into_both_panes(demo: str, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(demo)
    page.get_by_label("Prompt").fill("Why is the sky blue?")
    page.get_by_role("button", name="Generate", exact=True).click()
    focused, lively = (
        page.locator(f"#pane-smollm2-{name} textarea") for name in ("focused", "lively")
    )
    expect(focused).not_to_have_value("", timeout=ANSWER_SECONDS * 1000)
    beginning = focused.input_value()
    expect(focused).not_to_have_value(beginning, timeout=ANSWER_SECONDS * 1000)
    expect(page.get_by_role("button", name="Stop")).to_be_hidden(timeout=ANSWER_SECONDS * 1000)

    assert focused.input_value().startswith(beginning)
    assert re.search(r"\b(sky|light|blue)\b", focused.input_value())
    # It samples, and may not mention the sky.
    assert share_of_common_words(lively.input_value()) > 0.1


def share_of_common_words(text: str) -> float:
    return len(COMMON_WORD.findall(text)) / max(1, len(text.split()))
