"""Batches of requests for decoders: Llama, Qwen, GPT-2 and their like."""

import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from itertools import count

import torch
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    GenerationOutput,
    RequestState,
)

from ..protocol import GenerationError
from .attention import attend_by_rows
from .generation import Request
from .sampling import Sampling, draw, forbid, keep_top_k

PAGE_TOKENS = 16
STEP_TOKENS = 256
"""Tokens that a step reads at the most, so that a long prompt holds nobody up for long."""
START_SECONDS = 120
STOP_SECONDS = 30


class DecoderBatch:
    """transformers' continuous batching: a request joins while others run.

    Keys and values lie in pages of one cache of `cache_tokens` tokens, which all running
    requests share; where it is full, the youngest wait.

    Raises:
        GenerationError: the model cannot be batched in this way.
    """

    def __init__(
        self, model: PreTrainedModel, end: Collection[int], running_requests: int, cache_tokens: int
    ) -> None:
        self._end = list(end)
        self._names = count()
        self._running: dict[Request, str] = {}
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=self._end or -1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=-(-cache_tokens // PAGE_TOKENS),
                max_batch_tokens=max(STEP_TOKENS, running_requests),
                max_requests_per_batch=running_requests,
                per_request_processors=True,
            ),
        )
        self._manager.logit_processor = _sampling_steps(self._end)
        # A thread that a daemon starts is one too: else a process could not end before it.
        starter = threading.Thread(target=self._manager.start, daemon=True)
        starter.start()
        starter.join()
        self._wait_until_ready()
        if model.device.type == "cpu":
            attend_by_rows(model)

    def start(self, request: Request) -> None:
        name = str(next(self._names))
        self._running[request] = name
        self._manager.register_result_handler(name, lambda output: self._deliver(request, output))
        accepted = self._manager.add_request(
            request.prompt,
            request_id=name,
            max_new_tokens=request.sampling.max_new_tokens,
            streaming=True,
            sampling=request.sampling,
        )
        if accepted is None:
            request.add([], failure="the generation thread has ended")

    def cancel(self, request: Request) -> None:
        name = self._running.pop(request, None)
        if name is not None:
            self._manager.cancel_request(name)
            # No end is delivered after a cancellation, so the manager would keep it.
            self._manager.output_router.result_handlers.pop(name, None)
            self._drop_unread()

    def is_running(self) -> bool:
        running: bool = self._manager.is_running()
        return running

    def stop(self) -> None:
        self._manager.stop(block=True, timeout=STOP_SECONDS, hard_stop=True)

    def _wait_until_ready(self) -> None:
        """The thread makes the cache, which not every model allows."""
        deadline = time.monotonic() + START_SECONDS
        while self._manager.batch_processor is None:
            reason = self._manager.background_thread_status.fatal_error
            if reason is not None or time.monotonic() > deadline:
                raise GenerationError(f"continuous batching does not start: {reason}")
            time.sleep(0.01)

    def _drop_unread(self) -> None:
        """The step that ran during a cancellation delivers to a queue which nobody reads."""
        with suppress(queue.Empty):
            while True:
                self._manager.output_router.output_queue.get_nowait()

    def _deliver(self, request: Request, output: GenerationOutput) -> None:
        new = output.generated_tokens[request.received :]
        request.add(new, ended=output.is_finished(), failure=output.error)
        if output.is_finished() or output.error:
            self._running.pop(request, None)


class _SamplingStep(ContinuousBatchingLogitsProcessor):
    """Changes the scores of each request according to one number of its own."""

    supported_kwargs = {"sampling": Sampling}  # noqa: RUF012
    ignored_kwargs = ()

    def __init__(
        self,
        number: Callable[[Sampling, int], float],
        change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> None:
        self._number = number
        self._change = change

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.copy_(torch.ones_like(int32_tensor, dtype=torch.float32).view(torch.int32))

    def prepare_tensor_args(self, requests: list[FutureRequestState]) -> torch.Tensor:
        numbers = [self._of(request.state) for request in requests]
        return torch.tensor(numbers, dtype=torch.float32).view(torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        return self._change(scores, tensor_arg[: scores.shape[0]].view(torch.float32))

    def _of(self, state: RequestState) -> float:
        sampling: Sampling = state.logit_processor_kwargs["sampling"]
        # A request that had to make room starts over, with its text in its prompt.
        prompt = state._true_initial_tokens or len(state.initial_tokens)
        moved = len(state.initial_tokens) - prompt
        return self._number(sampling, moved + state.generated_len())


def _sampling_steps(end: Sequence[int]) -> ContinuousBatchingLogitsProcessorList:
    # transformers' own sort the vocabulary twice for each token and draw from all of it,
    # which took a CPU a quarter of each step.
    steps = [
        _SamplingStep(
            lambda sampling, generated: generated < sampling.min_new_tokens,
            lambda scores, rows: forbid(scores, end, rows),
        ),
        _SamplingStep(
            lambda sampling, _: sampling.divisor, lambda scores, rows: scores / rows[:, None]
        ),
        _SamplingStep(lambda sampling, _: sampling.top_k, keep_top_k),
        _SamplingStep(lambda sampling, _: sampling.top_p, _leave_one),
    ]
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList(steps))
    processors.tensors_required = len(steps)
    return processors


def _leave_one(scores: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Draws here, because transformers takes the best score that is left."""
    drawn = draw(scores, top_p)[:, None]
    return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)
