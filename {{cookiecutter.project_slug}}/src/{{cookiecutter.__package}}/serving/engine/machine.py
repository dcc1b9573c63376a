"""What this machine has for models: the instructions of its CPU, and PyTorch."""

import importlib.metadata
import sys
from importlib.util import find_spec
from pathlib import Path

CPU = Path("/proc/cpuinfo")
{% if cookiecutter.deploy != "local" and cookiecutter.models == "bundled" and cookiecutter.accelerator == "cpu" %}
SYNC_PYTORCH = (
    "Run `uv sync --group pytorch`; for an image, take the step with `--no-group pytorch` out of "
    "its Dockerfile."
)
{% else %}
SYNC_PYTORCH = "Run `uv sync --group pytorch`."
{% endif %}
"""What to do where PyTorch is missing."""


def cpu_features() -> frozenset[str]:
    """Returns what Linux calls the instructions of this CPU; elsewhere none."""
    lines = CPU.read_text("ascii").splitlines() if CPU.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def has_pytorch() -> bool:
    """Whether PyTorch is installed. It is not imported."""
    return find_spec("torch") is not None


def may_have_gpu() -> bool:
    """Whether PyTorch may see a GPU. It is not asked where it is built for none."""
    if not has_pytorch() or sys.platform == "darwin":
        return False
    if importlib.metadata.version("torch").endswith("+cpu"):
        return False
    import torch

    seen: bool = torch.cuda.is_available()
    return seen
