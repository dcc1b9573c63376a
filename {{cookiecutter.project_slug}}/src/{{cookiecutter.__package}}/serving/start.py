"""Starts the application from a Serve config, and says in one line what hinders it.

It is `serve run` with checks before, a bounded wait for the page, and an exit status.
"""

import argparse
import errno
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_type_hints

if sys.platform == "win32":
    sys.exit("error: Ray Serve is not meant for Windows: start this in WSL, Windows' own Linux.")

import ray
import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ray import serve
from ray.serve import Application
from ray.serve.schema import (
    ApplicationStatusOverview,
    DeploymentSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from .engine.weights import locate
from .http.login import read_credentials
from .pages.settings import PageSettings
from .protocol import LoginError, ModelError, StartError

POLL_SECONDS = 0.5
REPORT_SECONDS = 5
STOP_SECONDS = 30
CLUSTER_SECONDS = 10
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104


@dataclass(frozen=True)
class Cluster:
    address: str
    logs: str
    """A directory on the node of this process."""
    metrics: str
    """Where Prometheus finds them, of the same node."""


def main(import_path: str) -> int:
    """Starts what `build` binds, or shows it: `import_path` names it, `package.app:build`."""
    if sys.argv[1:2] == ["preview"]:
        return _preview(import_path)
    build: Callable[..., Application] = pkgutil.resolve_name(import_path)
    arguments = _arguments(build)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A process that a script starts in the background would ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run(build, arguments.config, arguments.port, arguments.metrics_port, arguments.wait)
    except (StartError, ModelError, LoginError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.")
    return 0


def _preview(import_path: str) -> int:
    # Here, because only who changes the page needs it.
    from .preview import preview

    parser = argparse.ArgumentParser(
        f"python -m {import_path.partition('.')[0]} preview",
        description="Shows the page without Ray, and follows each change of it, until Ctrl-C.",
    )
    parser.add_argument(
        "--engine", action="store_true", help="with the models, not with what stands in for them"
    )
    parser.add_argument("--port", type=int, default=7860, help="another than 7860")
    arguments = parser.parse_args(sys.argv[2:])
    try:
        preview(import_path, engine=arguments.engine, port=arguments.port)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _arguments(build: Callable[..., Application]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        f"python -m {build.__module__.partition('.')[0]}",
        description="Starts the application until Ctrl-C.",
    )
    parser.add_argument(
        "config", nargs="?", type=Path, default=Path("config/local.yaml"), help="a Serve config"
    )
    parser.add_argument("--port", type=int, help="another port than the config's")
    parser.add_argument(
        "--metrics-port", type=int, help="where Prometheus finds Ray's metrics (one that is free)"
    )
    parser.add_argument(
        "--wait", type=float, default=600, metavar="SECONDS", help="for the page (600)"
    )
    return parser.parse_args()


def run(
    build: Callable[..., Application],
    path: Path,
    port: int | None,
    metrics_port: int | None,
    wait_seconds: float,
) -> None:
    """Serves what the config describes until it is interrupted.

    Raises:
        StartError, ModelError, LoginError: something in the config, or on this machine, hinders it.
    """
    config = read_config(path)
    if port is not None:
        choose_port(config, port)
    settings = read_settings(build, config, path)
    check_port(config.http_options.host, config.http_options.port, "--port")
    # On a cluster, files and resources may be elsewhere, or come later.
    alone = "RAY_ADDRESS" not in os.environ
    if metrics_port is not None:
        if not alone:
            raise StartError(
                "the metrics of a cluster have a port already. Leave --metrics-port out, or name "
                "it where the cluster starts: ray start --metrics-export-port."
            )
        check_port(EVERY_ADDRESS[0], metrics_port, "--metrics-port")
    if alone:
        for application in settings:
            if application.login_user is not None:
                read_credentials(application.login_user)
            for model in application.models:
                if model.base_url is None:
                    locate(model)
    print("Starting Ray", flush=True)
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    # A second model that fails while Serve ends for the first would print its traceback.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # A lost HTTP proxy is noticed after three of these; with Serve's own 10 after 30 seconds.
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
    # Serve gives up after 5 seconds, and on a busy machine a proxy takes longer to start.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    cluster = start_ray(alone, metrics_port)
    print(f"Ray's logs are in {cluster.logs}, its metrics at {cluster.metrics}", flush=True)
    try:
        if alone:
            check_resources(config)
        with serve_run(config, cluster.address) as process:
            wait_for_applications(process, time.monotonic() + wait_seconds)
            for application, each in zip(config.applications, settings, strict=True):
                print(f"The page is up: {page_url(config, application)}", flush=True)
                if config.http_options.host in EVERY_ADDRESS and each.login_user is None:
                    print("Other machines reach it, without a login.", flush=True)
            print("Ctrl-C stops it.", flush=True)
            raise StartError(f"serve run ended with exit status {process.wait()}")
    finally:
        ray.shutdown()


def start_ray(alone: bool, metrics_port: int | None = None) -> Cluster:
    """Returns a cluster of its own, or the one that RAY_ADDRESS names."""
    if not alone:
        check_cluster(os.environ["RAY_ADDRESS"])
    try:
        context = ray.init(
            "local" if alone else None,
            log_to_driver=False,
            logging_level="WARNING",
            _metrics_export_port=metrics_port,
        )
    # A node that takes too long to start is a bare Exception to Ray.
    except Exception as error:
        remedy = "see its logs" if alone else "look at RAY_ADDRESS and RAY_AUTH_TOKEN"
        reason = " ".join(str(error).split())
        raise StartError(f"Ray does not start; {remedy}: {reason}") from error
    info = context.address_info
    return Cluster(
        info["gcs_address"],
        f"{info['session_dir']}/logs",
        f"http://{info['node_ip_address']}:{info['metrics_export_port']}/metrics",
    )


def check_cluster(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "://" in address:
        return
    try:
        socket.create_connection((host, int(port)), CLUSTER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise StartError(
            f"no Ray cluster answers at {address}. Correct RAY_ADDRESS, or unset it to start Ray "
            "on this machine."
        ) from error


def read_config(path: Path) -> ServeDeploySchema:
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = ServeDeploySchema.model_validate(written)
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}. Name a Serve config.") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise StartError(f"{path} is no YAML: line {line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StartError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise StartError(f"{path}: {_reasons(error, ())}") from error
    # Serve drops names that it does not know, misspelt ones among them.
    for name in _dropped(written, config.model_dump(exclude_unset=True)):
        raise StartError(f"{path}: {name}: there is no such name; check its spelling")
    return config


def _dropped(written: object, kept: object, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(written, dict) and isinstance(kept, dict):
        for name, value in written.items():
            if name in kept:
                yield from _dropped(value, kept[name], (*path, str(name)))
            else:
                yield ".".join((*path, str(name)))
    elif isinstance(written, list) and isinstance(kept, list):
        for position, values in enumerate(zip(written, kept, strict=False)):
            yield from _dropped(*values, (*path, str(position)))


def read_settings(
    build: Callable[..., Application], config: ServeDeploySchema, path: Path
) -> list[PageSettings]:
    settings = get_type_hints(build)["settings"]
    try:
        return [settings.model_validate(application.args) for application in config.applications]
    except ValidationError as error:
        raise StartError(f"{path}: {_reasons(error, ('args',))}") from error


def _reasons(error: ValidationError, inside: tuple[str, ...]) -> str:
    details = error.errors()
    # A list is said to be empty when the only fault is within its first item.
    whole = {detail["loc"][:end] for detail in details for end in range(len(detail["loc"]))}
    return "; ".join(
        f"{'.'.join(map(str, (*inside, *detail['loc'])))}: {_reason(detail)}"
        for detail in details
        if detail["loc"] not in whole
    )


def _reason(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return "there is no such name; check its spelling"
    return detail["msg"].removeprefix("Value error, ")


def choose_port(config: ServeDeploySchema, port: int) -> None:
    # Set as a whole, because what a config does not set is left out for `serve run`.
    config.http_options = config.http_options.model_copy(update={"port": port})


def check_port(host: str, port: int, option: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError as error:
            raise StartError(f"port {port} is out of range; choose one below 65536.") from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise StartError(f"{host}:{port} cannot be used: {error.strerror}") from error
            raise StartError(
                f"port {port} is in use. Stop what uses it, or add {option} with a free one."
            ) from error


def check_resources(config: ServeDeploySchema) -> None:
    """Serve itself would wait for ever for what this machine does not have."""
    asked: dict[str, float] = {"CPU": 0, "GPU": 0}
    for application in config.applications:
        for deployment in application.deployments:
            options = deployment.model_dump(exclude_unset=True).get("ray_actor_options", {})
            replicas = _replicas_at_start(deployment)
            asked["CPU"] += replicas * options.get("num_cpus", 0)
            asked["GPU"] += replicas * options.get("num_gpus", 0)
    there = ray.cluster_resources()
    lacking = [
        f"{amount:g} {resource}s and this machine has {there.get(resource, 0):g}"
        for resource, amount in asked.items()
        if amount > there.get(resource, 0) + 1e-6
    ]
    if lacking:
        raise StartError(
            f"the config asks for {', for '.join(lacking)}. Lower num_cpus, num_gpus or "
            "num_replicas in the config, or join a larger cluster with RAY_ADDRESS."
        )


def _replicas_at_start(deployment: DeploymentSchema) -> int:
    chosen = deployment.model_dump(exclude_unset=True)
    if autoscaling := chosen.get("autoscaling_config"):
        return int(autoscaling.get("initial_replicas") or autoscaling.get("min_replicas", 1))
    replicas = chosen.get("num_replicas", 1)
    return 1 if replicas == "auto" else int(replicas)


@contextmanager
def serve_run(config: ServeDeploySchema, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `serve run` with the config and ends it, in whatever way the block is left."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.serve.scripts", "run", str(file), "--address", address]
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_applications(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Returns when every deployment answers; says every few seconds which ones do not."""
    started = reported = time.monotonic()
    while True:
        applications = serve.status().applications.values()
        if applications and all(app.status == "RUNNING" for app in applications):
            return
        for app in applications:
            if app.status == "DEPLOY_FAILED":
                raise StartError(_cause(app))
        if process.poll() is not None:
            raise StartError(f"serve run ended with exit status {process.returncode}")
        now = time.monotonic()
        if now > deadline:
            raise StartError(f"the page is not up after {now - started:.0f} s; see the log above")
        if now - reported > REPORT_SECONDS:
            reported = now
            waiting = [
                name
                for app in applications
                for name, deployment in app.deployments.items()
                if deployment.status != "HEALTHY"
            ]
            print(f"{now - started:.0f} s: waiting for {', '.join(waiting) or 'Serve'}", flush=True)
        time.sleep(POLL_SECONDS)


def _cause(app: ApplicationStatusOverview) -> str:
    """The last line of the traceback of what failed: a deployment, or the builder."""
    messages = [
        deployment.message
        for deployment in app.deployments.values()
        if deployment.status == "DEPLOY_FAILED"
    ] or [app.message]
    return " ".join(str(message).strip().splitlines()[-1] for message in messages)


def page_url(config: ServeDeploySchema, application: ServeApplicationSchema) -> str:
    http = config.http_options
    host = "127.0.0.1" if http.host in EVERY_ADDRESS else http.host
    return f"http://{host}:{http.port}{application.route_prefix}"
