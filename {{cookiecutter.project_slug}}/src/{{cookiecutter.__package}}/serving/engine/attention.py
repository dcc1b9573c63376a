"""Fast attention on a CPU for a batch of rows that each write one token."""

from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "rows"
# With fewer rows, grouping each row's tokens takes longer than it saves.
MIN_ROWS = 4


def attend_by_rows(model: PreTrainedModel) -> None:
    """Makes each row of continuous batching attend only to its own tokens.

    The default attention concatenates the tokens of all rows, computes every row against all
    of them, and masks those of other rows. With 32 rows that takes most of a step. Prompts
    still use the default, and so do models that need more than plain attention.
    """
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, _attention)
        model.set_attn_implementation(NAME)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Takes shape [1, heads, tokens, size] and returns shape [1, tokens, heads, size]."""
    rows = options["cu_seq_lens_q"].shape[0] - 1
    _, heads, tokens, size = query.shape
    biased = options.get("position_bias") is not None
    if biased or tokens != rows or rows < MIN_ROWS:
        usual: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return usual
    # Since transformers 5.24, the keys and values already come from the cache.
    if "cache" in options:
        key, value = options.pop("cache").update(
            key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=options
        )
    bounds = options["cu_seq_lens_k"]
    position = torch.arange(options["max_length_k"], device=bounds.device)
    own = position < (bounds[1:] - bounds[:-1])[:, None]
    # Masked positions also use the row's own tokens, because those of other rows may be NaN.
    index = (bounds[:-1, None] + torch.where(own, position, 0)).flatten()
    # [1, heads, tokens of all rows, size] -> [rows, heads, longest row, size]
    key, value = (
        each[0].transpose(0, 1).index_select(0, index).unflatten(0, own.shape).transpose(1, 2)
        for each in (key, value)
    )
    # Query heads that share keys become rows of one matrix.
    shared = query[0].transpose(0, 1).reshape(rows, key.shape[1], -1, size)
    output = torch.nn.functional.scaled_dot_product_attention(
        shared, key, value, attn_mask=own[:, None, None, :], scale=options.get("scaling")
    )
    return output.reshape(1, rows, heads, size), None
