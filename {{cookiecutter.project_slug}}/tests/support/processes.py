"""Finds the processes of Ray's replicas."""

import psutil


def replicas_of(deployment: str) -> list[psutil.Process]:
    """Of this run alone: other clusters on the machine may have replicas of that name, too."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        # Serve names a replica's process after its application and deployment, and Ray after
        # the method that it runs.
        if process.name().startswith("ray::ServeRepl") and f":{deployment}." in title_of(process)
    ]


def title_of(process: psutil.Process) -> str:
    return f"{process.cmdline()[0]}."
