"""Many visitors vote at once on several replicas, while the database fails temporarily."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import select

from {{ cookiecutter.__package }}.serving.votes.store import Store
from {{ cookiecutter.__package }}.serving.votes.tables import (
    ANSWERS,
    ROUNDS,
    VOTES,
)

from ...support.compare_page import BUTTON, MODELS
from ...support.databases import Database
from ...support.servers import free_port, served
from ..conftest import PYTHONPATH, application

PAGE_REPLICAS = 3
VISITORS = 20
VOTES_EACH = 6
AWAY_SECONDS = 1.5


@pytest.fixture
def voting(postgresql: Database, tmp_path: Path) -> Iterator[str]:
    """URL of a page with votes, on several replicas."""
    nowhere = {"source": "unused", "base_url": "http://127.0.0.1:9"}
    arguments = {
        "title": "Votes",
        "description": "",
        "database_url": postgresql.url,
        "models": [{"name": name, **nowhere} for name in MODELS],
    }
    config = {
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [application("voting", "/", arguments, {"GradioServer": PAGE_REPLICAS})],
    }
    with served(config, tmp_path, {"PYTHONPATH": PYTHONPATH}) as pages:
        yield pages.addresses[0]


@dataclass
class Visitor:
    """Speaks the protocol of Gradio's page like a browser."""

    browser: httpx2.AsyncClient
    config: dict[str, Any]
    session: str

    async def click(self, button: str, first: str | None = None) -> list[Any]:
        """Returns what the page finally shows.

        Args:
            first: the value of the first input of the button; the other inputs stay unchanged.
        """
        shown = {each["id"]: each["props"].get("value") for each in self.config["components"]}
        [called] = [
            each
            for each in self.config["dependencies"]
            if each["backend_fn"] and any(shown[number] == button for number, _ in each["targets"])
        ]
        data = [shown[number] for number in called["inputs"]]
        asked = {
            "data": data if first is None else [first, *data[1:]],
            "fn_index": called["id"],
            "session_hash": self.session,
        }
        joined = await self.browser.post("gradio_api/queue/join", json=asked)
        joined.raise_for_status()
        url = "gradio_api/queue/data"
        async with self.browser.stream("GET", url, params={"session_hash": self.session}) as events:
            async for line in events.aiter_lines():
                said = json.loads(line.removeprefix("data:")) if line else {}
                if said.get("msg") == "process_completed":
                    assert said["success"], said
                    found: list[Any] = said["output"]["data"]
                    return found
        raise AssertionError("the stream ended before the answer")


async def visit(url: str, number: int, kept: Counter[str], lost: Counter[str]) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=60) as browser:
        config = (await browser.get("config")).raise_for_status().json()
        visitor = Visitor(browser, config, uuid4().hex)
        for turn in range(VOTES_EACH):
            prompt = f"{number}.{turn}"
            await visitor.click(BUTTON, prompt)
            [said] = await visitor.click(f"{MODELS[0]} is better")
            (kept if "Your vote was saved." in said else lost)[prompt] += 1


@pytest.mark.served
async def test_on_ray_each_vote_is_stored_once_or_reported_as_lost(
    voting: str, postgresql: Database
) -> None:
    kept, lost = Counter[str](), Counter[str]()
    visits = [asyncio.create_task(visit(voting, each, kept, lost)) for each in range(VISITORS)]
    every = VISITORS * VOTES_EACH
    while kept.total() < every / 3:
        assert not any(each.done() for each in visits), lost
        await asyncio.sleep(0.05)
    await asyncio.to_thread(postgresql.stop)
    await asyncio.sleep(AWAY_SECONDS)
    await asyncio.to_thread(postgresql.start)
    await asyncio.gather(*visits)
    joined = ROUNDS.join(VOTES, VOTES.c.round_id == ROUNDS.c.id)
    with Store(postgresql.url).reads() as connection:
        there = Counter(connection.scalars(select(ROUNDS.c.prompt).select_from(joined)))
        processes = set(connection.scalars(select(ANSWERS.c.text)))
    assert kept.total() + lost.total() == every
    assert set(there.values()) == {1}
    assert kept.keys() <= there.keys() <= kept.keys() | lost.keys()
    assert lost
    assert len(processes) == PAGE_REPLICAS
