"""A process of the served application is killed while 20 users ask."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.users import Call

from .cluster import PAGE, WORDS, Cluster, applications
from .users import Outcome, crowd

USERS = 20
BEFORE_SECONDS = 6
AFTER_SECONDS = 6
STRENGTH_SECONDS = 60
PROXY_SECONDS = 10
PIECES = 8
"""What a stand-in writes, in two seconds."""


@dataclass(frozen=True)
class Fault:
    killed: float
    outcomes: list[Outcome]

    def in_flight(self) -> list[Outcome]:
        return [each for each in self.outcomes if each.began < self.killed <= each.ended]

    def after(self, seconds: float = 0) -> list[Outcome]:
        """Calls that began so long after the fault, or later."""
        return [each for each in self.outcomes if each.began >= self.killed + seconds]


def test_a_lost_page_replica_fails_its_calls_in_flight_and_no_other(
    cluster: Cluster, tmp_path: Path
) -> None:
    fault = kill_under_load(cluster, tmp_path, lambda _: cluster.replicas(WORDS, PAGE)[0])
    assert_none_fails(fault.after())
    failed = [each for each in fault.in_flight() if each.failure]
    assert 0 < len(failed) < USERS


def test_a_lost_model_replica_is_told_to_who_saw_its_text_and_to_nobody_else(
    cluster: Cluster, tmp_path: Path
) -> None:
    fault = kill_under_load(cluster, tmp_path, busiest_model)
    assert_none_fails(fault.after())
    failed = [each for each in fault.in_flight() if each.failure]
    assert failed
    assert all("interrupted. Run again" in str(each.failure) for each in failed)


def test_a_lost_controller_is_noticed_by_nobody(cluster: Cluster, tmp_path: Path) -> None:
    fault = kill_under_load(cluster, tmp_path, lambda _: pid_of(cluster, "ray::ServeController"))
    assert_none_fails(fault.outcomes)


def test_a_lost_proxy_is_back_in_ten_seconds(cluster: Cluster, tmp_path: Path) -> None:
    fault = kill_under_load(cluster, tmp_path, lambda _: pid_of(cluster, "ray::ProxyActor"))
    assert_none_fails(fault.after(PROXY_SECONDS))
    away = [each for each in fault.after() if each.failure]
    print(f"the proxy was away for {max(each.ended for each in away) - fault.killed:.1f} s")


def kill_under_load(
    cluster: Cluster, directory: Path, choose: Callable[[list[Outcome]], int]
) -> Fault:
    """Kills the process whose id `choose` returns, and waits until all are there again."""
    cluster.deploy(applications(cluster, pages=2, models=2))
    call = Call(f"{cluster.url}/{WORDS}", "generate", ["The whale", 1, 1, "1", "1"])
    with crowd(call, USERS, directory) as users:
        time.sleep(BEFORE_SECONDS)
        outcomes = users.outcomes()
        assert_none_fails(outcomes)
        victim = psutil.Process(choose(outcomes))
        killed = time.time()
        victim.kill()
        time.sleep(1)
        strength = cluster.wait_until(
            lambda: cluster.is_whole() and victim.pid not in cluster.pids(), STRENGTH_SECONDS
        )
        time.sleep(AFTER_SECONDS)
        fault = Fault(killed, users.leave())
    in_flight, after = fault.in_flight(), fault.after()
    print(
        f"in flight {len(in_flight)}, failed {failures(in_flight)}; "
        f"after it {len(after)}, failed {failures(after)}; "
        f"longest {max(each.ended - each.began for each in fault.outcomes):.1f} s; "
        f"full strength after {1 + strength:.1f} s"
    )
    # The stand-in takes two seconds; nobody waits for what a dead process owes.
    assert max(each.ended - each.began for each in fault.outcomes) < PROXY_SECONDS
    assert all(len(words(each)) == PIECES for each in after if not each.failure)
    return fault


def failures(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(each.failure for each in outcomes if each.failure)


def assert_none_fails(outcomes: list[Outcome]) -> None:
    assert outcomes
    assert not failures(outcomes)


def busiest_model(outcomes: list[Outcome]) -> int:
    """A stand-in writes the id of its process."""
    [(process, _), *_] = Counter(words(outcome)[0] for outcome in outcomes[-USERS:]).most_common()
    return int(process)


def words(outcome: Outcome) -> list[str]:
    [text] = outcome.answer
    return str(text).split()


def pid_of(cluster: Cluster, title: str) -> int:
    [process] = cluster.processes(title)
    return process.pid
