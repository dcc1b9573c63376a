"""Applies a model's generation config: the tokens that end a text, and changes of scores."""

import copy
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from .generation import Processor

UNSUPPORTED = {
    "num_beams": "only greedy search and sampling are supported",
    "penalty_alpha": "contrastive search is not supported",
    "guidance_scale": "classifier-free guidance is not supported",
    "prompt_lookup_num_tokens": "prompt lookup decoding is not supported",
    "watermarking_config": "watermarks are not supported",
}
"""Settings of a generation config that have no effect, and why."""


def end_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the tokens that end a text.

    A fine-tuned model's tokenizer may use another end token than its base model's config.
    """
    ends: set[int] = set()
    for said in (
        model.generation_config.eos_token_id,
        getattr(model.config.get_text_config(decoder=True), "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        ends.update([] if said is None else [said] if isinstance(said, int) else said)
    return frozenset(ends)


def unsupported(config: GenerationConfig) -> list[str]:
    """Returns a line for each setting in the config that has no effect."""
    return [
        f"{name}={value!r} in the model's generation config is ignored: {instead}"
        for name, instead in UNSUPPORTED.items()
        if (value := getattr(config, name, None)) not in (None, 1, 1.0)
    ]


class Configured:
    """The logits processors that transformers makes from one model's generation config."""

    def __init__(self, model: PreTrainedModel, ends: frozenset[int]) -> None:
        self._model = model
        self._config = copy.deepcopy(model.generation_config)
        self._config.update(
            do_sample=False,
            guidance_scale=None,
            eos_token_id=sorted(ends) or None,
            # Each request sets its own.
            min_new_tokens=None,
        )
        model._prepare_special_tokens(self._config, device=model.device)
        self.is_needed = len(self._processors([0], begin=1, most=1)) > 0

    def rules(self, prompt: list[int], begin: Sequence[int], most: int) -> Processor | None:
        """Returns a function that changes the scores, or None if the config changes none.

        `begin` are the tokens that the decoder reads first, and `most` is the maximum number of
        new tokens.
        """
        if not self.is_needed:
            return None
        processors = self._processors(prompt, begin=len(begin), most=most)
        device = self._model.device

        def process(text: list[int], scores: torch.Tensor) -> torch.Tensor:
            changed: torch.Tensor = processors(
                torch.tensor([[*begin, *text]], device=device), scores
            )
            return changed

        return process

    def _processors(self, prompt: list[int], *, begin: int, most: int) -> LogitsProcessorList:
        config = self._config
        config.max_length = begin + most
        return self._model._get_logits_processor(
            config,
            input_ids_seq_length=begin,
            encoder_input_ids=torch.tensor([prompt], device=self._model.device),
            device=self._model.device,
        )
