"""Decides where a model's graph is saved, and whether it runs without PyTorch.

It runs before Ray starts, so it imports neither the runtime nor transformers.
"""

import hashlib
import json
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from huggingface_hub.constants import HF_HOME
from pydantic import ValidationError

from ..protocol import ModelError
from .facts import Facts
from .machine import SYNC_PYTORCH, cpu_features, has_pytorch
from .settings import EngineSettings
from .weights import Weights, locate

FORMAT = "int8"
GRAPH_DTYPES = {"auto", "int8"}
"""The values of `dtype` with which a model may run as a graph."""
FACTS = "facts.json"
TOKENIZER = "tokenizer"
SOURCES = [f"{name}.py" for name in ("checks", "facts", "graphs", "paged", "runtime")]
"""The modules that make, run and check a graph. If one changes, the graph is rebuilt."""
# Not PyTorch, which only reads the weights. No part of it is in a graph, and it may not be installed.
PACKAGES = ["openvino", "transformers"]


@dataclass(frozen=True)
class GraphPaths:
    """The paths for the graph of one model."""

    above: Path
    prefix: str
    """The prefix of the names of all graphs of this model."""
    made_by: str
    """The prefix for graphs that this version of the project makes from these files."""
    directory: Path
    """The graph for this kind of CPU. Without PyTorch, which is needed to make one, for any kind."""
    model: Path
    """The path of the model itself."""

    @property
    def is_of_another_cpu(self) -> bool:
        return self.directory.name != f"{self.made_by}.{_cpu()}"

    def needs_pytorch(self) -> bool:
        """Whether there is no graph that runs without PyTorch. Does not check it for damage."""
        try:
            facts = Facts.model_validate_json((self.directory / FACTS).read_bytes())
        except (OSError, ValidationError):
            return True
        return facts.has_rules or not (self.directory / TOKENIZER).is_dir()


def locate_graph(source: str, weights: Weights) -> GraphPaths:
    """Returns the paths for the graph of a model, whether it exists or not."""
    model = weights.directory.absolute() / (weights.gguf_file or "")
    above = Path(HF_HOME) / "converted" / FORMAT
    label = re.sub(r"[^A-Za-z0-9]+", "-", source)[-40:].strip("-")
    prefix = f"{label}-{_digest(str(model))}"
    made_by = f"{prefix}.{_digest(_files(weights), _makers())}"
    directory = above / f"{made_by}.{_cpu()}"
    if not directory.is_dir() and not has_pytorch():
        directory = next(iter(sorted(above.glob(f"{made_by}.*"))), directory)
    return GraphPaths(above, prefix, made_by, directory, model)


def check_model(settings: EngineSettings) -> None:
    """Finds a model that this machine will load, and downloads it if necessary.

    Raises:
        ModelError: there is no such model, or it needs PyTorch, which is not installed.
    """
    weights = locate(settings)
    if has_pytorch():
        return
    if settings.dtype not in GRAPH_DTYPES or locate_graph(settings.source, weights).needs_pytorch():
        raise lacks_pytorch(settings)


def lacks_pytorch(settings: EngineSettings, reason: str = "") -> ModelError:
    """Returns the error for a model that cannot be loaded without PyTorch."""
    return ModelError(
        f"Model {settings.name!r}: {settings.source!r} needs PyTorch, which is not installed here"
        f"{reason and f' ({reason})'}. {SYNC_PYTORCH}"
    )


def _cpu() -> str:
    # Another kind of CPU may compute other scores, so each kind checks its own graph.
    return _digest(platform.machine(), platform.processor(), sorted(cpu_features()))


def _makers() -> list[str]:
    """Returns the versions of everything that a graph depends on, besides its model."""
    here = Path(__file__).parent
    sources = [hashlib.sha256((here / name).read_bytes()).hexdigest() for name in SOURCES]
    return [*sources, *(f"{package} {version(package)}" for package in PACKAGES)]


def _files(weights: Weights) -> str | list[tuple[str, int, int]]:
    """Returns a value that identifies the version of a model's files."""
    if weights.commit is not None:
        return weights.commit
    files = [weights.directory / weights.gguf_file] if weights.gguf_file else []
    return [
        (file.name, status.st_size, status.st_mtime_ns)
        for file in files or sorted(weights.directory.iterdir())
        for status in [file.stat()]
    ]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
