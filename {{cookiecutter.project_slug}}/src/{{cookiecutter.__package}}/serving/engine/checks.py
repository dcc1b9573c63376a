"""Compares the scores of a batch with those of the plain model, for a few prompts."""

import inspect
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .generation import Batch, Processor, Request
from .groups import first_token
from .sampling import Sampling
from .scores import Scores

TEXTS = [
    "Hello",
    "The keeper of the lighthouse woke before dawn,",
    "Far out a whale breathed, and the mist above the water turned to silver. He wrote it into "
    "his book of days, and went down the stairs with the lamp in his hand.",
]
LONGEST_PROMPT = 64
NEW_TOKENS = 3
MAX_SECONDS = 600
DEPENDS_ON_OTHERS = "its answers depend on which other requests run"
BOUNDS = {torch.float32: 0.002, torch.float16: 0.03, torch.bfloat16: 0.1, torch.int8: 0.2}
"""How much scores may differ, as a share of the distance between the best and the worst.

The order of additions depends on the number of rows, which changes the last bits of a score.
With weights in 8 bits, both the graph and the plain model may compute in 16 bits.
"""
LOGGERS = [
    *("ContinuousBatchingLogger", "transformers.modeling_utils"),
    *(f"{__package__}.{name}" for name in ("groups", "paged")),
]
"""Loggers that report what a model cannot do. The check finds that out itself."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the log messages that the check itself causes."""
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
    """A request that records its scores."""

    def __init__(self, prompt: list[int], process: Processor | None, batch: Batch) -> None:
        super().__init__(prompt, Sampling(0, 1, 1, NEW_TOKENS, NEW_TOKENS), process)
        self.scores: list[torch.Tensor] = []
        self.failure: str | None = None
        self.over = threading.Event()
        self.follow: list[Probe] = []
        """Probes to start when this one has its first token."""
        self._batch = batch

    def add(self, tokens: list[int], *, ended: bool = False, failure: str | None = None) -> None:
        if not self.text:
            for probe in self.follow:
                self._batch.start(probe)
        super().add(tokens)
        if ended or failure is not None:
            self.failure = failure
            self.over.set()

    def see(self, scores: Scores, row: int) -> None:
        self.scores.append(scores.tensor(row)[0].float().cpu().clone())


def prompts_of(tokenizer: PreTrainedTokenizerBase, longest: int) -> list[list[int]]:
    """Returns a few prompts of different lengths, two of them equally long."""
    short, medium, long = (tokenizer(text)["input_ids"][:longest] for text in TEXTS)
    return [short, medium, long, long[: len(medium)]]


def difference(
    model: PreTrainedModel,
    batch: Batch,
    prompts: Sequence[tuple[list[int], Processor | None]],
    attention: str,
    dtype: torch.dtype,
) -> str | None:
    """Returns how the batch differs from the plain model, or None if they agree.

    The batch runs the prompts together, where the later ones join while the first one runs, and
    then each one alone. `attention` is the plain model's implementation, and `dtype` the format
    in which the batch computes.
    """
    first, *followers = together = [Probe(*prompt, batch) for prompt in prompts]
    first.follow = followers
    # The last prompt is as long as another one, so it is not run alone.
    alone = [Probe(*prompt, batch) for prompt in prompts[:-1]]
    for started, awaited in [(together[0], together), *((each, [each]) for each in alone)]:
        batch.start(started)
        if failure := _failure(batch, awaited):
            return failure
    if getattr(model, "is_quantized", False):
        # A quantized model scales its numbers by batch, so it can only be compared with itself.
        pairs = zip(together, alone, strict=False)
        same = all(agree(beside, one.scores, one.text, dtype) for beside, one in pairs)
        return None if same else DEPENDS_ON_OTHERS
    known = {}
    for one in alone:
        plain = known[*one.prompt, *one.text] = scores_of(model, one, attention)
        if not torch.stack(plain).isfinite().any(-1).all():
            return f"its scores are not finite in {_name(dtype)}"
        if not agree(one, plain, one.text, dtype):
            return "its scores differ from those of the plain model"
    for beside in together:
        plain = known.get((*beside.prompt, *beside.text)) or scores_of(model, beside, attention)
        if not agree(beside, plain, beside.text, dtype):
            return DEPENDS_ON_OTHERS
    return None


def agree(
    probe: Probe, reference: Sequence[torch.Tensor], text: Sequence[int], dtype: torch.dtype
) -> bool:
    """Whether scores differ by less than the bound of their format, while the texts are the same.

    In 16 bits, scores also agree if the best token is the same or leads by less than the bound.
    """
    part = BOUNDS.get(dtype, BOUNDS[torch.bfloat16])
    for own, plain, token, expected in zip(probe.scores, reference, probe.text, text, strict=True):
        known = plain[plain.isfinite()]
        bound = part * (known.max() - known.min())
        apart = (own - plain)[plain.isfinite()].abs().max()
        best, second = plain.topk(2).values
        leads = best - second > bound
        # Written so that NaN is outside the bound.
        if not apart <= bound and (
            dtype not in {torch.float16, torch.bfloat16}
            or (leads and own.argmax() != plain.argmax())
        ):
            return False
        if token != expected:
            break
    return True


@torch.inference_mode()
def scores_of(model: PreTrainedModel, probe: Probe, attention: str) -> list[torch.Tensor]:
    """Returns the plain model's scores for each token of a text, in one pass."""
    prompt = torch.tensor([probe.prompt], device=model.device)
    inputs = {"input_ids": prompt}
    if model.config.is_encoder_decoder:
        read = [first_token(model), *probe.text[:-1]]
        inputs["decoder_input_ids"] = torch.tensor([read], device=model.device)
    else:
        # Pass them as `generate` does. Without them, some models count positions differently.
        if "position_ids" in inspect.signature(model.forward).parameters:
            places = torch.arange(prompt.shape[1] + len(probe.text) - 1, device=model.device)
            inputs["position_ids"] = places[None]
        written = torch.tensor([probe.text[:-1]], dtype=torch.long, device=model.device)
        inputs["input_ids"] = torch.cat([prompt, written], 1)
    # Without a mask, some models treat a padding token in the text as padding.
    inputs |= {
        name.replace("input_ids", "attention_mask"): torch.ones_like(ids)
        for name, ids in inputs.items()
        if name.endswith("input_ids")
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
    """Waits until the probes have ended, and returns why one failed, or None."""
    deadline = time.monotonic() + MAX_SECONDS
    for probe in probes:
        while not probe.over.wait(0.1):
            if not batch.is_running():
                return "the generation ended"
            if time.monotonic() > deadline:
                return f"it wrote nothing for {MAX_SECONDS} seconds"
        if probe.failure is not None:
            return probe.failure
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
