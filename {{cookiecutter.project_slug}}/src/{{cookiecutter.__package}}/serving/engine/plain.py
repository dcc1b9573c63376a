"""Loads a model with PyTorch, and finds the fastest batch with the plain model's scores."""

import math
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..protocol import ModelError
from ..telemetry.logs import logger
from .checks import LONGEST_PROMPT, NEW_TOKENS, difference, prompts_of, quiet
from .configured import Configured, end_tokens, unsupported
from .decoders import DecoderBatch
from .facts import Facts
from .families import refusal
from .generation import Batch, Processor
from .graph_paths import locate_graph
from .groups import GroupedBatch, Joining, first_token
from .loading import CONTINUOUS, Loaded, paged
from .prompts import PromptEncoder
from .settings import EngineSettings, ModelLimits
from .text_limits import (
    TextLimit,
    decoder_limit,
    decoder_size,
    encoder_limit,
    longest_answer,
)
from .vocabulary import load_tokenizer
from .weights import Weights, in_one_line

if TYPE_CHECKING:
    from .runtime import Decoder
    from .saved_graphs import SavedGraph

# oneDNN would cache code for each batch size that it has seen, which takes over 100 MB after a few
# hundred requests and makes nothing faster.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


def load_with_pytorch(settings: EngineSettings, limits: ModelLimits, weights: Weights) -> Loaded:
    """Makes a graph of the model if it can run in 8 bits, or else runs it with PyTorch.

    Raises:
        ModelError: neither is possible, or the settings require 8 bits and that is not possible.
    """
    asked = settings.dtype
    if asked == "int8" or (asked == "auto" and not torch.cuda.is_available()):
        made = _in_8_bits(settings, limits, weights)
        if not isinstance(made, str):
            return made
        if asked == "int8":
            raise ModelError(
                f"Model {settings.name!r}: {settings.source!r} cannot run in int8: {made}. "
                "Remove `dtype`, or choose another one."
            )
        logger.info("%s cannot run in int8: %s", settings.name, made)
    plain = PlainModel.load(settings, weights, _dtype(asked))
    loaded = _checked(plain, limits)
    logger.info("%s runs in %s", settings.name, plain.model.dtype)
    return loaded


class PlainModel:
    """A model and its tokenizer, as transformers loads them."""

    def __init__(
        self, settings: EngineSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.name = settings.name
        self.source = settings.source
        self.model = model
        self.encodes: bool = model.config.is_encoder_decoder
        self.tokenizer = tokenizer
        self.prompts = PromptEncoder(settings, self.tokenizer, can_continue=not self.encodes)
        ends = end_tokens(model, self.tokenizer)
        self.configured = Configured(model, ends)
        self.facts = Facts(
            ends=ends,
            top_k=model.generation_config.top_k,
            longest_answer=_counted(longest_answer(model)),
            left_out=tuple(unsupported(model.generation_config)),
            has_rules=self.configured.is_needed,
            positions=None if self.encodes else _counted(decoder_size(model).positions),
        )

    @classmethod
    def load(cls, settings: EngineSettings, weights: Weights, dtype: str) -> "PlainModel":
        directory, options = weights.directory, _options(weights)
        config = AutoConfig.from_pretrained(directory, **options)
        tokenizer = _tokenizer(settings, weights)
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
        return cls(settings, model, tokenizer)

    def rules(self, prompt: list[int], most: int) -> Processor | None:
        begin = [first_token(self.model)] if self.encodes else prompt
        return self.configured.rules(prompt, begin, most)

    def paged(self, settings: EngineSettings, limits: ModelLimits, decoder: "Decoder") -> Loaded:
        return paged(
            settings, limits, decoder, self.tokenizer, self.prompts, self.facts, self.rules
        )

    def batches(self, limits: ModelLimits) -> Iterator[tuple[str, Callable[[], Loaded]]]:
        """Yields kinds of batches, the fastest first."""
        text_limit, cache_tokens = self._text_limit(limits)
        running, model, ends = limits.running_requests, self.model, self.facts.ends
        if cache_tokens is not None:
            continuous = partial(DecoderBatch, model, ends, running, cache_tokens)
            yield CONTINUOUS, partial(self._loaded, continuous, text_limit, cache_tokens)
        for joining in Joining:
            grouped = partial(GroupedBatch, model, ends, running, joining, cache_tokens)
            yield joining.value, partial(self._loaded, grouped, text_limit, cache_tokens)

    def _loaded(
        self, make: Callable[[], Batch], text_limit: TextLimit, cache_tokens: int | None
    ) -> Loaded:
        return Loaded(
            make(),
            self.tokenizer,
            self.prompts,
            self.facts,
            text_limit,
            cache_tokens or 0,
            self.rules,
        )

    def _text_limit(self, limits: ModelLimits) -> tuple[TextLimit, int | None]:
        """Returns the limit for one text, and the size of a decoder's cache in tokens."""
        says = self.tokenizer.model_max_length
        if self.encodes:
            return encoder_limit(self.model, limits, says), None
        return decoder_limit(self.name, decoder_size(self.model), limits, says)

    def differs(self, loaded: Loaded, attention: str, dtype: torch.dtype) -> str | None:
        """Returns how a batch in this format differs from the plain model, or None."""
        longest = max(min(loaded.text_limit.tokens - NEW_TOKENS, LONGEST_PROMPT), 1)
        prompts = [
            (prompt, self.rules(prompt, NEW_TOKENS))
            for prompt in prompts_of(self.tokenizer, longest)
        ]
        # In a thread that ends, so that its OpenMP threads end too. Otherwise there would be more
        # threads than processors, and each would sleep after every operation.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(
                difference, self.model, loaded.batch, prompts, attention, dtype
            ).result()


def _in_8_bits(settings: EngineSettings, limits: ModelLimits, weights: Weights) -> Loaded | str:
    """Returns the model with 8-bit weights, or the reason why that is not possible."""
    if torch.cuda.is_available():
        return "int8 is for CPUs, but this machine has a GPU"
    config = AutoConfig.from_pretrained(weights.directory, **_options(weights))
    refused = refusal(config)
    if refused is not None:
        return refused
    # Imported here because other models do not need the runtime.
    from .runtime import return_freed_memory
    from .saved_graphs import SavedGraph

    return_freed_memory()
    saved = SavedGraph(settings.name, locate_graph(settings.source, weights))
    taken = saved.take()
    if taken is None:
        with saved.turn():
            # Another process may have made the graph in the meantime.
            taken = saved.take()
            if taken is None:
                return _newly_made(settings, limits, weights, saved)
    decoder, _ = taken
    model = describe(config, saved.generation())
    plain = PlainModel(settings, model, _tokenizer(settings, weights))
    loaded = plain.paged(settings, limits, decoder)
    logger.info("%s runs %s, in int8, from its saved graph.", settings.name, CONTINUOUS)
    return loaded


def _newly_made(
    settings: EngineSettings, limits: ModelLimits, weights: Weights, saved: "SavedGraph"
) -> Loaded | str:
    """Makes the graph, and saves it if its scores match the plain model's."""
    from .graphs import graph_of

    # In the format in which the weights were saved, so that they are not rounded twice.
    plain = PlainModel.load(settings, weights, "auto")
    model = plain.model
    logger.info("%s: rounding its weights to 8 bits", settings.name)
    try:
        decoder = saved.compile(
            graph_of(model), plain.facts, model.generation_config, plain.tokenizer
        )
    except Exception as error:  # Of any kind, because the runtime may not support this CPU.
        return in_one_line(error)
    loaded = plain.paged(settings, limits, decoder)
    # The plain model has the same rounded weights as the graph.
    with quiet():
        found = plain.differs(loaded, model.config._attn_implementation, torch.int8)
    if found is not None:
        loaded.batch.stop()
        return found
    saved.keep()
    # From here on, only the model's configuration is needed.
    drop_weights(model)
    logger.info("%s runs %s, in int8.", settings.name, CONTINUOUS)
    return loaded


def _checked(plain: PlainModel, limits: ModelLimits) -> Loaded:
    """Returns the first kind of batch whose scores match the plain model's.

    Raises:
        ModelError: no kind of batch does.
    """
    model = plain.model
    attention: str = model.config._attn_implementation
    found: str | None = None
    for how, make in plain.batches(limits):
        loaded = None
        try:
            with quiet():
                loaded = make()
                found = plain.differs(loaded, attention, model.dtype)
        except Exception as error:  # Of any kind, because the model may not support the cache.
            found = in_one_line(error)
        if found is None and loaded is not None:
            logger.info("%s runs %s.", plain.name, how)
            return loaded
        logger.info("%s cannot run %s: %s", plain.name, how, found)
        if loaded is not None:
            loaded.batch.stop()
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)
    raise ModelError(
        f"Model {plain.name!r}: {plain.source!r} is a {type(model).__name__}, which cannot be "
        f"served: {found}. Choose another model."
    )


def describe(config: PreTrainedConfig, generation: GenerationConfig) -> PreTrainedModel:
    """Returns a model with this configuration and without weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.generation_config = generation
    drop_weights(model)
    return model


def drop_weights(model: PreTrainedModel) -> None:
    """Removes the weights of a model, and keeps its configuration."""
    for module in model.modules():
        for name, weights in module.named_parameters(recurse=False):
            empty = torch.empty(0, dtype=weights.dtype, device="cpu")
            setattr(module, name, torch.nn.Parameter(empty, requires_grad=False))


def _counted(tokens: float) -> int | None:
    return None if tokens == math.inf else int(tokens)


def _tokenizer(settings: EngineSettings, weights: Weights) -> PreTrainedTokenizerBase:
    return load_tokenizer(settings, weights.directory, weights.gguf_file)


def _options(weights: Weights) -> dict[str, str]:
    return {"gguf_file": weights.gguf_file} if weights.gguf_file else {}


def _dtype(asked: str) -> str:
    """Replaces `auto` by the fastest format of this machine.

    A CPU without bfloat16 instructions converts each value to float32.
    """
    if asked != "auto" or torch.cuda.is_available():
        return asked
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if native else "float32"


def _check_loaded(model: PreTrainedModel, missing: Collection[str]) -> None:
    """Raises ValueError if weights are missing. transformers would fill them with random values."""
    lacking = sorted(set(missing) & {name for name, _ in model.named_parameters()})
    if lacking:
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        raise ValueError(f"weights are missing: {lacking[0]}{more}")
