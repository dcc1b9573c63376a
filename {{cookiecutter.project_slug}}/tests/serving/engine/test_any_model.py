"""One model of each kind of attention, or of what replaces it."""

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

from {{ cookiecutter.__package }}.serving.engine import checks
from {{ cookiecutter.__package }}.serving.engine.engine import Engine
from {{ cookiecutter.__package }}.serving.engine.groups import (
    GroupedBatch,
    Joining,
    Reader,
)
from {{ cookiecutter.__package }}.serving.engine.loading import CONTINUOUS
from {{ cookiecutter.__package }}.serving.protocol import (
    GenerationError,
    GenerationOptions,
    ModelError,
)

from ...support.stand_ins import pieces_of, user
from ...support.tiny_models import save_tiny
from .conftest import EngineOf, plain

PROMPTS = [
    "The whale",
    "Far out the mist above the water turned to silver, and the keeper climbed the stairs",
    "A lamp",
    "灯台",
    "Before dawn",
    "Side by side in his book",
]
OPTIONS = GenerationOptions(temperature=0, min_new_tokens=12, max_new_tokens=12)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "forced_eos_token_id": None,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 256,
}
ENCODER = {**LLAMA, "head_dim": 8, "sliding_window": 4}
ANY, ALIGNED, NONE = (joining.value for joining in Joining)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "paged attention": ("llama", CONTINUOUS, LLAMA),
    "attention of its own": (
        "gpt_neo",
        ANY,
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 4}
        | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 256},
    ),
    "alibi": ("bloom", ANY, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "parallel attention": ("falcon", ANY, SMALL),
    "latent attention": (
        "deepseek_v3",
        ANY,
        LLAMA
        | {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8}
        | {"qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1}
        | {"topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"first_k_dense_replace": 1},
    ),
    "state space": ("mamba", ANY, {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "linear and full attention": (
        "qwen3_5_text",
        ANY,
        LLAMA
        | {"head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
        | {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
        | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    ),
    "convolutions": ("lfm2", ANY, LLAMA | {"layer_types": ["conv", "full_attention"]}),
    "relative positions": (
        "t5",
        ANY,
        {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    ),
    "learned positions": ("bart", ANY, BART),
    "positions of its tokens": ("m2m_100", ANY, BART | {"pad_token_id": 1}),
    "sliding encoder and decoder": (
        "t5gemma",
        ANY,
        {"encoder": ENCODER, "decoder": ENCODER | {"cross_attention_hidden_size": 32}}
        | {"pad_token_id": 1},
    ),
}


async def answer(
    engine: Engine, prompt: str, options: GenerationOptions = OPTIONS, *, after: float = 0
) -> str:
    await asyncio.sleep(after)
    return "".join(piece.text for piece in await pieces_of(engine.stream(user(prompt), options)))


def generated(directory: Path, prompt: str, **options: object) -> str:
    """Returns the text of transformers' own `generate`."""
    tokens = generated_tokens(directory, prompt, **options)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    # An incomplete character at the end is never shown.
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def generated_tokens(directory: Path, prompt: str, **options: object) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    encodes = AutoConfig.from_pretrained(directory).is_encoder_decoder
    loader = AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM
    model = loader.from_pretrained(directory, dtype=torch.float32)
    prompted = tokenizer(prompt, return_tensors="pt")["input_ids"]
    [tokens] = model.generate(
        prompted,
        attention_mask=torch.ones_like(prompted),
        **{"do_sample": False, "min_new_tokens": 12, "max_new_tokens": 12, **options},
    )
    new: list[int] = tokens[1 if encodes else prompted.shape[1] :].tolist()
    return new


@pytest.mark.parametrize("kind", KINDS)
async def test_a_model_writes_the_text_of_generate_alone_and_beside_others(
    kind: str, tmp_path: Path, engine_of: EngineOf, caplog: pytest.LogCaptureFixture
) -> None:
    model_type, how, fields = KINDS[kind]
    save_tiny(model_type, tmp_path, **fields)
    with caplog.at_level(logging.INFO):
        engine = engine_of(tmp_path)
    assert f"tiny runs {how}." in caplog.messages
    expected = {prompt: generated(tmp_path, prompt) for prompt in PROMPTS}
    assert len(set(expected.values())) >= 4
    for prompt in PROMPTS[:2]:
        assert await answer(engine, prompt) == expected[prompt]
    # Requests that start together, and later ones in another order.
    for prompts, pause in [(PROMPTS, 0.0), (PROMPTS[::-1], 0.005)]:
        texts = await asyncio.gather(
            *(answer(engine, prompt, after=n * pause) for n, prompt in enumerate(prompts))
        )
        assert dict(zip(prompts, texts, strict=True)) == expected
    engine.check_health()


def test_the_check_leaves_no_compute_threads_running(
    tmp_path: Path, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    # OpenMP keeps a pool for each computing thread; too many threads slow it down.
    threads = []
    usual = checks.scores_of

    def scores_of(*given: Any) -> list[torch.Tensor]:
        threads.append(threading.current_thread())
        scored: list[torch.Tensor] = usual(*given)
        return scored

    monkeypatch.setattr(checks, "scores_of", scores_of)
    engine_of(save_tiny("llama", tmp_path, **LLAMA))
    assert threads
    assert not any(thread.is_alive() for thread in threads)


def test_a_model_that_cannot_be_batched_is_refused_with_its_architecture_and_a_reason(
    tmp_path: Path, engine_of: EngineOf
) -> None:
    # Without a causal mask, the scores of a token depend on later ones.
    save_tiny("bert", tmp_path, **SMALL, intermediate_size=64, is_decoder=False)
    with pytest.raises(ModelError) as error:
        engine_of(tmp_path)
    line = str(error.value)
    assert "is a BertLMHeadModel, which cannot be served" in line
    assert "served: its scores differ from those of the plain model." in line
    assert "\n" not in line


@pytest.mark.parametrize("quantized", [False, True])
def test_a_batch_whose_rows_affect_each_other_is_rejected(
    quantized: bool,
    tmp_path: Path,
    engine_of: EngineOf,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def mixed(*args: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        scores, state = read(*args)
        return scores + 0.1 * scores.mean(0) * (len(scores) > 1), state

    read = Reader.read
    model_type, _, fields = KINDS["alibi"]
    save_tiny(model_type, tmp_path, **fields)
    monkeypatch.setattr(Reader, "read", mixed)
    # A quantized model is compared only with itself.
    monkeypatch.setattr(PreTrainedModel, "is_quantized", quantized, raising=False)
    with caplog.at_level(logging.INFO):
        engine_of(tmp_path)
    for joining in (ANY, ALIGNED):
        refused = f"tiny cannot run {joining}: its answers depend on which other requests run"
        assert refused in caplog.messages
    assert f"tiny runs {NONE}." in caplog.messages


async def test_a_request_with_non_finite_scores_fails_alone(
    tmp_path: Path, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("paged attention", "alibi", "relative positions"):
        model_type, _, fields = KINDS[kind]
        directory = tmp_path / model_type
        save_tiny(model_type, directory, **fields)
        engine = engine_of(directory)
        expected = [generated(directory, prompt) for prompt in PROMPTS[1:]]
        broken = engine._prompts.encode(user(PROMPTS[0]))
        usual = plain(engine).configured.rules

        def rules(prompt: list[int], *rest: Any, usual: Any = usual, broken: Any = broken) -> Any:
            if prompt != broken:
                return usual(prompt, *rest)
            return lambda text, scores: scores * (torch.nan if len(text) == 3 else 1)

        monkeypatch.setattr(plain(engine).configured, "rules", rules)
        failed, *texts = await asyncio.gather(
            *(answer(engine, prompt) for prompt in PROMPTS), return_exceptions=True
        )
        assert isinstance(failed, GenerationError)
        assert "are not finite" in str(failed)
        assert texts == expected
        engine.check_health()


async def test_later_requests_join_a_running_group(tmp_path: Path, engine_of: EngineOf) -> None:
    save_tiny("bloom", tmp_path, hidden_size=32, n_layer=2, n_head=4)
    engine = engine_of(tmp_path)
    long = OPTIONS.model_copy(update={"min_new_tokens": 100, "max_new_tokens": 100})
    rows = []
    plain(engine).model.register_forward_pre_hook(
        lambda *given: rows.append(len(given[-1]["input_ids"])), with_kwargs=True
    )
    await asyncio.gather(
        *(answer(engine, prompt, long, after=n * 0.02) for n, prompt in enumerate(PROMPTS))
    )
    assert isinstance(engine._batch, GroupedBatch)
    # Each prompt is read alone, then joins the group as a row.
    assert max(rows) == len(PROMPTS)
    assert len(rows) < 2 * long.max_new_tokens
