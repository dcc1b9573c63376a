"""Calculates how long texts may be, from the model and the free memory."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ..protocol import ModelError, PromptError
from .settings import ModelLimits

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# The share of the free memory for keys and values if the settings have no `cache_tokens`. Several
# models may share a machine, and one or two may share a GPU.
CACHE_SHARE = 1 / 64
GPU_CACHE_SHARE = 1 / 4
CONTEXT_SHARE = 1 / 3
"""The share that the cache may take at most, to hold one text of the model's full context."""
PROMPT_SHARE = 1 / 8
"""The share of the free memory that an encoder may take for one prompt."""
PROMPTS_SHARE = 1 / 4
"""The share for the encoder's output of all running requests."""
PAIR_BYTES = 52
"""Memory of an encoder for the relative position of each pair of tokens."""
HEAD_COPIES = 4
"""How many copies of the score for each pair and head an encoder holds."""
MIN_TOKENS = 64
CGROUP = Path("/sys/fs/cgroup")

CACHE = "cache_tokens"
PROMPT = "prompt_tokens"
ENCODER_POSITIONS = ("max_encoder_position_embeddings", "max_position_embeddings")
DECODER_POSITIONS = ("max_decoder_position_embeddings", "max_position_embeddings")


@dataclass(frozen=True)
class TextLimit:
    """How many tokens one text may have, and what limits it."""

    tokens: int
    setting: str | None = None
    """The setting that limits it, or None if the model does."""
    includes_answer: bool = True
    """Whether the answer counts too, as in a decoder."""

    def for_prompt(self, new_tokens: int) -> int:
        """Returns how many tokens a prompt may have, with this many new tokens."""
        return self.tokens - new_tokens * self.includes_answer

    def check(self, name: str, prompt_tokens: int, new_tokens: int) -> None:
        """Raises a PromptError, with the limit and a remedy, if a prompt is too long."""
        prompt_limit = self.for_prompt(new_tokens)
        if prompt_tokens <= prompt_limit:
            return
        place = "cache" if self.setting == CACHE else "context"
        ways = ["Shorten the text"]
        if not self.includes_answer:
            reason = f"the model can read at most {prompt_limit}"
        elif prompt_limit > 0:
            reason = f"with {new_tokens} new tokens, its {place} has room for only {prompt_limit}"
            ways.append("ask for fewer new tokens")
        else:
            reason = f"{new_tokens} new tokens leave no room in its {place} of {self.tokens}"
            ways = ["Ask for fewer new tokens"]
        if self.setting:
            ways.append(f"raise {self.setting} under limits")
        raise PromptError(
            f"The text is too long for {name}: {prompt_tokens} tokens, but {reason}. "
            f"{' or '.join([', '.join(ways[:-1]), ways[-1]] if ways[1:] else ways)}."
        )

    def __str__(self) -> str:
        reads = "reads and writes" if self.includes_answer else "reads"
        reason = f"{self.setting} under limits" if self.setting else "the model itself"
        return f"{reads} at most {self.tokens} tokens in one text, limited by {reason}"


@dataclass(frozen=True)
class DecoderSize:
    """The sizes of a decoder that determine its limit."""

    positions: float
    """The number of its positions, or infinity if there is no limit."""
    token_bytes: int
    """Memory for a token in its cache."""
    on_gpu: bool = False


def decoder_size(model: "PreTrainedModel") -> DecoderSize:
    positions = _positions(_part(model.config, "decoder"), DECODER_POSITIONS)
    return DecoderSize(positions, _bytes_per_token(model), model.device.type == "cuda")


def decoder_limit(
    name: str, size: DecoderSize, limits: ModelLimits, tokenizer_says: int
) -> tuple[TextLimit, int]:
    """Returns the limit for one text, and the size of the shared cache in tokens.

    Raises:
        ModelError: there is not enough free memory for a text.
    """
    own = int(min(tokenizer_says, size.positions))
    cache = limits.cache_tokens or _fitting_cache(size, own, limits.running_requests)
    if cache < min(own, MIN_TOKENS):
        raise ModelError(
            f"Model {name!r}: there is not enough memory for its cache: "
            f"{free_memory(size.on_gpu) >> 20} MB is free, and a token takes "
            f"{size.token_bytes >> 10} KB. Free some memory, or choose a smaller model."
        )
    return (TextLimit(cache, CACHE) if cache < own else TextLimit(own)), cache


def encoder_limit(model: "PreTrainedModel", limits: ModelLimits, tokenizer_says: int) -> TextLimit:
    """Returns the limit for one text in an encoder."""
    config = _part(model.config, "encoder")
    positions = _positions(config, ENCODER_POSITIONS)
    if positions is not math.inf:
        positions = min(positions, tokenizer_says)
    asked = limits.prompt_tokens or _fitting_prompt(model, limits.running_requests)
    if positions <= asked:
        return TextLimit(int(positions), includes_answer=False)
    return TextLimit(asked, PROMPT, includes_answer=False)


def longest_answer(model: "PreTrainedModel") -> float:
    """Returns how many tokens an encoder-decoder can write. BART has a limit, and T5 has none.

    A decoder's answer is part of its context, which is checked with the prompt.
    """
    if not model.config.is_encoder_decoder:
        return math.inf
    return _positions(_part(model.config, "decoder"), DECODER_POSITIONS)


def free_memory(on_gpu: bool) -> int:
    """Returns how many bytes this process may still use."""
    if on_gpu:
        import torch

        free, _ = torch.cuda.mem_get_info()
        return int(free)
    return int(min(psutil.virtual_memory().available, _container_memory()))


def encoder_bytes(model: "PreTrainedModel", tokens: int) -> int:
    """Returns the peak memory for reading a prompt, which grows with the square of its length."""
    config = _part(model.config, "encoder")
    pair = PAIR_BYTES + HEAD_COPIES * config.num_attention_heads * model.dtype.itemsize
    return int(pair * tokens**2)


def _fitting_cache(size: DecoderSize, context: int, running_requests: int) -> int:
    """Returns the cache size in tokens: a share of the free memory, or enough for one context."""
    free, each = free_memory(size.on_gpu), size.token_bytes
    share = GPU_CACHE_SHARE if size.on_gpu else CACHE_SHARE
    fitting = max(share * free, min(context * each, CONTEXT_SHARE * free)) // each
    return min(running_requests * context, int(fitting))


def _fitting_prompt(model: "PreTrainedModel", running_requests: int) -> int:
    """Returns the longest prompt that the free memory allows, alone and with other requests."""
    free = free_memory(model.device.type == "cuda")
    alone = math.isqrt(int(PROMPT_SHARE * free) // encoder_bytes(model, 1))
    beside = int(PROMPTS_SHARE * free) // (running_requests * _bytes_per_token(model))
    return max(min(alone, beside), MIN_TOKENS)


def _positions(config: "PreTrainedConfig", names: tuple[str, ...]) -> float:
    found = (getattr(config, name, None) for name in names)
    return next((positions for positions in found if positions), math.inf)


def _part(config: "PreTrainedConfig", name: str) -> "PreTrainedConfig":
    """Returns the config of the encoder or the decoder. T5Gemma has a separate one for each."""
    from transformers import PreTrainedConfig

    own = getattr(config, name, None)
    if isinstance(own, PreTrainedConfig):
        return own
    return config.get_text_config(**{name: True})


def _bytes_per_token(model: "PreTrainedModel") -> int:
    """Returns the memory for the keys and values of one token."""
    config = _part(model.config, "decoder")
    # A model without attention (Mamba) has no heads, and its state does not grow.
    heads = getattr(config, "num_attention_heads", None) or 1
    kept = getattr(config, "num_key_value_heads", None) or heads
    size = (
        getattr(config, "head_dim", None)
        or getattr(config, "d_kv", None)
        or config.hidden_size // heads
    )
    layers = getattr(config, "decoder_layers", None) or config.num_hidden_layers
    return 2 * int(layers * kept * size * model.dtype.itemsize)


def _container_memory() -> float:
    """Returns how many bytes the container has left, or infinity without such a limit."""
    for limit, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        most = _number(CGROUP / limit)
        if most is not None:
            # The kernel frees cached files when memory is needed.
            held = (_number(CGROUP / used) or 0) - _field(CGROUP / stat, cached)
            return max(most - max(held, 0), 0)
    return math.inf


def _number(path: Path) -> int | None:
    text = path.read_text("ascii").strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None


def _field(path: Path, name: str) -> int:
    lines = path.read_text("ascii").splitlines() if path.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
