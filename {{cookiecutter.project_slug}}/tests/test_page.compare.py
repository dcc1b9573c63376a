"""The page, with stand-ins for its models. Change it with `page.py`."""

from collections.abc import Iterator
from contextlib import contextmanager

from gradio_client import Client
from playwright.sync_api import Browser, expect

from {{ cookiecutter.__package }}.app import Settings
from {{ cookiecutter.__package }}.page import (
    BUTTON,
    EXAMPLES,
    LAUNCH,
    PROMPT_LABEL,
    build_page,
)
from {{ cookiecutter.__package }}.serving import ModelSettings
from {{ cookiecutter.__package }}.serving.http.mount import mount

from .support.accessibility import violations
from .support.stand_ins import StandIn, broken, fast, in_thread


@contextmanager
def page_of(*models: StandIn) -> Iterator[str]:
    """Yields the URL of the page with these models, without Ray."""
    settings = Settings()
    with in_thread(mount(build_page(settings, models), settings, LAUNCH)) as url:
        yield url


def test_a_client_gets_the_text_of_each_model() -> None:
    with page_of(fast(), StandIn("other", ["a", "b"])) as url:
        texts = Client(url, verbose=False).predict("Hello", api_name="/generate")
    assert texts == ("one two three", "ab")


def test_in_the_browser_each_pane_shows_its_answer(browser: Browser) -> None:
    with page_of(fast(), broken()) as url, browser.new_page() as page:
        page.goto(url)
        expect(page).to_have_title(Settings().title)
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(page.locator("#pane-fast textarea")).to_have_value("one two three")
        expect(page.locator("#state-fast")).to_contain_text("Done")
        expect(page.locator("#state-broken")).to_contain_text("Failed")


def test_in_the_browser_enter_runs(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        page.get_by_label(PROMPT_LABEL).press("Enter")
        expect(page.locator("#pane-fast textarea")).to_have_value("one two three")


def test_in_the_browser_each_pane_describes_its_model(browser: Browser) -> None:
    models = [
        ModelSettings(name="fast", source="unused", about="Knows three words"),
        ModelSettings(name="broken", source="unused", about="Fails half way"),
    ]
    settings = Settings().model_copy(update={"models": models})
    web = mount(build_page(settings, [fast(), broken()]), settings, LAUNCH)
    with in_thread(web) as url, browser.new_page() as page:
        page.goto(url)
        for model in models:
            pane = page.locator(".pane").filter(has=page.locator(f"#pane-{model.name}"))
            expect(pane.get_by_text(model.about)).to_be_visible()


def test_in_the_browser_an_example_fills_the_prompt(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        page.get_by_role("button", name=EXAMPLES[0][:20]).click()
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value(EXAMPLES[0])


def test_in_the_browser_the_page_is_accessible(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        expect(page.get_by_label(PROMPT_LABEL)).to_be_visible()
        assert violations(page) == []
