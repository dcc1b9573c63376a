import os
import subprocess
import sys
from pathlib import Path
from socket import create_server

import pytest

from {{ cookiecutter.__package }}.serving.deployments.settings import (
    ModelSettings,
)
from {{ cookiecutter.__package }}.serving.engine.weights import locate
from {{ cookiecutter.__package }}.serving.protocol import ModelError

from ...support.loopback_hub import loopback_hub
from ...support.tiny_models import save_tiny_decoder

LOCATE = """
import sys
from {{ cookiecutter.__package }}.serving.engine import weights
from {{ cookiecutter.__package }}.serving.deployments.settings import ModelSettings

weights.HUB_SECONDS = 2
print(weights.locate(ModelSettings(name="model", source=sys.argv[1], revision=sys.argv[2] or None)))
"""


def locate_in_own_process(source: str, endpoint: str, cache: Path, revision: str = "") -> str:
    """Returns what it prints: huggingface_hub reads its environment once, when imported."""
    result = subprocess.run(
        [sys.executable, "-c", LOCATE, source, revision],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return (result.stdout or result.stderr).strip().splitlines()[-1]


def test_a_directory_is_taken_as_it_is(tiny_decoder: Path) -> None:
    assert locate(ModelSettings(name="model", source=str(tiny_decoder))) == tiny_decoder


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "has no config.json"),
        (["config.json"], r"has no \*.safetensors"),
        (["config.json", "pytorch_model.bin"], r"has no \*.safetensors"),
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
    with pytest.raises(ModelError, match="no directory is at"):
        locate(ModelSettings(name="model", source=str(tmp_path / "nowhere")))


def test_a_model_id_is_downloaded_once_and_then_found_without_the_hub(tmp_path: Path) -> None:
    save_tiny_decoder(tmp_path / "hub" / "org" / "model")
    with loopback_hub(tmp_path / "hub") as endpoint:
        downloaded = locate_in_own_process("org/model", endpoint, tmp_path / "cache")
    found = locate_in_own_process("org/model", endpoint, tmp_path / "cache")
    assert found == downloaded
    assert {path.name for path in Path(found).iterdir()} >= {"config.json", "model.safetensors"}


def test_files_that_could_run_code_are_not_downloaded(tmp_path: Path) -> None:
    model = save_tiny_decoder(tmp_path / "hub" / "org" / "model")
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "modeling.py").write_text("raise SystemExit")
    with loopback_hub(tmp_path / "hub") as endpoint:
        directory = Path(locate_in_own_process("org/model", endpoint, tmp_path / "cache"))
    assert not list(directory.glob("*.bin")) + list(directory.glob("*.py"))


@pytest.mark.parametrize(
    ("source", "revision", "reason"),
    [
        ("org/unknown", "", "'org/unknown' is unknown to the hub. Check its spelling"),
        ("org/model", "v9", "'org/model' has no such revision"),
        ("not/a/model", "", "'not/a/model' is neither a directory nor a model id"),
    ],
)
def test_what_the_hub_does_not_have_is_refused_in_one_line(
    source: str, revision: str, reason: str, tmp_path: Path
) -> None:
    save_tiny_decoder(tmp_path / "hub" / "org" / "model")
    with loopback_hub(tmp_path / "hub") as endpoint:
        line = locate_in_own_process(source, endpoint, tmp_path / "cache", revision)
    assert "ModelError: Model 'model': " in line
    assert reason in line


def test_a_hub_that_refuses_connections_is_named_in_one_line(tmp_path: Path) -> None:
    with create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    line = locate_in_own_process("org/model", f"http://127.0.0.1:{port}", tmp_path)
    assert "the hub cannot be reached" in line


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        line = locate_in_own_process("org/model", f"http://127.0.0.1:{port}", tmp_path)
    assert "the hub cannot be reached" in line
