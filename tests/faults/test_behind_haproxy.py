"""What becomes of sessions, once more behind Serve's HAProxy in place of its own proxy."""

import shlex
import subprocess
from collections.abc import Iterator

import pytest

from ..generated.project import Project, free_port
from .cluster import COUNTING, WORDS, Cluster, ray_cluster, with_variables
from .test_deploys import test_another_page_replica_comes_and_goes_and_only_its_sessions_move
from .test_lost_processes import (
    test_a_lost_page_replica_fails_its_calls_in_flight_and_no_other,
    two_of_each,
)

__all__ = [
    "test_a_lost_page_replica_fails_its_calls_in_flight_and_no_other",
    "test_another_page_replica_comes_and_goes_and_only_its_sessions_move",
    "two_of_each",
]


@pytest.fixture(scope="module")
def cluster(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """As docs/operations.md of the project tells to start it."""
    python = str(project.environment / "bin" / "python")
    exports = subprocess.run(
        [python, "-m", f"{project.package}.serving.http.haproxy", WORDS, COUNTING],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    variables = dict(each.split("=", 1) for each in shlex.split(exports) if each != "export")
    ports = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("STATS", "METRICS")}
    behind_haproxy = with_variables(project, **variables, **ports)
    with ray_cluster(behind_haproxy, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
