"""Models in GGUF files, the format of llama.cpp."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
from ...support.tiny_models import CONTEXT, VARIETY, tiny_tokenizer
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


def save_tiny_gguf(file: Path) -> LlamaForCausalLM:
    """Saves a Llama as a GGUF file, and returns the same model."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=VARIETY,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(len(tokenizer))
    _add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weights in model.state_dict().items():
        rotated = name.endswith(("q_proj.weight", "k_proj.weight"))
        kept = _interleaved(weights, config.num_attention_heads) if rotated else weights
        writer.add_tensor(str(names.get_name(name, (".weight",))), kept.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.eval()


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    described = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types(
        [gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokenizer) - 1)
    )
    writer.add_token_merges([" ".join(pair) for pair in described["merges"]])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def _interleaved(weights: torch.Tensor, heads: int) -> torch.Tensor:
    """For rotation, llama.cpp pairs neighbors and transformers pairs halves."""
    rows, columns = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns).contiguous()


@dataclass
class Kept:
    file: Path
    model: LlamaForCausalLM
    """The model that was written to the file."""


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


async def test_a_gguf_file_works_like_any_other_model(engine: Engine, kept: Kept) -> None:
    inputs = engine._tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        tokens = kept.model.generate(
            **inputs, do_sample=False, min_new_tokens=12, max_new_tokens=12
        )[0]
    new = tokens[inputs["input_ids"].shape[1] :]
    pieces = await pieces_of(engine.stream(user(PROMPT), OPTIONS))
    expected = engine._tokenizer.decode(new, skip_special_tokens=True)
    assert "".join(piece.text for piece in pieces) == expected.rstrip("�")


def test_a_hub_file_is_named_with_its_model_and_downloaded_alone(
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


def test_a_hub_model_with_only_gguf_files_is_refused_with_one_as_an_example(
    kept: Kept, tmp_path: Path
) -> None:
    with loopback_hub(kept.file.parents[3]) as endpoint:
        line = refused(in_own_process("org/small-GGUF", endpoint, tmp_path))
    assert "To use a GGUF file, set source: org/small-GGUF/Q8/small.gguf" in line


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other.gguf", "there is no file"),
        ("small-00001-of-00003.gguf", "is only part of a model. Merge the parts"),
    ],
)
def test_an_unreadable_file_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=reason):
        locate(EngineSettings(name="model", source=str(tmp_path / name)))


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "small.gguf"
    file.write_bytes(b"no GGUF")
    assert locate(EngineSettings(name="model", source=str(file))) == Weights(tmp_path, file.name)
    with pytest.raises(ModelError, match=f"^Model 'model': '{file}' cannot be loaded") as error:
        Engine(EngineSettings(name="model", source=str(file)), ModelLimits())
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named_in_the_error(kept: Kept) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(kept.file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    line = refused(result.stderr.strip().splitlines()[-1])
{% if cookiecutter.models == "bundled" %}
    assert "needs packages that are not installed here. Run `uv sync --group pytorch`" in line
{% else %}
    assert line.endswith("needs more packages. Run `uv add gguf`.")
{% endif %}
