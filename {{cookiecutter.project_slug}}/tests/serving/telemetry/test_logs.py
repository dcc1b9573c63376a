"""The parts of a request that are logged."""

import io
import logging
import time

import httpx2
import pytest

from {{ cookiecutter.__package }}.serving.telemetry.logs import (
    MAX_NAME_LENGTH,
    RequestIdFilter,
    clean,
    where,
)

from ...support.servers import Served

REPORT_SECONDS = 60
FORGED = "a\tb\x1b[31m'; drop " + "x" * 100_000


@pytest.mark.parametrize("name", ["", "7c9e6679-7425-40de-944b-e07fc1f90ae7", "web:1.2_3"])
def test_a_valid_request_id_is_kept(name: str) -> None:
    assert clean(name) == name


def test_a_forged_request_id_is_sanitized() -> None:
    assert clean(FORGED).startswith("ab31mdropxxx")
    assert len(clean(FORGED)) <= MAX_NAME_LENGTH
    assert clean("a\nlevel=ERROR\r\u2028\u202e") == "alevelERROR"


def test_request_ids_in_serves_log_lines_are_sanitized() -> None:
    log, lines = logging.getLogger("test_logs"), io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(logging.Formatter("%(request_id)s %(message)s"))
    handler.addFilter(RequestIdFilter())
    log.addHandler(handler)
    log.warning("answer", extra={"request_id": FORGED})
    assert len(lines.getvalue()) < 2 * MAX_NAME_LENGTH


def test_an_error_is_logged_with_only_its_type_and_location() -> None:
    try:
        int("a secret")
    except ValueError as error:
        described = where(error)
    assert described.startswith("ValueError at ")
    assert "test_logs.py:" in described
    assert "secret" not in described


@pytest.mark.served
def test_no_log_of_ray_contains_a_forged_request_id(words: str, served_pages: Served) -> None:
    forged = "whale-" + "x" * 20_000
    headers = {"x-request-id": forged}
    body = {"data": ["The whale", 1, 1]}
    answer = httpx2.post(f"{words}/gradio_api/run/generate", json=body, headers=headers, timeout=60)
    assert answer.status_code < 500
    # The proxy logs its line after the answer.
    deadline = time.monotonic() + REPORT_SECONDS
    logs = [""]
    while not any("whale-" + "x" * 58 in log for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.2)
        logs = [
            path.read_text()
            for kind in ("proxy", "replica")
            for path in (served_pages.logs / "serve").glob(f"{kind}_*")
        ]
    assert not [log for log in logs if "x" * 59 in log]
