"""Loads a model and streams its text. Knows nothing of Ray and Gradio."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor

import torch
from transformers import (
    AsyncTextIteratorStreamer,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BatchEncoding,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .errors import ModelError, PromptError
from .settings import GenerationOptions, ModelSettings
from .weights import locate

TOP_K = 50
"""The default of transformers' sampling, which the Ray guide's pipelines used."""


class Engine:
    """One model in this process.

    Decoders (GPT-2, Llama, …) and encoder-decoders (T5, …) are told apart by the
    model's own config. Runs on a GPU where torch sees one.

    Raises:
        ModelError: the source holds no model that transformers can load.
    """

    def __init__(self, model: ModelSettings, running_requests: int) -> None:
        self.name = model.name
        self._settings = model
        directory = locate(model)
        try:
            config = AutoConfig.from_pretrained(directory)
            loader = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            self._tokenizer = AutoTokenizer.from_pretrained(directory)
            self._model = loader.from_pretrained(directory, dtype="auto", use_safetensors=True)
        except Exception as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise ModelError(
                f"Model {model.name!r}: {model.source!r} cannot be loaded ({reason}). "
                "It must be a text model for transformers with safetensors weights."
            ) from error
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        pad, eos = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        self._pad_token_id = eos if pad is None else pad
        self._threads = ThreadPoolExecutor(running_requests, thread_name_prefix=model.name)

    async def stream(self, prompt: str, options: GenerationOptions) -> AsyncGenerator[str, None]:
        """Yields the answer in pieces of whole words.

        Leaving the loop, or closing the iterator, ends the generation.

        Raises:
            PromptError: the prompt does not fit the model's context.
        """
        inputs = self._encode(prompt, options)
        streamer = AsyncTextIteratorStreamer(
            self._tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        reader_left = threading.Event()
        generation = asyncio.get_running_loop().run_in_executor(
            self._threads, self._generate, inputs, options, streamer, reader_left
        )
        try:
            async for piece in streamer:
                if piece:
                    yield piece
            await generation
        finally:
            reader_left.set()
            generation.cancel()

    def _encode(self, prompt: str, options: GenerationOptions) -> BatchEncoding:
        """Returns tokens of shape [1, length] on the model's device."""
        text = self._settings.prompt.replace("{prompt}", prompt)
        if self._tokenizer.chat_template:
            inputs = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            inputs = self._tokenizer(text, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        room = self._room(options)
        if length > room:
            raise PromptError(
                f"The text is too long for {self.name}: {length} tokens, and it reads at most "
                f"{room}. Shorten the text or ask for fewer new tokens."
            )
        return inputs.to(self._model.device)

    def _room(self, options: GenerationOptions) -> int:
        """Tokens that a prompt may have."""
        config = self._model.config
        context: int = self._tokenizer.model_max_length
        context = min(context, getattr(config, "max_position_embeddings", context))
        # A decoder writes into the context that it reads from.
        return context if config.is_encoder_decoder else context - options.max_new_tokens

    def _generate(
        self,
        inputs: BatchEncoding,
        options: GenerationOptions,
        streamer: AsyncTextIteratorStreamer,
        reader_left: threading.Event,
    ) -> None:
        own = self._settings
        temperature = own.temperature if options.temperature is None else options.temperature
        top_p = own.top_p if options.top_p is None else options.top_p
        sampled = temperature > 0
        try:
            self._model.generate(
                **inputs,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([_ReaderLeft(reader_left)]),
                do_sample=sampled,
                temperature=temperature if sampled else None,
                top_p=top_p if sampled else None,
                top_k=TOP_K if sampled else None,
                min_new_tokens=options.min_new_tokens,
                max_new_tokens=options.max_new_tokens,
                pad_token_id=self._pad_token_id,
            )
        finally:
            # Without it a failed generation would leave its reader waiting.
            streamer.end()


class _ReaderLeft(StoppingCriteria):
    def __init__(self, reader_left: threading.Event) -> None:
        self._reader_left = reader_left

    def __call__(
        self, input_ids: torch.LongTensor, _scores: torch.FloatTensor, **_: object
    ) -> torch.BoolTensor:
        stop = self._reader_left.is_set()
        return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)
