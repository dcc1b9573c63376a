"""Conversations continue when their page replica is killed."""

import asyncio
import time
from dataclasses import dataclass, field

import httpx2
import psutil

from benchmarks.users import Call, open_page

from .cluster import PAGE, TALK, Cluster, conversation
from .fault import kill
from .users import HANGS_SECONDS, Outcome, Tab

CONVERSATIONS, TURNS = 20, 10
PAGE_REPLICAS = 3
TRIES = 5
OWN = "each model's own"


@dataclass
class Talk:
    messages: list[dict[str, str]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    async def go_on(self, call: Call, user: int) -> None:
        """Asks all turns, and repeats each turn that fails."""
        async with httpx2.AsyncClient(timeout=HANGS_SECONDS) as browser:
            tab = Tab(browser, call, user, await open_page(browser, call))
            for turn in range(TURNS):
                asked = f"Turn {turn} of {user}"
                for _ in range(TRIES):
                    told = await tab.ask([asked, self.messages, None, 0, 100, OWN, OWN])
                    self.outcomes.append(told)
                    if told.failure is None:
                        break
                self.messages.append({"role": "user", "content": asked})
                self.messages.append({"role": "assistant", "content": str(told.answer[0])})


def test_no_turn_is_lost_when_a_page_replica_dies_mid_answer(cluster: Cluster) -> None:
    cluster.deploy(conversation(cluster, pages=PAGE_REPLICAS))
    talks = [Talk() for _ in range(CONVERSATIONS)]
    signalled, killed = asyncio.run(talk_and_kill(cluster, talks))
    for talk in talks:
        said = [each["content"] for each in talk.messages if each["role"] == "assistant"]
        assert said == [f"I have read {2 * turn + 1} messages." for turn in range(TURNS)]
    failed = [each for talk in talks for each in talk.outcomes if each.failure]
    print(f"REPORT {len(failed)} of {CONVERSATIONS * TURNS} turns were asked again")
    assert all(each.began < killed and each.ended >= signalled for each in failed)
    assert len(failed) < CONVERSATIONS


async def talk_and_kill(cluster: Cluster, talks: list[Talk]) -> tuple[float, float]:
    """Returns when the replica was killed, and when it was dead."""
    call = Call(f"{cluster.url}/{TALK}", "chat", [])
    talking = [asyncio.create_task(talk.go_on(call, user)) for user, talk in enumerate(talks)]
    half = CONVERSATIONS * TURNS / 2
    while sum(len(talk.outcomes) for talk in talks) < half:
        await asyncio.sleep(0.05)
    assert not any(each.failure for talk in talks for each in talk.outcomes)
    victim = psutil.Process(cluster.replicas(TALK, PAGE)[0])
    signalled = time.time()
    killed = kill([victim])
    await asyncio.gather(*talking)
    return signalled, killed
