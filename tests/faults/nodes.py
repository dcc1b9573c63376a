"""Two Ray nodes on one machine, each with its own address, behind HAProxy.

Needs root, for network namespaces.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ..generated.project import Project, free_port
from .cluster import Cluster, ray_node, ready_for_a_cluster, with_variables

PORT, DASHBOARD_PORT, HTTP_PORT = 6379, 8265, 8000
ENOUGH_MEMORY = "--object-store-memory=200000000"
BALANCER = """\
defaults
    mode http
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    # A busy node answers late; a lost one refuses connections at once.
    timeout check 5s
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response

frontend pages
    bind 127.0.0.1:{port}
    default_backend proxies

backend proxies
    balance leastconn
    option httpchk GET /-/healthz
    default-server check inter 500ms fall 1 rise 2
{servers}
"""


@dataclass(frozen=True)
class Host:
    name: str
    address: str

    @property
    def within(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)


@dataclass(frozen=True)
class TwoNodes:
    cluster: Cluster
    """The cluster, with the URL of the load balancer and the head on the first node."""
    other: psutil.Process
    """The process that started the second node."""


@contextmanager
def two_nodes(project: Project, directory: Path) -> Iterator[TwoNodes]:
    with hosts(2) as [head, other], balancer([head, other], directory) as url:
        project = ready_for_a_cluster(project)
        address = f"{head.address}:{PORT}"
        first = (
            *("--head", f"--port={PORT}", f"--node-ip-address={head.address}", ENOUGH_MEMORY),
            *(f"--dashboard-host={head.address}", f"--dashboard-port={DASHBOARD_PORT}"),
        )
        second = (f"--address={address}", f"--node-ip-address={other.address}", ENOUGH_MEMORY)
        with (
            ray_node(replace(project, within=head.within), *first) as head_process,
            ray_node(replace(project, within=other.within), *second) as other_process,
        ):
            cluster = Cluster(
                with_variables(project, RAY_ADDRESS=address),
                head_process,
                directory,
                f"http://{head.address}:{DASHBOARD_PORT}",
                url,
                "0.0.0.0",  # noqa: S104
                HTTP_PORT,
            )
            yield TwoNodes(cluster, other_process)


@contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """Network namespaces on a bridge that this machine can also reach."""
    mine = os.getpid()
    network, bridge = f"10.213.{mine % 250}", f"br{mine}"
    made = [Host(f"node{mine}-{each}", f"{network}.{each + 2}") for each in range(number)]
    try:
        ip(f"link add {bridge} type bridge")
        ip(f"address add {network}.1/24 dev {bridge}")
        ip(f"link set {bridge} up")
        for each, host in enumerate(made):
            ip(f"netns add {host.name}")
            ip(f"link add ve{mine}-{each} type veth peer name eth0 netns {host.name}")
            ip(f"link set ve{mine}-{each} master {bridge} up")
            ip(f"-n {host.name} address add {host.address}/24 dev eth0")
            ip(f"-n {host.name} link set eth0 up")
            ip(f"-n {host.name} link set lo up")
        yield made
    finally:
        for host in made:
            ip(f"netns delete {host.name}", check=False)
        ip(f"link delete {bridge}", check=False)


def ip(command: str, check: bool = True) -> None:
    subprocess.run(["ip", *command.split()], check=check)


@contextmanager
def balancer(nodes: list[Host], directory: Path) -> Iterator[str]:
    port = free_port()
    servers = [f"    server {node.name} {node.address}:{HTTP_PORT}" for node in nodes]
    config = directory / "haproxy.cfg"
    config.write_text(BALANCER.format(port=port, servers="\n".join(servers)))
    process = subprocess.Popen(["haproxy", "-db", "-f", str(config)])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
