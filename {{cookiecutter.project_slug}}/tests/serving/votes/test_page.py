"""Votes on the compare page and the chat, with and without a browser."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect
from sqlalchemy import select

from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.pages.asking import asking
from {{ cookiecutter.__package }}.serving.protocol import (
    GenerationOptions,
    Message,
    Model,
    PromptError,
)
from {{ cookiecutter.__package }}.serving.votes.ballots import Vote, choices_of
from {{ cookiecutter.__package }}.serving.votes.blind import anonymous, sides
from {{ cookiecutter.__package }}.serving.votes.page import terms_of
from {{ cookiecutter.__package }}.serving.votes.rounds import (
    SIDES_COOKIE,
    Rounds,
)
from {{ cookiecutter.__package }}.serving.votes.store import Store
from {{ cookiecutter.__package }}.serving.votes.tables import VOTES, beside

from ...support import compare_page, conversation_page
from ...support.accessibility import violations
from ...support.databases import Database
from ...support.stand_ins import CutOff, StandIn, broken, fast, in_thread, settings_of, slow, user

LEFT = [Vote(0, 1, "left")]


def first() -> StandIn:
    return StandIn("first", ["one"])


def second() -> StandIn:
    return StandIn("second", ["two"])


def session(name: str = "ada's", cookie: str = "", username: str | None = None) -> gr.Request:
    cookies = {SIDES_COOKIE: cookie} if cookie else {}
    return gr.Request(session_hash=name, username=username, cookies=cookies, headers={})


async def ask(
    rounds: Rounds,
    panes: Sequence[Model],
    messages: Sequence[Message],
    request: gr.Request | None = None,
    updates: int = 1000,
) -> list[str]:
    """Asks the panes, reads the given number of updates, and returns their texts."""
    texts: list[str] = []
    answers = rounds.remembering(asking(settings_of()))(
        panes, [messages] * len(panes), GenerationOptions(), request or session()
    )
    async with aclosing(answers):
        async for update in answers:
            texts = [answer.text for answer in update]
            updates -= 1
            if not updates:
                break
    return texts


async def test_an_answer_can_be_voted_on_only_once() -> None:
    panes = [first(), second()]
    rounds = Rounds(panes)
    earlier = [Message("user", "Hi"), Message("assistant", "Hello")]
    await ask(rounds, panes, [*earlier, *user("Why?")], session(username="ada"))
    now, ballot = rounds.claim("ada's", LEFT)
    assert (ballot.prompt, ballot.username, ballot.blind) == ("Why?", "ada", False)
    assert [(each.model, each.text, each.tokens) for each in ballot.replies] == [
        ("first", "one", 1),
        ("second", "two", 1),
    ]
    assert ballot.replies[0].conversation == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert ballot.replies[0].options == {"min_new_tokens": 0, "max_new_tokens": 100, "stop": []}
    with pytest.raises(PromptError, match="already voted"):
        rounds.claim("ada's", LEFT)
    rounds.settle(now, ballot, kept=True)
    with pytest.raises(PromptError, match="already voted"):
        rounds.claim("ada's", LEFT)


async def test_a_new_answer_can_be_voted_on() -> None:
    panes = [first(), second()]
    rounds = Rounds(panes)
    await ask(rounds, panes, user("Why?"))
    now, ballot = rounds.claim("ada's", LEFT)
    await ask(rounds, panes[1:], user("Why?"))
    rounds.settle(now, ballot, kept=True)
    assert rounds.claim("ada's", LEFT)[1].id != ballot.id


async def test_a_lost_vote_can_be_repeated() -> None:
    panes = [first(), second()]
    rounds = Rounds(panes)
    await ask(rounds, panes, user("Why?"))
    now, ballot = rounds.claim("ada's", LEFT)
    rounds.settle(now, ballot, kept=False)
    again, same = rounds.claim("ada's", LEFT)
    assert again.lost
    assert same.id == ballot.id


@pytest.mark.parametrize("name", ["bob's", None])
async def test_a_session_can_vote_only_on_its_own_answers(name: str | None) -> None:
    panes = [first(), second()]
    rounds = Rounds(panes)
    await ask(rounds, panes, user("Why?"))
    with pytest.raises(PromptError, match="no answers to vote on"):
        rounds.claim(name, LEFT)


async def test_failed_and_stopped_answers_cannot_be_voted_on() -> None:
    panes = [first(), broken()]
    rounds = Rounds(panes)
    await ask(rounds, panes, user("Why?"))
    with pytest.raises(PromptError, match="no answers to vote on"):
        rounds.claim("ada's", LEFT)
    panes = [first(), slow()]
    rounds = Rounds(panes)
    await ask(rounds, panes, user("Why?"), updates=3)
    with pytest.raises(PromptError, match="no answers to vote on"):
        rounds.claim("ada's", LEFT)


async def test_a_continued_answer_is_stored_in_full() -> None:
    pane = CutOff("first", [])
    rounds = Rounds([pane])
    await ask(rounds, [pane], user("Why?"))
    await ask(rounds, [pane], [*user("Why?"), Message("assistant", "The")])
    _, ballot = rounds.claim("ada's", [Vote(0, None, "good")])
    assert (ballot.prompt, ballot.replies[0].text) == ("Why?", "The end")
    assert ballot.replies[0].conversation == []


async def test_only_the_most_recent_sessions_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{Rounds.__module__}.SESSIONS", 2)
    rounds = Rounds([first()])
    for name in ("one", "two", "three"):
        await ask(rounds, rounds._panes, user("Why?"), session(name))
    with pytest.raises(PromptError, match="no answers to vote on"):
        rounds.claim("one", [])
    assert rounds.claim("three", [])


async def test_blind_each_pane_keeps_its_model_on_any_replica() -> None:
    models = [first(), second()]
    panes = anonymous(models)
    seen = set()
    for number in range(20):
        request = session(cookie=str(number))
        begun = Rounds(panes)
        texts = await ask(begun, panes, user("Why?"), request)
        talk = [*user("Why?"), Message("assistant", "…"), *user("And?")]
        assert await ask(begun, panes, talk, request) == texts
        assert await ask(begun, panes[1:], talk, request) == texts[1:]
        # Another replica does not know the session.
        assert await ask(Rounds(panes), panes, talk, request) == texts
        _, ballot = begun.claim("ada's", LEFT)
        assert ballot.blind
        assert [each.model for each in ballot.replies] == [
            {"one": "first", "two": "second"}[text] for text in texts
        ]
        seen.add(tuple(texts))
    assert seen == {("one", "two"), ("two", "one")}


def test_each_model_appears_on_each_side_equally_often() -> None:
    times = [[0, 0, 0] for _ in range(3)]
    for number in range(3000):
        for side, model in enumerate(sides(3, f"{number}")):
            times[side][model] += 1
    assert all(900 < each < 1100 for side in times for each in side)


async def test_blind_a_failure_does_not_reveal_the_name() -> None:
    failing = StandIn("first", [], failure=PromptError("first takes no such text."))
    [pane] = panes = anonymous([failing])
    rounds = Rounds(panes)
    answers = rounds.remembering(asking(settings_of()))(
        panes, [user("Why?")], GenerationOptions(), session()
    )
    [*_, [answer]] = [update async for update in answers]
    assert (pane.name, answer.failure) == ("A", "A takes no such text.")


def test_the_choices_of_a_vote_depend_on_the_number_of_models() -> None:
    assert list(choices_of(["x"])) == ["Good", "Bad"]
    assert list(choices_of(["x", "y"])) == ["x is better", "y is better", "Tie", "Both are bad"]
    assert choices_of(["x", "y", "z"])["y is best"] == [Vote(1, 0, "left"), Vote(1, 2, "left")]


BuildPage = Callable[[Any, Sequence[Model]], gr.Blocks]
PAGES = [compare_page.build_page, conversation_page.build_page]


@contextmanager
def page_with(build_page: BuildPage, *models: StandIn, **changes: object) -> Iterator[str]:
    """Yields the URL of a page with these models and settings."""
    settings = settings_of().model_copy(update=changes)
    web = mount(build_page(settings, settings.on_page(models)), settings, compare_page.LAUNCH)
    with in_thread(web) as url:
        yield f"{url}/"


def put(page: Page, text: str) -> None:
    box = page.get_by_label("Your message").or_(page.get_by_label("Prompt", exact=True))
    box.fill(text)
    box.press("Enter")


def votes_in(url: str) -> list[tuple[str, str | None, str]]:
    left, right, joined = beside()
    with Store(url).reads() as connection:
        found = connection.execute(
            select(left.c.model, right.c.model, VOTES.c.vote).select_from(joined)
        )
        return [tuple(row) for row in found]


@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'votes.sqlite'}"


@pytest.mark.parametrize("build_page", PAGES)
def test_in_the_browser_a_vote_is_stored_and_the_next_answers_can_be_voted_on(
    build_page: BuildPage, browser: Browser, file: str
) -> None:
    with page_with(build_page, first(), second(), database_url=file) as url:
        page = browser.new_page()
        page.goto(url)
        better = page.get_by_role("button", name="second is better")
        expect(page.locator(".votes")).to_be_attached()
        expect(better).not_to_be_visible()
        put(page, "Why?")
        better.click()
        expect(page.get_by_text("Your vote was saved.")).to_be_visible()
        expect(better).not_to_be_visible()
        assert votes_in(file) == [("first", "second", "right")]
        put(page, "And?")
        page.get_by_role("button", name="Both are bad").click()
        expect(page.get_by_text("Your vote was saved.")).to_be_visible()
        assert [vote for _, _, vote in votes_in(file)] == ["right", "both bad"]
        page.close()


@pytest.mark.parametrize(
    ("models", "button", "kept"),
    [
        ([first()], "Bad", [("first", None, "bad")]),
        ([first(), second()], "Tie", [("first", "second", "tie")]),
        (
            [first(), second(), fast()],
            "fast is best",
            [("fast", "first", "left"), ("fast", "second", "left")],
        ),
    ],
)
def test_in_the_browser_any_number_of_models_can_be_voted_on(
    models: list[StandIn],
    button: str,
    kept: list[tuple[str, str | None, str]],
    browser: Browser,
    file: str,
) -> None:
    with page_with(compare_page.build_page, *models, database_url=file) as url:
        page = browser.new_page()
        page.goto(url)
        put(page, "Why?")
        page.get_by_role("button", name=button).click()
        expect(page.get_by_text("Your vote was saved.")).to_be_visible()
        assert votes_in(file) == kept
        page.close()


@pytest.mark.parametrize("build_page", PAGES)
def test_in_the_browser_names_are_shown_only_after_the_vote(
    build_page: BuildPage, browser: Browser, file: str
) -> None:
    said = set()
    models = [StandIn("humpback", ["one"]), StandIn("narwhal", ["two"])]
    with page_with(build_page, *models, database_url=file, blind=True) as url:
        for _ in range(8):
            page = browser.new_page()
            page.goto(url)
            put(page, "Why?")
            expect(page.get_by_role("button", name="A is better")).to_be_visible()
            assert not [model.name for model in models if model.name in page.content()]
            page.get_by_role("button", name="A is better").click()
            expect(page.get_by_text("Your vote was saved.")).to_be_visible()
            said.add(page.locator(".said").inner_text())
            page.close()
            if len(said) == 2:
                break
    assert said == {
        "Your vote was saved. A is humpback, B is narwhal.",
        "Your vote was saved. A is narwhal, B is humpback.",
    }


def test_in_the_browser_answers_work_while_the_database_is_down(
    browser: Browser, postgresql: Database
) -> None:
    with page_with(compare_page.build_page, first(), second(), database_url=postgresql.url) as url:
        page = browser.new_page()
        page.goto(url)
        postgresql.stop()
        put(page, "Why?")
        page.get_by_role("button", name="Tie").click()
        expect(page.get_by_text("Your vote was not saved")).to_be_visible()
        expect(page.get_by_text("Your vote is stored")).to_be_hidden()
        expect(page.locator("#pane-first textarea")).to_have_value("one")
        postgresql.start()
        page.get_by_role("button", name="first is better").click()
        expect(page.get_by_text("Your vote was saved.")).to_be_visible()
        assert votes_in(postgresql.url) == [("first", "second", "left")]
        page.close()


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, "Your vote is stored with the text above, without a time limit."),
        ({"keep_days": 1}, "Your vote is stored with the text above, for 1 day."),
        ({"keep_days": 90.0}, "Your vote is stored with the text above, for 90 days."),
        ({"keep_days": 0.5}, "Your vote is stored with the text above, for 0.5 days."),
        (
            {"keep_texts": False, "keep_days": 30},
            "Your vote is stored without the text above, for 30 days.",
        ),
        (
            {"login_user": "ada"},
            "Your vote is stored with the text above and your name, without a time limit.",
        ),
        (
            {"login_user": "ada", "keep_texts": False},
            "Your vote is stored without the text above but with your name, without a time limit.",
        ),
    ],
)
def test_the_settings_decide_what_is_stored_with_a_vote(
    changes: dict[str, object], terms: str
) -> None:
    assert terms_of(settings_of().model_copy(update=changes)) == terms


@pytest.mark.parametrize("build_page", PAGES)
def test_in_the_browser_visitors_see_what_is_stored_before_voting(
    build_page: BuildPage, browser: Browser, file: str
) -> None:
    changes = {"database_url": file, "keep_texts": False, "keep_days": 30}
    with page_with(build_page, first(), second(), **changes) as url, browser.new_page() as page:
        page.goto(url)
        put(page, "Why?")
        expect(page.get_by_role("button", name="Tie")).to_be_visible()
        terms = page.get_by_text("Your vote is stored without the text above, for 30 days.")
        expect(terms).to_be_visible()
        page.get_by_role("button", name="Tie").click()
        expect(page.get_by_text("Your vote was saved.")).to_be_visible()
        expect(terms).to_be_hidden()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
@pytest.mark.parametrize("build_page", PAGES)
def test_in_the_browser_voting_is_accessible(
    build_page: BuildPage, width: int, scheme: Any, browser: Browser, file: str
) -> None:
    size: ViewportSize = {"width": width, "height": 800}
    with page_with(build_page, first(), second(), database_url=file) as url:
        page = browser.new_page(viewport=size, color_scheme=scheme)
        page.goto(url)
        put(page, "Why?")
        expect(page.get_by_role("button", name="Tie")).to_be_visible()
        assert violations(page) == []
        before = page.locator(".votes").bounding_box()
        page.get_by_role("button", name="Tie").press("Enter")
        expect(page.get_by_text("Your vote was saved.")).to_be_visible()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        after = page.locator(".votes").bounding_box()
        last = page.locator(".pane").last.bounding_box()
        assert before
        assert after
        assert last
        assert before["height"] == after["height"]
        # Below all panes, not inside one.
        assert after["y"] >= last["y"] + last["height"]
        page.close()
