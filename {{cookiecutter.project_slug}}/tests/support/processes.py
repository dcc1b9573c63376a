"""Finds the processes of Ray's replicas."""

import psutil


def replicas_of(deployment: str) -> list[psutil.Process]:
    """Returns only those of this run, since other clusters may have replicas of that name."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        # Serve names the process of a replica after its application and deployment, and Ray after
        # its current method.
        if process.name().startswith("ray::ServeRepl") and f":{deployment}." in title_of(process)
    ]


def title_of(process: psutil.Process) -> str:
    return f"{process.cmdline()[0]}."
