"""What a model's own configuration says about its text: how it ends, and which tokens it avoids."""

import copy
from collections.abc import Sequence

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from .generation import Processor

UNKEPT = {
    "num_beams": "one text is written at a time, the likeliest token or a drawn one",
    "penalty_alpha": "there is no contrastive search",
    "guidance_scale": "there is no second, unguided model",
    "prompt_lookup_num_tokens": "no tokens are looked up in the prompt",
    "watermarking_config": "there are no watermarks",
}
"""What is left out, and what is so instead."""


def end_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the tokens that end a text.

    A fine-tune's tokenizer may end a turn with another than its base model's generation does.
    """
    ends: set[int] = set()
    for said in (
        model.generation_config.eos_token_id,
        getattr(model.config.get_text_config(decoder=True), "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        ends.update([] if said is None else [said] if isinstance(said, int) else said)
    return frozenset(ends)


def unkept(config: GenerationConfig) -> list[str]:
    """Returns a line for each thing that the configuration asks for and is not done."""
    return [
        f"{name}={value!r} of the model's configuration is left out: {instead}"
        for name, instead in UNKEPT.items()
        if (value := getattr(config, name, None)) not in (None, 1, 1.0)
    ]


class Configured:
    """The rules of one model, as transformers' own processors of scores."""

    def __init__(self, model: PreTrainedModel, ends: frozenset[int]) -> None:
        self._model = model
        self._config = copy.deepcopy(model.generation_config)
        self._config.update(
            do_sample=False,
            guidance_scale=None,
            eos_token_id=sorted(ends) or None,
            # Asked for by each request.
            min_new_tokens=None,
        )
        model._prepare_special_tokens(self._config, device=model.device)
        self.is_needed = len(self._processors([0], begin=1, most=1)) > 0

    def rules(self, prompt: list[int], begin: Sequence[int], most: int) -> Processor | None:
        """Returns what the configuration makes of each token's scores; None where it says nothing.

        `begin` is what the decoder reads before its text, of at most so many tokens.
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
