"""Loads a model and streams its text, many requests at a time. Knows nothing of Ray and Gradio."""

import logging
import math
import os
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
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
    MOST_TOP_K,
    BusyError,
    End,
    GenerationError,
    GenerationOptions,
    Message,
    ModelError,
    Piece,
    PromptError,
)
from .checks import LONGEST_PROMPT, NEW_TOKENS, difference, prompts_of, quiet
from .configured import Configured, end_tokens, unkept
from .decoders import DecoderBatch
from .generation import Batch, Processor, Request
from .groups import GroupedBatch, Joining, first_token
from .prompts import PromptEncoder
from .sampling import Sampling
from .settings import EngineSettings, ModelLimits
from .text import AnswerText
from .weights import locate

# oneDNN would keep its code for each number of tokens that it has computed at once, which
# takes more than 100 MB after some hundred requests and makes nothing faster.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")

logger = logging.getLogger(__name__)

# Part of the free memory for keys and values, where the settings name no number of tokens:
# several models share a machine, and one or two of them a GPU.
CACHE_SHARE = 1 / 64
GPU_CACHE_SHARE = 1 / 4
CGROUP = Path("/sys/fs/cgroup")
CONTINUOUS = "in one batch that a request joins while others run"


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
            self._batch = self._checked_batch()
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"Model {model.name!r}: {model.source!r} cannot be loaded ({_first_line(error)}). "
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
        prompt = self._encode(messages, options)
        rules = self._rules(prompt, options.max_new_tokens)
        request = Request(prompt, self._sampling(options), text.read, rules)
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
        self._encodes: bool = config.is_encoder_decoder
        self._end = end_tokens(self._model, self._tokenizer)
        self._configured = Configured(self._model, self._end)
        self._top_k = self._settings.top_k
        if "top_k" not in self._settings.model_fields_set:
            self._top_k = min(self._model.generation_config.top_k or MOST_TOP_K, MOST_TOP_K)
        for line in unkept(self._model.generation_config):
            logger.warning("%s: %s", self.name, line)
        self._context = _context(self._model, self._tokenizer.model_max_length)
        self._longest_answer = _longest_answer(self._model)

    def _checked_batch(self) -> Batch:
        """Returns the first kind of batch that writes what the plain model does.

        Raises:
            ModelError: none does.
        """
        attention: str = self._model.config._attn_implementation
        longest = max(int(min(self._context - NEW_TOKENS, LONGEST_PROMPT)), 1)
        prompts = [
            (prompt, self._rules(prompt, NEW_TOKENS))
            for prompt in prompts_of(self._tokenizer, longest)
        ]
        found: str | None = None
        for how, make in self._batches():
            batch = None
            try:
                with quiet():
                    batch = make()
                    found = difference(self._model, batch, prompts, attention)
            except Exception as error:  # Of any kind: its code meets a cache that it does not know.
                found = _first_line(error)
            if found is None and batch is not None:
                logger.info("%s runs %s.", self.name, how)
                return batch
            logger.info("%s does not run %s: %s", self.name, how, found)
            if batch is not None:
                batch.stop()
            if self._model.config._attn_implementation != attention:
                self._model.set_attn_implementation(attention)
        raise ModelError(
            f"Model {self.name!r}: {self._settings.source!r} is a "
            f"{type(self._model).__name__}, which cannot be served: {found}."
        )

    def _batches(self) -> Iterator[tuple[str, Callable[[], Batch]]]:
        """Yields kinds of batches, the fastest first."""
        running, cache_tokens = self._limits.running_requests, None
        if not self._encodes:
            cache_tokens = self._limits.cache_tokens or int(
                min(
                    running * self._context,
                    _free_memory(self._model.device) // _bytes_per_token(self._model),
                )
            )
            self._context = min(self._context, cache_tokens)
            yield (
                CONTINUOUS,
                lambda: DecoderBatch(self._model, self._end, running, cache_tokens),
            )
        for joining in Joining:
            yield (
                joining.value,
                partial(GroupedBatch, self._model, self._end, running, joining, cache_tokens),
            )

    def _encode(self, messages: Sequence[Message], options: GenerationOptions) -> list[int]:
        tokens = self._prompts.encode(messages)
        if not tokens:
            raise PromptError(f"{self.name} reads nothing in this text. Write another.")
        # A decoder writes into the context that it reads from.
        room = self._context - (0 if self._encodes else options.max_new_tokens)
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

    def _rules(self, prompt: list[int], most: int) -> Processor | None:
        begin = [first_token(self._model)] if self._encodes else prompt
        return self._configured.rules(prompt, begin, most)

    def _sampling(self, options: GenerationOptions) -> Sampling:
        own = self._settings
        return Sampling(
            temperature=own.temperature if options.temperature is None else options.temperature,
            top_p=own.top_p if options.top_p is None else options.top_p,
            top_k=self._top_k if options.top_k is None else options.top_k,
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
    layers = config.num_hidden_layers
    heads = getattr(config, "num_attention_heads", None) or 1
    shared = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * int(layers * shared * size * model.dtype.itemsize)


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


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]
