"""Kills processes of the served application under load from 20 users."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.users import Call

from .cluster import PIECES, WORDS, Cluster
from .users import PAUSE_SECONDS, Outcome, crowd

USERS = 20
ASKED_SECONDS = 0.5
AFTER_SECONDS = 6
STRENGTH_SECONDS = 60
LONGEST_SECONDS = 10


@dataclass(frozen=True)
class Fault:
    signalled: float
    killed: float
    """When the last process was dead."""
    outcomes: list[Outcome]

    def in_flight(self) -> list[Outcome]:
        return [
            each
            for each in self.outcomes
            if each.began < self.killed and each.ended >= self.signalled
        ]

    def after(self, seconds: float = 0) -> list[Outcome]:
        """Returns the calls that started at least this long after the fault."""
        return [each for each in self.outcomes if each.began >= self.killed + seconds]


def kill_under_load(
    cluster: Cluster,
    directory: Path,
    choose: Callable[[list[Outcome]], list[psutil.Process]],
    noticed_seconds: float = 0,
) -> Fault:
    """Kills the processes that `choose` returns, and waits for their replacements.

    A stand-in takes two seconds to answer. No caller may wait much longer for a dead process,
    not even until Ray notices that it died.
    """
    call = Call(f"{cluster.url}/{WORDS}", "generate", ["The whale", 1, 1, "1", "1"])
    with crowd(call, USERS, directory) as users:
        outcomes = users.wait_until_all_are_answered()
        assert_none_fails(outcomes)
        # On a busy machine, all answers arrive together; the fault must hit the next calls.
        time.sleep(PAUSE_SECONDS + ASKED_SECONDS)
        victims = choose(outcomes)
        signalled = time.time()
        killed = kill(victims)
        time.sleep(1)
        lost = {victim.pid for victim in victims}
        strength = cluster.wait_until(
            lambda: cluster.is_whole() and not lost & cluster.pids(), STRENGTH_SECONDS
        )
        time.sleep(max(0, killed + noticed_seconds - time.time()) + AFTER_SECONDS)
        fault = Fault(signalled, killed, users.leave())
    in_flight, after = fault.in_flight(), fault.after()
    longest = max(each.ended - each.began for each in fault.outcomes)
    print(
        f"REPORT in flight {len(in_flight)}, failed {failures(in_flight)}; "
        f"after it {len(after)}, failed {failures(after)}, the last of these began "
        f"{max((each.began - killed for each in after if each.failure), default=0):.1f} s after; "
        f"longest {longest:.1f} s; full strength after {1 + strength:.1f} s"
    )
    assert longest < max(LONGEST_SECONDS, noticed_seconds)
    assert all(len(words(each)) == PIECES for each in after if not each.failure)
    return fault


def kill(victims: list[psutil.Process]) -> float:
    """Returns once all are dead: until then the kernel accepts connections for them."""
    for victim in victims:
        victim.kill()
    while not all(map(is_dead, victims)):
        time.sleep(0.001)
    return time.time()


def is_dead(process: psutil.Process) -> bool:
    try:
        # Its sockets stay open until its last thread ends.
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
    except psutil.NoSuchProcess:
        return True


def failures(outcomes: list[Outcome]) -> Counter[str]:
    return Counter(each.failure for each in outcomes if each.failure)


def assert_none_fails(outcomes: list[Outcome]) -> None:
    assert outcomes
    assert not failures(outcomes)


def words(outcome: Outcome) -> list[str]:
    [text] = outcome.answer
    return str(text).split()
