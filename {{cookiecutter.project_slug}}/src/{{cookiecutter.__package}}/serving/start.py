"""Starts the application from a Serve config, and explains in one line why it cannot start.

It works like `serve run`, with checks before the start, a time limit and an exit status.
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
    sys.exit(
        "error: Ray Serve is not meant for Windows. Start this in WSL, the Windows Subsystem for "
        "Linux."
    )

import psutil
import ray
from ray import serve
from ray._common.utils import get_default_ray_temp_dir
from ray._private import services
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve._private import api
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.constants import SERVE_LOGGER_NAME
from ray.serve.config import gRPCOptions
from ray.serve.context import _get_global_client, _set_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import (
    ApplicationDetails,
    DeploymentDetails,
    ServeDeploySchema,
    ServeInstanceDetails,
)

from .base import (
    API_DEPLOYMENT,
    PAGE_DEPLOYMENT,
    StartError,
    behind_haproxy,
    explain_pickling_errors,
)
from .config import (
    LOOPBACK,
    Planned,
    check_deployments,
    check_host,
    check_port,
    check_resources,
    check_start,
    page_url,
    plan,
    read_config,
    set_port,
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
    """The log directory, on this process's node."""
    metrics: str
    """The address of this node's metrics for Prometheus."""


@dataclass(frozen=True)
class Bounds:
    """Time limits of the start, in seconds."""

    ray: float
    page: float


def main(import_path: str, checks: Sequence[Callable[[Any], None]] = ()) -> int:
    """Serves a config, previews the page, or runs another command from the command line.

    Args:
        import_path: the import path of `build`, which returns the application:
            `package.app:build`. It is not imported yet, so that the preview can show errors in it
            and load it again.
        checks: your own checks, called with the settings before Ray starts on this machine. Raise
            a StartError whose message says what to do.
    """
    arguments = _arguments(import_path.partition(".")[0])
    end_on_sigterm()
    # Otherwise, a process that a script starts in the background ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if arguments.command == "preview":
            # Imported here because the served page does not need it.
            from .preview import preview

            preview(import_path, engine=arguments.engine, port=arguments.port)
        elif arguments.command != "serve":
            arguments.run(arguments)
        else:
            bounds = Bounds(arguments.ray_wait, arguments.wait)
            # Imported here because the preview's first process does not load Gradio.
            from .http.launch import forbid_launch

            with explain_pickling_errors(), forbid_launch(import_path):
                build = pkgutil.resolve_name(import_path)
            run(build, checks, arguments.config, arguments.port, arguments.metrics_port, bounds)
    except StartError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.")
    return 0


def end_on_sigterm() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def _arguments(package: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        f"python -m {package}",
        description="Runs the application until Ctrl-C. Without a command, it runs `serve`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serving = commands.add_parser("serve", help="serves the application in a Serve config on Ray")
    serving.add_argument(
        "config",
        nargs="?",
        type=Path,
        default=Path("config/local.yaml"),
        help="the Serve config (default: config/local.yaml)",
    )
    serving.add_argument("--port", type=int, help="the page's port (default: the config's)")
    serving.add_argument(
        "--metrics-port", type=int, help="the port of Ray's metrics (default: a free one)"
    )
    serving.add_argument(
        "--wait",
        type=float,
        default=600,
        metavar="SECONDS",
        help="how long to wait for the page (default: 600)",
    )
    serving.add_argument(
        "--ray-wait",
        type=float,
        default=300,
        metavar="SECONDS",
        help="how long to wait for each of Ray's processes, which can take minutes on a busy "
        "machine (default: 300)",
    )
    preview = commands.add_parser(
        "preview", help="shows the page without Ray, and reloads it when you change a file"
    )
    preview.set_defaults(engine=False)
    if find_spec(".engine", __package__):
        preview.add_argument(
            "--engine", action="store_true", help="runs the real models instead of stand-ins"
        )
    preview.add_argument("--port", type=int, default=7860, help="the page's port (default: 7860)")
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
    """Serves the applications of a config until it is interrupted.

    Raises:
        StartError: the config, or this machine, does not allow the start.
    """
    config = read_config(path)
    if port is not None:
        set_port(config, port)
    # On a cluster, files and resources may be on other nodes, or come later.
    alone = "RAY_ADDRESS" not in os.environ
    planned = plan(config, path, alone=alone)
    for application in planned:
        check_deployments(application, path)
        check_host(application, config.http_options.host, path)
    check_port(config.http_options.host, config.http_options.port, "--port")
    if metrics_port is not None:
        if not alone:
            raise StartError(
                "a cluster's metrics already have a port. Remove --metrics-port, or set the "
                "port when you start the cluster: ray start --metrics-export-port."
            )
        check_port("0.0.0.0", metrics_port, "--metrics-port")  # noqa: S104
    if alone:
        ignore_forwarded_headers(planned)
        check_resources(planned, path)
        for application in planned:
            check_start(application, checks if application.builder is build else ())
        prepare_haproxy(planned)
    else:
        check_cluster(os.environ["RAY_ADDRESS"])
    if ray.is_initialized():
        # A builder started Ray, without the settings below.
        ray.shutdown()
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    # If a deployment fails while Serve stops because of another one, Ray would print a traceback.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Serve notices a lost HTTP proxy after three of these periods. With its default of 10 seconds,
    # that takes 30.
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
    # By default, Serve gives up after 5 seconds. On a busy machine, a proxy takes longer to start.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", PROXY_MIDDLEWARE)
    # From the proxy to a page, gRPC is faster than actor calls.
    os.environ.setdefault("RAY_SERVE_PROXY_USE_GRPC", "1")
    # Serve's default of 4 MB would refuse pages and answers with a large table or picture.
    os.environ.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", str(2**31 - 1))
    print("Starting Ray", flush=True)
    with quiet(AUTHENTICATION, logging.ERROR):
        cluster = start_ray(alone, metrics_port, bounds.ray)
    # Ray has set its own handler, with another exit status.
    end_on_sigterm()
    print(f"Ray's logs are in {cluster.logs}, its metrics at {cluster.metrics}", flush=True)
    try:
        with served(config, cluster.logs, bounds.ray):
            wait_for_applications(time.monotonic() + bounds.page, cluster.logs)
            for application in planned:
                if application.config.route_prefix is None:
                    continue
                print(f"The page is up: {page_url(config, application.config)}", flush=True)
                if config.http_options.host in LOOPBACK and application.lacks_login:
                    print("Other machines can open it without a login.", flush=True)
            print("Press Ctrl-C to stop.", flush=True)
            try:
                while True:
                    signal.pause()
            finally:
                let_answers_end(alone=alone)
    finally:
        with hide_exit_messages():
            ray.shutdown()


def ignore_forwarded_headers(planned: Sequence[Planned]) -> None:
    """Makes Serve's proxy use a request's real address, not the one in a header.

    If no login and no limit depends on the address, headers are kept. A page behind a proxy on this
    machine then sees its visitor's address.
    """
    if any(application.trusts_addresses for application in planned):
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "")


def prepare_haproxy(planned: Sequence[Planned]) -> None:
    """Makes Serve's HAProxy keep sessions on their replicas, if Serve uses HAProxy."""
    if not behind_haproxy():
        return
    # Imported here because the preview's first process does not load Serve's routers.
    from .http import proxy

    proxy.check_haproxy()
    for name, port in proxy.HAPROXY_PORTS.items():
        check_port("0.0.0.0", int(os.environ.get(name, port)), f"the variable {name}")  # noqa: S104
    names = [application.config.name for application in planned]
    for name, value in proxy.haproxy_variables(names).items():
        # An empty variable, as in the image, counts as not set.
        os.environ[name] = os.environ.get(name) or value


def start_ray(alone: bool, metrics_port: int | None = None, seconds: float = 300) -> Cluster:
    """Starts Ray on this machine, or connects to the cluster in RAY_ADDRESS."""
    try:
        with (
            extend_start_timeouts(seconds, alone=alone) as deadline,
            report_progress(lambda: f"Ray, whose logs are in {own_logs()}"),
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
                    kill_children(before)
                    if time.monotonic() > deadline:
                        raise
    # If a node takes too long to start, Ray raises a plain Exception.
    except Exception as error:
        remedy = "Check RAY_ADDRESS and RAY_AUTH_TOKEN"
        if alone:
            remedy = f"See its logs in {own_logs()}, and raise --ray-wait if it is slow"
        reason = " ".join(str(error).split())
        raise StartError(f"Ray did not start. {remedy}. The reason: {reason}") from error
    info = context.address_info
    return Cluster(
        f"{info['session_dir']}/logs",
        f"http://{info['node_ip_address']}:{info['metrics_export_port']}/metrics",
    )


def own_logs() -> str:
    """Returns the log directory of the Ray that this process starts, once it exists."""
    every = Path(get_default_ray_temp_dir())
    return str(max(every.glob(f"session_*_{os.getpid()}/logs"), default=every))


@contextmanager
def report_progress(waiting_for: Callable[[], str]) -> Iterator[None]:
    """Prints every few seconds what the block waits for, even during a blocking call."""
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
    """Hides a library's log lines below a level."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def hide_exit_messages() -> Iterator[None]:
    """Hides the lines that Ray prints about processes that have ended."""
    with redirect_stdout(StringIO()):
        yield


@contextmanager
def extend_start_timeouts(seconds: float, *, alone: bool) -> Iterator[float]:
    """Makes Ray wait this long for each of its processes, instead of half a minute.

    Yields the deadline, on the monotonic clock. If the raylet ends, Ray's start raises a
    ChildProcessError. The raylet gives its agents only 15 seconds, and on a busy machine they take
    longer.
    """
    wanted = {
        "RAY_gcs_server_port_wait_time_s": f"{seconds:.0f}",
        # Ray looks for the node for this long, and Ctrl-C cannot interrupt that.
        "RAY_raylet_start_wait_time_s": f"{LOOK_SECONDS}",
        "RAY_agent_register_timeout_ms": f"{seconds * 1000:.0f}",
    }
    # Values that you set are kept. The others apply only to this start.
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    find, deadline = services.get_node, time.monotonic() + seconds

    def get_node(address: str, node: str) -> dict[str, Any]:
        while True:
            try:
                found: dict[str, Any] = find(address, node)
            except RuntimeError as error:
                # The node is not there yet, or never will be.
                if time.monotonic() > deadline:
                    # Ray would continue after a RuntimeError.
                    raise TimeoutError(f"the raylet is not up after {seconds:.0f} s") from error
                if not alone:
                    raise
                if not is_raylet_running():
                    raise ChildProcessError("the raylet ended. See raylet.out") from error
                time.sleep(POLL_SECONDS)
            else:
                return found

    # Ray looks for the node that it started in a loop without a configurable limit.
    services.get_node = get_node
    try:
        yield deadline
    finally:
        services.get_node = find
        for name in added:
            del os.environ[name]


def is_raylet_running() -> bool:
    return any(
        child.name() == "raylet" and child.status() != psutil.STATUS_ZOMBIE
        for child in psutil.Process().children()
    )


def kill_children(but: Sequence[psutil.Process]) -> None:
    """Kills the processes that a failed start of Ray left behind."""
    children = psutil.Process().children(recursive=True)
    kept = {*but, *(each for child in but for each in child.children(recursive=True))}
    left = [child for child in children if child not in kept]
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=CLUSTER_SECONDS)


def check_cluster(address: str) -> None:
    """Checks that a cluster answers. Ray itself would retry for minutes."""
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
    """Serves a config like `serve run`, and shuts Serve down at the end of the block."""
    try:
        with report_progress(lambda: "Serve"), quiet(SERVE_LOGGER_NAME, logging.WARNING):
            try:
                _deploy(config, proxy_seconds)
            except Exception as error:
                reason = " ".join(str(error).split())
                raise StartError(
                    f"Serve did not start. See the logs in {logs}/serve. The reason: {reason}"
                ) from error
        yield
    finally:
        # A second Ctrl-C has already ended Ray.
        if ray.is_initialized():
            with hide_exit_messages():
                serve.shutdown()


def let_answers_end(*, alone: bool) -> None:
    """Makes all pages refuse new calls, and waits until the running answers have ended.

    Waits for each page up to its `graceful_shutdown_timeout_s`. Serve's own shutdown stops the
    HTTP proxies first, which cuts off every answer. If the wait is interrupted, Ray ends at once,
    if it was started here.
    """
    try:
        with quiet(SERVE_LOGGER_NAME, logging.ERROR):
            details = ServeInstanceDetails(**_get_global_client().get_serve_details())
            pages = [
                (
                    serve.get_deployment_handle(each.name, name),
                    each.deployment_config.graceful_shutdown_timeout_s,
                )
                for name, application in details.applications.items()
                for each in application.deployments.values()
                if each.name in (PAGE_DEPLOYMENT, API_DEPLOYMENT)
            ]
            began, said = time.monotonic(), False
            while pages := [
                (page, seconds)
                for page, seconds in pages
                if answers_run(page) and time.monotonic() - began < seconds
            ]:
                if not said:
                    longest = max(seconds for _, seconds in pages)
                    print(
                        f"Waiting up to {longest:.0f} s for running answers to finish. "
                        "Press Ctrl-C to stop at once.",
                        flush=True,
                    )
                    said = True
                time.sleep(POLL_SECONDS)
    except (RayError, RayServeException):
        # Serve is gone, and its answers with it.
        return
    except (KeyboardInterrupt, SystemExit):
        if alone:
            with hide_exit_messages():
                ray.shutdown()
        raise


def answers_run(page: DeploymentHandle) -> bool:
    """Makes the page's replicas refuse new calls. Returns whether any answers are running."""
    try:
        replicas = page.broadcast("close").results(timeout_s=LOOK_SECONDS, return_exceptions=True)
    except TimeoutError:
        return True
    except RayServeException:
        # The page has no replica.
        return False
    # A busy replica does not respond in time. A page of another class has no `close`.
    return any(each is True or isinstance(each, TimeoutError) for each in replicas)


def _deploy(config: ServeDeploySchema, proxy_seconds: float) -> None:
    """Deploys the config while the HTTP proxies start. Serve itself waits for them first."""
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
    """Waits until every deployment is running."""
    started, waiting = time.monotonic(), "Serve"
    with report_progress(lambda: waiting):
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
                    f"the page is not up after {waited:.0f} s. See the logs in {logs}/serve, and "
                    "raise --wait if it is slow."
                )
            deployments = [each for app in applications for each in app.deployments.values()]
            waiting = progress_of(deployments) if deployments else "Serve"
            time.sleep(POLL_SECONDS)


def progress_of(deployments: Sequence[DeploymentDetails]) -> str:
    """Returns which deployments are not up, whether they are scheduled, and how many are up."""
    waiting = []
    for each in deployments:
        if each.status != "HEALTHY":
            placed = any(replica.node_id for replica in each.replicas)
            waiting.append(f"{each.name} ({'loading' if placed else 'scheduling'})")
    up = len(deployments) - len(waiting)
    return f"{', '.join(waiting) or 'Serve'}; {up} of {len(deployments)} up"


def _cause(app: ApplicationDetails) -> str:
    """Returns the last line of the traceback of the deployment or builder that failed."""
    messages = [
        deployment.message
        for deployment in app.deployments.values()
        if deployment.status == "DEPLOY_FAILED"
    ] or [app.message]
    lines = [str(message).strip().splitlines()[-1] for message in messages]
    # The template's own errors are complete messages. For other errors, the type is useful too.
    return " ".join(OWN_ERROR.sub("", line) for line in lines)
