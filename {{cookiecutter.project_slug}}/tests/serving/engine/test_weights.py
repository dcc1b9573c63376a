import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from socket import create_server

import pytest
import trustme

from {{ cookiecutter.__package }}.serving.deployments.settings import (
    ModelSettings,
)
from {{ cookiecutter.__package }}.serving.engine.weights import Weights, locate
from {{ cookiecutter.__package }}.serving.protocol import ModelError

from ...support.loopback_hub import COMMIT, loopback_hub
from ...support.tiny_models import save_tiny_decoder

NEXT_COMMIT = COMMIT[::-1]
LOCATE = """
import sys
from {{ cookiecutter.__package }}.serving.engine import weights
from {{ cookiecutter.__package }}.serving.deployments.settings import ModelSettings

weights.HUB_SECONDS = 2
found = weights.locate(ModelSettings(name="model", source=sys.argv[1], revision=sys.argv[2] or None))
print(found.directory)
"""
COMMIT_OF = LOCATE.replace("found = weights.locate", "found = weights.commit_of").replace(
    "found.directory", "found"
)


def in_own_process(
    source: str,
    endpoint: str,
    cache: Path,
    revision: str = "",
    code: str = LOCATE,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Returns the output of a new process: huggingface_hub reads its environment on import."""
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), **(variables or {})}
    result = subprocess.run(
        [sys.executable, "-c", code, source, revision],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return (result.stdout or result.stderr).strip().splitlines()[-1]


def with_a_model(hub: Path, name: str = "org/model") -> Path:
    """A hub with a tiny model."""
    return save_tiny_decoder(hub / name)


def refused(line: str) -> str:
    """Returns the error message for the model."""
    assert "ModelError: Model 'model': " in line
    return line.partition("ModelError: ")[2]


def test_a_local_directory_is_used_as_is(tiny_decoder: Path) -> None:
    found = locate(ModelSettings(name="model", source=str(tiny_decoder)))
    assert found == Weights(tiny_decoder)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "has no config.json"),
        (["config.json"], "has no model.safetensors"),
        (["config.json", "pytorch_model.bin"], "has no model.safetensors"),
        (["config.json", "consolidated.safetensors"], "has no model.safetensors"),
        (["adapter_config.json", "adapter_model.safetensors"], "is an adapter for a model. Merge"),
        (["small.gguf"], "To use a GGUF file, set source: .*/small.gguf"),
    ],
)
def test_a_directory_without_a_model_is_refused(
    files: list[str], reason: str, tmp_path: Path
) -> None:
    for file in files:
        (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=reason):
        locate(ModelSettings(name="model", source=str(tmp_path)))


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no directory"):
        locate(ModelSettings(name="model", source=str(tmp_path / "nowhere")))


def test_an_adapter_is_refused_with_its_base_model_and_how_to_merge_it(tmp_path: Path) -> None:
    base = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    hub = tmp_path / "hub" / "org" / "adapter"
    hub.mkdir(parents=True)
    (hub / "adapter_config.json").write_text(json.dumps(base))
    (hub / "adapter_model.safetensors").write_bytes(b"weights")
    with pytest.raises(ModelError, match=r"is an adapter for org/base\. .*merge_and_unload"):
        locate(ModelSettings(name="model", source=str(hub)))
    with loopback_hub(tmp_path / "hub") as endpoint:
        line = refused(in_own_process("org/adapter", endpoint, tmp_path / "cache"))
    assert "'org/adapter' is an adapter for org/base. " in line
    assert "from_pretrained('org/adapter').merge_and_unload()" in line


def test_a_model_is_downloaded_once_and_then_found_without_the_hub(tmp_path: Path) -> None:
    with_a_model(tmp_path / "hub")
    with loopback_hub(tmp_path / "hub") as endpoint:
        downloaded = in_own_process("org/model", endpoint, tmp_path / "cache")
    found = in_own_process("org/model", endpoint, tmp_path / "cache")
    assert found == downloaded
    assert {path.name for path in Path(found).iterdir()} >= {"config.json", "model.safetensors"}


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_cached_model_starts_whatever_the_hub_answers(status: int, tmp_path: Path) -> None:
    with_a_model(tmp_path / "hub")
    with loopback_hub(tmp_path / "hub") as endpoint:
        downloaded = in_own_process("org/model", endpoint, tmp_path / "cache")
    with loopback_hub(tmp_path / "hub", refusing=HTTPStatus(status)) as endpoint:
        assert in_own_process("org/model", endpoint, tmp_path / "cache") == downloaded
        assert in_own_process("org/model", endpoint, tmp_path / "cache", COMMIT) == downloaded
        known = in_own_process("org/model", endpoint, tmp_path / "cache", code=COMMIT_OF)
    assert known == COMMIT


def test_a_cached_model_starts_while_the_hub_does_not_answer(tmp_path: Path) -> None:
    with_a_model(tmp_path / "hub")
    with loopback_hub(tmp_path / "hub") as endpoint:
        downloaded = in_own_process("org/model", endpoint, tmp_path / "cache")
    with create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert in_own_process("org/model", endpoint, tmp_path / "cache") == downloaded


def test_a_model_pinned_to_a_commit_is_found_without_the_hub(tmp_path: Path) -> None:
    with_a_model(tmp_path / "hub")
    with loopback_hub(tmp_path / "hub") as endpoint:
        downloaded = in_own_process("org/model", endpoint, tmp_path / "cache", COMMIT)
    assert in_own_process("org/model", endpoint, tmp_path / "cache") == downloaded


def test_a_pinned_commit_stays_when_the_branch_moves(tmp_path: Path) -> None:
    with_a_model(tmp_path / "hub")
    cache = tmp_path / "cache"
    with loopback_hub(tmp_path / "hub") as endpoint:
        first = in_own_process("org/model", endpoint, cache)
    with loopback_hub(tmp_path / "hub", commit=NEXT_COMMIT) as endpoint:
        assert in_own_process("org/model", endpoint, cache, COMMIT) == first
        assert in_own_process("org/model", endpoint, cache, code=COMMIT_OF) == NEXT_COMMIT
        assert in_own_process("org/model", endpoint, cache).endswith(NEXT_COMMIT)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "the hub requires a valid HF_TOKEN (401)"),
        (403, "the hub denies access (403). Check the permissions of HF_TOKEN"),
        (429, "the hub is limiting requests (429)"),
        (503, "the hub returned 503. Try again later"),
    ],
)
def test_a_refusal_by_the_hub_is_reported_in_one_line(
    status: int, reason: str, tmp_path: Path
) -> None:
    with loopback_hub(tmp_path / "hub", refusing=HTTPStatus(status)) as endpoint:
        line = refused(in_own_process("org/model", endpoint, tmp_path / "cache"))
    assert reason in line


def test_an_incomplete_download_is_not_used_as_a_model(tmp_path: Path) -> None:
    with_a_model(tmp_path / "hub")
    with loopback_hub(tmp_path / "hub") as endpoint:
        downloaded = Path(in_own_process("org/model", endpoint, tmp_path / "cache"))
        (downloaded / "model.safetensors").unlink()
    with loopback_hub(tmp_path / "hub", refusing=HTTPStatus(503)) as endpoint:
        assert "the hub returned 503" in in_own_process("org/model", endpoint, tmp_path / "cache")
    with loopback_hub(tmp_path / "hub") as endpoint:
        in_own_process("org/model", endpoint, tmp_path / "cache", COMMIT)
    assert (downloaded / "model.safetensors").is_file()


def test_only_files_that_transformers_loads_are_downloaded(tmp_path: Path) -> None:
    model = with_a_model(tmp_path / "hub")
    weights = (model / "model.safetensors").read_bytes()
    for other in ("original/model.safetensors", "onnx/config.json", "consolidated.safetensors"):
        (model / other).parent.mkdir(exist_ok=True)
        (model / other).write_bytes(weights)
    for other in ("pytorch_model.bin", "modeling.py", "model.fp16.safetensors", "a.gguf"):
        (model / other).write_bytes(b"pickle, program or another format")
    with loopback_hub(tmp_path / "hub") as endpoint:
        directory = Path(in_own_process("org/model", endpoint, tmp_path / "cache"))
    found = {str(path.relative_to(directory)) for path in directory.rglob("*")}
    assert found == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_all_shards_of_split_weights_are_downloaded(tmp_path: Path) -> None:
    model = with_a_model(tmp_path / "hub")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name in names:
        shutil.copy(model / "model.safetensors", model / name)
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model.safetensors").unlink()
    with loopback_hub(tmp_path / "hub") as endpoint:
        directory = Path(in_own_process("org/model", endpoint, tmp_path / "cache"))
        assert all((directory / name).is_file() for name in names)
    (directory / names[1]).unlink()
    with loopback_hub(tmp_path / "hub", refusing=HTTPStatus(503)) as endpoint:
        assert "the hub returned 503" in in_own_process("org/model", endpoint, tmp_path / "cache")


@pytest.mark.parametrize(
    ("source", "revision", "reason"),
    [
        ("org/unknown", "", "'org/unknown' is not on the hub. Check the spelling"),
        ("org/model", "v9", "'org/model' has no such revision"),
        ("not/a/model", "", "'not/a/model' is neither a path nor a model id"),
        ("not a model", "", "'not a model' is neither a path nor a model id"),
        ("org/model/b.gguf", "", "is not in the repository. To use a GGUF file, set source: "),
        ("org/model/c-00001-of-00002.gguf", "", "is only part of a model. Merge the parts"),
    ],
)
def test_a_model_missing_on_the_hub_is_refused_in_one_line(
    source: str, revision: str, reason: str, tmp_path: Path
) -> None:
    (with_a_model(tmp_path / "hub") / "a.gguf").write_bytes(b"weights")
    with loopback_hub(tmp_path / "hub") as endpoint:
        line = refused(in_own_process(source, endpoint, tmp_path / "cache", revision))
    assert reason in line


def test_a_hub_that_refuses_connections_is_reported_in_one_line(tmp_path: Path) -> None:
    with create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    line = refused(in_own_process("org/model", f"http://127.0.0.1:{port}", tmp_path))
    assert "the hub cannot be reached" in line


def test_a_hub_that_never_answers_times_out(tmp_path: Path) -> None:
    with create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        line = refused(in_own_process("org/model", f"http://127.0.0.1:{port}", tmp_path))
    assert "the hub cannot be reached" in line


def test_offline_mode_is_reported_in_one_line(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1"}
    line = in_own_process("org/model", "http://127.0.0.1:9", tmp_path, variables=offline)
    assert "HF_HUB_OFFLINE prevents the download" in refused(line)


def test_an_untrusted_certificate_is_reported_and_can_be_trusted(tmp_path: Path) -> None:
    with_a_model(tmp_path / "hub")
    company, pem, trusted = trustme.CA(), tmp_path / "hub.pem", tmp_path / "company.pem"
    company.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    company.cert_pem.write_to_path(str(trusted))
    cache = tmp_path / "cache"
    with loopback_hub(tmp_path / "hub", certificate=pem) as endpoint:
        other = {"REQUESTS_CA_BUNDLE": str(trusted)}
        line = refused(in_own_process("org/model", endpoint, cache, variables=other))
        assert "the hub's certificate is not trusted (" in line
        assert "set SSL_CERT_FILE to a file with them" in line
        right = {"SSL_CERT_FILE": str(trusted)}
        directory = Path(in_own_process("org/model", endpoint, cache, variables=right))
        assert (directory / "model.safetensors").is_file()
        wrong = {"SSL_CERT_FILE": str(tmp_path / "nothing.pem")}
        line = in_own_process("org/other", endpoint, cache, variables=wrong)
        assert "Correct SSL_CERT_FILE, or unset it." in refused(line)


def test_an_unwritable_cache_is_reported(tmp_path: Path) -> None:
    with_a_model(tmp_path / "hub")
    (tmp_path / "cache").write_text("no directory")
    with loopback_hub(tmp_path / "hub") as endpoint:
        line = refused(in_own_process("org/model", endpoint, tmp_path / "cache"))
    assert "cannot be saved in " in line
    assert "set HF_HOME to another directory" in line
