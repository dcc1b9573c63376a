"""Finds a model's files, and downloads them if necessary."""

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
"""How long to wait for a response from the hub."""
SILENT_SECONDS = 60
"""How long a process waits to ask the hub again after it did not respond."""
# All files that transformers needs besides the weights. Never pickles, because loading one runs
# the code inside it.
SMALL_FILES = ["*.json", "*.jinja", "*.model", "*.spm", "*.txt", "*.tiktoken"]
FOLDERS = ["*/*"]
"""Weights in other formats, for other programs."""
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
SHARDS = "model-*-of-*.safetensors"
ADAPTER = "adapter_config.json"
GGUF = ".gguf"
GGUF_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
GGUF_PACKAGES = ("gguf", "accelerate")
COMMIT = re.compile("[0-9a-f]{40}")
HUB_ERRORS = (HFValidationError, HfHubHTTPError, httpx2.HTTPError, OSError)
NO_SOURCE = "is neither a path nor a model id. Correct `source`."
NO_CERTIFICATES = (
    "is not in the cache, and the certificates for the connection to the hub cannot be read. "
    "Correct SSL_CERT_FILE, or unset it."
)
LONGEST_REASON = 200

_silent_until = 0.0


@dataclass(frozen=True)
class Weights:
    """The location of a model."""

    directory: Path
    gguf_file: str | None = None
    """The GGUF file in that directory, or None for files as written by save_pretrained."""
    commit: str | None = None
    """The version on the hub or of the package, or None for files that may change."""


def locate(model: EngineSettings) -> Weights:
    """Returns the location of the model's config, tokenizer and weights.

    Raises:
        ModelError: they do not exist, transformers cannot read them, or the download failed.
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
        raise ModelError(f"Model {model.name!r}: there is no {kind} {source!r}. Correct `source`.")
    return _download(model)


def commit_of(model: EngineSettings) -> str | None:
    """Returns the current commit of the model's revision, from the hub or else from the cache.

    Returns None if neither knows it, or if the source is not a model id.
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
    """Returns the model from the cache, or downloads it from the hub."""
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
            logger.warning(
                "%s: using the cached version, because the hub failed: %s", model.name, said
            )
        return weights


def _repository(source: str) -> str | None:
    """Returns the model id in a source, which may also contain a file name."""
    parts = source.split("/")
    if source.endswith(GGUF):
        return "/".join(parts[:2]) if len(parts) > 2 else None
    return source if len(parts) <= 2 else None


def _file(source: str) -> str:
    """Returns the path of a GGUF file in its repository."""
    return source.split("/", 2)[2]


def _ask_hub(repository: str, revision: str) -> ModelInfo:
    """Asks the hub for the files of a model, with a timeout, which downloads do not have."""
    global _silent_until
    if time.monotonic() < _silent_until:
        raise httpx2.ConnectError("it did not respond a moment ago")
    try:
        return HfApi().model_info(repository, revision=revision, timeout=HUB_SECONDS)
    except httpx2.TransportError:
        _silent_until = time.monotonic() + SILENT_SECONDS
        raise


def _cached_commit(repository: str, revision: str | None) -> str | None:
    """Returns the commit of the revision in the cache. Without a revision, any version will do."""
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
    """Returns a commit from the cache if it is complete."""
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
    # Otherwise a download would wait without a limit for a hub that stops responding.
    get_session().timeout = HUB_SECONDS
    names = [each.rfilename for each in info.siblings or []]
    if model.source.endswith(GGUF):
        if _file(model.source) not in names:
            raise _refusal(model, f"is not in the repository.{_gguf_files(repository, names)}")
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
    """Returns a hint about a GGUF file to use, if there are any."""
    found = sorted(name for name in names if name.endswith(GGUF) and not GGUF_PART.search(name))
    return f" To use a GGUF file, set source: {place}/{found[0]}" if found else ""


def _check(model: EngineSettings, directory: Path) -> None:
    names = [path.name for path in directory.iterdir()]
    reason = _lacking(names)
    if not reason:
        return
    if ADAPTER in names:
        base = _json(directory / ADAPTER).get("base_model_name_or_path", "a model")
        raise _refusal(
            model,
            f"is an adapter for {base}. Merge them with the package peft: "
            f"AutoPeftModelForCausalLM.from_pretrained({model.source!r}).merge_and_unload()"
            ".save_pretrained(DIRECTORY). Save the tokenizer to the same directory.",
        )
    raise _refusal(model, f"{reason}{_gguf_files(model.source, names)}")


def _lacking(names: Sequence[str]) -> str:
    """Returns what is missing among these files, or an empty string."""
    if "config.json" not in names:
        return (
            "has no config.json, so transformers cannot load it. Set `source` to a directory "
            "that save_pretrained wrote."
        )
    if not any(name == WEIGHTS or fnmatchcase(name, SHARDS) for name in names):
        return (
            f"has no {WEIGHTS}, whole or in parts. Convert its weights with save_pretrained, or "
            "choose a different model."
        )
    return ""


def _json(path: Path) -> dict[str, Any]:
    """Returns the content of a file, or an empty dict if it is missing or damaged."""
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
        raise _refusal(model, f"needs more packages. Run `uv add {' '.join(missing)}`.")
{% endif %}
    if GGUF_PART.search(model.source):
        raise _refusal(
            model,
            "is only part of a model. Merge the parts with llama.cpp's `llama-gguf-split "
            "--merge`, and set `source` to the resulting file.",
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
            return "is gated. Request access on the model's page on the hub, and set HF_TOKEN."
        case RevisionNotFoundError():
            return "has no such revision. Correct `revision`."
        case RepositoryNotFoundError():
            return "is not on the hub. Check the spelling, or set HF_TOKEN for a private model."
        case HfHubHTTPError():
            return f"is not in the cache, and {_status(error.response.status_code)}"
        case OfflineModeIsEnabled():
            return (
                "is not in the cache, and HF_HUB_OFFLINE prevents the download. Unset it, or set "
                "`source` to a local directory."
            )
        case _ if untrusted:
            return (
                "is not in the cache, and the hub's certificate is not trusted "
                f"({untrusted}). If your network uses its own certificates, set SSL_CERT_FILE to "
                "a file with them. REQUESTS_CA_BUNDLE has no effect."
            )
        case ssl.SSLError():
            return NO_CERTIFICATES
        case FileNotFoundError() if not isinstance(error, LocalEntryNotFoundError):
            return NO_CERTIFICATES
        case httpx2.ProxyError():
            return (
                f"is not in the cache, and the proxy refuses the connection to the hub "
                f"({in_one_line(error)}). Check HTTPS_PROXY."
            )
        case OSError() if not isinstance(error, LocalEntryNotFoundError | ConnectionError):
            return (
                f"cannot be saved in {constants.HF_HUB_CACHE} ({in_one_line(error)}). Free some "
                "space, or set HF_HOME to another directory."
            )
        case _:
            return (
                "is not in the cache, and the hub cannot be reached. Check the network and "
                "HF_ENDPOINT, or set `source` to a local directory."
            )


def _untrusted(error: BaseException | None) -> str:
    """Returns why a certificate was rejected, or an empty string if it was not."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        error = error.__cause__ or error.__context__
    return ""


def _status(status: int) -> str:
    match status:
        case 401:
            return "the hub requires a valid HF_TOKEN (401). Set a valid one, or unset it."
        case 403:
            return (
                "the hub denies access (403). Check the permissions of HF_TOKEN, and check "
                "HF_ENDPOINT."
            )
        case 429:
            return "the hub is limiting requests (429). Try again later, or set HF_TOKEN."
        case _:
            return (
                f"the hub returned {status}. Try again later, or set `source` to a local directory."
            )
