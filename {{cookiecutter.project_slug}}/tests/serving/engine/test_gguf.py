"""A model in one file, as llama.cpp keeps it."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from {{ cookiecutter.__package }}.serving.engine.engine import Engine
from {{ cookiecutter.__package }}.serving.engine.settings import (
    EngineSettings,
    ModelLimits,
)
from {{ cookiecutter.__package }}.serving.engine.weights import Weights, locate
from {{ cookiecutter.__package }}.serving.protocol import (
    GenerationOptions,
    ModelError,
)

from ...support.loopback_hub import COMMIT, loopback_hub
from ...support.stand_ins import pieces_of, user
from ...support.tiny_models import save_tiny_gguf
from .test_weights import in_own_process, refused

PROMPT = "The whale breathed"
OPTIONS = GenerationOptions(temperature=0, min_new_tokens=12, max_new_tokens=12)
WITHOUT = """
import sys
sys.modules["gguf"] = None
from {{ cookiecutter.__package }}.serving.engine.settings import EngineSettings
from {{ cookiecutter.__package }}.serving.engine.weights import locate
locate(EngineSettings(name="model", source=sys.argv[1]))
"""


@dataclass
class Kept:
    file: Path
    model: LlamaForCausalLM
    """The one that was written into it."""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    file = tmp_path_factory.mktemp("hub") / "org" / "small-GGUF" / "Q8" / "small.gguf"
    file.parent.mkdir(parents=True)
    return Kept(file, save_tiny_gguf(file))


@pytest.fixture
def engine(kept: Kept) -> Iterator[Engine]:
    model = EngineSettings(name="small", source=str(kept.file), dtype="float32")
    engine = Engine(model, ModelLimits(update_seconds=0))
    yield engine
    engine.stop()


async def test_a_file_is_a_model_like_any_other(engine: Engine, kept: Kept) -> None:
    inputs = engine._tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        tokens = kept.model.generate(
            **inputs, do_sample=False, min_new_tokens=12, max_new_tokens=12
        )[0]
    new = tokens[inputs["input_ids"].shape[1] :]
    pieces = await pieces_of(engine.stream(user(PROMPT), OPTIONS))
    expected = engine._tokenizer.decode(new, skip_special_tokens=True)
    assert "".join(piece.text for piece in pieces) == expected.rstrip("�")


def test_a_file_of_the_hub_is_named_with_its_model_and_comes_alone(
    kept: Kept, tmp_path: Path
) -> None:
    hub = kept.file.parents[3]
    (kept.file.parents[1] / "other.gguf").write_bytes(b"another format of the same weights")
    source = "org/small-GGUF/Q8/small.gguf"
    with loopback_hub(hub) as endpoint:
        found = Path(in_own_process(source, endpoint, tmp_path))
    assert found.parts[-2:] == (COMMIT, "Q8")
    files = [path.relative_to(found.parent) for path in found.parent.rglob("*") if path.is_file()]
    assert files == [Path("Q8/small.gguf")]
    assert in_own_process(source, endpoint, tmp_path) == str(found)


def test_a_hub_model_of_files_alone_is_refused_with_one_of_them(kept: Kept, tmp_path: Path) -> None:
    with loopback_hub(kept.file.parents[3]) as endpoint:
        line = refused(in_own_process("org/small-GGUF", endpoint, tmp_path))
    assert "name one, as in source: org/small-GGUF/Q8/small.gguf" in line


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other.gguf", "no file is at"),
        ("small-00001-of-00003.gguf", "is a part of a model. Join the parts"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=reason):
        locate(EngineSettings(name="model", source=str(tmp_path / name)))


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"no GGUF")
    assert locate(EngineSettings(name="model", source=str(file))) == Weights(tmp_path, file.name)
    with pytest.raises(ModelError, match=f"^Model 'model': '{file}' cannot be loaded") as error:
        Engine(EngineSettings(name="model", source=str(file)), ModelLimits())
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named(kept: Kept) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(kept.file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    line = refused(result.stderr.strip().splitlines()[-1])
    assert line.endswith("needs packages to be read: run `uv add gguf`.")
