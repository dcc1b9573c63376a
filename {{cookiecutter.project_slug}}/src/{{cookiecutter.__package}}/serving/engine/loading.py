"""Loads a model: from its saved graph without PyTorch, or else with PyTorch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from ..protocol import MOST_TOP_K, ModelError
from ..telemetry.logs import logger
from .facts import Facts
from .generation import Batch, Processor
from .graph_paths import GRAPH_DTYPES, lacks_pytorch, locate_graph
from .machine import has_pytorch, may_have_gpu
from .prompts import PromptEncoder
from .settings import EngineSettings, ModelLimits
from .text_limits import DecoderSize, TextLimit, decoder_limit
from .weights import Weights, in_one_line, locate

if TYPE_CHECKING:
    from .runtime import Decoder

CONTINUOUS = "in one batch that requests join at any time"

Rules = Callable[[list[int], int], Processor | None]
"""Takes a prompt and the maximum number of new tokens. Returns how the config changes scores."""


@dataclass(frozen=True)
class Loaded:
    """A loaded model, with everything that a request needs."""

    batch: Batch
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptEncoder
    facts: Facts
    text_limit: TextLimit
    cache_tokens: int
    """Size of the cache that all requests share, or 0 if each one has its own."""
    rules: Rules


def load(settings: EngineSettings, limits: ModelLimits) -> Loaded:
    """Loads a model.

    Raises:
        ModelError: the source has no model that transformers can load and this engine can serve.
    """
    weights = locate(settings)
    try:
        loaded = None
        if settings.dtype in GRAPH_DTYPES and not may_have_gpu():
            loaded = _from_saved_graph(settings, limits, weights)
        if loaded is None and not has_pytorch():
            raise lacks_pytorch(settings)
        if loaded is None:
            # Imported here because it imports PyTorch.
            from .plain import load_with_pytorch

            loaded = load_with_pytorch(settings, limits, weights)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"Model {settings.name!r}: {settings.source!r} cannot be loaded "
            f"({in_one_line(error)}). It must be a text model for transformers with safetensors "
            "weights."
        ) from error
    for line in loaded.facts.left_out:
        logger.warning("%s: %s", settings.name, line)
    logger.info("%s: %s", settings.name, loaded.text_limit)
    return loaded


def _from_saved_graph(
    settings: EngineSettings, limits: ModelLimits, weights: Weights
) -> Loaded | None:
    """Loads a saved graph. Returns None if there is none, or if the model also needs PyTorch."""
    paths = locate_graph(settings.source, weights)
    if paths.needs_pytorch():
        return None
    # Imported here because other models do not need the runtime.
    from .runtime import return_freed_memory
    from .saved_graphs import SavedGraph

    return_freed_memory()
    saved = SavedGraph(settings.name, paths)
    taken = saved.take()
    if taken is None:
        if not has_pytorch():
            reason = f"{paths.directory} cannot be used: {saved.damage}"
            raise lacks_pytorch(settings, reason)
        return None
    decoder, facts = taken
    tokenizer = saved.tokenizer()
    prompts = PromptEncoder(settings, tokenizer, can_continue=True)
    loaded = paged(settings, limits, decoder, tokenizer, prompts, facts, lambda *_: None)
    logger.info("%s runs %s, in int8, from its saved graph.", settings.name, CONTINUOUS)
    if paths.is_of_another_cpu:
        logger.warning(
            "%s: its graph was checked against PyTorch on another kind of CPU, not on this one.",
            settings.name,
        )
    return loaded


def paged(
    settings: EngineSettings,
    limits: ModelLimits,
    decoder: "Decoder",
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptEncoder,
    facts: Facts,
    rules: Rules,
) -> Loaded:
    """Starts the batch for a graph."""
    from .paged import PagedBatch

    positions = math.inf if facts.positions is None else facts.positions
    size = DecoderSize(positions, decoder.token_bytes)
    text_limit, cache_tokens = decoder_limit(
        settings.name, size, limits, tokenizer.model_max_length
    )
    batch = PagedBatch(decoder, facts.ends, limits.running_requests, cache_tokens)
    return Loaded(batch, tokenizer, prompts, facts, text_limit, cache_tokens, rules)


def most_likely(settings: EngineSettings, facts: Facts) -> int:
    """Returns the default top_k: the setting, or else the model's own."""
    if "top_k" in settings.model_fields_set:
        return settings.top_k
    return min(facts.top_k or MOST_TOP_K, MOST_TOP_K)
