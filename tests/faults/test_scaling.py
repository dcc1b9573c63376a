"""A model that scales to zero and by its time to first text, and one that is replaced."""

import asyncio
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.users import Call, complete, messages

from ..answers import TEMPLATE
from .cluster import PAGE, Cluster
from .users import HANGS_SECONDS, crowd

SCALED = "scaled"
NAME = "loaded"
LOAD_SECONDS = 5.0
FROM_ZERO_SECONDS = 12
FROM_ZERO_SECONDS_IN_CI = 30
"""A busy machine takes longer to start a process."""
SCALED_SECONDS = 60
BACK_SECONDS = 120
USERS = 6
"""By their number of requests alone, one replica could serve more users than this."""
UPGRADE_USERS = 20
UPGRADE_LOAD_SECONDS = 20.0
SETTLED_SECONDS = 3
QUESTION: list[str | int | float | None] = ["The whale", 1, 9, "1", "1"]


def scaled(
    cluster: Cluster, load_seconds: float, seconds: float, **deployment: float
) -> dict[str, Any]:
    """A Serve config: the project's page with one model that takes a while to load."""
    return {
        "http_options": {"host": cluster.host, "port": cluster.port},
        "applications": [
            {
                "name": SCALED,
                "route_prefix": f"/{SCALED}",
                "import_path": "benchmarks.rivals.scaled:build",
                "runtime_env": {"env_vars": {"PYTHONPATH": str(TEMPLATE)}},
                "args": {
                    "name": NAME,
                    "load_seconds": load_seconds,
                    "seconds": seconds,
                    "deployment": deployment,
                },
                "deployments": [
                    {
                        "name": PAGE,
                        "max_surge_percent": 100,
                        "ray_actor_options": {"num_cpus": 0.1},
                    }
                ],
            }
        ],
    }


async def ask_in_a_pane(url: str) -> tuple[float, float]:
    """Returns the seconds until the pane says that the model is starting, and until its text."""
    starting = first_text = 0.0
    async with httpx2.AsyncClient(timeout=HANGS_SECONDS) as browser:
        config = (await browser.get(f"{url}/config")).raise_for_status().json()
        # The inputs of the button: a prompt, four options, a pane's text and its state.
        [function] = [
            each["id"]
            for each in config["dependencies"]
            if (len(each["inputs"]), len(each["outputs"])) == (len(QUESTION), 2)
        ]
        session, began = uuid.uuid4().hex, time.monotonic()
        question = {"data": QUESTION, "fn_index": function, "session_hash": session}
        joined = await browser.post(f"{url}/gradio_api/queue/join", json=question)
        joined.raise_for_status()
        async for message in messages(browser, f"{url}/gradio_api/queue/data", session):
            said = json.dumps(message.output)
            if not starting and "Starting" in said:
                starting = time.monotonic() - began
            if not first_text and "first text after" in said:
                first_text = time.monotonic() - began
            if message.msg == "process_completed":
                assert message.success, said
                return starting, first_text
    raise AssertionError("the stream ended before the answer")


async def complete_by_program(url: str) -> float:
    """Returns the seconds until the first text."""
    call = Call(url, "", QUESTION[:1], model=NAME)
    async with httpx2.AsyncClient(timeout=HANGS_SECONDS) as client:
        answer = await complete(client, call, time.time())
    assert answer.failure is None
    return answer.first_text


async def ask_in_both_ways(url: str) -> tuple[float, float, float]:
    pane, program = await asyncio.gather(ask_in_a_pane(url), complete_by_program(url))
    return *pane, program


def test_a_model_scales_from_zero_grows_while_it_is_slow_and_scales_to_zero(
    cluster: Cluster, soak: bool, tmp_path: Path
) -> None:
    url = f"{cluster.url}/{SCALED}"
    config = scaled(
        cluster,
        LOAD_SECONDS,
        seconds=0.5,
        min_replicas=0,
        max_replicas=2,
        target_first_text_seconds=0.8,
        downscale_delay_s=1,
    )
    cluster.deploy(config)
    assert cluster.replicas(SCALED, NAME) == []
    assert httpx2.get(f"{cluster.url}/-/healthz").status_code == 200

    starting, first_text, by_program = asyncio.run(ask_in_both_ways(url))
    with crowd(Call(url, "generate", QUESTION), USERS, tmp_path) as users:
        out = cluster.wait_until(lambda: len(cluster.replicas(SCALED, NAME)) == 2, SCALED_SECONDS)
        outcomes = users.leave()
    back = cluster.wait_until(lambda: not cluster.replicas(SCALED, NAME), BACK_SECONDS)
    # By then, the page has told Serve many times that nobody is waiting.
    _, again = asyncio.run(ask_in_a_pane(url))

    print(
        f"REPORT from zero: starting after {starting:.1f} s, first text after {first_text:.1f} s "
        f"({by_program:.1f} s at /v1), {again:.1f} s the second time; late: two replicas after {out:.0f} s, none {back:.0f} s "
        f"after the last of {len(outcomes)} calls"
    )
    bound = FROM_ZERO_SECONDS if soak else FROM_ZERO_SECONDS_IN_CI
    assert 0 < starting < LOAD_SECONDS < first_text < bound
    assert LOAD_SECONDS < by_program < bound
    assert LOAD_SECONDS < again < bound
    assert not [each.failure for each in outcomes if each.failure]


@pytest.mark.long
def test_single_replicas_are_replaced_by_a_new_version_without_downtime(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.deploy(scaled(cluster, UPGRADE_LOAD_SECONDS, 0.1, max_surge_percent=100))
    before = set(cluster.replicas(SCALED, NAME) + cluster.replicas(SCALED, PAGE))
    newer = scaled(cluster, UPGRADE_LOAD_SECONDS, 0.11, max_surge_percent=100)
    newer["applications"][0]["runtime_env"]["env_vars"]["VERSION"] = "2"
    call = Call(f"{cluster.url}/{SCALED}", "generate", QUESTION)
    there = []
    with crowd(call, UPGRADE_USERS, tmp_path) as users, ThreadPoolExecutor() as pool:
        users.wait_until_all_are_answered()
        began = time.monotonic()
        deploying = pool.submit(cluster.deploy, newer)
        while not deploying.done():
            # While Serve builds the application, its status lists no deployments.
            with suppress(KeyError):
                there += [len(cluster.replicas(SCALED, each)) for each in (NAME, PAGE)]
            time.sleep(0.25)
        deploying.result()
        took = time.monotonic() - began
        time.sleep(SETTLED_SECONDS)
        outcomes = users.leave()
    assert not before & set(cluster.replicas(SCALED, NAME) + cluster.replicas(SCALED, PAGE))
    longest = max(each.ended - each.began for each in outcomes)
    print(
        f"REPORT {len(outcomes)} calls, the longest {longest:.1f} s; a model loads for "
        f"{UPGRADE_LOAD_SECONDS:.0f} s; the new version took {took:.0f} s"
    )
    assert min(there) >= 1
    assert longest < UPGRADE_LOAD_SECONDS
    assert not [each.failure for each in outcomes if each.failure]
