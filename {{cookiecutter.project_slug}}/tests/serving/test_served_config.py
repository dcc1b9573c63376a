"""A config as Ray's users write it, served by the project's own command."""

from pathlib import Path

import httpx2
import pytest

from ..support.servers import config_of, free_port, served

OURS = """
from {{ cookiecutter.__package }}.app import Settings, build as base

class OurSettings(Settings):
    motto: str

def build(settings: OurSettings):
    return base(settings.model_copy(update={"title": settings.motto}))
"""
ELSEWHERE = """
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Greeter:
    def __init__(self, args):
        self.args = args

    def __call__(self, request):
        return self.args

def build(args: dict):
    return Greeter.bind(args)
"""


@pytest.mark.served
@pytest.mark.timeout(900)
def test_a_team_s_settings_variables_and_second_application(
    tmp_path: Path, tiny_decoder: Path
) -> None:
    for name, text in {"ours": OURS, "elsewhere": ELSEWHERE}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / f"team_{name}.py").write_text(text)
    config = config_of(tiny_decoder, free_port())
    [application] = config["applications"]
    application["import_path"] = "team_ours:build"
    application["args"] |= {"motto": "Ahoy", "login_user": "ada"}
    path = str(tmp_path / "ours")
    application["runtime_env"] = {"env_vars": {"PAGE_PASSWORD": "whale", "PYTHONPATH": path}}
    second = {
        "name": "second",
        "route_prefix": "/second",
        "import_path": "team_elsewhere:build",
        "args": {"models": "of another kind"},
        # The project's own environment does not have that module.
        "runtime_env": {"working_dir": f"local://{tmp_path / 'elsewhere'}"},
    }
    config["applications"].append(second)
    with served(config, tmp_path, {"PYTHONPATH": path}) as pages:
        page, other = pages.addresses
        assert httpx2.get(page).status_code == 401
        shown = httpx2.get(page, auth=("ada", "whale"), follow_redirects=True)
        assert "Ahoy" in shown.text
        assert httpx2.get(other, follow_redirects=True).json() == second["args"]
