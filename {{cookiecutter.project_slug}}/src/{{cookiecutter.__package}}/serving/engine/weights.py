"""Finds a model's files on this machine, downloading them first where that is needed."""

import importlib.util
import json
import re
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import (
    HfApi,
    ModelInfo,
    constants,
    get_session,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..protocol import ModelError
from ..telemetry.logs import logger
{% if cookiecutter.models == "bundled" %}
from .bundled import BUNDLED, bundled_weights
from .machine import SYNC_PYTORCH
{% endif %}
from .settings import EngineSettings

HUB_SECONDS = 10
"""How long a hub may take for an answer."""
SILENT_SECONDS = 60
"""How long a process does not ask a hub again that did not answer."""
# Of these transformers reads all that it needs beside the weights. Never pickles: loading one
# runs the code inside it.
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.spm", "*.txt", "*.tiktoken"]
FOLDERS = ["*/*"]
"""Weights of other formats and other programs."""
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
SHARDS = "model-*-of-*.safetensors"
ADAPTER = "adapter_config.json"
GGUF = ".gguf"
GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
GGUF_PACKAGES = ("gguf", "accelerate")
COMMIT = re.compile("[0-9a-f]{40}")
HUB_ERRORS = (HFValidationError, HfHubHTTPError, httpx2.HTTPError, OSError)
NO_SOURCE = "is neither a path nor a model id. Correct its source."
NO_CERTIFICATES = (
    "is not in the cache, and the certificates to ask the hub with cannot be read. Correct "
    "SSL_CERT_FILE, or unset it."
)
LONGEST_REASON = 200

_silent_until = 0.0


@dataclass(frozen=True)
class Weights:
    """Where a model lies."""

    directory: Path
    gguf_file: str | None = None
    """The file in that directory that holds all of it; None where it is as save_pretrained writes."""
    commit: str | None = None
    """Which of the hub's versions it is, or of the package's; None for files that may change."""


def locate(model: EngineSettings) -> Weights:
    """Returns where the model's config, tokenizer and weights are.

    Raises:
        ModelError: they are nowhere, are not what transformers reads, or the hub gives none.
    """
    source = model.source
{% if cookiecutter.models == "bundled" %}
    if source == BUNDLED:
        directory = bundled_weights()
        return Weights(directory, commit=directory.name)
{% endif %}
    path = Path(source).expanduser()
    if path.is_dir():
        _check(model, path)
        return Weights(path)
    if source.endswith(GGUF):
        _check_gguf(model)
        if path.is_file():
            return Weights(path.parent, path.name)
    if source.startswith((".", "/", "~")):
        kind = "file" if source.endswith(GGUF) else "directory"
        raise ModelError(f"Model {model.name!r}: no {kind} is at {source!r}. Correct its source.")
    return _download(model)


def commit_of(model: EngineSettings) -> str | None:
    """Returns the commit that the model's revision names now: by the hub, else by the cache.

    None where neither says, or the source is no model id.
    """
    repository = _repository(model.source)
    if repository is None or Path(model.source).expanduser().exists():
        return None
    revision = model.revision or constants.DEFAULT_REVISION
    if COMMIT.fullmatch(revision):
        return revision
    try:
        return _ask_hub(repository, revision).sha
    except HUB_ERRORS:
        return _cached_commit(repository, model.revision)


def in_one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or repr(error)).rstrip(".")


def _download(model: EngineSettings) -> Weights:
    """Takes what is in the cache, and from the hub what is not."""
    repository = _repository(model.source)
    if repository is None:
        raise _refusal(model, NO_SOURCE)
    revision = model.revision or constants.DEFAULT_REVISION
    weights = _cached(model, repository, revision) if COMMIT.fullmatch(revision) else None
    weights = weights or _newest(model, repository, revision)
    logger.info("%s: %s at commit %s", model.name, model.source, weights.commit)
    return weights


def _newest(model: EngineSettings, repository: str, revision: str) -> Weights:
    try:
        return _fetch(model, repository, revision, _ask_hub(repository, revision))
    except HUB_ERRORS as error:
        commit = _cached_commit(repository, model.revision)
        weights = _cached(model, repository, commit) if commit else None
        if weights is None:
            raise _refusal(model, _reason(error)) from error
        if not isinstance(error, OfflineModeIsEnabled):
            said = in_one_line(error)[:LONGEST_REASON]
            logger.warning("%s: taken from the cache; the hub said: %s", model.name, said)
        return weights


def _repository(source: str) -> str | None:
    """Returns the model id in a source, which may name a file of it."""
    parts = source.split("/")
    if source.endswith(GGUF):
        return "/".join(parts[:2]) if len(parts) > 2 else None
    return source if len(parts) <= 2 else None


def _file(source: str) -> str:
    """Returns the path of a GGUF file within its repository."""
    return source.split("/", 2)[2]


def _ask_hub(repository: str, revision: str) -> ModelInfo:
    """Asks what there is, with a bound on the time, which downloads have not."""
    global _silent_until
    if time.monotonic() < _silent_until:
        raise httpx2.ConnectError("it did not answer a moment ago")
    try:
        return HfApi().model_info(repository, revision=revision, timeout=HUB_SECONDS)
    except httpx2.TransportError:
        _silent_until = time.monotonic() + SILENT_SECONDS
        raise


def _cached_commit(repository: str, revision: str | None) -> str | None:
    """Returns what the cache knows the revision to be; where none is asked for, any version."""
    if revision and COMMIT.fullmatch(revision):
        return revision
    cache = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    reference = cache / "refs" / (revision or constants.DEFAULT_REVISION)
    if reference.is_file():
        return reference.read_text(encoding="ascii").strip()
    versions = [] if revision else sorted(cache.glob("snapshots/*"), key=_age)
    return versions[0].name if versions else None


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _cached(model: EngineSettings, repository: str, commit: str) -> Weights | None:
    """Returns what the cache has of a commit, where it is complete."""
    try:
        if model.source.endswith(GGUF):
            file = hf_hub_download(
                repository, _file(model.source), revision=commit, local_files_only=True
            )
            return Weights(Path(file).parent, Path(file).name, commit)
        directory = snapshot_download(
            repository,
            revision=commit,
            allow_patterns=SMALL_FILES,
            ignore_patterns=FOLDERS,
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, OSError):
        return None
    weights = Weights(Path(directory), commit=commit)
    return weights if _is_complete(weights.directory) else None


def _is_complete(directory: Path) -> bool:
    if not (directory / "config.json").is_file():
        return False
    if (directory / WEIGHTS).is_file():
        return True
    shards = set(_json(directory / WEIGHTS_INDEX).get("weight_map", {}).values())
    return bool(shards) and all((directory / shard).is_file() for shard in shards)


def _fetch(model: EngineSettings, repository: str, revision: str, info: ModelInfo) -> Weights:
    # Else a hub that falls silent would be waited for without a bound.
    get_session().timeout = HUB_SECONDS
    names = [each.rfilename for each in info.siblings or []]
    if model.source.endswith(GGUF):
        if _file(model.source) not in names:
            raise _refusal(model, f"is not among its files.{_gguf_files(repository, names)}")
        path = Path(hf_hub_download(repository, _file(model.source), revision=revision))
        return Weights(path.parent, path.name, info.sha)
    top = [name for name in names if "/" not in name]
    if ADAPTER not in top and (reason := _lacking(top)):
        raise _refusal(model, f"{reason}{_gguf_files(repository, names)}")
    directory = Path(
        snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[*SMALL_FILES, WEIGHTS if WEIGHTS in top else SHARDS],
            ignore_patterns=FOLDERS,
        )
    )
    _check(model, directory)
    return Weights(directory, commit=directory.name)


def _gguf_files(place: str, names: Iterable[str]) -> str:
    """Returns how to name one of the GGUF files, where there are any."""
    found = sorted(name for name in names if name.endswith(GGUF) and not GGUF_PART.search(name))
    return f" It has GGUF files: name one, as in source: {place}/{found[0]}" if found else ""


def _check(model: EngineSettings, directory: Path) -> None:
    names = [path.name for path in directory.iterdir()]
    reason = _lacking(names)
    if not reason:
        return
    if ADAPTER in names:
        base = _json(directory / ADAPTER).get("base_model_name_or_path", "a model")
        raise _refusal(
            model,
            f"is an adapter of {base}. Merge it into that: with the package peft, "
            f"AutoPeftModelForCausalLM.from_pretrained({model.source!r}).merge_and_unload()"
            ".save_pretrained(DIRECTORY), and the tokenizer's save_pretrained beside it.",
        )
    raise _refusal(model, f"{reason}{_gguf_files(model.source, names)}")


def _lacking(names: Sequence[str]) -> str:
    """Returns what a directory with these files lacks, or nothing."""
    if "config.json" not in names:
        return (
            "has no config.json, so it is no model for transformers. Point source at a directory "
            "that save_pretrained wrote."
        )
    if not any(name == WEIGHTS or fnmatchcase(name, SHARDS) for name in names):
        return (
            f"has no {WEIGHTS} and no parts of one. Convert its weights with save_pretrained, or "
            "choose another model."
        )
    return ""


def _json(path: Path) -> dict[str, Any]:
    """Returns nothing for a file that is missing or damaged."""
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _check_gguf(model: EngineSettings) -> None:
    missing = [each for each in GGUF_PACKAGES if importlib.util.find_spec(each) is None]
    if missing:
{% if cookiecutter.models == "bundled" %}
        raise _refusal(model, f"needs packages that are not installed here. {SYNC_PYTORCH}")
{% else %}
        raise _refusal(model, f"needs packages to be read: run `uv add {' '.join(missing)}`.")
{% endif %}
    if GGUF_PART.search(model.source):
        raise _refusal(
            model,
            "is a part of a model. Join the parts with llama.cpp's `llama-gguf-split --merge`, and "
            "name the file that it writes.",
        )


def _refusal(model: EngineSettings, reason: str) -> ModelError:
    return ModelError(f"Model {model.name!r}: {model.source!r} {reason}")


def _reason(error: Exception) -> str:
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    untrusted = _untrusted(error)
    match error:
        case HFValidationError():
            return NO_SOURCE
        case GatedRepoError():
            return "asks for consent: give it on the model's page and set HF_TOKEN."
        case RevisionNotFoundError():
            return "has no such revision. Correct its revision."
        case RepositoryNotFoundError():
            return "is unknown to the hub. Check its spelling; a private model needs HF_TOKEN."
        case HfHubHTTPError():
            return f"is not in the cache, and {_status(error.response.status_code)}"
        case OfflineModeIsEnabled():
            return (
                "is not in the cache, and HF_HUB_OFFLINE keeps it from being downloaded. Unset "
                "that, or point source at a local directory."
            )
        case _ if untrusted:
            return (
                "is not in the cache, and the hub's certificate is not trusted here "
                f"({untrusted}). Where a company's network has certificates of its own, set "
                "SSL_CERT_FILE to a file with them; REQUESTS_CA_BUNDLE has no effect."
            )
        case ssl.SSLError():
            return NO_CERTIFICATES
        case FileNotFoundError() if not isinstance(error, LocalEntryNotFoundError):
            return NO_CERTIFICATES
        case httpx2.ProxyError():
            return (
                f"is not in the cache, and the proxy does not let the hub through "
                f"({in_one_line(error)}). Check HTTPS_PROXY."
            )
        case OSError() if not isinstance(error, LocalEntryNotFoundError | ConnectionError):
            return (
                f"cannot be kept in {constants.HF_HUB_CACHE} ({in_one_line(error)}). Make room "
                "there, or let HF_HOME name another directory."
            )
        case _:
            return (
                "is not in the cache and the hub cannot be reached. Check the network and "
                "HF_ENDPOINT, or point source at a local directory."
            )


def _untrusted(error: BaseException | None) -> str:
    """Returns why a certificate was not accepted, where that is the cause."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return ""


def _status(status: int) -> str:
    match status:
        case 401:
            return "the hub asks for a valid HF_TOKEN (401). Set it, or unset the one that is set."
        case 403:
            return "the hub forbids it (403). Check what HF_TOKEN may read, and HF_ENDPOINT."
        case 429:
            return "the hub takes no more requests for now (429). Start later, or set HF_TOKEN."
        case _:
            return f"the hub answers {status}. Start later, or point source at a local directory."
