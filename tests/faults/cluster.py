"""A separate Ray cluster, to which applications are deployed as in production."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml

from ..answers import TEMPLATE
from ..generated.project import START_SECONDS, Project, free_port

CPUS = 8
"""Logical CPUs; the stand-ins hardly use any."""

WORDS = "words"
MODEL = "stand-in"
PAGE = "GradioServer"
COUNTING = "counting"
TALK = "talk"
PIECES = 8
"""Tokens that a stand-in writes in its two seconds."""


@dataclass(frozen=True)
class Cluster:
    project: Project
    head: psutil.Process
    directory: Path
    dashboard: str
    url: str
    """URL of the page for its users."""
    host: str
    port: int
    """Addresses of Serve's HTTP proxies."""

    def deploy(self, config: dict[str, Any]) -> None:
        """Runs `serve deploy` and returns once every application is fully up."""
        path = self.directory / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        serve = str(self.project.environment / "bin" / "serve")
        self.project.run(serve, "deploy", str(path), "--address", self.dashboard)
        self.wait_until(lambda: self.has_failed() or self.is_whole())
        if self.has_failed():
            raise RuntimeError(yaml.safe_dump(self.status()))

    def has_failed(self) -> bool:
        applications = self.status()["applications"].values()
        return any(application["status"] == "DEPLOY_FAILED" for application in applications)

    def is_whole(self) -> bool:
        """Whether every application runs and each deployment has as many replicas as it should."""
        applications = self.status()["applications"].values()
        return bool(applications) and all(
            application["status"] == "RUNNING"
            and all(
                deployment["status"] == "HEALTHY"
                and len(running(deployment))
                == deployment["target_num_replicas"]
                == len(deployment["replicas"])
                for deployment in application["deployments"].values()
            )
            for application in applications
        )

    def pids(self) -> set[int]:
        """Returns the process ids of all replicas."""
        return {
            pid
            for application, details in self.status()["applications"].items()
            for deployment in details["deployments"]
            for pid in self.replicas(application, deployment)
        }

    def replicas(self, application: str, deployment: str) -> list[int]:
        """Returns process ids."""
        deployments = self.status()["applications"][application]["deployments"]
        return [replica["pid"] for replica in running(deployments[deployment])]

    def wait_until_newcomers_reach(self, replicas: int, application: str) -> None:
        """Proxies learn about replicas later than Serve shows them in its status."""
        met = set[str]()

        def have_met() -> bool:
            page = httpx2.get(f"{self.url}/{application}/", timeout=30).raise_for_status()
            # A session's cookie begins with the name of its replica.
            met.update(session.partition(".")[0] for session in page.cookies.values())
            return len(met) == replicas

        self.wait_until(have_met)

    def status(self) -> dict[str, Any]:
        """Serve's status: https://docs.ray.io/en/latest/serve/api/#serve-rest-api"""
        token = self.project.variables["RAY_AUTH_TOKEN"]
        said: dict[str, Any] = (
            httpx2.get(
                f"{self.dashboard}/api/serve/applications/",
                headers={"authorization": f"Bearer {token}"},
                timeout=30,
            )
            .raise_for_status()
            .json()
        )
        return said

    def processes(self, title: str) -> list[psutil.Process]:
        return named(title, self.head)

    def wait_until(self, happened: Callable[[], bool], seconds: float = START_SECONDS) -> float:
        """Returns how long it took; raises TimeoutError with Serve's status."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            try:
                if happened():
                    return time.monotonic() - began
            except (httpx2.HTTPError, KeyError):
                # While the controller is down, the status is unknown.
                pass
            time.sleep(0.25)
        raise TimeoutError(yaml.safe_dump(self.status()))


def running(deployment: dict[str, Any]) -> list[dict[str, Any]]:
    return [replica for replica in deployment["replicas"] if replica["state"] == "RUNNING"]


def named(title: str, node: psutil.Process) -> list[psutil.Process]:
    """Returns processes of a node by their names in Ray."""
    return [
        process
        for process in node.children(recursive=True)
        if process.is_running() and process.name().startswith(title[:15])
    ]


@contextmanager
def ray_cluster(project: Project, directory: Path) -> Iterator[Cluster]:
    dashboard, client_server, port = free_port(), free_port(), free_port()
    address = f"127.0.0.1:{free_port()}"
    project = ready_for_a_cluster(project)
    head = (
        "--head",
        f"--port={address.rpartition(':')[2]}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client_server}",
    )
    with ray_node(project, *head) as process:
        yield Cluster(
            with_variables(project, RAY_ADDRESS=address),
            process,
            directory,
            f"http://127.0.0.1:{dashboard}",
            f"http://127.0.0.1:{port}",
            "127.0.0.1",
            port,
        )


@contextmanager
def ray_node(project: Project, *options: str) -> Iterator[psutil.Process]:
    with project.started("ray", "start", "--block", f"--num-cpus={CPUS}", *options) as ray:
        ray.wait_for(lambda log: "Ray runtime started" in log, START_SECONDS)
        yield psutil.Process(ray.process.pid)


def ready_for_a_cluster(project: Project) -> Project:
    """Sets a token that the nodes share, and the variables of the README."""
    return with_variables(
        project,
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        BENCHMARK_PACKAGE=project.package,
        # Otherwise local clients could forge the address that a page sees. HAProxy has its own.
        FORWARDED_ALLOW_IPS=project.variables.get("FORWARDED_ALLOW_IPS", ""),
        RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S="1",
        RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="60",
        RAY_SERVE_PROXY_USE_GRPC="1",
        RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH="2147483647",
        RAY_health_check_period_ms="1000",
    )


def with_variables(project: Project, **variables: str) -> Project:
    return replace(project, variables={**project.variables, **variables})


def applications(
    cluster: Cluster, *, pages: int, models: int, seconds: float = 2.0, title: str = ""
) -> dict[str, Any]:
    """A Serve config: the project's page with a stand-in model, and a page that counts."""
    return {
        "http_options": {"host": cluster.host, "port": cluster.port},
        "applications": [
            {
                "name": WORDS,
                "route_prefix": f"/{WORDS}",
                "import_path": "benchmarks.rivals.stand_in:build",
                "runtime_env": {"env_vars": {"PYTHONPATH": str(TEMPLATE)}},
                "args": {
                    "models": [
                        {
                            "name": MODEL,
                            "seconds": seconds,
                            "replicas": models,
                            "at_once": 50,
                            "tokens": PIECES,
                        }
                    ],
                    "page_replicas": pages,
                },
                "deployments": [
                    {"name": PAGE, "ray_actor_options": {"num_cpus": 0.1}},
                ],
            },
            {
                "name": COUNTING,
                "route_prefix": f"/{COUNTING}",
                "import_path": "tests.support.counting_page:build",
                "runtime_env": {"env_vars": {"PYTHONPATH": str(cluster.project.root)}},
                "args": {"title": title},
                "deployments": [
                    {
                        "name": PAGE,
                        "num_replicas": pages,
                        "ray_actor_options": {"num_cpus": 0.1},
                    }
                ],
            },
        ],
    }


def conversation(cluster: Cluster, *, pages: int) -> dict[str, Any]:
    """A Serve config: a chat with a stand-in that answers with its number of messages."""
    return {
        "http_options": {"host": cluster.host, "port": cluster.port},
        "applications": [
            {
                "name": TALK,
                "route_prefix": f"/{TALK}",
                "import_path": "tests.support.conversation_page:build",
                "runtime_env": {"env_vars": {"PYTHONPATH": str(cluster.project.root)}},
                "args": {
                    "title": "Talk",
                    "description": "",
                    "models": [{"name": "reader", "source": "unused"}],
                },
                "deployments": [
                    {
                        "name": PAGE,
                        "num_replicas": pages,
                        "ray_actor_options": {"num_cpus": 0.1},
                    }
                ],
            }
        ],
    }
