"""Batches of requests with the caches of transformers, for any model: T5, BART, BLOOM, Mamba, …"""

import inspect
import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from enum import Enum
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.generation.utils import GenerationMode
from transformers.utils import ModelOutput

from .caches import join, keep
from .generation import Request, pick
from .scores import TensorScores

logger = logging.getLogger(__name__)

STOP_SECONDS = 30
STEP_TOKENS = 512
"""The maximum number of prompt tokens between two steps, so that running requests do not wait."""
MAX_PAIRS = 2048**2
"""The maximum number of token pairs that an encoder reads at once."""
MAX_PADDING = 512
"""How many tokens longer than another row of its group a row may be."""
MAX_CACHE_LENGTH = 1 << 20


class Joining(Enum):
    """Which rows of a model share its steps."""

    ANY = "in groups that requests join at any time"
    ALIGNED = "in groups of requests of the same length"
    NONE = "one request at a time, taking turns"


class GroupedBatch:
    """Groups of rows that are padded to the same length.

    A decoder reads each prompt alone, so that no padding gets into its state. The resulting row
    then joins a group if the model allows it. Groups take turns, one token at a time. An
    encoder-decoder reads all waiting prompts together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        end: Collection[int],
        running_requests: int,
        joining: Joining,
        cache_tokens: int | None = None,
    ) -> None:
        self._reader = Reader(model, joining)
        self._end = frozenset(end)
        self._running_requests = running_requests
        self._cache_tokens = cache_tokens
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
                self._groups = _joined(group for group in self._groups if group.requests)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            logger.exception("The generation thread failed")
        finally:
            with self._changed:
                self._stopping = True
                running = [request for group in self._groups for request in group.requests]
                for request in running + self._waiting:
                    request.add([], failure=failure)

    def _admit(self) -> bool:
        """Starts groups for waiting requests, or waits if there are no requests."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting or self._groups)
            self._waiting = [request for request in self._waiting if not request.left]
            admitted = self._waiting[: self._room()]
            # They stay in the waiting list until their group exists, so a failure reaches them.
            if admitted and not self._stopping:
                for request in admitted:
                    request.admit()
                together = self._reader.reads_together
                for requests in [admitted] if together else [[each] for each in admitted]:
                    self._groups.append(Group(self._reader, self._end, requests))
            self._waiting = self._waiting[len(admitted) :]
            return not self._stopping

    def _room(self) -> int:
        """Returns how many waiting requests may start now."""
        running = [request for group in self._groups for request in group.requests]
        cached = sum(map(_most_tokens, running))
        read = 0
        for count, request in enumerate(self._waiting):
            cached += _most_tokens(request)
            full = self._cache_tokens is not None and cached > self._cache_tokens
            if len(running) + count >= self._running_requests or (full and (running or count)):
                return count
            if count and read + len(request.prompt) > STEP_TOKENS:
                return count
            read += len(request.prompt)
        return len(self._waiting)


class Group:
    """Rows that share their steps. A row that has ended leaves, and the others continue."""

    def __init__(self, reader: "Reader", end: frozenset[int], requests: list[Request]) -> None:
        self.requests = requests
        self._reader = reader
        self._end = sorted(end)
        self._lengths = [0] * len(requests)
        self._state: dict[str, Any] = {}
        """What the model passes from step to step, usually its cache."""
        self._encoded: torch.Tensor | None = None
        self._mask: torch.Tensor | None = None

    @torch.inference_mode()
    def step(self) -> None:
        """Gives each row one more token."""
        self._keep([not request.left for request in self.requests])
        if not self.requests:
            return
        scores = self._read()
        ended = []
        for request, token in zip(
            self.requests, pick(self.requests, TensorScores(scores), self._end), strict=True
        ):
            last = token is None or (
                token in self._end or request.received + 1 >= request.sampling.max_new_tokens
            )
            if token is not None:
                request.add([token], ended=last)
            ended.append(last)
        self._keep([not last for last in ended])

    def takes(self, other: "Group") -> bool:
        """Whether this group can take over the rows of the other one."""
        lengths = [*self._lengths, *other._lengths]
        joining = self._reader.joining
        if not self._is_joinable() or not other._is_joinable() or joining is Joining.NONE:
            return False
        return max(lengths) - min(lengths) <= (MAX_PADDING if joining is Joining.ANY else 0)

    @torch.inference_mode()
    def join(self, other: "Group") -> None:
        [cache], [added] = self._state.values(), other._state.values()
        encoded = 0
        if self._encoded is not None and other._encoded is not None:
            encoded = max(self._encoded.shape[1], other._encoded.shape[1])
            self._encoded, self._mask = (
                torch.cat([_lengthened(own, encoded), _lengthened(new, encoded)])
                for own, new in [(self._encoded, other._encoded), (self._mask, other._mask)]
            )
        self.requests += other.requests
        self._lengths += other._lengths
        join(cache, added, width=max(self._lengths), encoded=encoded)

    def _is_joinable(self) -> bool:
        return [isinstance(state, Cache) for state in self._state.values()] == [True]

    def _read(self) -> torch.Tensor:
        """Lets the model read its new tokens, and returns the scores for the next ones."""
        reader = self._reader
        if reader.encodes and self._encoded is None:
            self._encoded, self._mask = reader.encode([each.prompt for each in self.requests])
        begins = [reader.begin(request) for request in self.requests]
        first = not self._state
        if first:
            # The whole text, in every step if the model has no cache.
            tokens = [
                begin + request.text for begin, request in zip(begins, self.requests, strict=True)
            ]
            self._lengths = [0] * len(tokens)
        else:
            tokens = [request.text[-1:] for request in self.requests]
        scores, self._state = reader.read(
            tokens, self._lengths, self._state, self._encoded, self._mask
        )
        self._lengths = [length + len(tokens[0]) for length in self._lengths]
        return scores

    def _keep(self, wanted: Sequence[bool]) -> None:
        """Removes the unwanted rows from all tensors."""
        if all(wanted):
            return
        rows = [row for row, wants in enumerate(wanted) if wants]
        self.requests = [self.requests[row] for row in rows]
        self._lengths = [self._lengths[row] for row in rows]
        if not rows or not self._state:
            return
        index = torch.tensor(rows, device=self._reader.device)
        if self._encoded is not None and self._mask is not None:
            self._encoded, self._mask = self._encoded[index], self._mask[index]
        for cache in self._state.values():
            keep(cache, index, width=max(self._lengths))


class Reader:
    """Runs a model on tokens, as its `generate` does."""

    def __init__(self, model: PreTrainedModel, joining: Joining) -> None:
        self.joining = joining
        self.device = model.device
        self.encodes: bool = model.config.is_encoder_decoder
        self.reads_together = self.encodes and joining is not Joining.NONE
        self._model = model
        self._mask = "decoder_attention_mask" if self.encodes else "attention_mask"
        accepted = inspect.signature(model.forward).parameters
        self._positions = "decoder_position_ids" if self.encodes else "position_ids"
        self._places = self._positions in accepted
        self._encoder_output: type[ModelOutput] = ModelOutput
        self._placed = None
        if self.encodes and not self._places and joining is Joining.ANY:
            self._placed = _look_up_by_row(model)

    def begin(self, request: Request) -> list[int]:
        """Returns the tokens that the decoder reads first."""
        return [first_token(self._model)] if self.encodes else request.prompt

    def encode(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the encoder's output for the prompts, and a mask of what is not padding."""
        longest = max(len(prompt) for prompt in prompts)
        padding = self._model.config.pad_token_id or 0
        tokens = torch.full((len(prompts), longest), padding)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
            mask[row, : len(prompt)] = 1
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        # Long prompts in small parts, because memory grows with the square of their length.
        encoder, rows = self._model.get_encoder(), max(MAX_PAIRS // longest**2, 1)
        outputs = [
            encoder(input_ids=some, attention_mask=its_mask)
            for some, its_mask in zip(tokens.split(rows), mask.split(rows), strict=True)
        ]
        self._encoder_output = type(outputs[0])
        return torch.cat([output.last_hidden_state for output in outputs]), mask

    def read(
        self,
        tokens: Sequence[Sequence[int]],
        lengths: Sequence[int],
        state: dict[str, Any],
        encoded: torch.Tensor | None = None,
        encoder_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Returns the scores for the next tokens, and the new state.

        All rows have the same number of tokens. `lengths` are the numbers of earlier tokens.
        """
        model = self._model
        first = not state
        ids = torch.tensor(tokens, device=self.device)
        given: dict[str, Any] = {"use_cache": True, **state}
        before = torch.tensor(lengths, device=self.device)[:, None]
        positions = before + torch.arange(ids.shape[1], device=self.device)
        width = max(lengths)
        if min(lengths) < width:
            column = torch.arange(width + ids.shape[1], device=self.device)
            given[self._mask] = (column >= width - before).long()
        if self._places:
            given[self._positions] = positions
        if self._placed is not None:
            self._placed.positions = positions if min(lengths) < width else None
        if encoded is not None:
            given["encoder_outputs"] = self._encoder_output(last_hidden_state=encoded)
            given["attention_mask"] = encoder_mask
        if first:
            model._prepare_cache_for_generation(
                model.generation_config,
                given,
                GenerationMode.GREEDY_SEARCH,
                len(tokens),
                MAX_CACHE_LENGTH,
            )
        inputs = model.prepare_inputs_for_generation(
            ids,
            next_sequence_length=None if first else ids.shape[1],
            is_first_iteration=first,
            **given,
        )
        try:
            output = model(**inputs, return_dict=True)
        finally:
            if self._placed is not None:
                self._placed.positions = None
        kept = model._update_model_kwargs_for_generation(
            output, {}, is_encoder_decoder=self.encodes
        )
        state = {name: value for name, value in kept.items() if value is not None}
        return output.logits[:, -1].float(), state


class RowPositions:
    """The positions of the rows in the decoder's next step, if they differ."""

    positions: torch.Tensor | None = None


def _look_up_by_row(model: PreTrainedModel) -> RowPositions | None:
    """Makes a decoder with learned positions look them up for each row.

    BART and similar models derive them from the length of the cache, which is the longest row's.
    """
    module = getattr(model.get_decoder(), "embed_positions", None)
    if module is None:
        return None
    placed = RowPositions()
    usual = module.forward
    parameters = inspect.signature(usual)

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        if placed.positions is None:
            looked_up: torch.Tensor = usual(*args, **kwargs)
            return looked_up
        given = parameters.bind(*args, **kwargs).arguments
        if "position_ids" in parameters.parameters:
            by_row: torch.Tensor = usual(**{**given, "position_ids": placed.positions})
            return by_row.reshape(*placed.positions.shape, -1)
        length = next(name for name in parameters.parameters if name.endswith("length"))
        rows = []
        for row, position in enumerate(placed.positions[:, 0].tolist()):
            looked_up = usual(**{**given, length: position})
            each = looked_up.reshape(-1, 1, looked_up.shape[-1])
            rows.append(each[row : row + 1] if len(each) > 1 else each)
        return torch.cat(rows)

    module.forward = forward
    return placed


def first_token(model: PreTrainedModel) -> int:
    """Returns the first token that the decoder of an encoder-decoder reads."""
    candidates = (
        model.generation_config.decoder_start_token_id,
        model.config.decoder_start_token_id,
        model.generation_config.bos_token_id,
    )
    first: int = next(token for token in candidates if token is not None)
    return first


def _joined(groups: Iterator[Group]) -> list[Group]:
    joined: list[Group] = []
    for group in groups:
        host = next((each for each in joined if each.takes(group)), None)
        if host is None:
            joined.append(group)
        else:
            host.join(group)
    return joined


def _lengthened(tensor: torch.Tensor, length: int) -> torch.Tensor:
    missing = length - tensor.shape[1]
    return torch.cat([tensor, tensor.new_zeros((len(tensor), missing, *tensor.shape[2:]))], 1)


def _most_tokens(request: Request) -> int:
    return len(request.prompt) + request.sampling.max_new_tokens
