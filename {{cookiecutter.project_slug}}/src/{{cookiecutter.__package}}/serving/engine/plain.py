"""Loads a model with PyTorch, and finds how to run it so that it writes what it would by itself."""

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..protocol import ModelError
from ..telemetry.logs import logger
from .checks import LONGEST_PROMPT, NEW_TOKENS, difference, prompts_of, quiet
from .configured import Configured, end_tokens, unkept
from .decoders import DecoderBatch
from .facts import Facts
from .families import refusal
from .generation import Batch, Processor
from .groups import GroupedBatch, Joining, first_token
from .loading import CONTINUOUS, Loaded, paged
from .prompts import PromptEncoder
from .room import Room, decoder_room, decoder_size, encoder_room, longest_answer
from .settings import EngineSettings, ModelLimits
from .vocabulary import load_tokenizer
from .weights import Weights, in_one_line

if TYPE_CHECKING:
    from .kept import KeptGraph

# oneDNN would keep its code for each number of tokens that it has computed at once, which
# takes more than 100 MB after some hundred requests and makes nothing faster.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


def load_with_pytorch(settings: EngineSettings, limits: ModelLimits, weights: Weights) -> Loaded:
    """Makes a graph of the model where it may run in 8 bits, else runs it as PyTorch does.

    Raises:
        ModelError: neither is possible, or the settings ask for 8 bits, which are not.
    """
    asked = settings.dtype
    if asked == "int8" or (asked == "auto" and not torch.cuda.is_available()):
        made = _in_8_bits(settings, limits, weights)
        if not isinstance(made, str):
            return made
        if asked == "int8":
            raise ModelError(
                f"Model {settings.name!r}: {settings.source!r} does not run in int8: {made}. "
                "Leave `dtype` out, or choose another."
            )
        logger.info("%s does not run in int8: %s", settings.name, made)
    plain = PlainModel.load(settings, weights, _dtype(asked))
    loaded = _checked(plain, limits)
    logger.info("%s: in %s", settings.name, plain.model.dtype)
    return loaded


class PlainModel:
    """A model and its tokenizer, as transformers has them."""

    def __init__(
        self, settings: EngineSettings, weights: Weights, model: PreTrainedModel
    ) -> None:
        self.name = settings.name
        self.source = settings.source
        self.model = model
        self.encodes: bool = model.config.is_encoder_decoder
        self.tokenizer = load_tokenizer(settings, weights.directory, weights.gguf_file)
        self.prompts = PromptEncoder(settings, self.tokenizer, can_continue=not self.encodes)
        ends = end_tokens(model, self.tokenizer)
        self.configured = Configured(model, ends)
        self.facts = Facts(
            ends=ends,
            top_k=model.generation_config.top_k,
            longest_answer=longest_answer(model),
            left_out=tuple(unkept(model.generation_config)),
            has_rules=self.configured.has_rules,
            positions=None if self.encodes else decoder_size(model).positions,
        )

    @classmethod
    def load(cls, settings: EngineSettings, weights: Weights, dtype: str) -> "PlainModel":
        directory, options = weights.directory, _options(weights)
        config = AutoConfig.from_pretrained(directory, **options)
        loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model, loaded = loader.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        _check_loaded(model, loaded["missing_keys"])
        model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return cls(settings, weights, model)
