"""Batches of requests for decoders such as Llama, Qwen and GPT-2."""

import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from itertools import count, islice

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
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import (
    FutureRequestState,
    GenerationOutput,
)
from transformers.generation.continuous_batching.scheduler import (
    SCHEDULER_MAPPING,
    FIFOScheduler,
)

from ..protocol import GenerationError
from .attention import attend_by_rows
from .generation import Request, pick
from .scores import TensorScores

PAGE_TOKENS = 16
STEP_TOKENS = 256
"""The maximum number of tokens in a step, so that a long prompt does not delay the others."""
START_SECONDS = 120
STOP_SECONDS = 30


class DecoderBatch:
    """transformers' continuous batching: a request joins while others run.

    Keys and values are in pages of one cache of `cache_tokens` tokens, which all running
    requests share. When it is full, the newest requests wait. Free space keeps the pages of
    requests that have ended, for new requests with the same prefix.

    Raises:
        GenerationError: the model does not support continuous batching.
    """

    def __init__(
        self, model: PreTrainedModel, end: Collection[int], running_requests: int, cache_tokens: int
    ) -> None:
        self._end = list(end)
        self._names = count()
        self._running: dict[str, Request] = {}
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=self._end or -1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE_TOKENS,
                num_blocks=-(-cache_tokens // PAGE_TOKENS),
                max_batch_tokens=max(STEP_TOKENS, running_requests),
                max_requests_per_batch=running_requests,
                per_request_processors=True,
                scheduler_type=_GradualEviction.NAME,
                # Tokens are sampled with each request's options, outside a graph.
                use_cuda_graph=False,
                use_async_batching=False,
            ),
        )
        self._manager.output_router = _Router(self._deliver)
        self._manager.logit_processor = _Sampler(self._end, self.cancel)
        # Started from a daemon thread, so that its own thread is one too and the process can exit.
        starter = threading.Thread(target=self._manager.start, daemon=True)
        starter.start()
        starter.join()
        self._wait_until_ready()
        if model.device.type == "cpu":
            attend_by_rows(model)

    def start(self, request: Request) -> None:
        name = str(next(self._names))
        self._running[name] = request
        accepted = self._manager.add_request(
            request.prompt,
            request_id=name,
            max_new_tokens=request.sampling.max_new_tokens,
            streaming=True,
            request=request,
        )
        if accepted is None:
            request.add([], failure="the generation thread has ended")

    def cancel(self, request: Request) -> None:
        for name in [name for name, each in self._running.copy().items() if each is request]:
            del self._running[name]
            self._manager.cancel_request(name)

    def is_running(self) -> bool:
        running: bool = self._manager.is_running()
        return running

    def stop(self) -> None:
        self._manager.stop(block=True, timeout=STOP_SECONDS, hard_stop=True)

    def _wait_until_ready(self) -> None:
        """Waits until the thread has made the cache, which fails for some models."""
        deadline = time.monotonic() + START_SECONDS
        while self._manager.batch_processor is None:
            reason = self._manager.background_thread_status.fatal_error
            if reason is not None or time.monotonic() > deadline:
                raise GenerationError(f"continuous batching did not start: {reason}")
            time.sleep(0.01)

    def _deliver(self, output: GenerationOutput) -> None:
        request = self._running.get(output.request_id)
        if request is None:
            return
        over = output.is_finished() or output.error is not None
        if over:
            self._running.pop(output.request_id, None)
        request.add(output.generated_tokens[request.received :], ended=over, failure=output.error)


class _Router(OutputRouter):
    """Delivers tokens in the generation thread, before its next step."""

    def __init__(self, deliver: Callable[[GenerationOutput], None]) -> None:
        super().__init__()
        self.deliver = deliver

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        for output in outputs:
            self.deliver(output)


class _GradualEviction(FIFOScheduler):
    """Evicts only as many pages of ended requests as needed, the oldest first.

    transformers would evict all of them.
    """

    NAME = "keeping"

    def _try_to_meet_safety_margin(self) -> bool:
        cache = self.cache
        # The pages that a step may need. With fewer free pages, transformers evicts everything.
        step = math.ceil(cache.max_batch_tokens / PAGE_TOKENS) + self.max_requests_per_batch
        wanted = max(math.ceil(self.safety_margin * cache.num_blocks), step)
        pages = max(wanted - math.floor(cache.compute_free_capacity() * cache.num_blocks), 0)
        for allocator in cache.cache_allocators.values():
            ledger = allocator.ledger
            oldest = list(islice(ledger.cached_blocks, pages))
            for page in oldest:
                del ledger.cached_blocks[page]
                del ledger.hash_to_block[ledger.block_to_hash.pop(page)]
            cache.pool.free_blocks(allocator.index, oldest)
        met: bool = super()._try_to_meet_safety_margin()
        return met


SCHEDULER_MAPPING[_GradualEviction.NAME] = _GradualEviction


class _Sampler(ContinuousBatchingLogitsProcessorList):
    """Samples the next token of each request with its own options.

    The processors of transformers sort the whole vocabulary twice for each token, which took a
    quarter of each step on a CPU, and do not support a seed.
    """

    def __init__(self, end: Sequence[int], cancel: Callable[[Request], None]) -> None:
        super().__init__(LogitsProcessorList())
        self._end = end
        self._cancel = cancel
        self._requests: list[Request] = []
        self.supported_keys = {"request": Request}
        self.do_processing = True

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Does nothing, because the options come with the requests."""

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        self._requests = []
        for each in requests_in_batch:
            request: Request = each.state.logit_processor_kwargs["request"]
            request.admit()
            if each.has_new_token:
                self._requests.append(request)
        return arg_storage

    def __call__(
        self,
        input_ids: torch.Tensor,  # noqa: ARG002
        scores: torch.Tensor,
        logits_processor_args: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        """Leaves one token in each row, because transformers takes the one with the best score."""
        rows = len(self._requests)
        if not rows:
            # This step only reads part of a long prompt, so there is no next token yet.
            return scores
        picked = pick(self._requests, TensorScores(scores[:rows]), self._end)
        for request, token in zip(self._requests, picked, strict=True):
            if token is None:
                self._cancel(request)
        chosen = torch.tensor([[token or 0] for token in picked], device=scores.device)
        left = torch.full_like(scores, -torch.inf)
        left[:rows].scatter_(1, chosen, 0.0)
        return left
