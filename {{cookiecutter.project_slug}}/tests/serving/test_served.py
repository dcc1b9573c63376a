"""The application on Ray Serve, as its users call it."""

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from gradio_client import Client
from playwright.sync_api import Browser, expect

from ..support.compare_page import BUTTON, MODELS, PROMPT_LABEL

pytestmark = pytest.mark.served

SHORT = {"min_new_tokens": 5, "max_new_tokens": 10}
LONG = {"min_new_tokens": 100, "max_new_tokens": 100}


def texts_of(answer: object) -> list[object]:
    """A page with one model returns its text, with several a list."""
    return list(answer) if isinstance(answer, (list, tuple)) else [answer]


def test_page_and_theme_are_served(words: str) -> None:
    assert "gradio_config" in httpx2.get(words, follow_redirects=True).text
    theme = httpx2.get(f"{words.rstrip('/')}/theme.css")
    assert theme.status_code == 200
    assert "--" in theme.text


def test_a_queued_call_streams_and_ends_with_a_text_from_each_model(words: str) -> None:
    job = Client(words, verbose=False).submit("The whale", **LONG, api_name="/generate")
    texts = texts_of(job.result(timeout=60))
    assert len(texts) == len(MODELS)
    assert all(texts)
    assert len(job.outputs()) > 1


def test_concurrent_calls_are_all_answered(words: str) -> None:
    client = Client(words, verbose=False)

    def call(number: int) -> object:
        return client.predict(f"The whale {number}", **SHORT, api_name="/generate")

    with ThreadPoolExecutor(20) as callers:
        answers = list(callers.map(call, range(20)))
    assert all(all(texts_of(answer)) for answer in answers)


def test_a_prompt_longer_than_the_context_is_refused_and_the_page_keeps_working(words: str) -> None:
    client = Client(words, verbose=False)
    with pytest.raises(Exception, match=r"too long for .* Shorten the text"):
        client.predict("whale " * 300, api_name="/generate")
    assert all(texts_of(client.predict("The whale", **SHORT, api_name="/generate")))


def test_in_the_browser_every_pane_fills(words: str, browser: Browser) -> None:
    with browser.new_page() as page:
        page.goto(words)
        page.get_by_label(PROMPT_LABEL).fill("The whale")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        for model in MODELS:
            pane = page.locator(f"#pane-{model} textarea")
            expect(pane).not_to_have_value("", timeout=30_000)


def test_a_page_of_another_kind_needs_only_a_builder(chat: str, browser: Browser) -> None:
    job = Client(chat, verbose=False).submit("whale", api_name="/shout")
    assert job.result(timeout=60) == "WHALE"
    assert len(job.outputs()) > 1
    with browser.new_page() as page:
        page.goto(chat)
        page.get_by_role("textbox").fill("a whale")
        page.get_by_role("textbox").press("Enter")
        expect(page.get_by_test_id("bot")).to_contain_text("A WHALE", timeout=30_000)
