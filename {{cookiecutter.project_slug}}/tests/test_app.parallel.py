"""The graph, without Ray's processes: change it with `app.py`."""

from ray import serve

from {{ cookiecutter.__package }}.app import Settings, build


def test_the_page_is_what_requests_meet() -> None:
    handle = serve.run(build(Settings()), name="graph", _local_testing_mode=True)
    assert handle.deployment_name == "GradioServer"
