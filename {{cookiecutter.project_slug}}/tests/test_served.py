"""The application on Ray Serve, asked as its users ask it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from gradio_client import Client
from playwright.sync_api import Browser, expect

from {{ cookiecutter.__package }}.settings import default_models
from {{ cookiecutter.__package }}.task import BUTTON, PROMPT_LABEL

from .servers import config_of, free_port, served

pytestmark = pytest.mark.served

SHORT = {"min_new_tokens": 5, "max_new_tokens": 10}
# A tiny model writes a space, which ends a piece, only every few tokens.
LONG = {"min_new_tokens": 100, "max_new_tokens": 100}


@pytest.fixture(scope="module")
def url(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Behind a route prefix, where a page has more to get right than at the root."""
    config = config_of(tiny_decoder, free_port())
    config["applications"][0]["route_prefix"] = "/behind/a/prefix"
    with served(config, tmp_path_factory.mktemp("served")) as [address]:
        yield address


def texts_of(answer: object) -> list[object]:
    """A page of one model answers with its text, of several with a list."""
    return list(answer) if isinstance(answer, (list, tuple)) else [answer]


def test_page_and_theme_are_there(url: str) -> None:
    assert "gradio_config" in httpx2.get(url, follow_redirects=True).text
    theme = httpx2.get(f"{url.rstrip('/')}/theme.css")
    assert theme.status_code == 200
    assert "--" in theme.text


def test_a_queued_call_streams_and_finishes_with_a_text_of_each_model(url: str) -> None:
    job = Client(url, verbose=False).submit("The whale", **LONG, api_name="/generate")
    texts = texts_of(job.result(timeout=60))
    assert len(texts) == len(default_models())
    assert all(texts)
    assert len(job.outputs()) > 1


def test_many_callers_at_once_are_all_answered(url: str) -> None:
    client = Client(url, verbose=False)

    def call(number: int) -> object:
        return client.predict(f"The whale {number}", **SHORT, api_name="/generate")

    with ThreadPoolExecutor(20) as callers:
        answers = list(callers.map(call, range(20)))
    assert all(all(texts_of(answer)) for answer in answers)


def test_a_prompt_longer_than_the_context_is_refused_and_the_page_goes_on(url: str) -> None:
    client = Client(url, verbose=False)
    with pytest.raises(Exception, match=r"too long for .* Shorten the text"):
        client.predict("whale " * 300, api_name="/generate")
    assert all(texts_of(client.predict("The whale", **SHORT, api_name="/generate")))


def test_in_the_browser_every_pane_fills(url: str, browser: Browser) -> None:
    with browser.new_page() as page:
        page.goto(url)
        page.get_by_label(PROMPT_LABEL).fill("The whale")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        for model in default_models():
            pane = page.locator(f"#pane-{model.name} textarea")
            expect(pane).not_to_have_value("", timeout=30_000)
