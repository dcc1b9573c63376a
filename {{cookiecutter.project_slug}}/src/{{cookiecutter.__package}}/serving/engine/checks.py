"""Compares what a batch makes of a few prompts with what the plain model makes of them."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .generation import Batch, Request
from .groups import first_token
from .sampling import Sampling

TEXTS = [
    "Hello",
    "The keeper of the lighthouse woke before dawn,",
    "Far out a whale breathed, and the mist above the water turned to silver. He wrote it into "
    "his book of days, and went down the stairs with the lamp in his hand.",
]
LONGEST_PROMPT = 64
NEW_TOKENS = 3
MOST_SECONDS = 600
BOUNDS = {torch.float32: 0.002, torch.float16: 0.03, torch.bfloat16: 0.1}
"""How far scores may lie apart, as a part of the distance between the best and the worst.

The order of additions depends on the number of rows, and with it the last bits of each score.
"""


LOGGERS = ["ContinuousBatchingLogger", f"{__package__}.groups"]
"""They report the end of a generation, which a check may bring about."""


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out of the log what a check is there to find."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


class Probe(Request):
    """A prompt whose scores are kept."""

    def __init__(self, prompt: list[int], follow: Sequence["Probe"], batch: Batch) -> None:
        self.prompt = prompt
        self.sampling = Sampling(0, 1, 1, NEW_TOKENS, NEW_TOKENS)
        self.process = None
        self.left = False
        self.text = []
        self.scores: list[torch.Tensor] = []
        self.failure: str | None = None
        self.over = threading.Event()
        self._follow = follow
        self._batch = batch

    def add(self, tokens: list[int], *, ended: bool = False, failure: str | None = None) -> None:
        """Lets those that follow join once there is a token."""
        if not self.text:
            for probe in self._follow:
                self._batch.start(probe)
        self.text += tokens
        if ended or failure is not None:
            self.failure = failure
            self.over.set()

    def see(self, scores: torch.Tensor) -> None:
        self.scores.append(scores.float().cpu().clone())


def prompts_of(tokenizer: PreTrainedTokenizerBase, longest: int) -> list[list[int]]:
    """Returns a few prompts of different lengths, and two of the same."""
    short, medium, long = (tokenizer(text)["input_ids"][:longest] for text in TEXTS)
    return [short, medium, long, long[: len(medium)]]


def difference(
    model: PreTrainedModel, batch: Batch, prompts: Sequence[list[int]], attention: str
) -> str | None:
    """Returns in what the batch differs from the plain model, or None where they agree.

    The prompts go through it together, the later ones while the first one runs, and each
    alone. `attention` is the plain model's own.
    """
    followers = [Probe(prompt, [], batch) for prompt in prompts[1:]]
    together = [Probe(prompts[0], followers, batch), *followers]
    alone = [Probe(prompt, [], batch) for prompt in prompts]
    for started, awaited in [(together[0], together), *((each, [each]) for each in alone)]:
        batch.start(started)
        if failure := _failure(batch, awaited):
            return failure
    quantized = getattr(model, "is_quantized", False)
    for one, beside in zip(alone, together, strict=True):
        if quantized:
            # The scale of its numbers depends on what it computes at once.
            own = one.scores
        else:
            own = scores_of(model, one, attention)
            if not torch.stack(own).isfinite().any(-1).all():
                return f"its scores are no numbers in {_name(model.dtype)}"
            if not agree(one, own, one.text, model.dtype):
                return "its scores are not those of the plain model"
        if not agree(beside, own, one.text, model.dtype):
            return "its answers depend on who else asks"
    return None


def agree(
    probe: Probe, reference: Sequence[torch.Tensor], text: Sequence[int], dtype: torch.dtype
) -> bool:
    """Whether scores lie within the bound of their format, as far as the texts are the same.

    With 16 bits it will also do that the best token is, where it leads by more than the bound.
    """
    part = BOUNDS.get(dtype, BOUNDS[torch.bfloat16])
    for own, plain, token, expected in zip(probe.scores, reference, probe.text, text, strict=True):
        known = plain[plain.isfinite()]
        bound = part * (known.max() - known.min())
        apart = (own - plain)[plain.isfinite()].abs().max()
        best, second = plain.topk(2).values
        leads = best - second > bound
        # Not a number is not within a bound either.
        if not apart <= bound and (
            dtype is torch.float32 or (leads and own.argmax() != plain.argmax())
        ):
            return False
        if token != expected:
            break
    return True


@torch.inference_mode()
def scores_of(model: PreTrainedModel, probe: Probe, attention: str) -> list[torch.Tensor]:
    """Returns the plain model's scores of each token of a text, read at once."""
    prompt = torch.tensor([probe.prompt], device=model.device)
    inputs = {"input_ids": prompt}
    if model.config.is_encoder_decoder:
        read = [first_token(model), *probe.text[:-1]]
        inputs["decoder_input_ids"] = torch.tensor([read], device=model.device)
    else:
        written = torch.tensor([probe.text[:-1]], dtype=torch.long, device=model.device)
        inputs["input_ids"] = torch.cat([prompt, written], 1)
    # Else some take a padding token of the text for padding.
    inputs |= {
        name.replace("input_ids", "attention_mask"): torch.ones_like(ids)
        for name, ids in inputs.items()
    }
    batched = model.config._attn_implementation
    if batched != attention:
        model.set_attn_implementation(attention)
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        if batched != attention:
            model.set_attn_implementation(batched)
    return list(logits[0, -len(probe.text) :].float().cpu())


def _failure(batch: Batch, probes: Sequence[Probe]) -> str | None:
    """Waits until the probes are over, and returns why one failed."""
    deadline = time.monotonic() + MOST_SECONDS
    for probe in probes:
        while not probe.over.wait(0.1):
            if not batch.is_running():
                return "the generation ended"
            if time.monotonic() > deadline:
                return f"it wrote nothing for {MOST_SECONDS} seconds"
        if probe.failure is not None:
            return probe.failure
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
