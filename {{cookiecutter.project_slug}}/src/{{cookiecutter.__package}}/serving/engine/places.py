"""Where the graph of a model is kept, and which models run without PyTorch.

A start asks it before Ray does, so it imports neither the runtime nor transformers.
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
KEPT_FOR = {"auto", "int8"}
"""What a model's `dtype` is where it runs as a graph."""
FACTS = "facts.json"
TOKENIZER = "tokenizer"
SOURCES = [f"{name}.py" for name in ("checks", "facts", "graphs", "paged", "runtime")]
"""What makes, runs and checks a graph: after a change of theirs, it is made anew."""
# Without PyTorch, which reads the weights that are rounded: of it nothing is in a graph, and where
# it is left out, it has no version.
PACKAGES = ["openvino", "transformers"]


@dataclass(frozen=True)
class Place:
    """Where the graph of one model is kept."""

    above: Path
    prefix: str
    """Begins the name of each graph of this model."""
    made_by: str
    """Begins the name of each that this version of the project has made of these files."""
    directory: Path
    """For this kind of CPU; without PyTorch, which would make it, for any."""
    model: Path
    """Where the model itself is."""

    @property
    def is_of_another_cpu(self) -> bool:
        return self.directory.name != f"{self.made_by}.{_cpu()}"

    def needs_pytorch(self) -> bool:
        """Whether there is no graph that runs by itself. It may yet be damaged."""
        try:
            facts = Facts.model_validate_json((self.directory / FACTS).read_bytes())
        except (OSError, ValidationError):
            return True
        return facts.has_rules or not (self.directory / TOKENIZER).is_dir()


def place_of(source: str, weights: Weights) -> Place:
    """Returns where the graph of a model with this source is, or would be."""
    model = weights.directory.absolute() / (weights.gguf_file or "")
    above = Path(HF_HOME) / "converted" / FORMAT
    label = re.sub(r"[^A-Za-z0-9]+", "-", source)[-40:].strip("-")
    prefix = f"{label}-{_digest(str(model))}"
    made_by = f"{prefix}.{_digest(_files(weights), _makers())}"
    directory = above / f"{made_by}.{_cpu()}"
    if not directory.is_dir() and not has_pytorch():
        directory = next(iter(sorted(above.glob(f"{made_by}.*"))), directory)
    return Place(above, prefix, made_by, directory, model)


def check_model(settings: EngineSettings) -> None:
    """Finds a model that this machine is going to load, and downloads it first where that is needed.

    Raises:
        ModelError: there is none, or it needs PyTorch, and that is not installed.
    """
    weights = locate(settings)
    if has_pytorch():
        return
    if settings.dtype not in KEPT_FOR or place_of(settings.source, weights).needs_pytorch():
        raise lacks_pytorch(settings)


def lacks_pytorch(settings: EngineSettings, reason: str = "") -> ModelError:
    """Returns what to raise for a model that cannot be loaded without PyTorch."""
    return ModelError(
        f"Model {settings.name!r}: {settings.source!r} needs PyTorch, which is not installed here"
        f"{reason and f' ({reason})'}. {SYNC_PYTORCH}"
    )


def _cpu() -> str:
    # What another kind of CPU computes may differ, so each checks its own.
    return _digest(platform.machine(), platform.processor(), sorted(cpu_features()))


def _makers() -> list[str]:
    """Names what a graph depends on beside its model."""
    here = Path(__file__).parent
    sources = [hashlib.sha256((here / name).read_bytes()).hexdigest() for name in SOURCES]
    return [*sources, *(f"{package} {version(package)}" for package in PACKAGES)]


def _files(weights: Weights) -> str | list[tuple[str, int, int]]:
    """Tells one version of a model's files from another."""
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
