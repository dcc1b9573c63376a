"""Loads a model and streams its text, many requests at a time. Knows nothing of Ray and Gradio."""

import os
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
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
from ..telemetry.logs import logger
from .checks import LONGEST_PROMPT, NEW_TOKENS, difference, prompts_of, quiet
from .configured import Configured, end_tokens, unkept
from .decoders import DecoderBatch
from .families import refusal
from .generation import Batch, Processor, StreamedRequest
from .groups import GroupedBatch, Joining, first_token
from .history import Written, fitting
from .prompts import PromptEncoder
from .room import Room, decoder_room, encoder_room, longest_answer
from .sampling import Sampling
from .settings import EngineSettings, ModelLimits
from .text import AnswerText
from .thoughts import Thoughts, part_at
from .vocabulary import load_tokenizer
from .weights import Weights, in_one_line, locate

if TYPE_CHECKING:
    from .kept import KeptGraph
    from .runtime import Decoder

# oneDNN would keep its code for each number of tokens that it has computed at once, which
# takes more than 100 MB after some hundred requests and makes nothing faster.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")

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
        self._model: PreTrainedModel
        weights = locate(model)
        try:
            self._batch = self._batch_in_8_bits(weights) or self._batch_as_saved(weights)
            self._written = Written(self._cache_tokens or 0)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"Model {model.name!r}: {model.source!r} cannot be loaded ({in_one_line(error)}). "
                "It must be a text model for transformers with safetensors weights."
            ) from error
        logger.info("%s: %s", model.name, self._room)

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        """Yields the answer piece by piece, in whole characters.

        Leaving the loop, or closing the iterator, ends the generation. A conversation that has
        outgrown the context is read without its oldest messages, and the end says so.

        Raises:
            PromptError: the conversation cannot be read, or does not fit the model's context.
            BusyError: as many requests as the limits allow are running or waiting.
            GenerationError: the model gave up.
        """
        if self._requests >= self._limits.running_requests + self._limits.waiting_requests:
            raise BusyError(f"{self.name} has too much to do. Try again in a moment.")
        text = AnswerText(self._prompts.vocabulary, self._end, options.stop)
        prompt, dropped = self._encode(messages, options)
        thoughts = Thoughts(part_at(self._tokenizer, prompt))
        rules = self._rules(prompt, options.max_new_tokens)
        request = StreamedRequest(prompt, self._sampling(options), text.read, rules)
        said = ""
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
                        for told in thoughts.tell(piece):
                            said += "" if told.thought else told.text
                            yield told
            rest = [*(thoughts.tell(piece) if (piece := text.take(last=True)) else ())]
            for told in [*rest, *thoughts.rest()]:
                said += "" if told.thought else told.text
                yield told
            self._keep(messages[-1], said, request.text)
            yield End("stop" if text.complete else "length", len(request.prompt), dropped)
        finally:
            self._requests -= 1
            self._batch.cancel(request)

    def check_health(self) -> None:
        """Raises GenerationError when the thread that generates has ended."""
        if not self._batch.is_running():
            raise GenerationError(f"{self.name} generates no more")

    def stop(self) -> None:
        self._batch.stop()

    def _batch_as_saved(self, weights: Weights) -> Batch:
        self._load(weights, _dtype(self._settings.dtype))
        self._room, self._cache_tokens = self._rooms()
        batch = self._checked_batch()
        logger.info("%s: in %s", self.name, self._model.dtype)
        return batch

    def _batch_in_8_bits(self, weights: Weights) -> Batch | None:
        """Returns None where the settings leave it to the model, and it runs in another way.

        Raises:
            ModelError: the settings ask for it, and this model or machine does not allow it.
        """
        asked = self._settings.dtype
        if asked not in {"auto", "int8"} or (asked == "auto" and torch.cuda.is_available()):
            return None
        made = self._paged(weights)
        if not isinstance(made, str):
            return made
        if asked == "auto":
            logger.info("%s does not run in int8: %s", self.name, made)
            return None
        raise ModelError(
            f"Model {self.name!r}: {self._settings.source!r} does not run in int8: {made}. "
            "Leave `dtype` out, or choose another."
        )

    def _paged(self, weights: Weights) -> Batch | str:
        """Returns the batch with weights in 8 bits, or why there is none."""
        if torch.cuda.is_available():
            return "it is for a CPU, and there is a GPU"
        config = AutoConfig.from_pretrained(weights.directory, **_options(weights))
        refused = refusal(config)
        if refused is not None:
            return refused
        # They import the runtime, which other models do without.
        from .kept import KeptGraph, describe
        from .runtime import give_memory_back

        give_memory_back()
        kept = KeptGraph(self.name, self._settings.source, weights)
        taken = kept.take()
        if taken is None:
            with kept.turn():
                # Another process may have made it.
                taken = kept.take()
                if taken is None:
                    return self._newly_paged(weights, kept)
        decoder, generation = taken
        self._read_tokenizer(weights, config)
        self._adopt(describe(config, generation))
        batch = self._paged_batch(decoder)
        logger.info("%s runs %s, in int8, as it was kept.", self.name, CONTINUOUS)
        return batch

    def _newly_paged(self, weights: Weights, kept: "KeptGraph") -> Batch | str:
        """Makes the graph, which is kept once it writes what the plain model does."""
        from .graphs import graph_of
        from .kept import give_up_weights

        # As they were saved, so that nothing is rounded twice.
        self._load(weights, "auto")
        logger.info("%s: rounding its weights to 8 bits", self.name)
        try:
            decoder = kept.compile(graph_of(self._model), self._model.generation_config)
        except Exception as error:  # Of any kind: the runtime may not know this CPU.
            return in_one_line(error)
        batch = self._paged_batch(decoder)
        # The plain model has the weights that the graph has.
        attention: str = self._model.config._attn_implementation
        with quiet():
            found = self._found(batch, attention, torch.int8)
        if found is not None:
            batch.stop()
            return found
        kept.keep()
        # Only its configuration is needed from here on.
        give_up_weights(self._model)
        logger.info("%s runs %s, in int8.", self.name, CONTINUOUS)
        return batch

    def _paged_batch(self, decoder: "Decoder") -> Batch:
        from .paged import PagedBatch

        self._room, self._cache_tokens = self._rooms(decoder.token_bytes)
        running, cache_tokens = self._limits.running_requests, self._cache_tokens or 0
        return PagedBatch(decoder, self._end, running, cache_tokens)

    def _load(self, weights: Weights, dtype: str) -> None:
        directory, options = weights.directory, _options(weights)
        config = AutoConfig.from_pretrained(directory, **options)
        loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        self._read_tokenizer(weights, config)
        model, loaded = loader.from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
        _check_loaded(model, loaded["missing_keys"])
        model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._adopt(model)

    def _read_tokenizer(self, weights: Weights, config: PreTrainedConfig) -> None:
        self._encodes: bool = config.is_encoder_decoder
        self._tokenizer = load_tokenizer(self._settings, weights.directory, weights.gguf_file)
        self._prompts = PromptEncoder(
            self._settings, self._tokenizer, can_continue=not self._encodes
        )

    def _adopt(self, model: PreTrainedModel) -> None:
        """Takes a model, and what its configuration says."""
        self._model = model
        self._end = end_tokens(model, self._tokenizer)
        self._configured = Configured(model, self._end)
        self._top_k = self._settings.top_k
        if "top_k" not in self._settings.model_fields_set:
            self._top_k = min(model.generation_config.top_k or MOST_TOP_K, MOST_TOP_K)
        for line in unkept(model.generation_config):
            logger.warning("%s: %s", self.name, line)
        self._longest_answer = longest_answer(model)

    def _rooms(self, token_bytes: int | None = None) -> tuple[Room, int | None]:
        """Returns the room for one text, and for a decoder how many tokens its cache holds."""
        says = self._tokenizer.model_max_length
        if self._encodes:
            return encoder_room(self._model, self._limits, says), None
        return decoder_room(self.name, self._model, self._limits, says, token_bytes)

    def _checked_batch(self) -> Batch:
        """Returns the first kind of batch that writes what the plain model does.

        Raises:
            ModelError: none does.
        """
        attention: str = self._model.config._attn_implementation
        found: str | None = None
        for how, make in self._batches():
            batch = None
            try:
                with quiet():
                    batch = make()
                    found = self._found(batch, attention, self._model.dtype)
            except Exception as error:  # Of any kind: its code meets a cache that it does not know.
                found = in_one_line(error)
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

    def _found(self, batch: Batch, attention: str, dtype: torch.dtype) -> str | None:
        """Returns how a batch that computes in this format differs from the plain model."""
        longest = max(min(self._room.tokens - NEW_TOKENS, LONGEST_PROMPT), 1)
        prompts = [
            (prompt, self._rules(prompt, NEW_TOKENS))
            for prompt in prompts_of(self._tokenizer, longest)
        ]
        # In a thread that ends, and takes its OpenMP threads with it. If they stayed, there
        # would be more than processors, and each would sleep after every operation.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(difference, self._model, batch, prompts, attention, dtype).result()

    def _batches(self) -> Iterator[tuple[str, Callable[[], Batch]]]:
        """Yields kinds of batches, the fastest first."""
        running, cache_tokens = self._limits.running_requests, self._cache_tokens
        if cache_tokens is not None:
            yield (
                CONTINUOUS,
                lambda: DecoderBatch(self._model, self._end, running, cache_tokens),
            )
        for joining in Joining:
            yield (
                joining.value,
                partial(GroupedBatch, self._model, self._end, running, joining, cache_tokens),
            )

    def _encode(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> tuple[list[int], int]:
        """Returns the prompt, and how many messages it goes without."""
        tokens, dropped = fitting(
            messages,
            self._room.beside(options.max_new_tokens),
            encode=lambda messages: self._prompts.encode(messages, self._written),
            count=lambda text: len(self._prompts.vocabulary.encode(text)),
        )
        if not tokens:
            raise PromptError(f"{self.name} reads nothing in this text. Write another.")
        self._room.check(self.name, len(tokens), options.max_new_tokens)
        if options.max_new_tokens > self._longest_answer:
            raise PromptError(
                f"{self.name} writes at most {self._longest_answer} tokens. Ask for fewer."
            )
        return tokens, dropped

    def _keep(self, last: Message, said: str, tokens: Sequence[int]) -> None:
        """Keeps with which tokens an answer was written, for the turns that follow it."""
        text, tokens = said, [token for token in tokens if token not in self._end]
        if last.role == "assistant":
            text = last.content + said
            tokens = [*(self._written.tokens_of(last.content) or ()), *tokens]
        # The prompt's own spaces stand around an answer.
        if text == text.strip() and self._prompts.is_plain(tokens, text):
            self._written.keep(text, tokens)

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
