"""The chat without Ray, with stand-ins for its models."""

import json
import logging
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gradio as gr
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import (
    Browser,
    HttpCredentials,
    Locator,
    Page,
    ViewportSize,
    expect,
)

from {{ cookiecutter.__package }}.serving.http.settings import Oidc
from {{ cookiecutter.__package }}.serving.pages.browser import (
    NOT_KEPT,
    keep_conversation,
)
from {{ cookiecutter.__package }}.serving.pages.chat import history_key
from {{ cookiecutter.__package }}.serving.protocol import (
    BusyError,
    End,
    GenerationOptions,
    Message,
    Piece,
)

from ...support.accessibility import violations
from ...support.conversation_page import PROMPT_LABEL, conversation_with
from ...support.oidc_provider import CLIENT, SECRET, an_app, provider_of
from ...support.stand_ins import Asleep, CutOff, StandIn, broken, fast, slow


@dataclass
class Thinker(StandIn):
    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        self.asked.append((messages, options))
        yield Piece("Let me see.", 3, thought=True)
        yield Piece("Because.", 2)
        yield End("stop")


def said(model: StandIn) -> list[list[str]]:
    """The messages of each request to the model."""
    return [[each.content for each in messages] for messages, _ in model.asked]


def test_the_api_continues_the_given_history() -> None:
    model = fast()
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    with conversation_with(model) as url:
        client = Client(url, verbose=False)
        assert client.predict("Hello", api_name="/chat") == "one two three"
        client.predict("And?", history, "Be brief.", api_name="/chat")
        assert list(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == [
            "/chat"
        ]
    assert said(model) == [["Hello"], ["Be brief.", "Hi", "Ho", "And?"]]


@pytest.mark.parametrize(
    ("prompt", "history", "reason"),
    [
        (" ", [], "Enter some text first"),
        ("a" * 1001, [], "Shorten it to 1,000"),
        ("Hi", [{"role": "wizard", "content": "a"}], "'wizard' is not a message role"),
        ("Hi", [{"role": "user"}], "The history must be a list of messages"),
        ("Hi", [{"role": "user", "content": "a", "name": "b"}], "The history must be a list"),
        ("Hi", {"role": "user"}, "The history must be a list of messages"),
        ("Hi", [{"role": "user", "content": [{"type": "image_url"}]}], "only text"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_asked(
    prompt: str, history: Any, reason: str
) -> None:
    model = fast()
    with conversation_with(model) as url, pytest.raises(AppError, match=reason):
        Client(url, verbose=False).predict(prompt, history, api_name="/chat")
    assert model.asked == []


def pane(page: Page, model: str) -> Locator:
    return page.locator(f"#pane-{model}")


def state(page: Page, model: str) -> Locator:
    return page.locator(f"#state-{model} p")


def ask(page: Page, text: str) -> None:
    page.get_by_label(PROMPT_LABEL).fill(text)
    page.get_by_label(PROMPT_LABEL).press("Enter")


def press(page: Page, model: str, button: str) -> None:
    pane(page, model).get_by_role("button", name=button, exact=True).last.click()


def test_in_the_browser_a_pane_says_that_its_model_is_starting(
    browser: Browser,
) -> None:
    asleep = Asleep("asleep", ["awake"], pause=2)
    with conversation_with(asleep, fast()) as url, browser.new_page() as page:
        page.goto(url)
        ask(page, "Hello")
        expect(state(page, "asleep")).to_contain_text("Starting")
        expect(state(page, "fast")).to_contain_text("Done")
        expect(pane(page, "asleep")).to_contain_text("awake")


def test_in_the_browser_each_pane_continues_its_own_answers_even_after_a_failure(
    browser: Browser,
) -> None:
    first, other = fast(), StandIn("other", [], failure=BusyError("Too much to do."))
    with conversation_with(first, other) as url, browser.new_page() as page:
        page.goto(url)
        ask(page, "Hello")
        expect(state(page, "fast")).to_contain_text("Done")
        expect(pane(page, "other")).to_contain_text("Too much to do.")
        other.pieces, other.failure = ["I am back"], None
        ask(page, "And?")
        expect(pane(page, "other")).to_contain_text("I am back")
        expect(state(page, "fast")).to_contain_text("Done")
    assert said(first) == [["Hello"], ["Hello", "one two three", "And?"]]
    assert said(other) == [["Hello"], ["Hello\n\nAnd?"]]


def test_in_the_browser_stop_replaces_send_and_text_typed_meanwhile_is_kept(
    browser: Browser,
) -> None:
    model = slow()
    with conversation_with(model, fast()) as url, browser.new_page() as page:
        page.goto(url)
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        ask(page, "Hello")
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("")
        page.keyboard.type("My next question")
        expect(pane(page, "slow")).to_contain_text("3 4 5")
        expect(pane(page, "fast")).to_contain_text("one two three")
        expect(page.get_by_role("button", name="Send")).to_be_hidden()
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Stop").click()
        expect(state(page, "slow")).to_contain_text("Stopped")
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("My next question")
        # A stopped answer can be continued.
        press(page, "slow", "Continue")
        expect(state(page, "slow")).to_contain_text("Writing")
    assert said(model)[1][0] == "Hello"
    assert said(model)[1][1].startswith("0 1 2 3 4 5")


def test_in_the_browser_a_question_can_be_edited_and_asked_again(browser: Browser) -> None:
    first, other = fast(), StandIn("other", ["yes"])
    with conversation_with(first, other) as url, browser.new_page() as page:
        page.goto(url)
        for text in ("Helo", "And?"):
            ask(page, text)
            expect(pane(page, "fast")).to_contain_text(text)
            expect(state(page, "fast")).to_contain_text("Done")
        pane(page, "fast").get_by_role("button", name="Edit").first.click()
        pane(page, "fast").get_by_role("textbox").fill("Hello <b>")
        pane(page, "fast").get_by_role("button", name="Submit").click()
        expect(pane(page, "other")).to_contain_text("Hello")
        expect(pane(page, "other")).not_to_contain_text("And?")
        expect(state(page, "fast")).to_contain_text("Done")
    assert said(first)[-1] == said(other)[-1] == ["Hello <b>"]


def test_in_the_browser_undo_removes_the_last_turn_and_regenerate_repeats_it(
    browser: Browser,
) -> None:
    first, other = fast(), StandIn("other", ["yes"])
    with conversation_with(first, other) as url, browser.new_page() as page:
        page.goto(url)
        for text in ("Hello", "A <b>?"):
            ask(page, text)
            expect(pane(page, "other")).to_contain_text(text[:2])
            expect(state(page, "other")).to_contain_text("Done")
        press(page, "other", "Retry")
        expect(state(page, "other")).to_contain_text("Done")
        press(page, "fast", "Undo")
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("A <b>?")
        expect(pane(page, "other")).not_to_contain_text("A <")
        expect(pane(page, "other")).to_contain_text("Hello")
        page.get_by_role("button", name="Send").click()
        expect(pane(page, "other")).to_contain_text("A <")
        page.get_by_role("button", name="Clear", exact=True).click()
        expect(pane(page, "other")).not_to_contain_text("Hello")
    assert said(first)[-1] == ["Hello", "one two three", "A <b>?"]
    assert len(said(other)) == len(said(first)) + 1


def test_in_the_browser_a_truncated_answer_is_marked_and_can_be_continued(browser: Browser) -> None:
    model = CutOff("cut", [])
    with conversation_with(model) as url, browser.new_page() as page:
        page.goto(url)
        ask(page, "Hello")
        expect(state(page, "cut")).to_contain_text("Cut off")
        press(page, "cut", "Continue")
        expect(pane(page, "cut")).to_contain_text("The end")
        expect(state(page, "cut")).to_contain_text("Done")
        expect(pane(page, "cut").get_by_role("button", name="Continue")).to_have_count(0)
    assert said(model) == [["Hello"], ["Hello", "The"]]


def test_in_the_browser_a_refusal_restores_the_question(browser: Browser) -> None:
    with conversation_with(fast()) as url, browser.new_page() as page:
        page.goto(url)
        ask(page, "a" * 1001)
        expect(page.get_by_text("Shorten it to 1,000")).to_be_visible()
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("a" * 1001)


def test_in_the_browser_thoughts_are_collapsed(browser: Browser) -> None:
    with conversation_with(Thinker("thinker", [])) as url, browser.new_page() as page:
        page.goto(url)
        ask(page, "Why?")
        expect(pane(page, "thinker").get_by_text("Because.")).to_be_visible()
        expect(pane(page, "thinker").get_by_text("Let me see.")).to_be_hidden()
        pane(page, "thinker").get_by_text("Thoughts").click()
        expect(pane(page, "thinker").get_by_text("Let me see.")).to_be_visible()


MARKDOWN = (
    "**bold** <b id=html>no</b> <img src='http://127.0.0.1:9/a'> ![i](http://127.0.0.1:9/b) "
    "[here](https://example.org/there)\n\n```python\nif a <b: pass\n```\n\n\\(x<y\\)"
)


def test_in_the_browser_markdown_is_shown_without_html_and_copied_unchanged(
    browser: Browser,
) -> None:
    with (
        conversation_with(StandIn("writer", [MARKDOWN])) as url,
        browser.new_context(permissions=["clipboard-read", "clipboard-write"]) as context,
    ):
        page = context.new_page()
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(url)
        ask(page, "Write")
        answer = pane(page, "writer").get_by_test_id("bot")
        expect(answer.locator("strong")).to_have_text("bold")
        expect(answer.locator("pre code")).to_contain_text("if a")
        expect(answer.locator(".katex")).to_have_count(1)
        expect(answer.locator("img, #html")).to_have_count(0)
        where = "node => getComputedStyle(node, '::after').content"
        assert "https://example.org/there" in answer.get_by_text("here").evaluate(where)
        expect(state(page, "writer")).to_contain_text("Done")
        press(page, "writer", "Copy message")
        page.wait_for_function("navigator.clipboard.readText()")
        assert page.evaluate("navigator.clipboard.readText()") == MARKDOWN
    assert [each for each in requested if not each.startswith((url, "data:", "blob:"))] == []


STORED = "Object.entries(localStorage).filter(each => /^conversation/.test(each[0]))"
AT_REST = "!window.conversation?.timer"


def stored(page: Page) -> Any:
    """The browser's storage, once the page has written everything."""
    page.wait_for_function(AT_REST)
    return page.evaluate(STORED)


def test_in_the_browser_a_new_tab_continues_the_conversation_until_it_is_cleared(
    browser: Browser,
) -> None:
    model = fast()
    with conversation_with(model) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        ask(page, "Hello")
        expect(state(page, "fast")).to_contain_text("Done")
        assert "three" in json.dumps(stored(page))
        page.close()
        other = context.new_page()
        other.goto(url)
        expect(pane(other, "fast")).to_contain_text("one two three")
        ask(other, "And?")
        expect(state(other, "fast")).to_contain_text("Done")
        other.get_by_role("button", name="Clear", exact=True).click()
        expect(pane(other, "fast")).not_to_contain_text("Hello")
        assert stored(other) == []
    assert said(model)[-1] == ["Hello", "one two three", "And?"]


def test_in_the_browser_an_unfinished_answer_is_saved(browser: Browser) -> None:
    model = fast()
    with conversation_with(model) as url, browser.new_page() as page:
        page.goto(url)
        page.wait_for_function("!!window.conversation")
        # Must be more frequent than the page's writes, even on a busy machine.
        page.evaluate(f"setInterval({keep_conversation([model])}, 20, ['Hi'])")
        page.wait_for_function(f"{STORED}.length")


REFUSED = """
    const refuse = { get: () => { throw new DOMException("Access is denied", "SecurityError") } }
    for (const name of ["localStorage", "sessionStorage"]) Object.defineProperty(window, name, refuse)
"""
FULL = """
    const most = [..."x".repeat(23)].map((_, power) => 2 ** (22 - power))
    for (const size of most)
        try { localStorage.setItem("other", (localStorage.other ?? "") + "x".repeat(size)) } catch {}
"""


@pytest.mark.parametrize("storage", [REFUSED, FULL], ids=["refused", "full"])
def test_in_the_browser_a_conversation_that_cannot_be_saved_shows_a_warning(
    storage: str, browser: Browser
) -> None:
    with conversation_with(fast()) as url, browser.new_page() as page:
        page.add_init_script(storage)
        page.goto(url)
        expect(page.get_by_label(PROMPT_LABEL)).to_be_visible()
        expect(page.get_by_text(NOT_KEPT)).to_have_count(0)
        for turns in (1, 2):
            ask(page, "Hello")
            expect(pane(page, "fast").get_by_text("one two three")).to_have_count(turns)
            expect(state(page, "fast")).to_contain_text("Done")
        expect(page.get_by_text(NOT_KEPT)).to_be_visible()
        assert violations(page) == []
        page.get_by_role("button", name="Clear", exact=True).click()
        expect(page.get_by_text(NOT_KEPT)).to_have_count(0)


def test_in_the_browser_a_link_restores_the_conversation_without_sending_it(
    browser: Browser,
) -> None:
    model = fast()
    with conversation_with(model) as url, browser.new_page() as page, browser.new_page() as other:
        page.goto(url)
        ask(page, "Hello <b>")
        expect(state(page, "fast")).to_contain_text("Done")
        page.get_by_role("button", name="Copy a link").click()
        expect(page.get_by_role("button", name="Link copied")).to_be_visible()
        asked: list[str] = []
        other.on("request", lambda request: asked.append(request.url))
        other.goto(page.url)
        expect(pane(other, "fast")).to_contain_text("Hello <")
        expect(pane(other, "fast")).to_contain_text("one two three")
        assert not any("three" in address.partition("#")[0] for address in asked)
        assert stored(other) == []
        ask(other, "And?")
        expect(pane(other, "fast")).to_contain_text("And?")
    assert said(model)[-1] == ["Hello <b>", "one two three", "And?"]


def test_in_the_browser_a_broken_link_shows_a_warning_and_the_page_works(browser: Browser) -> None:
    with conversation_with(fast()) as url, browser.new_page() as page:
        page.goto(f"{url}#conversation={json.dumps({'fast': 1})}")
        expect(page.get_by_text("does not contain a conversation for this page")).to_be_visible()
        ask(page, "Hello")
        expect(pane(page, "fast")).to_contain_text("one two three")


LOGIN: HttpCredentials = {"username": "ann", "password": "the whales sing"}


def test_in_the_browser_a_conversation_saved_behind_a_login_is_private(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGE_PASSWORD", LOGIN["password"])
    with (
        conversation_with(fast(), login_user=LOGIN["username"]) as url,
        browser.new_context(http_credentials=LOGIN) as context,
    ):
        page = context.new_page()
        page.goto(url)
        ask(page, "Hello")
        expect(state(page, "fast")).to_contain_text("Done")
        page.wait_for_function(f"{STORED}.length")
        [(place, text)] = stored(page)
        assert "three" not in text
        # As after the login of another user, here and then everywhere.
        another = [place, text[:-8] + "AAAAAAA="]
        away_from(page, url).evaluate(
            "([place, text]) => { sessionStorage[place] = text }", another
        )
        page.goto(url)
        expect(pane(page, "fast")).to_contain_text("one two three")
        away_from(page, url).evaluate(
            "([place, text]) => { localStorage[place] = sessionStorage[place] = text }", another
        )
        page.goto(url)
        page.wait_for_function(f"!{STORED}.length && !sessionStorage[{json.dumps(place)}]")
        expect(page.get_by_label(PROMPT_LABEL)).to_be_visible()
        expect(pane(page, "fast")).not_to_contain_text("Hello")
        assert stored(page) == []


def test_in_the_browser_each_user_of_a_provider_has_a_separate_conversation(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PAGE_SECRET", "a secret of thirty-two characters")
    monkeypatch.setenv("OIDC_CLIENT_SECRET", SECRET)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    caplog.set_level(logging.INFO, "ray.serve")
    with provider_of(an_app()) as provider, browser.new_context() as context:
        provider.know("1", preferred_username="ann")
        provider.know("2", preferred_username="bob")
        page = context.new_page()

        def log_in(user: str) -> None:
            page.goto(url)
            page.get_by_placeholder("sub").fill(user)
            page.get_by_role("button", name="Authorize", exact=True).click()
            expect(page.get_by_label(PROMPT_LABEL)).to_be_visible()

        with conversation_with(fast(), oidc=Oidc(issuer=provider.url, client_id=CLIENT)) as url:
            log_in("1")
            ask(page, "Hello")
            expect(state(page, "fast")).to_contain_text("Done")
            page.wait_for_function(f"{STORED}.length")
            [(_, text)] = stored(page)
            assert "three" not in text
            page.goto(url)
            expect(pane(page, "fast")).to_contain_text("one two three")
            page.goto(f"{url}logout")
            page.get_by_role("button", name="End session").click()
            expect(page.get_by_text("You are logged out.")).to_be_visible()
            log_in("2")
            page.wait_for_function(f"!{STORED}.length")
            expect(pane(page, "fast")).not_to_contain_text("one two three")
    asked = [vars(record) for record in caplog.records if record.getMessage() == "asked"]
    assert {each["user"] for each in asked} == {"ann"}


SLOW_KEY = """
    const importKey = crypto.subtle.importKey.bind(crypto.subtle)
    crypto.subtle.importKey = (...all) =>
        new Promise(go => window.give = go).then(() => importKey(...all))
"""


def test_in_the_browser_an_answer_that_arrives_before_the_storage_key_is_saved(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGE_PASSWORD", LOGIN["password"])
    with (
        conversation_with(fast(), login_user=LOGIN["username"]) as url,
        browser.new_context(http_credentials=LOGIN) as context,
    ):
        page = context.new_page()
        page.add_init_script(SLOW_KEY)
        page.goto(url)
        ask(page, "Hello")
        expect(state(page, "fast")).to_contain_text("Done")
        page.wait_for_function("!!window.give")
        page.evaluate("give()")
        page.wait_for_function(f"{STORED}.length")
        expect(pane(page, "fast")).to_contain_text("one two three")


def away_from(page: Page, url: str) -> Page:
    """Moves from the page, which would save its state, to one with the same storage."""
    page.goto(f"{url}theme.css")
    return page


SLOW_LOCK = """
    const encrypt = crypto.subtle.encrypt.bind(crypto.subtle)
    crypto.subtle.encrypt = (...all) =>
        window.locked = new Promise(go => window.unlock = go).then(() => encrypt(...all))
"""


def test_in_the_browser_nothing_is_stored_after_a_logout(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGE_PASSWORD", LOGIN["password"])
    with (
        conversation_with(fast(), login_user=LOGIN["username"]) as url,
        browser.new_context(http_credentials=LOGIN) as context,
    ):
        page = context.new_page()
        page.add_init_script(SLOW_LOCK)
        page.goto(url)
        ask(page, "Hello")
        expect(state(page, "fast")).to_contain_text("Done")
        page.wait_for_function("!!window.locked")
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<a href=/logout>Leave</a>')")
        page.evaluate("addEventListener('click', event => event.preventDefault())")
        page.get_by_text("Leave", exact=True).click()
        page.evaluate("async () => { unlock(); await locked }")
        assert stored(page) == []


def test_in_the_browser_an_image_from_elsewhere_is_not_loaded(browser: Browser) -> None:
    with conversation_with(fast()) as url, browser.new_page() as page:
        page.goto(url)
        expect(page.get_by_label(PROMPT_LABEL)).to_be_visible()
        blocked = page.evaluate(
            """() => new Promise(resolve => {
                addEventListener("securitypolicyviolation", event => resolve(event.blockedURI))
                document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/a.png" }))
            })"""
        )
        assert blocked == "http://127.0.0.1:9/a.png"


def test_the_storage_key_depends_on_the_user_and_the_login(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAGE_SECRET", "the whales sing in the deep blue sea")

    def key(user: str | None, token: str) -> str:
        cookies = {"access-token-x": token, "replica": "a"}
        return history_key(gr.Request(username=user, cookies=cookies))

    assert key(None, "") == ""
    assert key("ann", "1") == key("ann", "1")
    assert len({key("ann", "1"), key("ann", "2"), key("bob", "1")}) == 3


def test_without_a_secret_stored_conversations_end_with_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PAGE_SECRET", raising=False)
    monkeypatch.delenv("PAGE_PASSWORD", raising=False)
    request = gr.Request(username="ann", cookies={})
    assert history_key(request) != history_key(request)


VIEWS = [
    pytest.param(width, scheme, id=f"{width} pixels, {scheme}")
    for width in (1280, 390)
    for scheme in ("light", "dark")
]


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_in_the_browser_the_chat_is_accessible_and_fits_the_screen(
    width: int, scheme: Literal["light", "dark"], browser: Browser
) -> None:
    viewport: ViewportSize = {"width": width, "height": 900}
    models = [StandIn("writer", [MARKDOWN]), slow(), broken(), CutOff("cut", [])]
    with (
        conversation_with(*models) as url,
        browser.new_page(viewport=viewport, color_scheme=scheme) as page,
    ):
        page.goto(url)
        expect(page.get_by_label(PROMPT_LABEL)).to_be_visible()
        assert violations(page) == []
        ask(page, "Hello")
        expect(state(page, "broken")).to_contain_text("Failed")
        expect(state(page, "slow")).to_have_text(re.compile("^Writing"))
        assert violations(page) == []
        page.get_by_role("button", name="Stop").click()
        expect(state(page, "slow")).to_contain_text("Stopped")
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
