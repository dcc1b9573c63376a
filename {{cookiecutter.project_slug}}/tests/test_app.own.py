"""The application on Ray, with any page. Change it with `app.py`."""

import httpx
import pytest
from ray import serve

from {{ cookiecutter.__package }}.app import Settings, build


def test_requests_reach_the_page() -> None:
    handle = serve.run(build(Settings()), name="graph", _local_testing_mode=True)
    assert handle.deployment_name == "GradioServer"


@pytest.mark.served
def test_on_ray_two_replicas_answer(served_page: str) -> None:
    answers = [httpx.get(served_page, timeout=60) for _ in range(10)]
    # 401 comes from the login, if there is one.
    assert {answer.status_code for answer in answers} <= {200, 401}
    cookies = [cookie for answer in answers for cookie in answer.cookies.values()]
    assert len({cookie.partition(".")[0] for cookie in cookies}) == 2


@pytest.mark.served
def test_on_ray_a_session_stays_on_its_replica(served_page: str) -> None:
    with httpx.Client(timeout=60) as session:
        first = session.get(served_page)
        assert first.cookies
        for _ in range(10):
            assert not session.get(served_page).cookies
