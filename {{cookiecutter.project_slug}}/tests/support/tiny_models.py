"""Models of a few layers with random weights: they answer at once, with nonsense."""

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

CONTEXT = 256
# Weights as small as models start with would repeat one token for ever.
VARIETY = 0.3
END = "<end>"
CORPUS = (
    "The keeper of the lighthouse woke before dawn and climbed the stairs with a lamp in his "
    "hand. Far out a whale breathed, and the mist above the water turned to silver. Über dem "
    "Wasser, très loin, 灯台 and 🐋 stood side by side in his book of days."
)


def save_tiny_decoder(directory: Path) -> Path:
    """Writes a GPT-2."""
    tokenizer = _tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=VARIETY,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return _save(GPT2LMHeadModel, config, tokenizer, directory)


def save_tiny_encoder_decoder(directory: Path) -> Path:
    """Writes a T5."""
    tokenizer = _tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        initializer_factor=10 * VARIETY,
        decoder_start_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return _save(T5ForConditionalGeneration, config, tokenizer, directory)


def save_tiny_bart(directory: Path) -> Path:
    """Writes a BART, which has learned 64 positions."""
    tokenizer = _tokenizer()
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        init_std=VARIETY,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return _save(BartForConditionalGeneration, config, tokenizer, directory)


def save_tiny(model_type: str, directory: Path, **fields: Any) -> Path:
    """Writes a model of any architecture of transformers, made of the fields of its config."""
    tokenizer = _tokenizer()
    own = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    for part in {"encoder", "decoder"} & fields.keys():
        fields[part] = own | fields[part]
    config = AutoConfig.for_model(model_type, **{**own, "decoder_start_token_id": 0, **fields})
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config)
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=VARIETY)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_tiny_gguf(file: Path) -> LlamaForCausalLM:
    """Writes a Llama as llama.cpp keeps it, and returns the one that is in it."""
    tokenizer = _tokenizer()
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
    """Llama.cpp pairs neighbours to rotate, and transformers the halves."""
    rows, columns = weights.shape
    halves = weights.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns).contiguous()


def _tokenizer() -> PreTrainedTokenizerFast:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([CORPUS], vocab_size=400, special_tokens=[END])
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
    )


def _save(
    model_class: type[PreTrainedModel],
    config: GPT2Config | T5Config | BartConfig,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
) -> Path:
    torch.manual_seed(0)
    model_class(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
