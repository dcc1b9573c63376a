"""Counts, times and logs the answers of models, with Ray's metrics.

The dashboard and alerts in `deploy/monitoring`, if there are any, use them. Ray adds the deployment
and the replica.
"""

import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from statistics import fmean

from ray.serve.metrics import Counter, Gauge, Histogram

from ..answers import Answer, State
from ..protocol import BusyError, End, GenerationOptions, Message, Model, Piece, PromptError
from .logs import logger, request_id
from .traces import Attributes, Kind, step

MODEL = ("model",)
SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
RATES = [1, 2, 5, 10, 20, 50, 100, 200, 500]
RECENT_SECONDS = 20
MAX_RECENT = 1000


def answers_counter() -> Counter:
    return Counter("model_answers", "Finished answers.", ("model", "outcome"))


class MeteredModel:
    """A model that counts its answers by their outcome.

    - `done`
    - `cancelled`: the client disconnected.
    - `refused`: too many requests were waiting.
    - `unreadable`: the prompt does not fit.
    - `failed`: the model failed.
    """

    def __init__(self, model: Model, *, log_prompts: bool, remote: bool = False) -> None:
        self.name = model.name
        self._remote = remote
        self._model = model
        self._log_prompts = log_prompts
        self._running_now = 0
        self._waiting_since: list[float] = []
        self._recent = deque[tuple[float, float]](maxlen=MAX_RECENT)
        """When each recent wait for a first text ended, and how long it took."""
        self._answers = answers_counter()
        self._tokens = Counter("model_tokens", "Generated tokens.", MODEL)
        self._first_text = Histogram(
            "model_first_text_seconds", "Seconds to the first text of an answer.", SECONDS, MODEL
        )
        self._speed = Histogram(
            "model_tokens_per_second", "Tokens per second of an answer.", RATES, MODEL
        )
        self._waiting = Gauge("model_requests_waiting", "Requests that have no text yet.", MODEL)
        self._running = Gauge(
            "model_requests_running", "Requests whose answers are being written.", MODEL
        )
        for metric in (self._tokens, self._first_text, self._speed, self._waiting, self._running):
            metric.set_default_tags({"model": self.name})

    async def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        attributes = _asked(self.name, options, remote=self._remote)
        kind: Kind = "client" if self._remote else "internal"
        with step(f"chat {self.name}", attributes, kind=kind) as traced:
            answer, asked, outcome = Answer(), time.monotonic(), "cancelled"
            failure: Exception | None = None
            self._waiting_since.append(asked)
            self._count()
            try:
                async with aclosing(self._model.stream(messages, options)) as pieces:
                    async for piece in pieces:
                        if answer.state is State.WAITING and isinstance(piece, Piece):
                            self._waits_no_more(asked)
                            self._count(running=1)
                        answer.add(piece)
                        if isinstance(piece, End):
                            # Some callers stop reading at the end.
                            outcome = "done"
                        yield piece
                outcome = "done"
            except BusyError as error:
                outcome, failure = "refused", error
                raise
            except PromptError as error:
                outcome, failure = "unreadable", error
                raise
            except Exception as error:
                outcome, failure = "failed", error
                raise
            finally:
                if answer.state is State.WAITING:
                    self._waits_no_more(asked)
                    self._count()
                else:
                    self._count(running=-1)
                seconds = time.monotonic() - asked
                self._record(answer, outcome, seconds)
                self._log(answer, outcome, seconds, messages)
                traced.say(_said(answer))
                traced.ends(outcome, failure)

    def first_text_seconds(self) -> float:
        """Returns how long recent first texts took, on average, or 0 without recent requests.

        If the requests that still wait have waited longer on average, it returns their average.
        """
        now = time.monotonic()
        recent = [seconds for ended, seconds in self._recent if now - ended < RECENT_SECONDS]
        waiting = [now - since for since in self._waiting_since]
        return max(fmean(each) for each in (recent or [0], waiting or [0]))

    def _waits_no_more(self, since: float) -> None:
        self._waiting_since.remove(since)
        now = time.monotonic()
        self._recent.append((now, now - since))

    def _count(self, *, running: int = 0) -> None:
        self._running_now += running
        self._waiting.set(len(self._waiting_since))
        self._running.set(self._running_now)

    def _record(self, answer: Answer, outcome: str, seconds: float) -> None:
        self._answers.inc(tags={"model": self.name, "outcome": outcome})
        if answer.tokens:
            self._tokens.inc(answer.tokens)
        if answer.first_text_seconds is not None:
            self._first_text.observe(answer.first_text_seconds)
        elif outcome == "cancelled":
            # Otherwise, the metric would miss a model so slow that all clients give up.
            self._first_text.observe(seconds)
        if answer.tokens_per_second is not None:
            self._speed.observe(answer.tokens_per_second)

    def _log(
        self, answer: Answer, outcome: str, seconds: float, messages: Sequence[Message]
    ) -> None:
        first = answer.first_text_seconds
        facts: dict[str, object] = {
            "request": request_id.get(),
            "model": self.name,
            "outcome": outcome,
            "tokens": answer.tokens,
            "seconds": round(seconds, 3),
            "first_text_seconds": None if first is None else round(first, 3),
        }
        if self._log_prompts:
            facts["messages"] = [vars(message) for message in messages]
        logger.info("answer", extra=facts)


def _asked(model: str, options: GenerationOptions, *, remote: bool) -> Attributes:
    """Returns a request's options under OpenTelemetry's names, without any text."""
    said = {
        "max_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "seed": options.seed,
    }
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai" if remote else "ray-serve",
        "gen_ai.request.model": model,
        **{f"gen_ai.request.{name}": value for name, value in said.items() if value is not None},
    }


def _said(answer: Answer) -> Attributes:
    said: dict[str, str | int | float | Sequence[str]] = {
        "gen_ai.usage.output_tokens": answer.tokens
    }
    if answer.first_text_seconds is not None:
        said["gen_ai.response.time_to_first_chunk"] = answer.first_text_seconds
    if answer.end is not None:
        said["gen_ai.response.finish_reasons"] = [answer.end.reason]
        if answer.end.prompt_tokens is not None:
            said["gen_ai.usage.input_tokens"] = answer.end.prompt_tokens
    return said
