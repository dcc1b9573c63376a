"""The start where something hinders it: one line that says what, and exit status 1."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from socket import create_server

import pytest
import ray
import yaml

from {{ cookiecutter.__package }}.serving.protocol import StartError
from {{ cookiecutter.__package }}.serving.start import choose_port, read_config, start_ray

from ..support.loopback_hub import loopback_hub
from ..support.servers import config_of, free_port

# Before anything else: what an import does there is not ours.
ON_WINDOWS = """
import runpy, sys
sys.platform = "win32"
sys.modules["ray"] = None
runpy.run_module("{{ cookiecutter.__package }}", run_name="__main__")
"""


def start(
    config: Path, *options: str, env: Mapping[str, str] | None = None, seconds: float = 120
) -> str:
    """Returns what it says after `error:`."""
    module = "{{ cookiecutter.__package }}"
    result = subprocess.run(
        [sys.executable, "-m", module, str(config), *options],
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    return line.removeprefix("error: ")


def written(directory: Path, config: object) -> Path:
    path = directory / "config.yaml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return path


def test_windows_is_told_where_it_runs() -> None:
    result = subprocess.run(
        [sys.executable, "-c", ON_WINDOWS], capture_output=True, text=True, check=False
    )

    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "WSL" in line


def test_a_config_that_does_not_exist(tmp_path: Path) -> None:
    assert "No such file" in start(tmp_path / "config.yaml")


def test_a_config_that_is_no_yaml(tmp_path: Path) -> None:
    assert "is no YAML: line 2: expected" in start(written(tmp_path, "applications: [\n"))


def test_an_option_of_serve_that_is_misspelt(tmp_path: Path) -> None:
    config = config_of(tmp_path, free_port())
    config["applications"][0]["deployments"][0]["num_replica"] = 2
    line = start(written(tmp_path, config))
    assert "applications.0.deployments.0.num_replica: there is no such name" in line


def test_an_option_of_serve_that_is_out_of_range(tmp_path: Path) -> None:
    config = config_of(tmp_path, free_port())
    config["applications"][0]["deployments"][0]["num_replicas"] = 0
    line = start(written(tmp_path, config))
    assert "num_replicas" in line
    assert "Input should be greater than 0" in line


def test_a_port_that_cannot_be(tmp_path: Path) -> None:
    config = written(tmp_path, config_of(tmp_path, free_port()))
    assert "port 99999 is out of range" in start(config, "--port", "99999")


def test_a_port_is_chosen_also_where_the_config_names_none(tmp_path: Path) -> None:
    config = config_of(tmp_path, free_port())
    del config["http_options"]
    read = read_config(written(tmp_path, config))
    choose_port(read, 8123)
    assert read.model_dump(exclude_unset=True)["http_options"] == {"port": 8123}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"modles": []}, "args.modles: there is no such name; check its spelling"),
        (
            {"models": [{"name": "a", "source": "b", "topp": 1}]},
            "args.models.0.topp: there is no such name; check its spelling",
        ),
        ({"limits": {"new_tokens": 0}}, "args.limits.new_tokens: Input should be greater than"),
        (
            {"models": [{"name": "a", "source": "b", "top_p": "all"}]},
            "args.models.0.top_p: Input should be a valid number",
        ),
    ],
)
def test_a_wrong_argument(arguments: dict[str, object], reason: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, free_port())
    config["applications"][0]["args"] = arguments
    line = start(written(tmp_path, config))
    assert reason in line
    assert line.count("args.") == 1


def test_a_port_in_use(tmp_path: Path, tiny_decoder: Path) -> None:
    with create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = written(tmp_path, config_of(tiny_decoder, port))
        assert f"port {port} is in use. Stop what uses it" in start(config)


def test_a_port_for_metrics_that_is_in_use(tmp_path: Path, tiny_decoder: Path) -> None:
    with create_server(("0.0.0.0", 0)) as other:  # noqa: S104
        port = str(other.getsockname()[1])
        config = written(tmp_path, config_of(tiny_decoder, free_port()))
        assert "or add --metrics-port with a free one" in start(config, "--metrics-port", port)


def test_a_port_for_the_metrics_of_a_cluster(tmp_path: Path, tiny_decoder: Path) -> None:
    config = written(tmp_path, config_of(tiny_decoder, free_port()))
    cluster = {"RAY_ADDRESS": "127.0.0.1:6379"}
    line = start(config, "--metrics-port", "8080", env=cluster)
    assert "ray start --metrics-export-port" in line


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    config = written(tmp_path, config_of(tmp_path, free_port()))
    assert f"{str(tmp_path)!r} has no config.json" in start(config)


def test_a_model_that_the_hub_does_not_know(tmp_path: Path) -> None:
    config = written(tmp_path, config_of("org/unknown", free_port()))
    with loopback_hub(tmp_path) as endpoint:
        line = start(config, env={"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")})
    assert "'org/unknown' is unknown to the hub" in line


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    config = written(tmp_path, config_of("org/model", free_port()))
    endpoint = f"http://127.0.0.1:{free_port()}"
    line = start(config, env={"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")})
    assert "the hub cannot be reached" in line


@pytest.mark.served
def test_a_login_without_a_password(tmp_path: Path, tiny_decoder: Path) -> None:
    config = config_of(tiny_decoder, free_port())
    config["applications"][0]["args"]["login_user"] = "ada"
    line = start(written(tmp_path, config), env={"PAGE_PASSWORD": ""})
    assert "PAGE_PASSWORD is not set. Set it" in line


def test_more_than_the_machine_has(tmp_path: Path, tiny_decoder: Path) -> None:
    config = config_of(tiny_decoder, free_port())
    asked = {"num_cpus": 99, "num_gpus": 99}
    config["applications"][0]["deployments"][0]["ray_actor_options"] = asked
    line = start(written(tmp_path, config))
    assert re.search(r"asks for 99(\.\d)? CPUs and this machine has \d", line)
    assert re.search(r"for 99 GPUs and this machine has \d", line)


def test_a_cluster_that_is_not_there(tmp_path: Path, tiny_decoder: Path) -> None:
    config = written(tmp_path, config_of(tiny_decoder, free_port()))
    line = start(config, env={"RAY_ADDRESS": f"127.0.0.1:{free_port()}"})
    assert "Correct RAY_ADDRESS" in line


def test_ray_that_takes_too_long_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(*_: object, **__: object) -> None:
        raise Exception("The node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(StartError, match=r"see its logs: The node timed out during startup\."):
        start_ray(alone=True)


@pytest.mark.served
@pytest.mark.timeout(720)
def test_a_model_that_fails_to_load_in_its_replica(tmp_path: Path, tiny_decoder: Path) -> None:
    for file in tiny_decoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    # Ray and every replica start first, on a busy machine in minutes.
    line = start(written(tmp_path, config_of(tmp_path, free_port())), seconds=600)
    assert f"{str(tmp_path)!r} cannot be loaded" in line
