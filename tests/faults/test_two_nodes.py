"""A proxy or a whole node dies behind a load balancer while 20 users call the page."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..generated.project import Project
from .cluster import applications, named
from .fault import assert_none_fails, kill_under_load
from .nodes import TwoNodes, two_nodes

NOTICED_SECONDS = 15

pytestmark = pytest.mark.makes_networks


@pytest.fixture(scope="module")
def nodes(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_nodes(project, tmp_path_factory.mktemp("nodes")) as nodes:
        nodes.cluster.deploy(applications(nodes.cluster, pages=2, models=2))
        yield nodes


def test_behind_a_load_balancer_calls_after_a_lost_proxy_succeed(
    nodes: TwoNodes, tmp_path: Path
) -> None:
    [proxy] = named("ray::ProxyActor", nodes.other)
    fault = kill_under_load(nodes.cluster, tmp_path, lambda _: [proxy])
    assert_none_fails(fault.after())
    assert [each for each in fault.in_flight() if each.failure]


def test_after_a_lost_node_the_other_runs_all_replicas(nodes: TwoNodes, tmp_path: Path) -> None:
    processes = [nodes.other, *nodes.other.children(recursive=True)]
    lost = nodes.cluster.pids() & {process.pid for process in processes}
    assert lost
    fault = kill_under_load(nodes.cluster, tmp_path, lambda _: processes, NOTICED_SECONDS)
    # Until Ray notices, answers wait; the end of an old stream may end the session's next one.
    assert_none_fails(fault.after(NOTICED_SECONDS))
    left = {process.pid for process in nodes.cluster.head.children(recursive=True)}
    assert nodes.cluster.pids() <= left
