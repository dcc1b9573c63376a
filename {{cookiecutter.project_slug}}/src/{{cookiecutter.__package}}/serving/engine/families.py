"""Decides whether a model can run as a graph, without importing the runtime."""

from transformers import PreTrainedConfig

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""The model types whose layers `graphs.py` knows."""
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""The types of rotary embeddings whose angles do not depend on the length of the text."""


def refusal(config: PreTrainedConfig) -> str | None:
    """Returns why a model with this config cannot run as a graph, or None if it can."""
    rope = getattr(config, "rope_parameters", None) or {}
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    slides = getattr(config, "sliding_window", None) is not None
    activation = getattr(config, "hidden_act", None)
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is not one of {', '.join(sorted(FAMILIES))}"
    if getattr(config, "quantization_config", None):
        return "its weights are already quantized"
    if layers != {"full_attention"} or (slides and not hasattr(config, "use_sliding_window")):
        return "its attention has a sliding window"
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        return f"its rotary embeddings are of type {rope['rope_type']}"
    if rope.get("partial_rotary_factor", 1) != 1:
        return "its rotary embeddings cover only part of each head"
    if activation != "silu":
        return f"its activation is {activation}"
    return None
