"""Sessions behind HAProxy, which replaces Serve's own proxy."""

import itertools
import shlex
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.users import Call

from ..generated.project import Project, free_port
from .cluster import COUNTING, PAGE, WORDS, Cluster, applications, ray_cluster, with_variables
from .fault import kill
from .test_deploys import by_user, number, process
from .test_rate_limits import SHARED, limited_by_address, taken
from .users import crowd

USERS = 20
SETTLED_SECONDS = 3


@pytest.fixture(scope="module")
def haproxy(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Starts HAProxy as in the project's docs/operations.md."""
    python = str(project.environment / "bin" / "python")
    exports = subprocess.run(
        [python, "-m", f"{project.package}.serving.http.proxy", COUNTING, WORDS],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    variables = dict(each.split("=", 1) for each in shlex.split(exports) if each != "export")
    ports = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("STATS", "METRICS")}
    behind_haproxy = with_variables(project, **variables, **ports)
    with ray_cluster(behind_haproxy, tmp_path_factory.mktemp("haproxy")) as cluster:
        yield cluster


def test_sessions_move_only_when_their_replica_stops(haproxy: Cluster, tmp_path: Path) -> None:
    haproxy.deploy(counting(haproxy, 2))
    call = Call(f"{haproxy.url}/{COUNTING}", "count", [None])
    with crowd(call, USERS, tmp_path) as users:
        users.wait_until_all_are_answered()
        haproxy.deploy(counting(haproxy, 3))
        with crowd(call, USERS, tmp_path) as newcomers:
            newcomers.wait_until_all_are_answered()
            haproxy.deploy(counting(haproxy, 2))
            time.sleep(SETTLED_SECONDS)
            [stays, victim] = haproxy.replicas(COUNTING, PAGE)
            signalled = time.time()
            killed = kill([psutil.Process(victim)])
            haproxy.wait_until(lambda: haproxy.is_whole() and victim not in haproxy.pids())
            time.sleep(SETTLED_SECONDS)
            outcomes = [users.leave(), newcomers.leave()]
    sessions = [*by_user(outcomes[0]), *by_user(outcomes[1])]
    failed = [each for session in sessions for each in session if each.failure]
    assert all(each.began < killed and each.ended >= signalled for each in failed)
    answered = [[each for each in session if not each.failure] for session in sessions]
    moves = 0
    for session in answered:
        for one, next_one in itertools.pairwise(session):
            if process(one) == process(next_one):
                assert number(next_one) == number(one) + 1
            else:
                moves += 1
                assert process(one) != stays
                assert number(next_one) == 1
    at_first = [process(session[0]) for session in answered]
    print(
        f"REPORT {sum(map(len, sessions))} calls, {len(failed)} in flight failed; "
        f"{moves} moves of {len(sessions)} sessions, which began on "
        f"{sorted(map(at_first.count, set(at_first)))}"
    )
    assert moves
    assert len(set(at_first)) == 3
    assert any(victim in map(process, session) for session in answered)


def test_limits_by_address_use_trusted_proxies_and_ignore_forged_headers(
    haproxy: Cluster,
) -> None:
    # All requests come from this machine, so each loopback address acts as a caller.
    caller, proxy = "127.0.0.2", "127.0.0.3"
    haproxy.deploy(limited_by_address(haproxy, [proxy]))
    url = f"{haproxy.url}/{WORDS}"
    haproxy.wait_until_newcomers_reach(2, WORDS)

    assert taken(url, lambda number: f"198.51.100.{number}", caller) == SHARED
    for visitor in ("203.0.113.1", "203.0.113.2"):
        reported = lambda number, visitor=visitor: f"198.51.100.{number}, {visitor}"  # noqa: E731
        assert taken(url, reported, proxy) == SHARED


def counting(cluster: Cluster, pages: int) -> dict[str, Any]:
    """A Serve config with only the counting page."""
    config = applications(cluster, pages=pages, models=1)
    config["applications"] = [each for each in config["applications"] if each["name"] == COUNTING]
    return config
