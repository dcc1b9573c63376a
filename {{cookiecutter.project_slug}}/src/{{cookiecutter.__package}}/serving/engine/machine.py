"""Detects what this machine can use: the features of its CPU, PyTorch and a GPU."""

import importlib.metadata
import sys
from importlib.util import find_spec
from pathlib import Path

CPU = Path("/proc/cpuinfo")
{% if cookiecutter.deploy != "local" and cookiecutter.models == "bundled" and cookiecutter.accelerator == "cpu" %}
SYNC_PYTORCH = (
    "Run `uv sync --group pytorch`. In an image, remove the step with `--no-group pytorch` from "
    "the Dockerfile."
)
{% else %}
SYNC_PYTORCH = "Run `uv sync --group pytorch`."
{% endif %}
"""What to do if PyTorch is missing."""


def cpu_features() -> frozenset[str]:
    """Returns the CPU's feature flags on Linux, and nothing on other systems."""
    lines = CPU.read_text("ascii").splitlines() if CPU.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def has_pytorch() -> bool:
    """Whether PyTorch is installed. Does not import it."""
    return find_spec("torch") is not None


def may_have_gpu() -> bool:
    """Whether PyTorch may find a GPU. Does not import a build without GPU support."""
    if not has_pytorch() or sys.platform == "darwin":
        return False
    if importlib.metadata.version("torch").endswith("+cpu"):
        return False
    import torch

    seen: bool = torch.cuda.is_available()
    return seen
