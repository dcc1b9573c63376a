"""Starts the application from a Serve config, and says in one line what hinders it.

It does what `serve run` does, with checks before, a bounded wait for the page, and an exit status.
"""

import argparse
import logging
import os
import pkgutil
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    sys.exit("error: Ray Serve is not meant for Windows: start this in WSL, Windows' own Linux.")

import psutil
import ray
from ray import serve
from ray._common.utils import get_default_ray_temp_dir
from ray._private import services
from ray.serve import Application
from ray.serve._private import api
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve.config import gRPCOptions
from ray.serve.context import _get_global_client, _set_global_client
from ray.serve.schema import (
    ApplicationDetails,
    DeploymentDetails,
    ServeDeploySchema,
    ServeInstanceDetails,
)

from .base import StartError, behind_haproxy, explained
from .config import (
    LOOPBACK,
    Planned,
    check_deployments,
    check_host,
    check_port,
    check_resources,
    check_start,
    choose_port,
    page_url,
    plan,
    read_config,
)

PROXY_MIDDLEWARE = f"{__package__}.http.proxy:middleware"
OWN_ERROR = re.compile(rf"^{re.escape(__package__)}\.[\w.]+: ")
AUTHENTICATION = "ray._private.authentication.authentication_token_setup"
POLL_SECONDS = 0.5
REPORT_SECONDS = 5
CLUSTER_SECONDS = 10
LOOK_SECONDS = 2


@dataclass(frozen=True)
class Cluster:
    logs: str
    """A directory on the node of this process."""
    metrics: str
    """Where Prometheus finds them, of the same node."""


@dataclass(frozen=True)
class Bounds:
    """Seconds, after which the start is given up."""

    ray: float
    page: float


def main(import_path: str, checks: Sequence[Callable[[Any], None]] = ()) -> int:
    """Serves a config, previews the page, or does what else the command line says.

    Args:
        import_path: of `build`, which returns the application: `package.app:build`. By name,
            so that the preview can show an error in it, and what mends it.
        checks: your own, which are called with the settings before Ray starts on this machine.
            They raise a StartError whose message says what to do.
    """
    arguments = _arguments(import_path.partition(".")[0])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A process that a script starts in the background would ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if arguments.command == "preview":
            # Here, because the served page needs none of it.
            from .preview import preview

            preview(import_path, engine=arguments.engine, port=arguments.port)
        elif arguments.command != "serve":
            arguments.run(arguments)
        else:
            bounds = Bounds(arguments.ray_wait, arguments.wait)
            # Here, because the preview's first process does without Gradio.
            from .http.launch import refusing_launch

            with explained(), refusing_launch(import_path):
                build = pkgutil.resolve_name(import_path)
            run(build, checks, arguments.config, arguments.port, arguments.metrics_port, bounds)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.")
    return 0


def _arguments(package: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        f"python -m {package}",
        description="Starts the application until Ctrl-C. `serve` may be left out.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serving = commands.add_parser("serve", help="starts what a config describes, on Ray")
    serving.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=Path("config/local.yaml"),
        help="a Serve config (config/local.yaml)",
    )
    serving.add_argument("--port", type=int, help="another port than the config's")
    serving.add_argument(
        "--metrics-port", type=int, help="where Prometheus finds Ray's metrics (one that is free)"
    )
    serving.add_argument(
        "--wait", type=float, default=600, metavar="SECONDS", help="for the page (600)"
    )
    serving.add_argument(
        "--ray-wait",
        type=float,
        default=300,
        metavar="SECONDS",
        help="for each of Ray's processes, which take minutes on a busy machine (300)",
    )
    preview = commands.add_parser("preview", help="shows the page without Ray, and its changes")
    preview.set_defaults(engine=False)
    if find_spec(".engine", __package__):
        preview.add_argument(
            "--engine", action="store_true", help="with the engine, not with what stands in for it"
        )
    preview.add_argument("--port", type=int, default=7860, help="another than 7860")
    if find_spec(".votes", __package__):
        import_module(".votes.command", __package__).offer(commands)
    given = sys.argv[1:]
    if not given or given[0] not in (*commands.choices, "-h", "--help"):
        given = ["serve", *given]
    return parser.parse_args(given)


def run(
    build: Callable[..., Application],
    checks: Sequence[Callable[[Any], None]],
    path: Path,
    port: int | None,
    metrics_port: int | None,
    bounds: Bounds,
) -> None:
    """Serves what the config describes until it is interrupted.

    Raises:
        StartError: something in the config, or on this machine, hinders it.
    """
    config = read_config(path)
    if port is not None:
        choose_port(config, port)
    # On a cluster, files and resources may be elsewhere, or come later.
    alone = "RAY_ADDRESS" not in os.environ
    planned = plan(config, path, alone=alone)
    for application in planned:
        check_deployments(application, path)
        check_host(application, config.http_options.host, path)
    check_port(config.http_options.host, config.http_options.port, "--port")
    if metrics_port is not None:
        if not alone:
            raise StartError(
                "the metrics of a cluster have a port already. Leave --metrics-port out, or name "
                "it where the cluster starts: ray start --metrics-export-port."
            )
        check_port("0.0.0.0", metrics_port, "--metrics-port")  # noqa: S104
    if alone:
        trust_no_header(planned)
        check_resources(planned, path)
        for application in planned:
            check_start(application, checks if application.builder is build else ())
        prepare_haproxy(planned)
    else:
        check_cluster(os.environ["RAY_ADDRESS"])
    if ray.is_initialized():
        # A builder began one by the way, without what is set below.
        ray.shutdown()
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    # A second deployment that fails while Serve ends for the first would print its traceback.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # A lost HTTP proxy is noticed after three of these; with Serve's own 10 after 30 seconds.
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
    # Serve gives up after 5 seconds, and on a busy machine a proxy takes longer to start.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", PROXY_MIDDLEWARE)
    # Quicker than calls of actors from the proxy to a page.
    os.environ.setdefault("RAY_SERVE_PROXY_USE_GRPC", "1")
    # Serve's own 4 MB would refuse a page, or an answer, with a large table or picture in it.
    os.environ.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", str(2**31 - 1))
    print("Starting Ray", flush=True)
    with quiet(AUTHENTICATION, logging.ERROR):
        cluster = start_ray(alone, metrics_port, bounds.ray)
    print(f"Ray's logs are in {cluster.logs}, its metrics at {cluster.metrics}", flush=True)
    try:
        with served(config, cluster.logs, bounds.ray):
            wait_for_applications(time.monotonic() + bounds.page, cluster.logs)
            for application in planned:
                if application.config.route_prefix is None:
                    continue
                print(f"The page is up: {page_url(config, application.config)}", flush=True)
                if config.http_options.host in LOOPBACK and application.has_no_login:
                    print("Other machines reach it, without a login.", flush=True)
            print("Ctrl-C stops it.", flush=True)
            while True:
                signal.pause()
    finally:
        with ending():
            ray.shutdown()


def trust_no_header(planned: Sequence[Planned]) -> None:
    """Has Serve's proxy tell who sent a request, not who a header says it was.

    Where no login and no limit is by that, a page behind a proxy on this machine learns its
    visitor's address.
    """
    if any(application.trusts_addresses for application in planned):
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "")


def prepare_haproxy(planned: Sequence[Planned]) -> None:
    """Has Serve's HAProxy keep sessions with their replicas, if Serve is told to use it."""
    if not behind_haproxy():
        return
    # Here, because the preview's first process does without Serve's routers.
    from .http import proxy

    proxy.check_haproxy()
    for name, port in proxy.HAPROXY_PORTS.items():
        check_port("0.0.0.0", int(os.environ.get(name, port)), f"{name} as a variable")  # noqa: S104
    names = [application.config.name for application in planned]
    for name, value in proxy.haproxy_variables(names).items():
        # An empty one, as in the image, says nothing.
        os.environ[name] = os.environ.get(name) or value


def start_ray(alone: bool, metrics_port: int | None = None, seconds: float = 300) -> Cluster:
    """Returns a cluster of its own, or the one that RAY_ADDRESS names."""
    try:
        with (
            patience(seconds, alone=alone) as deadline,
            reports(lambda: f"Ray, whose logs are in {own_logs()}"),
        ):
            context = None
            while context is None:
                before = psutil.Process().children()
                try:
                    context = ray.init(
                        "local" if alone else None,
                        log_to_driver=False,
                        logging_level="WARNING",
                        _metrics_export_port=metrics_port,
                    )
                except ChildProcessError:
                    end_children(before)
                    if time.monotonic() > deadline:
                        raise
    # A node that takes too long to start is a bare Exception to Ray.
    except Exception as error:
        remedy = "look at RAY_ADDRESS and RAY_AUTH_TOKEN"
        if alone:
            remedy = f"see its logs in {own_logs()}, and raise --ray-wait if it is slow"
        reason = " ".join(str(error).split())
        raise StartError(f"Ray does not start; {remedy}: {reason}") from error
    info = context.address_info
    return Cluster(
        f"{info['session_dir']}/logs",
        f"http://{info['node_ip_address']}:{info['metrics_export_port']}/metrics",
    )


def own_logs() -> str:
    """Returns the directory of the Ray that this process starts, as soon as there is one."""
    every = Path(get_default_ray_temp_dir())
    return str(max(every.glob(f"session_*_{os.getpid()}/logs"), default=every))


@contextmanager
def reports(waiting_for: Callable[[], str]) -> Iterator[None]:
    """Says every few seconds what is waited for, also while Ray does not return from a call."""
    started, done = time.monotonic(), threading.Event()

    def report() -> None:
        while not done.wait(REPORT_SECONDS):
            waited = time.monotonic() - started
            print(f"{waited:.0f} s: waiting for {waiting_for()}", flush=True)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()


@contextmanager
def quiet(name: str, level: int) -> Iterator[None]:
    """Keeps a library's lines below a level off the terminal."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def ending() -> Iterator[None]:
    """Keeps off the terminal that processes are gone, as Ray tells of those that end themselves."""
    with redirect_stdout(StringIO()):
        yield


@contextmanager
def patience(seconds: float, *, alone: bool) -> Iterator[float]:
    """Has Ray wait so long for each of its processes, in place of the half minute of its own.

    Yields the end of it, of the clock that is monotonic. Has Ray's start raise a
    ChildProcessError where its raylet ended: it gives its agents 15 seconds, and on a busy
    machine they take longer.
    """
    wanted = {
        "RAY_gcs_server_port_wait_time_s": f"{seconds:.0f}",
        # Ray looks for the node as long, and Ctrl-C does not end that.
        "RAY_raylet_start_wait_time_s": f"{LOOK_SECONDS}",
        "RAY_agent_register_timeout_ms": f"{seconds * 1000:.0f}",
    }
    # Your own values stay, and the others hold for this start alone.
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    find, deadline = services.get_node, time.monotonic() + seconds

    def get_node(address: str, node: str) -> dict[str, Any]:
        while True:
            try:
                found: dict[str, Any] = find(address, node)
            except RuntimeError as error:
                # It is not there yet, or never will be.
                if time.monotonic() > deadline:
                    # Ray would go on after a RuntimeError.
                    raise TimeoutError(f"the raylet is not up after {seconds:.0f} s") from error
                if not alone:
                    raise
                if not raylet_lives():
                    raise ChildProcessError("the raylet ended; see raylet.out") from error
                time.sleep(POLL_SECONDS)
            else:
                return found

    # Ray asks for the node that it started in a loop whose bound cannot be set.
    services.get_node = get_node
    try:
        yield deadline
    finally:
        services.get_node = find
        for name in added:
            del os.environ[name]


def raylet_lives() -> bool:
    return any(
        child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE
        for child in psutil.Process().children()
    )


def end_children(but: Sequence[psutil.Process]) -> None:
    """Ends what a start of Ray that failed has left."""
    children = psutil.Process().children(recursive=True)
    kept = {*but, *(each for child in but for each in child.children(recursive=True))}
    left = [child for child in children if child not in kept]
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=CLUSTER_SECONDS)


def check_cluster(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "://" in address:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CLUSTER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise StartError(
            f"no Ray cluster answers at {address}. Correct RAY_ADDRESS, or unset it to start Ray "
            "on this machine."
        ) from error


@contextmanager
def served(config: ServeDeploySchema, logs: str, proxy_seconds: float = 60) -> Iterator[None]:
    """Does what `serve run` does with a config, and ends it, in whatever way the block is left."""
    try:
        with reports(lambda: "Serve"), quiet(SERVE_LOGGER_NAME, logging.WARNING):
            try:
                _deploy(config, proxy_seconds)
            except Exception as error:
                reason = " ".join(str(error).split())
                raise StartError(
                    f"Serve does not start; see the logs in {logs}/serve: {reason}"
                ) from error
        yield
    finally:
        with ending():
            serve.shutdown()


def _deploy(config: ServeDeploySchema, proxy_seconds: float) -> None:
    """Has Serve build the applications while its HTTP proxies start; Serve itself waits for them."""
    client = _get_global_client(raise_if_no_controller_running=False)
    options = config.http_options.model_dump()
    proxies: list[ray.ObjectRef[Any]] = []
    if client is None:
        controller, proxies = api._create_controller_and_proxy_refs(
            http_options=options,
            grpc_options=gRPCOptions(**config.grpc_options.model_dump()),
            global_logging_config=None,
            global_tracing_config=None,
            controller_options=config.controller_options,
            proxy_location=config.proxy_location,
        )
        client = ServeControllerClient(controller)
        _set_global_client(client)
    else:
        api._check_http_options(client, options)
    client.deploy_apps(config, _blocking=False)
    try:
        ray.get(proxies, timeout=proxy_seconds)
    except ray.exceptions.GetTimeoutError as error:
        raise TimeoutError(f"its HTTP proxies are not up after {proxy_seconds:.0f} s") from error


def wait_for_applications(deadline: float, logs: str) -> None:
    """Returns when every deployment answers."""
    started, waiting = time.monotonic(), "Serve"
    with reports(lambda: waiting):
        while True:
            details = ServeInstanceDetails(**_get_global_client().get_serve_details())
            applications = details.applications.values()
            if applications and all(app.status == "RUNNING" for app in applications):
                return
            for app in applications:
                if app.status == "DEPLOY_FAILED":
                    raise StartError(_cause(app))
            waited = time.monotonic() - started
            if time.monotonic() > deadline:
                raise StartError(
                    f"the page is not up after {waited:.0f} s. See the logs in {logs}/serve, or "
                    "raise --wait if it is slow."
                )
            deployments = [each for app in applications for each in app.deployments.values()]
            waiting = how_far(deployments) if deployments else "Serve"
            time.sleep(POLL_SECONDS)


def how_far(deployments: Sequence[DeploymentDetails]) -> str:
    """Returns which deployments are not up, whether they have a place yet, and how many are."""
    waiting = []
    for each in deployments:
        if each.status != "HEALTHY":
            placed = any(replica.node_id for replica in each.replicas)
            waiting.append(f"{each.name} ({'loading' if placed else 'scheduling'})")
    up = len(deployments) - len(waiting)
    return f"{', '.join(waiting) or 'Serve'}; {up} of {len(deployments)} up"


def _cause(app: ApplicationDetails) -> str:
    """The last line of the traceback of what failed: a deployment, or the builder."""
    messages = [
        deployment.message
        for deployment in app.deployments.values()
        if deployment.status == "DEPLOY_FAILED"
    ] or [app.message]
    lines = [str(message).strip().splitlines()[-1] for message in messages]
    # An error of the machinery's own is a message; the kind of any other says something.
    return " ".join(OWN_ERROR.sub("", line) for line in lines)
