"""Models with a few layers and random weights, which quickly answer nonsense."""

from pathlib import Path
from typing import Any

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
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

CONTEXT = 256
# Weights of the usual initial size would repeat one token forever.
VARIETY = 0.3
END = "<end>"
CORPUS = (
    "The keeper of the lighthouse woke before dawn and climbed the stairs with a lamp in his "
    "hand. Far out a whale breathed, and the mist above the water turned to silver. Über dem "
    "Wasser, très loin, 灯台 and 🐋 stood side by side in his book of days."
)


def save_tiny_decoder(directory: Path) -> Path:
    """Saves a tiny GPT-2."""
    tokenizer = tiny_tokenizer()
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
    """Saves a tiny T5."""
    tokenizer = tiny_tokenizer()
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
    """Saves a tiny BART with 64 learned positions."""
    tokenizer = tiny_tokenizer()
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
    """Saves a tiny model of any architecture in transformers, built from its config fields."""
    tokenizer = tiny_tokenizer()
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


def tiny_tokenizer() -> PreTrainedTokenizerFast:
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
