"""The buttons for votes, on the compare page and on the chat page."""

import asyncio
import html
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import gradio as gr
from gradio.blocks import BlockContext

from ..base import StartError
from ..pages import chat, compare, looks
from ..pages.prompt import refusal
from ..protocol import Model, PromptError
from .ballots import Vote, choices_of
from .rounds import REPEATED, SIDES_COOKIE, Rounds
from .settings import PageSettings
from .store import LostError, RepeatedError, Store

VOTES_AT_ONCE = 8
VOTE_SECONDS = 15
"""After this time a vote counts as lost, whatever the database does."""

KEPT = "Your vote was saved."
LOST = (
    "Your vote was not saved, because the vote database is not responding. Vote again in a moment; "
    "the answers will still be here."
)

PANE_STYLES = (
    looks.PANE_STYLES
    + """
/* A line below all panes. Its space is reserved before there is a vote. */
.votes { position: relative; flex: 1 0 100% !important; align-items: center; min-height: 44px; visibility: hidden }
.votes button { flex: 1 1 auto; min-width: 7em }
:root:has(.state.done):not(:has(.state:is(.waiting, .writing, .stopped, .failed))) .votes { visibility: visible }
.votes .block:not(:has(p)) { display: none }
/* The message takes the place of the buttons, so that nothing moves. */
.votes:has(.kept) button, .votes:has(.kept) .terms { visibility: hidden; transition: none }
.votes:has(.kept) .block:has(.said) { position: absolute; inset: 0; display: grid; place-content: center }
.votes .said { margin: 0; text-align: center }
.votes .lost { color: var(--error-text-color) }
.votes { row-gap: 8px }
.votes .html-container { padding: 0 }
.votes .block { flex: 1 0 100% }
.votes .terms { margin: 0; text-align: center; color: var(--body-text-color-subdued); font-size: 0.85em }
/* The message about a lost vote takes the place of the terms. */
.votes .block:has(.lost) { order: -1 }
.votes:has(.lost) .block:has(.terms) { display: none }
"""
)

NEW_SIDES = """() => {
    const seed = crypto.getRandomValues(new Uint32Array(2)).join("-")
    document.cookie = `SIDES=${seed}; Path=${location.pathname}; Max-Age=31536000; SameSite=Lax`
}""".replace("SIDES", SIDES_COOKIE)
FIRST_SIDES = """() => {
    if (!document.cookie.split("; ").some(each => each.startsWith("SIDES="))) (NEW)()
}""".replace("SIDES", SIDES_COOKIE).replace("NEW", NEW_SIDES)

VoteFunction = Callable[[gr.Request], Coroutine[Any, Any, str]]


def connect(
    page: gr.Blocks,
    controls: compare.CompareControls,
    settings: PageSettings,
    models: Sequence[Model],
) -> None:
    """Connects the controls to the models, adds voting below the panes, and offers `/generate`.

    Call it once, inside the page's `with` block, after all controls.
    """
    rounds = Rounds(models)
    compare.connect(page, controls, settings, models, rounds.remembering)
    panes = controls.panes
    bar = add_votes([each.state for each in panes], settings, rounds)
    if rounds.blind:
        page.load(None, js=FIRST_SIDES, api_visibility="private")
        # Otherwise the same prompt would show the models on the same sides again.
        bar.change(None, js=NEW_SIDES, api_visibility="private")


def connect_chat(
    page: gr.Blocks,
    controls: chat.ChatControls,
    settings: PageSettings,
    models: Sequence[Model],
) -> None:
    """Connects the controls to the models, adds voting below the panes, and offers `/chat`.

    Call it once, inside the page's `with` block, after all controls.
    """
    rounds = Rounds(models)
    chat.connect_chat(page, controls, settings, models, rounds.remembering)
    panes = controls.panes
    add_votes([each.state for each in panes], settings, rounds)
    if rounds.blind:
        page.load(None, js=FIRST_SIDES, api_visibility="private")
        controls.clear.click(None, js=NEW_SIDES, api_visibility="private")


def add_votes(states: Sequence[gr.HTML], settings: PageSettings, rounds: Rounds) -> gr.HTML:
    """Adds a button for each vote below the panes, and returns the box for the result."""
    store = Store(settings.database, keep_texts=settings.keep_texts)
    if settings.keep_days is not None:
        store.remove_periodically(settings.keep_days)
    place = _around(states[0])
    parent = place.parent
    with place, gr.Row(elem_classes="votes"):
        # Before the buttons, so that screen readers read the terms first.
        gr.HTML(f'<p class="terms">{terms_of(settings)}</p>', padding=False)
        buttons = {
            label: (gr.Button(label, size="sm", min_width=100), votes)
            for label, votes in choices_of(rounds.names).items()
        }
        said = gr.HTML(padding=False)
    # Entering the block again changed its parent. Restore it.
    place.parent = parent
    voting = voter(store, rounds)
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    for button, votes in buttons.values():
        button.click(
            voting(votes),
            None,
            said,
            concurrency_limit=VOTES_AT_ONCE,
            concurrency_id="votes",
            **private,
        )
    # New answers clear the message about the earlier ones.
    gr.on([state.change for state in states], None, None, said, js="() => ''", **private)
    return said


def terms_of(settings: PageSettings) -> str:
    """Returns a sentence about what is stored with a vote, and for how long."""
    kept = "with the text above" if settings.keep_texts else "without the text above"
    if settings.asks_login:
        kept += " and your name" if settings.keep_texts else " but with your name"
    days = settings.keep_days
    time = "without a time limit" if days is None else f"for {days:g} days"
    if days == 1:
        time = "for 1 day"
    return f"Your vote is stored {kept}, {time}."


def _around(state: gr.HTML) -> BlockContext:
    """Returns the block that contains the columns of the panes."""
    column = state.parent
    if column is None or column.parent is None:
        raise StartError(
            "the panes are not in a row. Call panes_of or chat_panes_of inside a gr.Row of the page."
        )
    return column.parent


def voter(store: Store, rounds: Rounds) -> Callable[[Sequence[Vote]], VoteFunction]:
    """Returns a factory for the functions of the buttons."""
    # A separate pool, so that a database that hangs blocks nothing else.
    threads = ThreadPoolExecutor(VOTES_AT_ONCE, thread_name_prefix="votes")

    def voting(votes: Sequence[Vote]) -> VoteFunction:
        async def vote(request: gr.Request) -> str:
            try:
                now, ballot = rounds.claim(request.session_hash, votes)
            except PromptError as error:
                raise refusal(str(error)) from error
            kept = False
            keep = partial(store.keep, ballot, again=now.lost)
            try:
                async with asyncio.timeout(VOTE_SECONDS):
                    await asyncio.get_running_loop().run_in_executor(threads, keep)
                kept = True
            except RepeatedError as error:
                kept = True
                raise refusal(REPEATED) from error
            except (LostError, TimeoutError):
                return _said("lost", LOST)
            finally:
                rounds.settle(now, ballot, kept=kept)
            return _said("kept", f"{KEPT}{names_of(rounds, now.models)}")

        return vote

    return voting


def names_of(rounds: Rounds, models: Sequence[Model]) -> str:
    if not rounds.blind:
        return ""
    pairs = zip(rounds.names, models, strict=True)
    return f" {', '.join(f'{name} is {model.name}' for name, model in pairs)}."


def _said(kind: str, text: str) -> str:
    return f'<p role="status" class="said {kind}">{html.escape(text)}</p>'
