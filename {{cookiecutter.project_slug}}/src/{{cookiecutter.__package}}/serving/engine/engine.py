"""Loads a model and streams answers to many requests at a time. Imports neither Ray nor Gradio."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from ..protocol import (
    BusyError,
    End,
    GenerationError,
    GenerationOptions,
    Message,
    Piece,
    PromptError,
)
from ..telemetry.traces import add_ended_step, current_span
from .generation import Request, StreamedRequest
from .history import Written, fitting
from .loading import load, most_likely
from .sampling import Sampling
from .settings import EngineSettings, ModelLimits
from .text import AnswerText
from .thoughts import Thoughts, first_part

if TYPE_CHECKING:
    from opentelemetry.trace import Span

STEPS = ("batch queue", "prefill", "decode")
"""The stages of a request in the batch."""


class Engine:
    """One model in this process.

    Supports decoders (GPT-2, Llama, …) and encoder-decoders (T5, …), and reads the kind from
    the model's config. Runs on a GPU if PyTorch finds one.

    Raises:
        ModelError: the source has no model that transformers can load.
    """

    def __init__(self, model: EngineSettings, limits: ModelLimits) -> None:
        self.name = model.name
        self._settings = model
        self._limits = limits
        self._requests = 0
        loaded = load(model, limits)
        self._batch = loaded.batch
        self._tokenizer, self._prompts = loaded.tokenizer, loaded.prompts
        self._text_limit = loaded.text_limit
        self._rules = loaded.rules
        self._end = loaded.facts.ends
        self._longest_answer = loaded.facts.longest_answer
        self._top_k = most_likely(model, loaded.facts)
        self._written = Written(loaded.cache_tokens)

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        """Yields the answer piece by piece, in whole characters.

        Leaving the loop, or closing the iterator, stops the generation. If a conversation is
        longer than the context, its oldest messages are dropped, and the `End` says how many.

        Raises:
            PromptError: the conversation cannot be read, or does not fit the model's context.
            BusyError: the limits allow no more running or waiting requests.
            GenerationError: the generation failed.
        """
        if self._requests >= self._limits.running_requests + self._limits.waiting_requests:
            raise BusyError(f"{self.name} is busy. Try again in a moment.")
        text = AnswerText(self._prompts.vocabulary, self._end, options.stop)
        prompt, dropped = self._encode(messages, options)
        thoughts = Thoughts(first_part(self._tokenizer, prompt))
        rules = self._rules(prompt, options.max_new_tokens)
        request = StreamedRequest(prompt, self._sampling(options), text.read, rules)
        answer, above, outcome = "", current_span(), "cancelled"
        self._requests += 1
        self._batch.start(request)
        try:
            async with aclosing(
                request.arrivals(lambda: self._limits.pause(self._requests))
            ) as arrivals:
                async for _ in arrivals:
                    if text.complete:
                        # Stop at once, even if the reader is slow to take the text so far.
                        self._batch.cancel(request)
                    if piece := text.take():
                        for part in thoughts.tell(piece):
                            answer += "" if part.thought else part.text
                            yield part
            outcome = "done"
            rest = [*(thoughts.tell(piece) if (piece := text.take(last=True)) else ())]
            for part in [*rest, *thoughts.rest()]:
                answer += "" if part.thought else part.text
                yield part
            self._keep(messages[-1], answer, request.text)
            yield End("stop" if text.complete else "length", len(request.prompt), dropped)
        except GenerationError:
            outcome = "failed"
            raise
        finally:
            self._requests -= 1
            self._batch.cancel(request)
            if above is not None:
                _trace(request, above, outcome)

    def check_health(self) -> None:
        """Raises GenerationError if the generation thread has ended."""
        if not self._batch.is_running():
            raise GenerationError(f"the generation thread of {self.name} has ended")

    def stop(self) -> None:
        self._batch.stop()

    def _encode(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> tuple[list[int], int]:
        """Returns the prompt, and how many messages were dropped."""
        tokens, dropped = fitting(
            messages,
            self._text_limit.for_prompt(options.max_new_tokens),
            encode=lambda messages: self._prompts.encode(messages, self._written),
            count=lambda text: len(self._prompts.vocabulary.encode(text)),
        )
        if not tokens:
            raise PromptError(
                f"{self.name} cannot find any tokens in this text. Enter a different text."
            )
        self._text_limit.check(self.name, len(tokens), options.max_new_tokens)
        if self._longest_answer is not None and options.max_new_tokens > self._longest_answer:
            raise PromptError(
                f"{self.name} can write at most {self._longest_answer} tokens. Ask for fewer."
            )
        return tokens, dropped

    def _keep(self, last: Message, answer: str, tokens: Sequence[int]) -> None:
        """Stores the tokens of an answer, for the next turns."""
        text, tokens = answer, [token for token in tokens if token not in self._end]
        if last.role == "assistant":
            text = last.content + answer
            tokens = [*(self._written.tokens_of(last.content) or ()), *tokens]
        # Prompts look up answers without outer spaces, so others would never be found.
        if text == text.strip() and self._prompts.is_plain(tokens, text):
            self._written.keep(text, tokens)

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


def _trace(request: Request, above: "Span", outcome: str) -> None:
    """Adds spans for the time that a request waited, was read and was written."""
    began = [request.asked, request.admitted, request.first]
    for name, start, end in zip(STEPS, began, [*began[1:], None], strict=True):
        if start is not None:
            add_ended_step(
                name, start, end, below=above, outcome=outcome if end is None else "done"
            )
