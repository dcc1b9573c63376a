"""A process of the served application is killed while 20 users call it."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from .cluster import PAGE, WORDS, Cluster, applications
from .fault import USERS, assert_none_fails, kill_under_load, words
from .users import Outcome

PROXY_SECONDS = 10


@pytest.fixture(autouse=True)
def two_of_each(cluster: Cluster) -> None:
    cluster.deploy(applications(cluster, pages=2, models=2))


def test_a_lost_page_replica_fails_only_its_calls_in_flight(
    cluster: Cluster, tmp_path: Path
) -> None:
    fault = kill_under_load(cluster, tmp_path, one(lambda _: cluster.replicas(WORDS, PAGE)[0]))
    assert_none_fails(fault.after())
    failed = [each for each in fault.in_flight() if each.failure]
    assert 0 < len(failed) < USERS


def test_a_lost_model_replica_fails_only_answers_that_had_started(
    cluster: Cluster, tmp_path: Path
) -> None:
    fault = kill_under_load(cluster, tmp_path, one(busiest_model))
    assert_none_fails(fault.after())
    failed = [each for each in fault.in_flight() if each.failure]
    assert failed
    assert all("interrupted. Try again" in str(each.failure) for each in failed)


@pytest.mark.long
def test_a_lost_controller_fails_no_call(cluster: Cluster, tmp_path: Path) -> None:
    controller = cluster.processes("ray::ServeController")
    fault = kill_under_load(cluster, tmp_path, lambda _: controller)
    assert_none_fails(fault.outcomes)


def test_a_lost_proxy_is_back_in_ten_seconds(cluster: Cluster, tmp_path: Path) -> None:
    fault = kill_under_load(cluster, tmp_path, lambda _: cluster.processes("ray::ProxyActor"))
    away = max(each.ended for each in fault.outcomes if each.failure) - fault.killed
    print(f"REPORT the proxy was away for {away:.1f} s")
    assert away < PROXY_SECONDS
    assert_none_fails(fault.after(away))


def one(choose: Callable[[list[Outcome]], int]) -> Callable[[list[Outcome]], list[psutil.Process]]:
    """Returns the process with this id."""
    return lambda outcomes: [psutil.Process(choose(outcomes))]


def busiest_model(outcomes: list[Outcome]) -> int:
    """A stand-in writes its process id."""
    [(process, _), *_] = Counter(words(outcome)[0] for outcome in outcomes[-USERS:]).most_common()
    return int(process)
