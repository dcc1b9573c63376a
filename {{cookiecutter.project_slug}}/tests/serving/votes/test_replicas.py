"""Many users vote at once on several replicas, while the database fails temporarily."""

import asyncio
from collections import Counter

import gradio as gr
from sqlalchemy import select

from {{ cookiecutter.__package }}.serving.pages.asking import asking
from {{ cookiecutter.__package }}.serving.protocol import (
    GenerationOptions,
    Model,
)
from {{ cookiecutter.__package }}.serving.votes.ballots import Vote
from {{ cookiecutter.__package }}.serving.votes.page import voter
from {{ cookiecutter.__package }}.serving.votes.rounds import Rounds
from {{ cookiecutter.__package }}.serving.votes.store import Store
from {{ cookiecutter.__package }}.serving.votes.tables import ROUNDS, VOTES

from ...support.databases import Database
from ...support.stand_ins import StandIn, settings_of, user

REPLICAS = 3
USERS = 20
VOTES_EACH = 12


class Replica:
    """The state of one page replica."""

    def __init__(self, url: str) -> None:
        self.panes: list[Model] = [StandIn("first", ["one"]), StandIn("second", ["two"])]
        self.rounds = Rounds(self.panes)
        self.ask = self.rounds.remembering(asking(settings_of()))
        self.vote = voter(Store(url), self.rounds)([Vote(0, 1, "left")])

    async def answer_and_vote(self, name: str, prompt: str) -> str:
        request = gr.Request(session_hash=name, username=name, cookies={}, headers={})
        conversations = [user(prompt)] * len(self.panes)
        async for _ in self.ask(self.panes, conversations, GenerationOptions(), request):
            pass
        return await self.vote(request)


async def test_each_vote_is_stored_once_or_reported_as_lost(postgresql: Database) -> None:
    replicas = [Replica(postgresql.url) for _ in range(REPLICAS)]
    kept, lost = Counter[str](), Counter[str]()

    async def use(number: int) -> None:
        for turn in range(VOTES_EACH):
            prompt = f"{number}.{turn}"
            said = await replicas[number % REPLICAS].answer_and_vote(f"user-{number}", prompt)
            (kept if "Your vote was saved." in said else lost)[prompt] += 1
            await asyncio.sleep(0.1)

    async def stop_and_start() -> None:
        for _ in range(2):
            await asyncio.sleep(0.7)
            await asyncio.to_thread(postgresql.stop)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(postgresql.start)

    await asyncio.gather(stop_and_start(), *(use(number) for number in range(USERS)))
    with Store(postgresql.url).reads() as connection:
        joined = ROUNDS.join(VOTES, VOTES.c.round_id == ROUNDS.c.id)
        there = Counter(connection.scalars(select(ROUNDS.c.prompt).select_from(joined)))
    assert kept.total() + lost.total() == USERS * VOTES_EACH
    assert set(there.values()) == {1}
    assert kept.keys() <= there.keys() <= kept.keys() | lost.keys()
    # It was down for a moment, and up most of the time.
    assert lost
    assert kept.total() > USERS * VOTES_EACH / 4
    # Users who see that their vote was lost vote again, and then it is stored.
    assert "Your vote was saved." in await replicas[0].answer_and_vote("user-0", "again")
