"""Batches of requests for encoder-decoders: T5, BART and their like."""

import threading
from collections.abc import Collection, Sequence

import torch
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .generation import Request
from .sampling import choose

STOP_SECONDS = 30
PAIRS_AT_ONCE = 2048**2
"""Of the tokens of prompts that an encoder reads together."""


class EncoderDecoderBatch:
    """Requests that wait together start together, padded to one length.

    Those who come later start a group of their own, and the groups take turns with each
    token, so nobody waits for the end of another's text. Positions are counted from the
    start of a group, as all encoder-decoders of transformers do, so a group takes in none.
    """

    def __init__(self, model: PreTrainedModel, end: Collection[int], running_requests: int) -> None:
        self._model = model
        self._end = frozenset(end)
        self._running_requests = running_requests
        self._waiting: list[Request] = []
        self._groups: list[Group] = []
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def start(self, request: Request) -> None:
        with self._changed:
            if not self.is_running():
                request.add([], failure="the generation thread has ended")
                return
            self._waiting.append(request)
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        request.left = True

    def is_running(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        failure = "the generation was stopped"
        try:
            while self._admit():
                for group in self._groups:
                    group.step()
                self._groups = [group for group in self._groups if group.requests]
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            with self._changed:
                self._stopping = True
                running = [request for group in self._groups for request in group.requests]
                for request in running + self._waiting:
                    request.add([], failure=failure)

    def _admit(self) -> bool:
        """Starts a group of those who wait, and waits where there is nothing to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting or self._groups)
            running = sum(len(group.requests) for group in self._groups)
            room = self._running_requests - running
            admitted = [request for request in self._waiting[:room] if not request.left]
            # They wait until their group is there: else its failure would not reach them.
            if admitted and not self._stopping:
                self._groups.append(Group(self._model, self._end, admitted))
            self._waiting = self._waiting[room:]
            return not self._stopping


class Group:
    """Rows that started together. A row that has ended leaves, and the others go on."""

    def __init__(
        self, model: PreTrainedModel, end: frozenset[int], requests: list[Request]
    ) -> None:
        self.requests = requests
        self._model = model
        self._end = end
        self._steps = 0
        self._prompts, self._mask = _pad([request.prompt for request in requests], model.device)
        self._encoded: torch.Tensor | None = None
        self._last = torch.full_like(self._prompts[:, :1], _first_token(model))
        self._cache = EncoderDecoderCache(
            DynamicCache(config=model.config), DynamicCache(config=model.config)
        )

    @torch.inference_mode()
    def step(self) -> None:
        """Gives each row one more token."""
        self._keep([not request.left for request in self.requests])
        if not self.requests:
            return
        if self._encoded is None:
            self._encoded = _encode(self._model, self._prompts, self._mask)
        output = self._model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._encoded),
            attention_mask=self._mask,
            decoder_input_ids=self._last,
            past_key_values=self._cache,
            use_cache=True,
        )
        tokens = self._choose(output.logits[:, -1].float())
        self._last = tokens[:, None]
        self._steps += 1
        ended = [
            token in self._end or self._steps >= request.sampling.max_new_tokens
            for request, token in zip(self.requests, tokens.tolist(), strict=True)
        ]
        for request, token, last in zip(self.requests, tokens.tolist(), ended, strict=True):
            request.add([token], ended=last)
        self._keep([not last for last in ended])

    def _choose(self, scores: torch.Tensor) -> torch.Tensor:
        forced = self._model.generation_config.forced_bos_token_id
        if self._steps == 0 and forced is not None:
            return torch.full_like(self._last[:, 0], forced)
        rows = [request.sampling.numbers(self._steps) for request in self.requests]
        numbers = torch.tensor(rows, dtype=torch.float32, device=scores.device).T
        return choose(scores, numbers, sorted(self._end))

    def _keep(self, wanted: Sequence[bool]) -> None:
        """Takes the rows that are not wanted out of all tensors."""
        if all(wanted):
            return
        rows = [row for row, keep in enumerate(wanted) if keep]
        self.requests = [self.requests[row] for row in rows]
        index = torch.tensor(rows, dtype=torch.long, device=self._last.device)
        self._prompts, self._mask = self._prompts[index], self._mask[index]
        self._last = self._last[index]
        if self._encoded is not None:
            self._encoded = self._encoded[index]
            self._cache.batch_select_indices(index)


def _encode(model: PreTrainedModel, prompts: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Reads the prompts, a few at a time where they are long: memory grows by the square."""
    encoder, rows = model.get_encoder(), max(PAIRS_AT_ONCE // prompts.shape[1] ** 2, 1)
    return torch.cat(
        [
            encoder(input_ids=some, attention_mask=its_mask).last_hidden_state
            for some, its_mask in zip(prompts.split(rows), mask.split(rows), strict=True)
        ]
    )


def _first_token(model: PreTrainedModel) -> int:
    """Returns what the decoder reads before it has written anything."""
    candidates = (
        model.generation_config.decoder_start_token_id,
        model.config.decoder_start_token_id,
        model.generation_config.bos_token_id,
    )
    first: int = next(token for token in candidates if token is not None)
    return first


def _pad(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns tokens and mask of shape [rows, longest prompt]."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
        mask[row, : len(prompt)] = 1
    return tokens.to(device), mask.to(device)
