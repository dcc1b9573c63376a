"""Loads a model and streams its text, many requests at a time. Knows nothing of Ray and Gradio."""

import os
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
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
from ..telemetry.logs import logger
from .decoders import DecoderBatch
from .encoder_decoders import EncoderDecoderBatch
from .generation import Batch, Request
from .prompts import PromptEncoder
from .room import decoder_room, encoder_room, longest_answer
from .sampling import Sampling
from .settings import EngineSettings, ModelLimits
from .text import AnswerText
from .vocabulary import load_tokenizer
from .weights import Weights, in_one_line, locate

# oneDNN would keep its code for each number of tokens that it has computed at once, which
# takes more than 100 MB after some hundred requests and makes nothing faster.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


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
        self._model: PreTrainedModel
        weights = locate(model)
        try:
            self._load(weights)
            self._batch = self._make_batch()
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"Model {model.name!r}: {model.source!r} cannot be loaded ({in_one_line(error)}). "
                "It must be a text model for transformers with safetensors weights."
            ) from error
        logger.info("%s: in %s; %s", model.name, self._model.dtype, self._room)

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
        text = AnswerText(self._prompts.vocabulary, self._end, options.stop)
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

    def _load(self, weights: Weights) -> None:
        directory = weights.directory
        options = {"gguf_file": weights.gguf_file} if weights.gguf_file else {}
        config = AutoConfig.from_pretrained(directory, **options)
        loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        self._tokenizer = load_tokenizer(self._settings, directory, weights.gguf_file)
        self._prompts = PromptEncoder(
            self._settings, self._tokenizer, can_continue=not config.is_encoder_decoder
        )
        self._model, loaded = loader.from_pretrained(
            directory,
            dtype=_dtype(self._settings.dtype),
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        _check_loaded(self._model, loaded["missing_keys"])
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._end = _end_tokens(self._model)
        self._longest_answer = longest_answer(self._model)

    def _make_batch(self) -> Batch:
        running, says = self._limits.running_requests, self._tokenizer.model_max_length
        if self._model.config.is_encoder_decoder:
            self._room = encoder_room(self._model, self._limits, says)
            return EncoderDecoderBatch(self._model, self._end, running)
        self._room, cache_tokens = decoder_room(self.name, self._model, self._limits, says)
        return DecoderBatch(self._model, self._end, running, cache_tokens)

    def _encode(self, messages: Sequence[Message], options: GenerationOptions) -> list[int]:
        tokens = self._prompts.encode(messages)
        if not tokens:
            raise PromptError(f"{self.name} reads nothing in this text. Write another.")
        self._room.check(self.name, len(tokens), options.max_new_tokens)
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


def _check_loaded(model: PreTrainedModel, missing: Collection[str]) -> None:
    """Transformers makes up what is missing, and the model writes nonsense."""
    lacking = sorted(set(missing) & {name for name, _ in model.named_parameters()})
    if lacking:
        raise ValueError(f"{len(lacking)} weights are missing, {lacking[0]} among them")


def _end_tokens(model: PreTrainedModel) -> frozenset[int]:
    end = model.generation_config.eos_token_id
    if end is None:
        return frozenset()
    return frozenset([end] if isinstance(end, int) else end)
