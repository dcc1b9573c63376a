"""The maximum length of texts, by model, limits and memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    LlamaConfig,
    MambaConfig,
    MT5Config,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
)

from {{ cookiecutter.__package }}.serving.engine import text_limits
from {{ cookiecutter.__package }}.serving.engine.settings import ModelLimits
from {{ cookiecutter.__package }}.serving.engine.text_limits import (
    DecoderSize,
    TextLimit,
    decoder_limit,
    decoder_size,
    encoder_bytes,
    encoder_limit,
    free_memory,
)
from {{ cookiecutter.__package }}.serving.protocol import ModelError, PromptError

GIB = 2**30
NO_LENGTH = 10**30
"""The maximum length of a tokenizer that has none."""
LLAMA_2_7B = LlamaConfig(max_position_embeddings=4096)
QWEN_2_7B = LlamaConfig(
    hidden_size=3584,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    max_position_embeddings=32768,
)
SMOLLM_2_2B = LlamaConfig(
    hidden_size=2048,
    num_hidden_layers=24,
    num_attention_heads=32,
    max_position_embeddings=8192,
)
MEASURED = """
import sys, threading, psutil, torch
from transformers import MT5Config, MT5ForConditionalGeneration
from {{ cookiecutter.__package }}.serving.engine.text_limits import encoder_bytes
heads, tokens = int(sys.argv[1]), int(sys.argv[2])
config = MT5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=heads)
model = MT5ForConditionalGeneration(config).eval()
prompt = torch.randint(3, 300, (1, 64))
with torch.inference_mode():
    model.get_encoder()(input_ids=prompt)
    own, over = psutil.Process(), threading.Event()
    before = peak = own.memory_info().rss
    def watch():
        global peak
        while not over.wait(0.002):
            peak = max(peak, own.memory_info().rss)
    watcher = threading.Thread(target=watch)
    watcher.start()
    model.get_encoder()(input_ids=torch.randint(3, 300, (1, tokens)))
    over.set()
    watcher.join()
print((peak - before) / encoder_bytes(model, tokens))
"""


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Pretends that the machine has the given GiB free."""

    def have(gib: float) -> None:
        monkeypatch.setattr(text_limits, "free_memory", lambda _: int(gib * GIB))

    return have


def decoder(config: PreTrainedConfig) -> DecoderSize:
    """The size of a model whose weights are on the meta device and take no memory."""
    with torch.device("meta"):
        return decoder_size(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))


def encoder(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(config, dtype=dtype)
    return model


@pytest.mark.parametrize(
    ("config", "free"),
    [(LLAMA_2_7B, 17.0), (QWEN_2_7B, 16.0), (SMOLLM_2_2B, 8.0)],
    ids=["Llama 2 7B, 32 GB", "Qwen 2 7B, 32 GB", "SmolLM2 1.7B, 8 GiB free"],
)
def test_common_models_get_their_whole_context(
    config: LlamaConfig, free: float, memory: Callable[[float], None]
) -> None:
    memory(free)
    found, cache = decoder_limit("tiny", decoder(config), ModelLimits(), NO_LENGTH)
    assert found == TextLimit(config.max_position_embeddings)
    assert cache >= config.max_position_embeddings


def test_a_context_limited_by_memory_is_logged(memory: Callable[[float], None]) -> None:
    memory(1)
    found, cache = decoder_limit("tiny", decoder(LLAMA_2_7B), ModelLimits(), NO_LENGTH)
    assert found == TextLimit(cache, "cache_tokens")
    assert 0 < cache < 4096
    assert str(found) == (
        f"reads and writes at most {cache} tokens in one text, limited by cache_tokens under limits"
    )


def test_a_model_that_does_not_fit_in_memory_is_refused(memory: Callable[[float], None]) -> None:
    memory(0.05)
    with pytest.raises(
        ModelError, match=r"^Model 'tiny': there is not enough memory for its cache: 51 MB"
    ):
        decoder_limit("tiny", decoder(LLAMA_2_7B), ModelLimits(), NO_LENGTH)


def test_the_limits_and_the_tokenizer_cap_the_context(memory: Callable[[float], None]) -> None:
    memory(16)
    model = decoder(SMOLLM_2_2B)
    found, cache = decoder_limit("tiny", model, ModelLimits(cache_tokens=500), NO_LENGTH)
    assert (found, cache) == (TextLimit(500, "cache_tokens"), 500)
    found, _ = decoder_limit("tiny", model, ModelLimits(), 1024)
    assert found == TextLimit(1024)
    found, cache = decoder_limit("tiny", model, ModelLimits(cache_tokens=90_000), NO_LENGTH)
    assert (found, cache) == (TextLimit(8192), 90_000)


def test_a_model_without_attention_gets_room_too(memory: Callable[[float], None]) -> None:
    memory(1)
    mamba = decoder(MambaConfig(hidden_size=64, num_hidden_layers=2))
    found, cache = decoder_limit("tiny", mamba, ModelLimits(), NO_LENGTH)
    assert found == TextLimit(cache, "cache_tokens")
    assert cache > 1000


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            TextLimit(256),
            "The text is too long for tiny: 300 tokens, but with 100 new tokens, its context has "
            "room for only 156. Shorten the text or ask for fewer new tokens.",
        ),
        (
            TextLimit(256, "cache_tokens"),
            "The text is too long for tiny: 300 tokens, but with 100 new tokens, its cache has "
            "room for only 156. Shorten the text, ask for fewer new tokens or raise cache_tokens "
            "under limits.",
        ),
        (
            TextLimit(26, "cache_tokens"),
            "The text is too long for tiny: 300 tokens, but 100 new tokens leave no room in its "
            "cache of 26. Ask for fewer new tokens or raise cache_tokens under limits.",
        ),
        (
            TextLimit(90),
            "The text is too long for tiny: 300 tokens, but 100 new tokens leave no room in its "
            "context of 90. Ask for fewer new tokens.",
        ),
        (
            TextLimit(256, includes_answer=False),
            "The text is too long for tiny: 300 tokens, but the model can read at most 256. "
            "Shorten the text.",
        ),
        (
            TextLimit(256, "prompt_tokens", includes_answer=False),
            "The text is too long for tiny: 300 tokens, but the model can read at most 256. "
            "Shorten the text or raise prompt_tokens under limits.",
        ),
    ],
)
def test_the_refusal_names_the_limit_and_how_to_raise_it(found: TextLimit, line: str) -> None:
    with pytest.raises(PromptError) as error:
        found.check("tiny", 300, 100)
    assert str(error.value) == line


def test_a_text_that_just_fits_is_accepted() -> None:
    TextLimit(256).check("tiny", 156, 100)
    TextLimit(256, includes_answer=False).check("tiny", 256, 100)
    with pytest.raises(PromptError):
        TextLimit(256).check("tiny", 157, 100)


def test_an_encoder_with_unlimited_positions_reads_as_much_as_memory_allows(
    memory: Callable[[float], None],
) -> None:
    memory(16)
    for config in (T5Config(), MT5Config()):
        # T5's tokenizer sets 512, and mT5's sets no limit.
        found = encoder_limit(encoder(config), ModelLimits(), 512)
        assert found == encoder_limit(encoder(config), ModelLimits(), NO_LENGTH)
        assert found.setting == "prompt_tokens"
        assert 1000 < found.tokens < 10_000
        assert encoder_bytes(encoder(config), found.tokens) <= 16 * GIB / 8
    allowed = encoder_limit(encoder(T5Config()), ModelLimits(prompt_tokens=20_000), 512)
    assert allowed == TextLimit(20_000, "prompt_tokens", includes_answer=False)


def test_an_encoder_with_learned_positions_stops_at_the_last_one(
    memory: Callable[[float], None],
) -> None:
    memory(16)
    bart = encoder(BartConfig(encoder_layers=1, decoder_layers=1))
    assert encoder_limit(bart, ModelLimits(), NO_LENGTH) == TextLimit(1024, includes_answer=False)
    assert encoder_limit(bart, ModelLimits(), 512) == TextLimit(512, includes_answer=False)
    raised = ModelLimits(prompt_tokens=20_000)
    assert encoder_limit(bart, raised, NO_LENGTH) == TextLimit(1024, includes_answer=False)
    lowered = ModelLimits(prompt_tokens=64)
    found = encoder_limit(bart, lowered, NO_LENGTH)
    assert found == TextLimit(64, "prompt_tokens", includes_answer=False)


@pytest.mark.parametrize(("heads", "tokens"), [(2, 2500), (12, 2000)])
def test_a_long_prompt_takes_no_more_memory_than_estimated(heads: int, tokens: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, str(heads), str(tokens)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert 0.2 < float(result.stdout) <= 1


def test_the_memory_limit_of_a_container_applies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_limits, "CGROUP", tmp_path)
    machine = free_memory(on_gpu=False)
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(on_gpu=False) == pytest.approx(machine, rel=0.2)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    # Memory of the page cache can be reclaimed.
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\nactive_file 7\n")
    assert free_memory(on_gpu=False) == 400_000
    (tmp_path / "memory.current").write_text("1100000\n")
    assert free_memory(on_gpu=False) == 0
