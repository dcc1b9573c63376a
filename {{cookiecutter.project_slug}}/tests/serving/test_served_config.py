"""A config with Serve's own options, served by the project's command."""

import re
from pathlib import Path

import httpx2
import openai
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
import json

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from ray import serve

web = FastAPI()

@serve.deployment(ray_actor_options={"num_cpus": 0.1})
@serve.ingress(web)
class Whaler:
    def __init__(self, args):
        self.args = args

    @web.get("/")
    def read(self):
        return self.args

    @web.post("/v1/chat/completions")
    def answer(self, asked: dict):
        choices = [{"delta": {"content": "There she "}}, {"delta": {"content": "blows"}}]
        choices.append({"delta": {}, "finish_reason": "stop"})
        chunks = [json.dumps({"choices": [choice]}) for choice in choices]
        lines = [f"data: {chunk}\\n\\n" for chunk in [*chunks, "[DONE]"]]
        return StreamingResponse(iter(lines), media_type="text/event-stream")

def build(args: dict):
    return Whaler.bind(args)
"""
"""Implements the part of OpenAI's protocol that `ray.serve.llm:build_openai_app` has."""
WORD = r"[\w-]+ \((loading|scheduling)\)"
TERMINAL = re.compile(
    rf"""Starting Ray
(\d+ s: waiting for Ray, whose logs are in \S+
)*Ray's logs are in \S+, its metrics at \S+
(\d+ s: waiting for (Serve|{WORD}(, {WORD})*)(; \d of \d up)?
)*The page is up: \S+
The page is up: \S+
Press Ctrl-C to stop\.
(Waiting up to \d+ s for running answers to finish\. Press Ctrl-C to stop at once\.
)?Stopped\.
"""
)


@pytest.mark.served
@pytest.mark.timeout(900)
def test_a_config_with_custom_settings_variables_and_a_second_application_is_served(
    tmp_path: Path, tiny_decoder: Path
) -> None:
    for name, text in {"ours": OURS, "elsewhere": ELSEWHERE}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / f"team_{name}.py").write_text(text)
    port = free_port()
    config = config_of(tiny_decoder, port)
    [application] = config["applications"]
    application["import_path"] = "team_ours:build"
    application["args"] |= {"motto": "Ahoy", "login_user": "ada", "openai_api": True}
    whaler = {"name": "whaler", "source": "whale", "base_url": f"http://127.0.0.1:{port}/second/v1"}
    application["args"]["models"] = [*application["args"]["models"], whaler]
    path = str(tmp_path / "ours")
    variables = {"PAGE_PASSWORD": "whale", "API_KEYS": "ada:harpoon", "PYTHONPATH": path}
    application["runtime_env"] = {"env_vars": variables}
    second = {
        "name": "second",
        "route_prefix": "/second",
        "import_path": "team_elsewhere:build",
        "args": {"models": "of another kind"},
        # The project's environment does not contain that module.
        "runtime_env": {"working_dir": f"local://{tmp_path / 'elsewhere'}"},
    }
    config["applications"].append(second)
    with served(config, tmp_path, {"PYTHONPATH": path}) as pages:
        page, other = pages.addresses
        assert httpx2.get(page).status_code == 401
        shown = httpx2.get(page, auth=("ada", "whale"), follow_redirects=True)
        assert "Ahoy" in shown.text
        assert httpx2.get(other, follow_redirects=True).json() == second["args"]
        client = openai.OpenAI(base_url=f"{page}v1", api_key="harpoon", max_retries=0)
        asked = client.chat.completions.create(
            model="whaler", messages=[{"role": "user", "content": "What do you see?"}]
        )
        assert asked.choices[0].message.content == "There she blows"
    printed = (tmp_path / "log").read_text(encoding="utf-8")
    assert TERMINAL.fullmatch(printed), printed
