"""The compare page without Ray, with stand-ins for its models."""

import re
import subprocess
import sys
from typing import Literal

import gradio as gr
import httpx2
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect

from {{ cookiecutter.__package }}.serving.http.mount import (
    mount,
)
from {{ cookiecutter.__package }}.serving.pages.panes import (
    panes_of,
)
from {{ cookiecutter.__package }}.serving.protocol import (
    GenerationOptions,
    PromptError,
)

from ...support.accessibility import violations, wait_for_rest
from ...support.compare_page import BUTTON, EXAMPLES, LAUNCH, PROMPT_LABEL, build_page
from ...support.stand_ins import (
    Asleep,
    CutOff,
    StandIn,
    broken,
    fast,
    page_of,
    settings_of,
    slow,
    user,
)


def test_the_api_streams_and_returns_the_texts_in_the_order_of_the_models() -> None:
    with page_of(StandIn("other", ["a", "b"], pause=0.2), fast()) as url:
        job = Client(url, verbose=False).submit("Hello", api_name="/generate")
        assert job.result(timeout=30) == ("ab", "one two three")
        assert ("a", "one two three") in job.outputs()


def test_model_descriptions_are_shown_as_text_and_not_as_html() -> None:
    with gr.Blocks() as page:
        panes_of([fast(), StandIn("plain", [])], {"fast": "Quick & <b>short</b>"})
    heads = [str(block.value) for block in page.blocks.values() if isinstance(block, gr.HTML)]
    assert '<h2>fast</h2><p class="about">Quick &amp; &lt;b&gt;short&lt;/b&gt;</p>' in heads
    assert "<h2>plain</h2>" in heads


def test_the_served_page_has_one_worker_for_each_running_answer() -> None:
    settings = settings_of(running_requests=64)
    page = build_page(settings, [fast()])
    mount(page, settings, LAUNCH)
    assert page._queue.max_thread_count > 64


def test_one_model_returns_one_text() -> None:
    with page_of(fast()) as url:
        assert Client(url, verbose=False).predict("Hi", api_name="/generate") == "one two three"


def test_a_silent_model_returns_an_empty_text() -> None:
    with page_of(StandIn("silent", [])) as url:
        assert Client(url, verbose=False).predict("Hi", api_name="/generate") == ""


def test_the_api_requires_only_the_prompt() -> None:
    model = fast()
    chosen = GenerationOptions(min_new_tokens=1, max_new_tokens=2, temperature=0.5, top_p=0.25)
    with page_of(model) as url:
        client = Client(url, verbose=False)
        client.predict("Hello", api_name="/generate")
        client.predict("Hello", 1, 2, "0.5", "0.25", api_name="/generate")
        endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/generate"]
    assert model.asked == [
        (user("Hello"), GenerationOptions()),
        (user("Hello"), chosen),
    ]


def test_two_plain_requests_with_only_a_prompt_stream_the_texts() -> None:
    with page_of(fast()) as url:
        joined = httpx2.post(f"{url}gradio_api/call/v2/generate", json={"prompt": "Hello"})
        answer = httpx2.get(f"{url}gradio_api/call/generate/{joined.json()['event_id']}")
    assert answer.text.endswith('event: complete\ndata: ["one two three"]\n\n')


def test_waiting_callers_get_regular_updates_of_their_queue_position() -> None:
    with page_of(slow(), running_requests=1) as url, httpx2.Client(base_url=url) as visitor:
        [function] = [
            each["id"]
            for each in visitor.get("config").json()["dependencies"]
            if each["api_name"] == "generate"
        ]
        for session in ("runs", "waits"):
            call = {"fn_index": function, "session_hash": session, "data": ["Hi", 0, 9, "1", "1"]}
            visitor.post("gradio_api/queue/join", json=call).raise_for_status()
        told, waits = 0, {"session_hash": "waits"}
        with visitor.stream("GET", "gradio_api/queue/data", params=waits, timeout=60) as events:
            for line in events.iter_lines():
                told += '"estimation"' in line
                if told == 3:
                    break
    assert told == 3


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        ("", {}, "Enter some text first"),
        (" \n\t", {}, "Enter some text first"),
        ("a" * 1001, {}, "has 1,001 characters. Shorten it to 1,000"),
        ("a\x00b", {}, r"Character 2 is the control character U\+0000"),
        ("\x1b[2J", {}, r"Character 1 is the control character U\+001B"),
        ("Hi", {"min_new_tokens": 50, "max_new_tokens": 40}, "is above the maximum of 40"),
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


def test_a_low_token_limit_also_lowers_the_minimum() -> None:
    model = fast()
    with page_of(model, options=GenerationOptions(min_new_tokens=20)) as url:
        Client(url, verbose=False).predict("Hi", max_new_tokens=5, api_name="/generate")
    assert model.asked == [(user("Hi"), GenerationOptions(min_new_tokens=5, max_new_tokens=5))]


def post(url: str, body: bytes) -> httpx2.Response:
    headers = {"Content-Type": "application/json"}
    return httpx2.post(f"{url}gradio_api/call/generate", content=body, headers=headers)


def test_a_lone_surrogate_is_refused_and_the_page_keeps_working() -> None:
    with page_of(fast()) as url:
        call = post(url, b'{"data": ["\\ud800", 20, 100, "1", "1"]}').json()["event_id"]
        answer = httpx2.get(f"{url}gradio_api/call/generate/{call}")
        assert "Character 1 is incomplete" in answer.text
        assert Client(url, verbose=False).predict("Hi", api_name="/generate") == "one two three"


def test_a_call_that_bypasses_the_queue_is_refused() -> None:
    model = fast()
    with page_of(model) as url:
        body = {"data": ["Hi", 20, 100, "1", "1"]}
        answer = httpx2.post(f"{url}gradio_api/run/generate", json=body)
    assert answer.status_code == 404
    assert "join the queue" in answer.text
    assert model.asked == []


def test_invalid_utf8_is_refused_and_the_page_keeps_working() -> None:
    with page_of(fast()) as url:
        assert post(url, b'{"data": ["\xff"]}').is_client_error
        assert Client(url, verbose=False).predict("Hi", api_name="/generate") == "one two three"


def pane(page: Page, model: str) -> Locator:
    return page.locator(f"#pane-{model} textarea")


def test_in_the_browser_both_panes_fill_while_one_is_still_writing(
    browser: Browser,
) -> None:
    with page_of(slow(), fast()) as url, browser.new_page() as page:
        page.goto(url)
        expect(page).to_have_title("Words")
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(pane(page, "fast")).to_have_value("one two three")
        expect(pane(page, "slow")).to_have_value(re.compile(r"^0 1 2 "))
        expect(state(page, "slow")).to_contain_text("Writing")


def state(page: Page, model: str) -> Locator:
    return page.locator(f"#state-{model} p")


def ask(page: Page, prompt: str = "Hello") -> None:
    page.get_by_label(PROMPT_LABEL).fill(prompt)
    page.get_by_role("button", name=BUTTON, exact=True).click()


def test_in_the_browser_each_pane_shows_its_progress(browser: Browser) -> None:
    with page_of(slow(), fast(), broken()) as url, browser.new_page() as page:
        page.goto(url)
        ask(page)
        figures = r"first text after \d\.\d s · \d+ tokens"
        expect(state(page, "slow")).to_have_text(
            re.compile(f"^Writing · {figures} · \\d+ tokens/s$")
        )
        expect(state(page, "fast")).to_have_text(re.compile(f"^Done · {figures}"))
        expect(state(page, "broken")).to_have_text(
            re.compile("^Failed · .*broken failed to answer")
        )
        expect(pane(page, "broken")).to_have_value("half ")
        page.get_by_role("button", name="Stop").click()
        expect(state(page, "slow")).to_have_text(re.compile("^Stopped · "))
        expect(state(page, "fast")).to_have_text(re.compile("^Done · "))
        page.get_by_role("button", name="Clear", exact=True).click()
        expect(state(page, "slow")).to_have_count(0)


def test_in_the_browser_each_pane_has_a_button_that_copies_its_text(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_context() as visitor:
        visitor.grant_permissions(["clipboard-read", "clipboard-write"])
        page = visitor.new_page()
        page.goto(url)
        ask(page)
        expect(state(page, "fast")).to_contain_text("Done")
        # The label would name the button instead.
        expect(page.get_by_role("textbox", name="fast")).to_have_value("one two three")
        page.locator("#pane-fast").get_by_role("button", name="Copy").click()

        assert page.evaluate("navigator.clipboard.readText()") == "one two three"


def test_in_the_browser_a_status_that_wraps_does_not_shift_the_page(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        ask(page)
        expect(state(page, "fast")).to_contain_text("Done")
        before = pane(page, "fast").bounding_box()
        state(page, "fast").evaluate("line => { line.innerHTML = 'Failed<br>for a long reason' }")
        assert pane(page, "fast").bounding_box() == before


def test_in_the_browser_waiting_visitors_see_their_queue_position(browser: Browser) -> None:
    with (
        page_of(slow(), running_requests=1) as url,
        browser.new_page() as page,
        browser.new_page() as other,
    ):
        page.goto(url)
        ask(page)
        expect(state(page, "slow")).to_contain_text("Writing")
        other.goto(url)
        ask(other)
        expect(other.locator("#pane-slow").get_by_text("queue: 1/1")).to_be_visible()
        page.get_by_role("button", name="Stop").click()
        expect(state(other, "slow")).to_contain_text("Writing")


def test_in_the_browser_a_failing_model_shows_an_error_and_the_prompt_is_kept(
    browser: Browser,
) -> None:
    with page_of(broken()) as url, browser.new_page() as page:
        page.goto(url)
        ask(page)
        expect(state(page, "broken")).to_have_text(re.compile("Failed · .*Try again"))
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("Hello")


def test_in_the_browser_a_pane_says_that_its_model_is_starting_and_then_fills(
    browser: Browser,
) -> None:
    with page_of(Asleep("asleep", ["awake"], pause=2)) as url, browser.new_page() as page:
        page.goto(url)
        ask(page)
        expect(state(page, "asleep")).to_have_text(
            "Starting · the model is loading and will answer soon"
        )
        expect(state(page, "asleep")).to_have_attribute("aria-live", "polite")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        expect(pane(page, "asleep")).to_have_value("awake")
        expect(state(page, "asleep")).to_have_text(re.compile("^Done · first text after "))


def test_in_the_browser_markup_from_a_model_is_shown_as_text(browser: Browser) -> None:
    markup = "<img src=x onerror=alert(1)>"
    bad = StandIn("bad", [markup], failure=PromptError(markup))
    with page_of(bad) as url, browser.new_page() as page:
        page.goto(url)
        ask(page)
        expect(pane(page, "bad")).to_have_value(markup)
        expect(state(page, "bad")).to_contain_text(markup)
        assert page.locator("img[src=x]").count() == 0


def test_in_the_browser_enter_runs_and_shift_enter_adds_a_line(browser: Browser) -> None:
    model = fast()
    with page_of(model) as url, browser.new_page() as page:
        page.goto(url)
        prompt = page.get_by_label(PROMPT_LABEL)
        expect(prompt).to_be_focused()
        page.keyboard.type("One")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.keyboard.press("Enter")
        expect(pane(page, "fast")).to_have_value("one two three")
        expect(prompt).to_have_value("One\ntwo")
    assert [asked for asked, _ in model.asked] == [user("One\ntwo")]


def test_in_the_browser_everything_can_be_reached_by_keyboard(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        expect(page.get_by_label(PROMPT_LABEL)).to_be_focused()
        reached = []
        for _ in range(30):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.innerText.trim()"))
        for name in (BUTTON, "Clear", "Copy a link", "Options", EXAMPLES[0][:20]):
            assert any(text.startswith(name) for text in reached), (name, reached)


def open_options(page: Page) -> None:
    page.get_by_role("button", name="Options").click()
    expect(page.get_by_label("Temperature")).to_be_visible()
    # Gradio sets a control twice when it first shows it.
    wait_for_rest(page)


def test_in_the_browser_a_link_fills_in_the_prompt_and_options(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page, browser.new_page() as other:
        page.goto(url)
        page.get_by_label(PROMPT_LABEL).fill("What is 50% of & + #?")
        open_options(page)
        page.get_by_label("Temperature").fill("0.6")
        page.get_by_label("Temperature").press("Tab")
        page.get_by_label("number input for Maximum tokens").fill("77")
        page.get_by_label("number input for Maximum tokens").press("Tab")
        page.get_by_role("button", name="Copy a link").click()
        expect(page.get_by_role("button", name="Link copied")).to_be_visible()
        other.goto(page.url)
        expect(other.get_by_label(PROMPT_LABEL)).to_have_value("What is 50% of & + #?")
        open_options(other)
        expect(other.get_by_label("Temperature")).to_have_value("0.6")
        expect(other.get_by_label("number input for Maximum tokens")).to_have_value("77")


def test_in_the_browser_the_page_works_without_storage(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.add_init_script(
            "Object.defineProperty(window, 'sessionStorage', { get() { throw Error('denied') } })"
        )
        page.goto(f"{url}#prompt=Hello")
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("Hello")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(pane(page, "fast")).to_have_value("one two three")
        expect(state(page, "fast")).to_contain_text("Done")


VIEWS = [
    pytest.param(width, scheme, id=f"{width} pixels, {scheme}")
    for width in (1280, 390)
    for scheme in ("light", "dark")
]


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_in_the_browser_the_page_is_accessible_and_fits_the_screen(
    width: int, scheme: Literal["light", "dark"], browser: Browser
) -> None:
    viewport: ViewportSize = {"width": width, "height": 900}
    with (
        page_of(slow(), fast(), broken()) as url,
        browser.new_page(viewport=viewport, color_scheme=scheme) as page,
    ):
        page.goto(url)
        open_options(page)
        assert violations(page) == []
        ask(page)
        expect(state(page, "broken")).to_contain_text("Failed")
        assert violations(page) == []
        first, second = (pane(page, name).bounding_box() for name in ("slow", "fast"))
        assert first
        assert second
        assert (first["y"] == second["y"]) == (width == 1280)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("document.body.classList.contains('dark')")
        assert dark == (scheme == "dark")


def test_in_the_browser_stop_ends_the_answers_and_keeps_the_text(browser: Browser) -> None:
    model = slow()
    with page_of(model) as url, browser.new_page() as page:
        page.goto(url)
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(pane(page, "slow")).not_to_have_value("")
        page.get_by_role("button", name="Stop").click()
        for _ in range(600):
            if not model.left:
                page.wait_for_timeout(100)
        wait_for_rest(page)
        assert pane(page, "slow").input_value().startswith("0 ")
        assert page.get_by_label(PROMPT_LABEL).input_value() == "Hello"
    assert model.left == 1


def test_in_the_browser_nothing_covers_a_stopped_answer(browser: Browser) -> None:
    with page_of(slow()) as url, browser.new_page() as page:
        page.goto(url)
        for _ in range(8):
            ask(page)
            expect(state(page, "slow")).to_have_text(re.compile("^Writing .* tokens/s"))
            page.get_by_role("button", name="Stop").click()
            expect(state(page, "slow")).to_have_text(re.compile("^Stopped .* tokens/s"))
            wait_for_rest(page)
            expect(page.get_by_text("Error", exact=True).locator("visible=true")).to_have_count(0)
            expect(pane(page, "slow")).to_have_value(re.compile("^0 1 "))


@pytest.mark.parametrize(
    "late",
    [
        "line => { line.className = 'state writing'; line.firstChild.data = 'Writing, late' }",
        "line => { line.outerHTML = '<p class=\"state writing\">Writing, late</p>' }",
    ],
    ids=["in place", "a new line"],
)
def test_in_the_browser_a_late_update_does_not_remove_the_stopped_mark(
    late: str, browser: Browser
) -> None:
    with page_of(slow()) as url, browser.new_page() as page:
        page.goto(url)
        ask(page)
        expect(state(page, "slow")).to_contain_text("Writing")
        page.get_by_role("button", name="Stop").click()
        expect(state(page, "slow")).to_contain_text("Stopped")
        state(page, "slow").evaluate(late)
        expect(page.get_by_text("Stopped, late")).to_be_visible()


def test_in_the_browser_a_run_after_a_stop_is_not_marked_as_stopped(browser: Browser) -> None:
    with page_of(slow()) as url, browser.new_page() as page:
        page.goto(url)
        ask(page)
        expect(state(page, "slow")).to_contain_text("Writing")
        page.get_by_role("button", name="Stop").click()
        ask(page)
        expect(state(page, "slow")).to_have_text(re.compile("^Writing"))


def test_in_the_browser_options_apply_to_the_next_answer(browser: Browser) -> None:
    model = fast()
    with page_of(model) as url, browser.new_page() as page:
        page.goto(url)
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        open_options(page)
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(pane(page, "fast")).to_have_value("one two three")
        page.get_by_label("Temperature").fill("0.6")
        page.get_by_label("Temperature").press("Tab")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(page.get_by_label("Temperature")).to_have_value("0.6")
        for _ in range(600):
            if len(model.asked) < 2:
                page.wait_for_timeout(100)
    assert [options.temperature for _, options in model.asked] == [None, 0.6]


def test_in_the_browser_a_truncated_answer_is_marked_and_continues_the_same_prompt(
    browser: Browser,
) -> None:
    model = CutOff("cut", [])
    with page_of(model, fast()) as url, browser.new_page() as page:
        page.goto(url)
        ask(page)
        expect(state(page, "cut")).to_have_text(re.compile("^Cut off · "))
        page.get_by_label(PROMPT_LABEL).fill("My next prompt")
        page.get_by_role("button", name="Continue").click()
        expect(pane(page, "cut")).to_have_value("The end")
        expect(state(page, "cut")).to_have_text(re.compile("^Done · "))
        expect(page.get_by_role("button", name="Continue")).to_have_count(0)
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("My next prompt")
    asked = [[message.content for message in messages] for messages, _ in model.asked]
    assert asked == [["Hello"], ["Hello", "The"]]


def test_in_the_browser_stop_replaces_run_while_answers_are_running(
    browser: Browser,
) -> None:
    with page_of(slow()) as url, browser.new_page() as page:
        page.goto(url)
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        ask(page)
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        expect(page.get_by_role("button", name=BUTTON, exact=True)).to_be_hidden()
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("button", name=BUTTON, exact=True)).to_be_visible()


def test_in_the_browser_an_error_is_shown_and_nothing_is_lost(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        ask(page)
        expect(state(page, "fast")).to_contain_text("Done")
        page.get_by_label(PROMPT_LABEL).fill("a" * 1001)
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(page.get_by_text("Shorten it to 1,000")).to_be_visible()
        assert len(page.get_by_label(PROMPT_LABEL).input_value()) == 1001
        expect(pane(page, "fast")).to_have_value("one two three")
        expect(state(page, "fast")).to_contain_text("Done")


def test_in_the_browser_a_refusal_is_shown_and_the_prompt_is_kept(browser: Browser) -> None:
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


def test_in_the_browser_prompt_and_answer_survive_a_reload(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        page.get_by_label(PROMPT_LABEL).fill("Hello")
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(pane(page, "fast")).to_have_value("one two three")
        page.reload()
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("Hello")
        expect(pane(page, "fast")).to_have_value("one two three")


def test_in_the_browser_examples_fill_the_prompt_and_clear_resets_the_page(
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


def test_in_the_browser_the_code_on_the_api_page_runs(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        page.goto(url)
        page.get_by_role("button", name="Use via API").click()
        code = page.locator("pre").filter(has_text="client.predict").first.inner_text()
        command = [sys.executable, "-c", code]
        printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "one two three" in printed.stdout


def test_the_page_fetches_nothing_from_other_hosts(browser: Browser) -> None:
    with page_of(fast()) as url, browser.new_page() as page:
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(url)
        expect(page.get_by_label(PROMPT_LABEL)).to_be_visible()
    assert requested
    assert [other for other in requested if not other.startswith((url, "data:", "blob:"))] == []
