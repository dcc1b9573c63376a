"""The load test of a project, run as in its workflow, with a stand-in for its model."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .cluster import PIECES, WORDS, Cluster, applications

FIRST_SECONDS = 1.0
"""From a question to the stand-in's first piece."""
REST_SECONDS = 0.5
"""At least this long from there to the last piece: the page shows some in a second."""
USER, PASSWORD, WRONG = "ada", "a wet whale", "a dry whale"
KEY = "b31f09c2d5a84e6f97c0"
SECONDS = 300
MARGIN = 0.02
"""The difference between two clocks."""


@pytest.fixture(scope="module")
def words(cluster: Cluster) -> str:
    """URL of a page that requires a login, and a key at `/v1`."""
    config = applications(cluster, pages=1, models=1, seconds=PIECES * FIRST_SECONDS)
    [page, _] = config["applications"]
    # Each answer is read over several streams.
    page["args"] |= {"login_user": USER, "openai_api": True, "stream_seconds": 0.6}
    page["runtime_env"]["env_vars"] |= {"PAGE_PASSWORD": PASSWORD, "API_KEYS": f"load:{KEY}"}
    config["applications"] = [page]
    cluster.deploy(config)
    return f"{cluster.url}/{WORDS}"


def test_the_load_test_passes_if_answers_start_in_time(
    cluster: Cluster, words: str, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    options = ("--users", "4", "--step-seconds", "3", "--json-file", str(report))
    result = load(cluster, words, *options, PAGE_USER=USER, PAGE_PASSWORD=PASSWORD)

    assert result.returncode == 0, result.stdout
    assert [step[:1] for step in steps(result.stdout)] == [(1,), (2,), (4,)]
    for users, late, begun, bad, ended in steps(result.stdout):
        assert ended >= users
        assert begun >= users
        assert late == bad == 0
    assert last_line(result.stdout).startswith(
        "PASSED: it can serve 4 users within the objectives: 99% of the answers begin within 10 s"
    )
    assert_right_seconds(report)


def test_the_load_test_of_the_api_sends_a_key(cluster: Cluster, words: str, tmp_path: Path) -> None:
    report = tmp_path / "report"
    programs = ("--locustfile", "tests/load/locustfile_api.py", "--json-file", str(report))
    result = load(cluster, words, *programs, "--users", "1", "--step-seconds", "1", API_KEY=KEY)

    assert result.returncode == 0, result.stdout
    assert last_line(result.stdout).startswith("PASSED: it can serve 1 user ")
    assert_right_seconds(report)


def test_the_load_test_fails_if_the_page_is_too_slow(cluster: Cluster, words: str) -> None:
    options = ("--users", "4", "--step-seconds", "1", "--begin-seconds", "0.1")
    result = load(cluster, words, *options, PAGE_USER=USER, PAGE_PASSWORD=PASSWORD)

    assert result.returncode == 1, result.stdout
    [(users, late, begun, bad, _)] = steps(result.stdout)
    assert (users, bad) == (1, 0)
    assert late == begun > 0
    assert last_line(result.stdout).startswith("FAILED: it can serve 0 users")
    assert "Goal: 4 users." in last_line(result.stdout)


def test_the_load_test_reports_a_failed_login_before_it_starts(
    cluster: Cluster, words: str
) -> None:
    result = load(cluster, words, "--users", "4", PAGE_USER=USER, PAGE_PASSWORD=WRONG)

    assert result.returncode == 2, result.stdout
    assert steps(result.stdout) == []
    assert re.match(
        r"Visitor cannot use http\S+: /login responds with 401", last_line(result.stdout)
    )


def load(
    cluster: Cluster, host: str, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs the load test in the project, and asserts that it prints no secret."""
    command = ("uv", "run", "--quiet", "--only-group", "load", "locust", "--host", host, *options)
    result = subprocess.run(
        command,
        cwd=cluster.project.root,
        env={**cluster.project.env(), **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(result.stdout, result.stderr)
    for secret in (PASSWORD, WRONG, KEY):
        assert secret not in result.stdout + result.stderr
    return result


def steps(output: str) -> list[tuple[int, ...]]:
    """Returns the users and the late, begun, bad and ended answers of each step."""
    step = r"(?m)^(\d+) users?: (\d+) of (\d+) answers began late, (\d+) of (\d+) failed$"
    return [tuple(map(int, found)) for found in re.findall(step, output)]


def last_line(output: str) -> str:
    return output.rstrip().rpartition("\n")[2]


def assert_right_seconds(report: Path) -> None:
    begin, end = (seconds(report, kind) for kind in ("begin", "end"))
    assert begin >= FIRST_SECONDS - MARGIN
    assert end >= begin + REST_SECONDS


def seconds(report: Path, kind: str) -> float:
    """Returns the minimum from Locust's own report."""
    [path] = report.parent.glob(f"{report.name}*")
    said: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    [least] = [each["min_response_time"] for each in said if each["method"] == kind]
    return float(least) / 1000
