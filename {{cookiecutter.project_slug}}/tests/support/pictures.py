"""Takes a picture of each state of the page: `uv run python -m tests.support.pictures DIRECTORY`."""

import argparse
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, expect, sync_playwright

from {{ cookiecutter.__package }}.app import Settings
from {{ cookiecutter.__package }}.page import LAUNCH, build_page
from {{ cookiecutter.__package }}.serving import BusyError
from {{ cookiecutter.__package }}.serving.http.mount import mount

from .stand_ins import StandIn, in_thread

TEXTS = (
    "Sunlight holds all colours. On its way through the air it meets molecules that are much "
    "smaller than its waves, and these send the short, blue waves in all directions far more "
    "often than the long, red ones. So blue reaches us from everywhere.",
    "Because air scatters blue light best! A sunbeam is a mixture, and each gas molecule throws "
    "a little of it aside: plenty of the blue, hardly any of the red. Look away from the sun and "
    "the blue is what you see; look at it in the evening and the red is what was left.",
)
# The status changes a few times a second, so it skips numbers.
WELL_ON = r"\b[12]\d tokens"
WIDTHS = {"wide": 1280, "phone": 390}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


@dataclass(frozen=True)
class Picture:
    name: str
    models: list[StandIn]
    until: str
    """Pattern for the status of the first pane when the picture is taken; "" asks nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.pictures", description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium)
        for picture in pictures():
            for path in take(browser, picture, directory):
                print(path)
        browser.close()


def pictures() -> Iterator[Picture]:
    names = [model.name for model in Settings().models]
    busy = BusyError(f"{names[0]} is busy. Try again in a moment.")
    yield Picture("empty", models(0.02), "")
    yield Picture("waiting", models(3600), "Waiting")
    yield Picture("writing", models(0.2), WELL_ON)
    yield Picture("stopped", models(0.2), "Stopped")
    yield Picture("done", models(0.02), "Done")
    yield Picture("failed", [StandIn(names[0], [], failure=busy), *models(0.02)[1:]], "Failed")


def models(pause: float) -> list[StandIn]:
    """Stand-ins for the models of the settings that write a word at a time."""
    return [
        StandIn(model.name, [f"{word} " for word in text.split()], pause)
        for model, text in zip(Settings().models, cycle(TEXTS), strict=False)
    ]


def take(browser: Browser, picture: Picture, directory: Path) -> Iterator[Path]:
    settings = Settings()
    with in_thread(mount(build_page(settings, picture.models), settings, LAUNCH)) as url:
        for size, width in WIDTHS.items():
            for scheme in SCHEMES:
                page = browser.new_page(
                    viewport={"width": width, "height": 800}, color_scheme=scheme
                )
                page.goto(url)
                bring_about(page, picture)
                path = directory / f"{picture.name}-{size}-{scheme}.png"
                page.screenshot(path=path, full_page=True)
                page.close()
                yield path


def bring_about(page: Page, picture: Picture) -> None:
    prompt = page.get_by_role("textbox").first
    expect(prompt).to_be_visible()
    if not picture.until:
        return
    prompt.fill("Why is the sky blue?")
    prompt.press("Enter")
    state = page.locator(f"#state-{picture.models[0].name}")
    if picture.until == "Stopped":
        expect(state).to_contain_text(re.compile(WELL_ON), timeout=30_000)
        page.get_by_role("button", name="Stop").click()
    expect(state).to_contain_text(re.compile(picture.until), timeout=30_000)


if __name__ == "__main__":
    main()
