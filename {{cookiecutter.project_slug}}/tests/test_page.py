"""The page without Ray, on models that answer as a test needs."""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

import gradio as gr
import httpx2
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, Locator, Page, expect

from {{ cookiecutter.__package }}.errors import PromptError
from {{ cookiecutter.__package }}.page import THEME, build_page, fan_out
from {{ cookiecutter.__package }}.settings import GenerationOptions, Limits, Settings
from {{ cookiecutter.__package }}.task import BUTTON, EXAMPLES, PROMPT_LABEL


@dataclass
class StandIn:
    """Yields its pieces with a pause before each, and then fails if it has a failure."""

    name: str
    pieces: list[str]
    pause: float = 0.0
    failure: Exception | None = None
    asked: list[tuple[str, GenerationOptions]] = field(default_factory=list)
    left: int = 0

    async def stream(self, prompt: str, options: GenerationOptions) -> AsyncGenerator[str, None]:
        self.asked.append((prompt, options))
        try:
            for piece in self.pieces:
                await asyncio.sleep(self.pause)
                yield piece
            if self.failure:
                raise self.failure
        finally:
            self.left += 1


def fast() -> StandIn:
    return StandIn("fast", ["one ", "two ", "three"])


def slow() -> StandIn:
    return StandIn("slow", [f"{number} " for number in range(300)], pause=0.1)


def broken() -> StandIn:
    return StandIn("broken", ["half "], failure=RuntimeError("secret path /srv/model"))


@contextmanager
def page_of(*models: StandIn) -> Iterator[str]:
    settings = Settings(title="Words", limits=Limits(prompt_characters=1000))
    page = build_page(settings, models)
    page.launch(prevent_thread_lock=True, quiet=True, theme=THEME, footer_links=["api"])
    try:
        yield page.local_url
    finally:
        page.close()


def no_pause() -> float:
    return 0


def answers_of(*models: StandIn, answer_seconds: float = 30) -> AsyncGenerator[list[str], None]:
    return fan_out(models, "Hello", GenerationOptions(), no_pause, answer_seconds)


async def final(*models: StandIn) -> list[str]:
    return [texts async for texts in answers_of(*models)][-1]


async def test_every_pane_ends_with_the_whole_text_of_its_model() -> None:
    assert await final(fast(), StandIn("other", ["a", "b"])) == ["one two three", "ab"]


async def test_a_fast_pane_does_not_wait_for_a_slow_one() -> None:
    async with aclosing(answers_of(slow(), fast())) as updates:
        async for slow_text, fast_text in updates:
            if fast_text == "one two three":
                assert slow_text == ""
                return
    pytest.fail("the fast pane was never complete")


async def test_a_model_that_fails_leaves_the_other_panes_alone() -> None:
    failed, whole = await final(broken(), fast())
    assert whole == "one two three"
    assert failed.startswith("half")
    assert "broken failed to answer" in failed
    assert "secret" not in failed


async def test_a_prompt_that_one_model_cannot_read_says_so_in_its_pane() -> None:
    picky = StandIn("picky", [], failure=PromptError("Too long for picky: shorten it."))
    assert await final(picky, fast()) == ["⚠ Too long for picky: shorten it.", "one two three"]


async def test_a_model_that_takes_too_long_is_stopped_and_says_so() -> None:
    late = StandIn("late", ["in ", "time ", "too late"], pause=0.4)
    updates = [texts async for texts in answers_of(fast(), late, answer_seconds=1)]
    whole, stopped = updates[-1]
    assert whole == "one two three"
    assert stopped.startswith("in time")
    assert "late was stopped, because it took too long" in stopped
    assert late.left == 1


async def test_when_all_models_fail_the_call_fails() -> None:
    with pytest.raises(gr.Error, match="broken failed to answer"):
        await final(broken(), broken())


async def test_leaving_the_fan_out_leaves_every_model() -> None:
    models = [slow(), slow()]
    async with aclosing(answers_of(*models)) as updates:
        await anext(updates)
    assert [model.left for model in models] == [1, 1]


def test_the_api_streams_and_returns_the_texts_in_the_order_of_the_models() -> None:
    with page_of(StandIn("other", ["a", "b"], pause=0.2), fast()) as url:
        job = Client(url, verbose=False).submit("Hello", api_name="/generate")
        assert job.result(timeout=30) == ("ab", "one two three")
        assert ("a", "one two three") in job.outputs()


def test_one_model_returns_one_text() -> None:
    with page_of(fast()) as url:
        assert Client(url, verbose=False).predict("Hi", api_name="/generate") == "one two three"


def test_the_api_asks_for_the_prompt_alone_and_defaults_the_rest() -> None:
    model = fast()
    chosen = GenerationOptions(min_new_tokens=1, max_new_tokens=2, temperature=0.5, top_p=0.25)
    with page_of(model) as url:
        client = Client(url, verbose=False)
        client.predict("Hello", api_name="/generate")
        client.predict("Hello", 1, 2, "0.5", "0.25", api_name="/generate")
        endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/generate"]
    assert model.asked == [
        ("Hello", GenerationOptions()),
        ("Hello", chosen),
    ]


def test_two_plain_requests_stream_the_texts_to_who_gives_the_prompt_alone() -> None:
    with page_of(fast()) as url:
        joined = httpx2.post(f"{url}gradio_api/call/v2/generate", json={"prompt": "Hello"})
        answer = httpx2.get(f"{url}gradio_api/call/generate/{joined.json()['event_id']}")
    assert answer.text.endswith('event: complete\ndata: ["one two three"]\n\n')


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        ("", {}, "Write a text first"),
        (" \n\t", {}, "Write a text first"),
        ("a" * 1001, {}, "has 1,001 characters; shorten it to 1,000"),
        ("a\x00b", {}, r"Character 2 is the control character U\+0000"),
        ("\x1b[2J", {}, r"Character 1 is the control character U\+001B"),
        ("Hi", {"min_new_tokens": 50, "max_new_tokens": 40}, "contradict each other"),
        ("Hi", {"max_new_tokens": 513}, "greater than maximum value 512"),
        ("Hi", {"temperature": "-1"}, "temperature: .* greater than or equal to 0"),
        ("Hi", {"top_p": "0"}, "top_p: .* greater than 0"),
        ("Hi", {"temperature": "hot"}, "temperature: .* valid number"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_asked(
    prompt: str, options: dict[str, float | str], reason: str
) -> None:
    model = fast()
    with page_of(model) as url, pytest.raises(AppError, match=reason):
        Client(url, verbose=False).predict(prompt, **options, api_name="/generate")
    assert model.asked == []


def post(url: str, body: bytes) -> httpx2.Response:
    headers = {"Content-Type": "application/json"}
    return httpx2.post(f"{url}gradio_api/call/generate", content=body, headers=headers)


def test_half_a_character_is_refused_and_the_page_goes_on() -> None:
    with page_of(fast()) as url:
        call = post(url, b'{"data": ["\\ud800", 20, 100, "1", "1"]}').json()["event_id"]
        answer = httpx2.get(f"{url}gradio_api/call/generate/{call}")
        assert "Character 1 is half of a character" in answer.text
        assert Client(url, verbose=False).predict("Hi", api_name="/generate") == "one two three"


def test_a_call_that_would_pass_the_queue_by_is_refused() -> None:
    model = fast()
    with page_of(model) as url:
        body = {"data": ["Hi", 20, 100, "1", "1"]}
        answer = httpx2.post(f"{url}gradio_api/run/generate", json=body)
    assert answer.status_code == 404
    assert "join the queue" in answer.text
    assert model.asked == []


def test_bytes_that_are_no_utf8_are_refused_and_the_page_goes_on() -> None:
    with page_of(fast()) as url:
        assert post(url, b'{"data": ["\xff"]}').is_client_error
        assert Client(url, verbose=False).predict("Hi", api_name="/generate") == "one two three"


def pane(page: Page, model: str) -> Locator:
    return page.locator(f"#pane-{model} textarea")


def test_in_the_browser_both_panes_fill_while_the_slow_one_is_still_writing(
    browser: Browser,
) -> None:
    with page_of(slow(), fast()) as url, browser.new_page() as page:
        page.goto(url)
        expect(page).to_have_title("Words")
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(pane(page, "fast")).to_have_value("one two three")
        expect(pane(page, "slow")).to_have_value(re.compile(r"^0 1 2 "))
        expect(pane(page, "slow")).not_to_have_value(re.compile(r"299 $"))


def test_in_the_browser_stop_ends_the_answers_and_keeps_prompt_and_text(browser: Browser) -> None:
    model = slow()
    with page_of(model) as url, browser.new_page() as page:
        page.goto(url)
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(pane(page, "slow")).not_to_have_value("")
        page.get_by_role("button", name="Stop").click()
        page.wait_for_timeout(500)
        stopped = pane(page, "slow").input_value()
        page.wait_for_timeout(500)
        assert pane(page, "slow").input_value() == stopped != ""
        assert page.get_by_label(PROMPT_LABEL).input_value() == "Hello"
    assert model.left == 1


def test_in_the_browser_options_hold_for_the_next_answer(browser: Browser) -> None:
    model = fast()
    with page_of(model) as url, browser.new_page() as page:
        page.goto(url)
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        page.get_by_role("button", name="Options").click()
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(pane(page, "fast")).to_have_value("one two three")
        page.get_by_label("Temperature").fill("0.6")
        page.get_by_label("Temperature").press("Tab")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(page.get_by_label("Temperature")).to_have_value("0.6")
        for _ in range(50):
            if len(model.asked) < 2:
                page.wait_for_timeout(100)
    assert [options.temperature for _, options in model.asked] == [None, 0.6]


def test_in_the_browser_an_error_is_shown_and_the_prompt_stays(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        page.get_by_label(PROMPT_LABEL).fill("a" * 1001)
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(page.get_by_text("shorten it to 1,000")).to_be_visible()
        assert len(page.get_by_label(PROMPT_LABEL).input_value()) == 1001


def test_in_the_browser_a_refusal_is_shown_and_the_prompt_stays(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        page.route(
            "**/queue/join*",
            lambda route: route.fulfill(status=429, json={"detail": "Try again later."}),
        )
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(page.get_by_text("Try again later.")).to_be_visible()
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("Hello")


def test_in_the_browser_prompt_and_answer_outlive_a_reload(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(pane(page, "fast")).to_have_value("one two three")
        page.reload()
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("Hello")
        expect(pane(page, "fast")).to_have_value("one two three")


def test_in_the_browser_an_example_fills_the_prompt_and_clear_empties_the_page(
    browser: Browser,
) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        page.get_by_role("button", name=EXAMPLES[0][:20]).click()
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value(EXAMPLES[0])
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(pane(page, "fast")).to_have_value("one two three")
        page.get_by_role("button", name="Clear", exact=True).click()
        expect(pane(page, "fast")).to_have_value("")
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("")


def test_the_page_fetches_nothing_from_other_hosts(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(url)
        expect(page.get_by_label(PROMPT_LABEL)).to_be_visible()
    assert requested
    assert [other for other in requested if not other.startswith((url, "data:", "blob:"))] == []
