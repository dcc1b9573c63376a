"""Loads a model with PyTorch, and finds how to run it so that it writes what it would by itself."""

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
from .configured import Configured, end_tokens, unkept
from .decoders import DecoderBatch
from .facts import Facts
from .families import refusal
from .generation import Batch, Processor
from .groups import GroupedBatch, Joining, first_token
from .loading import CONTINUOUS, Loaded, paged
from .places import place_of
from .prompts import PromptEncoder
from .room import Room, decoder_room, decoder_size, encoder_room, longest_answer
from .settings import EngineSettings, ModelLimits
from .vocabulary import load_tokenizer
from .weights import Weights, in_one_line

if TYPE_CHECKING:
    from .kept import KeptGraph
    from .runtime import Decoder

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
            left_out=tuple(unkept(model.generation_config)),
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
        room, cache_tokens = self._rooms(limits)
        running, model, ends = limits.running_requests, self.model, self.facts.ends
        if cache_tokens is not None:
            continuous = partial(DecoderBatch, model, ends, running, cache_tokens)
            yield CONTINUOUS, partial(self._loaded, continuous, room, cache_tokens)
        for joining in Joining:
            grouped = partial(GroupedBatch, model, ends, running, joining, cache_tokens)
            yield joining.value, partial(self._loaded, grouped, room, cache_tokens)

    def _loaded(self, make: Callable[[], Batch], room: Room, cache_tokens: int | None) -> Loaded:
        return Loaded(
            make(), self.tokenizer, self.prompts, self.facts, room, cache_tokens or 0, self.rules
        )

    def _rooms(self, limits: ModelLimits) -> tuple[Room, int | None]:
        """Returns the room for one text, and for a decoder how many tokens its cache holds."""
        says = self.tokenizer.model_max_length
        if self.encodes:
            return encoder_room(self.model, limits, says), None
        return decoder_room(self.name, decoder_size(self.model), limits, says)

    def differs(self, loaded: Loaded, attention: str, dtype: torch.dtype) -> str | None:
        """Returns how a batch that computes in this format differs from the plain model."""
        longest = max(min(loaded.room.tokens - NEW_TOKENS, LONGEST_PROMPT), 1)
        prompts = [
            (prompt, self.rules(prompt, NEW_TOKENS))
            for prompt in prompts_of(self.tokenizer, longest)
        ]
        # In a thread that ends, and takes its OpenMP threads with it. If they stayed, there
        # would be more than processors, and each would sleep after every operation.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(
                difference, self.model, loaded.batch, prompts, attention, dtype
            ).result()


def _in_8_bits(settings: EngineSettings, limits: ModelLimits, weights: Weights) -> Loaded | str:
    """Returns the model with weights in 8 bits, or why there is none."""
    if torch.cuda.is_available():
        return "it is for a CPU, and there is a GPU"
    config = AutoConfig.from_pretrained(weights.directory, **_options(weights))
    refused = refusal(config)
    if refused is not None:
        return refused
    # They import the runtime, which other models do without.
    from .kept import KeptGraph
    from .runtime import give_memory_back

    give_memory_back()
    kept = KeptGraph(settings.name, place_of(settings.source, weights))
    taken = kept.take()
    if taken is None:
        with kept.turn():
            # Another process may have made it.
            taken = kept.take()
            if taken is None:
                return _newly_made(settings, limits, weights, kept)
    decoder, _ = taken
    model = describe(config, kept.generation())
    plain = PlainModel(settings, model, _tokenizer(settings, weights))
    loaded = plain.paged(settings, limits, decoder)
    logger.info("%s runs %s, in int8, as it was kept.", settings.name, CONTINUOUS)
    return loaded


def _newly_made(
    settings: EngineSettings, limits: ModelLimits, weights: Weights, kept: "KeptGraph"
) -> Loaded | str:
    """Makes the graph, which is kept once it writes what the plain model does."""
    from .graphs import graph_of

    # As they were saved, so that nothing is rounded twice.
    plain = PlainModel.load(settings, weights, "auto")
    model = plain.model
    logger.info("%s: rounding its weights to 8 bits", settings.name)
    try:
        decoder = kept.compile(
            graph_of(model), plain.facts, model.generation_config, plain.tokenizer
        )
    except Exception as error:  # Of any kind: the runtime may not know this CPU.
        return in_one_line(error)
    loaded = plain.paged(settings, limits, decoder)
    # The plain model has the weights that the graph has.
    with quiet():
        found = plain.differs(loaded, model.config._attn_implementation, torch.int8)
    if found is not None:
        loaded.batch.stop()
        return found
    kept.keep()
    # Only its configuration is needed from here on.
    give_up_weights(model)
    logger.info("%s runs %s, in int8.", settings.name, CONTINUOUS)
    return loaded


def _checked(plain: PlainModel, limits: ModelLimits) -> Loaded:
    """Returns the first kind of batch that writes what the plain model does.

    Raises:
        ModelError: none does.
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
        except Exception as error:  # Of any kind: its code meets a cache that it does not know.
            found = in_one_line(error)
        if found is None and loaded is not None:
            logger.info("%s runs %s.", plain.name, how)
            return loaded
        logger.info("%s does not run %s: %s", plain.name, how, found)
        if loaded is not None:
            loaded.batch.stop()
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)
    raise ModelError(
        f"Model {plain.name!r}: {plain.source!r} is a {type(model).__name__}, which cannot be "
        f"served: {found}."
    )


def describe(config: PreTrainedConfig, generation: GenerationConfig) -> PreTrainedModel:
    """Returns a model of this configuration, without weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.generation_config = generation
    give_up_weights(model)
    return model


def give_up_weights(model: PreTrainedModel) -> None:
    """Leaves a model what its configuration says."""
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
    """Chooses for `auto` what this machine computes fast.

    A CPU without instructions for bfloat16 takes it apart to compute in float32.
    """
    if asked != "auto" or torch.cuda.is_available():
        return asked
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if native else "float32"


def _check_loaded(model: PreTrainedModel, missing: Collection[str]) -> None:
    """Transformers makes up what is missing, and the model writes nonsense."""
    lacking = sorted(set(missing) & {name for name, _ in model.named_parameters()})
    if lacking:
        more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        raise ValueError(f"it lacks weights: {lacking[0]}{more}")
