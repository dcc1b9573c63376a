"""Finds a model's files on this machine, downloading them first where that is needed."""

from pathlib import Path

import httpx2
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..protocol import ModelError
{% if cookiecutter.models == "bundled" %}
from .bundled import BUNDLED, bundled_weights
{% endif %}
from .settings import EngineSettings

HUB_SECONDS = 15
# Never pickles: loading one runs the code inside it.
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def locate(model: EngineSettings) -> Path:
    """Returns the directory that holds the model's config, tokenizer and weights.

    Raises:
        ModelError: there is none, or the hub does not give it.
    """
    source = model.source
{% if cookiecutter.models == "bundled" %}
    if source == BUNDLED:
        return bundled_weights()
{% endif %}
    directory = Path(source).expanduser()
    if directory.is_dir():
        return _checked(model, directory)
    if source.startswith((".", "/", "~")):
        raise ModelError(f"Model {model.name!r}: no directory is at {source!r}. Mend its source.")
    return _checked(model, _download(model))


def _checked(model: EngineSettings, directory: Path) -> Path:
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"Model {model.name!r}: {model.source!r} has no config.json, so it is no model for "
            "transformers. Point source at a directory that save_pretrained wrote."
        )
    if not any(directory.glob("*.safetensors")):
        raise ModelError(
            f"Model {model.name!r}: {model.source!r} has no *.safetensors weights. "
            "Convert them with save_pretrained, or choose another model."
        )
    return directory


def _download(model: EngineSettings) -> Path:
    """Takes what is in the cache, and from the hub what is not."""
    revision = model.revision or "main"
    try:
        directory = snapshot_download(
            model.source,
            revision=revision,
            local_files_only=not _hub_answers(model.source, revision),
            allow_patterns=FILES,
            ignore_patterns="onnx/*",
        )
    except (HFValidationError, HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise ModelError(f"Model {model.name!r}: {model.source!r} {_reason(error)}") from error
    return Path(directory)


def _hub_answers(source: str, revision: str) -> bool:
    # snapshot_download would wait without a bound for a hub that accepts and stays silent.
    try:
        HfApi().model_info(source, revision=revision, timeout=HUB_SECONDS)
    except (httpx2.TransportError, OfflineModeIsEnabled):
        return False
    return True


def _reason(error: Exception) -> str:
    match error:
        case HFValidationError():
            return "is neither a directory nor a model id. Mend its source."
        case GatedRepoError():
            return "asks for consent: give it on the model's page and set HF_TOKEN."
        case RevisionNotFoundError():
            return "has no such revision. Mend its revision."
        case RepositoryNotFoundError():
            return "is unknown to the hub. Check its spelling; a private model needs HF_TOKEN."
        case _:
            return (
                "is not in the cache and the hub cannot be reached. Check the network and "
                "HF_ENDPOINT, or point source at a local directory."
            )
