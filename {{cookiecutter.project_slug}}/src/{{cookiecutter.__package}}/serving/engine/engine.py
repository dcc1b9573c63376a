"""Loads a model and streams its text, many requests at a time. Knows nothing of Ray and Gradio."""

import math
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import psutil
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

from ..protocol import (
    BusyError,
    End,
    GenerationError,
    GenerationOptions,
    Message,
    ModelError,
    Piece,
    PromptError,
)
from .decoders import DecoderBatch
from .encoder_decoders import EncoderDecoderBatch
from .generation import Batch, Request
from .prompts import PromptEncoder
from .sampling import Sampling
from .settings import EngineSettings, ModelLimits
from .text import AnswerText
from .weights import locate

# oneDNN would keep its code for each number of tokens that it has computed at once, which
# takes more than 100 MB after some hundred requests and makes nothing faster.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")

# Part of the free memory for keys and values, where the settings name no number of tokens:
# several models share a machine, and one or two of them a GPU.
CACHE_SHARE = 1 / 64
GPU_CACHE_SHARE = 1 / 4
CGROUP = Path("/sys/fs/cgroup")


class Engine:
    """One model in this process.

    Decoders (GPT-2, Llama, …) and encoder-decoders (T5, …) are told apart by the
    model's own config. Runs on a GPU where torch sees one.

    Raises:
        ModelError: the source holds no model that transformers can load.
    """

    def __init__(self, model: EngineSettings, limits: ModelLimits) -> None:
        self.name = model.name
        self._settings = model
        self._limits = limits
        self._requests = 0
        directory = locate(model)
        try:
            self._load(directory)
            self._batch = self._make_batch()
        except ModelError:
            raise
        except Exception as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise ModelError(
                f"Model {model.name!r}: {model.source!r} cannot be loaded ({reason}). "
                "It must be a text model for transformers with safetensors weights."
            ) from error

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        """Yields the answer piece by piece, in whole characters.

        Leaving the loop, or closing the iterator, ends the generation.

        Raises:
            PromptError: the conversation cannot be read, or does not fit the model's context.
            BusyError: as many requests as the limits allow are running or waiting.
            GenerationError: the model gave up.
        """
        if self._requests >= self._limits.running_requests + self._limits.waiting_requests:
            raise BusyError(f"{self.name} has too much to do. Try again in a moment.")
        text = AnswerText(self._tokenizer.backend_tokenizer, self._end, options.stop)
        request = Request(self._encode(messages, options), self._sampling(options), text.read)
        self._requests += 1
        self._batch.start(request)
        try:
            async with aclosing(
                request.arrivals(lambda: self._limits.pause(self._requests))
            ) as arrivals:
                async for _ in arrivals:
                    if text.complete:
                        # At once, however long the reader takes for what is there.
                        self._batch.cancel(request)
                    if piece := text.take():
                        yield piece
            if piece := text.take(last=True):
                yield piece
            yield End("stop" if text.complete else "length", len(request.prompt))
        finally:
            self._requests -= 1
            self._batch.cancel(request)

    def check_health(self) -> None:
        """Raises GenerationError when the thread that generates has ended."""
        if not self._batch.is_running():
            raise GenerationError(f"{self.name} generates no more")

    def stop(self) -> None:
        self._batch.stop()

    def _load(self, directory: Path) -> None:
        config = AutoConfig.from_pretrained(directory)
        loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._prompts = PromptEncoder(
            self._settings, self._tokenizer, can_continue=not config.is_encoder_decoder
        )
        self._model: PreTrainedModel = loader.from_pretrained(
            directory, dtype=_dtype(self._settings.dtype), use_safetensors=True
        )
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._end = _end_tokens(self._model)
        self._context = _context(self._model, self._tokenizer.model_max_length)
        self._longest_answer = _longest_answer(self._model)

    def _make_batch(self) -> Batch:
        running = self._limits.running_requests
        if self._model.config.is_encoder_decoder:
            return EncoderDecoderBatch(self._model, self._end, running)
        cache_tokens = self._limits.cache_tokens or min(
            running * self._context,
            _free_memory(self._model.device) // _bytes_per_token(self._model),
        )
        self._context = min(self._context, cache_tokens)
        return DecoderBatch(self._model, self._end, running, cache_tokens)

    def _encode(self, messages: Sequence[Message], options: GenerationOptions) -> list[int]:
        tokens = self._prompts.encode(messages)
        if not tokens:
            raise PromptError(f"{self.name} reads nothing in this text. Write another.")
        # A decoder writes into the context that it reads from.
        decoder = not self._model.config.is_encoder_decoder
        room = self._context - (options.max_new_tokens if decoder else 0)
        if len(tokens) > room:
            raise PromptError(
                f"The text is too long for {self.name}: {len(tokens)} tokens, and it reads at "
                f"most {room}. Shorten the text or ask for fewer new tokens."
            )
        if options.max_new_tokens > self._longest_answer:
            raise PromptError(
                f"{self.name} writes at most {self._longest_answer} tokens. Ask for fewer."
            )
        return tokens

    def _sampling(self, options: GenerationOptions) -> Sampling:
        own = self._settings
        return Sampling(
            temperature=own.temperature if options.temperature is None else options.temperature,
            top_p=own.top_p if options.top_p is None else options.top_p,
            top_k=own.top_k if options.top_k is None else options.top_k,
            min_new_tokens=options.min_new_tokens,
            max_new_tokens=options.max_new_tokens,
            seed=options.seed,
        )


def _dtype(asked: str) -> str:
    """Chooses for `auto` what this machine computes fast.

    A CPU without instructions for bfloat16 takes it apart to compute in float32.
    """
    if asked != "auto" or torch.cuda.is_available():
        return asked
    capabilities = torch.cpu.get_capabilities()
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if native else "float32"


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    end = model.generation_config.eos_token_id
    if end is None:
        return frozenset()
    return frozenset([end] if isinstance(end, int) else end)


def _context(model: PreTrainedModel, tokenizer_says: int) -> int:
    """Tokens that the model can attend to."""
    return min(tokenizer_says, getattr(model.config, "max_position_embeddings", tokenizer_says))


def _longest_answer(model: PreTrainedModel) -> float:
    """Tokens for which the model has positions: BART learned some, T5 counts without end.

    A decoder writes into its context, which is checked with the prompt.
    """
    config = model.config
    if not config.is_encoder_decoder:
        return math.inf
    names = ("max_decoder_position_embeddings", "max_position_embeddings")
    return next((getattr(config, name) for name in names if hasattr(config, name)), math.inf)


def _bytes_per_token(model: PreTrainedModel) -> int:
    """What the keys and values of one token take."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers * heads * size * model.dtype.itemsize)


def _free_memory(device: torch.device) -> int:
    """Bytes that the cache of keys and values may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * GPU_CACHE_SHARE)
    return int(min(psutil.virtual_memory().available, _container_memory()) * CACHE_SHARE)


def _container_memory() -> float:
    """Bytes that the container may use; outside of one there is no such bound."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = CGROUP / name
        if limit.is_file() and (text := limit.read_text("ascii").strip()).isdecimal():
            return int(text)
    return math.inf
