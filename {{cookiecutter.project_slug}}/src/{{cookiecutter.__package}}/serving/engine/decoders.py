"""Batches of requests for decoders: Llama, Qwen, GPT-2 and their like."""

import queue
import threading
import time
from collections.abc import Collection, Sequence
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
from .sampling import GREEDY, Sampling, choose

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
        self._manager.logit_processor = _Sampler(self._end)
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


class _Sampler(ContinuousBatchingLogitsProcessorList):
    """Draws the next token of each request by numbers of its own.

    transformers' own steps sort the vocabulary twice for each token and draw from all of it,
    which took a CPU a quarter of each step, and know no seed.
    """

    def __init__(self, end: Sequence[int]) -> None:
        super().__init__(LogitsProcessorList())
        self._end = end
        self.supported_keys = {"sampling": Sampling}
        self.tensors_required = len(GREEDY.numbers(0))
        self.do_processing = True

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.copy_(torch.ones_like(int32_tensor, dtype=torch.float32).view(torch.int32))

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        rows = [_numbers(request.state) for request in requests_in_batch if request.has_new_token]
        if rows:
            numbers = torch.tensor(rows, dtype=torch.float32).T.contiguous().view(torch.int32)
            arg_storage[:, : len(rows)] = numbers.to(arg_storage.device)
        return arg_storage

    def __call__(
        self,
        input_ids: torch.Tensor,  # noqa: ARG002
        scores: torch.Tensor,
        logits_processor_args: torch.Tensor,
    ) -> torch.Tensor:
        """Leaves one token of each row, because transformers takes the best score."""
        numbers = logits_processor_args[:, : scores.shape[0]].view(torch.float32)
        chosen = choose(scores, numbers, self._end)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def _numbers(state: RequestState) -> tuple[float, ...]:
    # transformers warms up with requests that have none.
    sampling: Sampling = state.logit_processor_kwargs.get("sampling", GREEDY)
    # A request that had to make room starts over, with its text in its prompt.
    prompt = state._true_initial_tokens or len(state.initial_tokens)
    # The count of what was read runs ahead with each step; that of what was written lags on a GPU.
    return sampling.numbers(state.position_offset - prompt)
