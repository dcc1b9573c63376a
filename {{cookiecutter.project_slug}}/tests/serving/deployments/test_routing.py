"""A conversation stays on one replica of a model while that replica has capacity."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count

import httpx2
import pytest
from ray.serve.request_router import RequestRouter

from {{ cookiecutter.__package }}.serving.deployments.deployment import (
    TextGenerationModel,
)
from {{ cookiecutter.__package }}.serving.deployments.routing import (
    MAX_IMBALANCE,
    ConversationRouter,
    beginning,
)
from {{ cookiecutter.__package }}.serving.protocol import (
    Message,
)

from ...support.processes import replicas_of
from ...support.routers import KnownReplica, request_of, route, router_of
from ...support.servers import free_port, served
from ...support.speakers import AT_ONCE, SPEAKER, SPEAKERS
from ...support.stand_ins import user
from ..conftest import PYTHONPATH, application

NAMES = ("first", "second", "third", "fourth")
CONVERSATIONS = 30
TURNS = 8


def replicas() -> list[KnownReplica]:
    return [KnownReplica(name) for name in NAMES]


async def routed(router: RequestRouter, *questions: str) -> list[str]:
    """Routes the requests in turn and returns their replicas."""
    names = []
    for question in questions:
        replica = await route(router, request_of(user(question)))
        router.decrement_queue_len_cache(replica.replica_id)
        names.append(replica.name)
    return names


async def test_turns_of_a_conversation_share_a_routing_key() -> None:
    first = [Message("system", "Be kind."), *user("Hi")]
    second = [*first, Message("assistant", "Hello"), *user("Why is the sky blue?")]
    began = beginning(request_of(tuple(first), "options"))
    assert began is not None
    assert beginning(request_of(second)) == beginning(request_of(messages=second)) == began
    for other in (user("Hi"), [Message("system", "Be kind"), *user("Hi")], user("Be kind.Hi")):
        assert beginning(request_of(other)) not in (None, began)


@pytest.mark.parametrize(
    "arguments", [(), ("Hi",), (None,), ([],), (["Hi"],), ({"role": "user"},), (7, user("Hi"))]
)
async def test_a_call_without_a_question_may_use_any_replica(arguments: tuple[object, ...]) -> None:
    assert beginning(request_of(*arguments)) is None
    router = router_of(ConversationRouter, replicas())
    found = [await route(router, request_of(*arguments)) for _ in range(100)]
    assert {replica.name for replica in found} == set(NAMES)


async def test_conversations_stay_on_their_replicas_and_are_spread() -> None:
    one, other = (router_of(ConversationRouter, each) for each in (replicas(), replicas()[::-1]))
    questions = [str(number) for number in range(50)]
    found = await routed(one, *questions)
    assert set(found) == set(NAMES)
    # Another page process chooses the same replicas, whatever it has asked before.
    assert await routed(other, *questions[::-1]) == found[::-1]


async def test_only_the_conversations_of_a_stopped_replica_move_and_they_move_together() -> None:
    questions = [str(number) for number in range(50)]
    before = await routed(router_of(ConversationRouter, replicas()), *questions)
    left = [each for each in replicas() if each.name != before[0]]
    after = await routed(router_of(ConversationRouter, left), *questions)
    for was, now in zip(before, after, strict=True):
        assert (was == now) == (was != before[0])
    assert await routed(router_of(ConversationRouter, left), *questions) == after


async def test_conversations_move_when_their_replica_is_crowded_or_full() -> None:
    router = router_of(ConversationRouter, replicas())
    running = [await route(router, request_of(user("Hi"))) for _ in range(MAX_IMBALANCE + 1)]
    [own] = set(running)
    assert await routed(router, "Hi") != [own.name]
    router.decrement_queue_len_cache(own.replica_id)
    assert await routed(router, "Hi") == [own.name]
    own.in_hand = own.max_ongoing_requests = 2
    known = [own, *(each for each in replicas() if each.name != own.name)]
    assert await routed(router_of(ConversationRouter, known), "Hi") != [own.name]


@pytest.mark.parametrize("fault", ["dead", "hangs"])
async def test_an_unresponsive_replica_delays_no_call(fault: str) -> None:
    [own] = await routed(router_of(ConversationRouter, replicas()), "Hi")
    known = replicas()
    for each in known:
        setattr(each, fault, each.name == own)
    began = time.monotonic()
    assert await routed(router_of(ConversationRouter, known), "Hi") != [own]
    assert time.monotonic() - began < 5


async def test_a_call_waits_for_the_first_free_replica_if_all_are_full() -> None:
    known = [KnownReplica(name, in_hand=1, max_ongoing_requests=1) for name in NAMES]
    router = router_of(ConversationRouter, known)
    waiting = asyncio.create_task(routed(router, "Hi"))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    # The pause grows after each attempt.
    assert sum(replica.asked for replica in known) < 50
    known[2].in_hand = 0
    assert await waiting == ["third"]


async def test_parallel_calls_of_one_request_all_get_a_replica() -> None:
    router = router_of(ConversationRouter, replicas())
    asked = [request_of(user(text), within="one request") for text in "abcdef"]
    assert len(await asyncio.gather(*(route(router, each) for each in asked))) == len(asked)


def test_the_models_of_a_project_use_this_router() -> None:
    router = TextGenerationModel._deployment_config.request_router_config
    assert router.get_request_router_class().__name__ == ConversationRouter.__name__


@dataclass
class Conversation:
    """Records the process that answered each turn."""

    url: str
    first: str
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, words: int = 1) -> int:
        question = f"and then? {len(self.messages)}" if self.messages else self.first
        messages = [*self.messages, {"role": "user", "content": question}]
        body = {"model": SPEAKER, "messages": messages, "max_completion_tokens": words}
        answer = httpx2.post(f"{self.url}v1/chat/completions", json=body, timeout=60)
        said = answer.raise_for_status().json()["choices"][0]["message"]["content"]
        self.messages = [*messages, {"role": "assistant", "content": said}]
        [process] = set(said.split())
        return int(process)


NEW = count()


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = {
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [
            {
                **application("speakers", "/", {}, {}),
                "import_path": "tests.support.speakers:build",
            }
        ],
    }
    variables = {"PYTHONPATH": PYTHONPATH}
    with served(config, tmp_path_factory.mktemp("speakers"), variables) as pages:
        yield pages.addresses[0]


def conversations(url: str, number: int) -> list[Conversation]:
    return [Conversation(url, f"Tell me of {next(NEW)} whales.") for _ in range(number)]


@pytest.mark.served
def test_on_ray_conversations_stay_on_one_replica_each_and_are_spread(speakers: str) -> None:
    begun = conversations(speakers, CONVERSATIONS)
    with ThreadPoolExecutor(SPEAKERS) as users:
        turns = [list(users.map(Conversation.ask, begun)) for _ in range(TURNS)]
    for of_one in zip(*turns, strict=True):
        assert len(set(of_one)) == 1
    assert len(set(turns[0])) == SPEAKERS


@pytest.mark.served
def test_on_ray_a_conversation_moves_while_its_replica_is_full(speakers: str) -> None:
    [begun] = conversations(speakers, 1)
    own = begun.ask()
    same = [Conversation(speakers, begun.first) for _ in range(2 * AT_ONCE)]
    with ThreadPoolExecutor(len(same)) as users:
        answered = Counter(users.map(lambda each: each.ask(words=20), same))
    assert own in answered
    assert max(answered.values()) <= AT_ONCE
    assert begun.ask() == own


@pytest.mark.served
def test_on_ray_conversations_continue_after_their_replica_is_killed(speakers: str) -> None:
    begun = conversations(speakers, CONVERSATIONS)
    before = [each.ask() for each in begun]
    victim = before[0]
    [process] = [each for each in replicas_of(f"speakers:{SPEAKER}") if each.pid == victim]
    process.kill()
    after = [each.ask() for each in begun]
    assert victim not in after
    deadline = time.monotonic() + 120
    settled, again = after, list[int]()
    while len(set(settled)) < SPEAKERS or settled != again:
        assert time.monotonic() < deadline
        settled, again = again, [each.ask() for each in begun]
    # Other conversations stay, except some that now belong to the new replica.
    for was, now in zip(before, settled, strict=True):
        assert now == was or was == victim or now not in before
