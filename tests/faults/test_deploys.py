"""`serve deploy` changes the application while 20 users call it."""

import itertools
import time
from collections import defaultdict
from copy import deepcopy
from pathlib import Path

import pytest

from benchmarks.users import Call

from .cluster import COUNTING, PAGE, WORDS, Cluster, applications
from .users import Outcome, crowd

USERS = 20
SETTLED_SECONDS = 5
LONG_SECONDS = 150


def test_adding_and_removing_a_page_replica_moves_only_its_own_sessions(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.deploy(applications(cluster, pages=2, models=1))
    call = Call(f"{cluster.url}/{COUNTING}", "count", [None])
    with crowd(call, USERS, tmp_path) as users:
        time.sleep(SETTLED_SECONDS)
        cluster.deploy(applications(cluster, pages=3, models=1))
        time.sleep(SETTLED_SECONDS)
        with crowd(call, USERS, tmp_path) as newcomers:
            time.sleep(SETTLED_SECONDS)
            cluster.deploy(applications(cluster, pages=2, models=1))
            time.sleep(SETTLED_SECONDS)
            left = set(cluster.replicas(COUNTING, PAGE))
            outcomes = [users.leave(), newcomers.leave()]
    sessions = [*by_user(outcomes[0]), *by_user(outcomes[1])]
    assert not [each.failure for session in sessions for each in session if each.failure]
    moved = [session for session in sessions if len({process(each) for each in session}) > 1]
    print(f"REPORT {sum(map(len, sessions))} calls, {len(moved)} of {len(sessions)} sessions moved")
    assert moved
    for session in sessions:
        began_at = process(session[0])
        assert (began_at not in left) == (session in moved)
        for one, next_one in itertools.pairwise(session):
            same = process(one) == process(next_one)
            assert number(next_one) == (number(one) + 1 if same else 1)


def test_a_failed_deploy_keeps_old_replicas_and_redeploying_the_old_config_recovers(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Also tests the rollback in docs/operations.md."""
    before = applications(cluster, pages=2, models=1)
    cluster.deploy(before)
    old = set(cluster.replicas(WORDS, PAGE))
    broken = deepcopy(before)
    # No page replica can start with it, because the password is missing.
    broken["applications"][0]["args"]["login_user"] = "ada"
    call = Call(f"{cluster.url}/{WORDS}", "generate", ["The whale", 1, 1, "1", "1"])
    with crowd(call, USERS, tmp_path) as users:
        users.wait_until_all_are_answered()
        with pytest.raises(RuntimeError, match="PAGE_PASSWORD is not set"):
            cluster.deploy(broken)
        failed = time.time()
        time.sleep(SETTLED_SECONDS)
        left = set(cluster.replicas(WORDS, PAGE))
        assert left
        assert left < old
        began = time.monotonic()
        cluster.deploy(before)
        print(f"REPORT back in full strength after {time.monotonic() - began:.0f} s")
        back = time.time()
        time.sleep(SETTLED_SECONDS)
        outcomes = users.leave()
    assert not [each.failure for each in outcomes if each.failure]
    assert [each for each in outcomes if failed < each.began and each.ended < back]
    assert [each for each in outcomes if each.began > back]
    assert len(cluster.replicas(WORDS, PAGE)) == len(old)


@pytest.mark.long
def test_no_call_fails_when_a_new_version_is_deployed(cluster: Cluster, tmp_path: Path) -> None:
    cluster.deploy(applications(cluster, pages=2, models=2))
    before = set(cluster.replicas(WORDS, PAGE))
    call = Call(f"{cluster.url}/{WORDS}", "generate", ["The whale", 1, 1, "1", "1"])
    with crowd(call, USERS, tmp_path) as users:
        began = time.monotonic()
        time.sleep(SETTLED_SECONDS)
        # Different arguments for the application create a new version of all its deployments.
        cluster.deploy(applications(cluster, pages=2, models=2, seconds=2.1))
        print(f"REPORT the new version took {time.monotonic() - began - SETTLED_SECONDS:.0f} s")
        assert not before & set(cluster.replicas(WORDS, PAGE))
        time.sleep(max(SETTLED_SECONDS, LONG_SECONDS - (time.monotonic() - began)))
        outcomes = users.leave()
    print(f"REPORT {len(outcomes)} calls")
    assert not [each.failure for each in outcomes if each.failure]


def by_user(outcomes: list[Outcome]) -> list[list[Outcome]]:
    sessions = defaultdict[int, list[Outcome]](list)
    for outcome in outcomes:
        sessions[outcome.user].append(outcome)
    return list(sessions.values())


def process(outcome: Outcome) -> object:
    return outcome.answer[1]


def number(outcome: Outcome) -> int:
    return int(outcome.answer[2] or 0)
