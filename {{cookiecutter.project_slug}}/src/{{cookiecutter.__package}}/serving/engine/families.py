"""Which models a graph is made of, without importing the runtime."""

from transformers import PreTrainedConfig

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Those whose layers `graphs.py` writes down."""
ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Those whose angles do not depend on how long the text is."""


def refusal(config: PreTrainedConfig) -> str | None:
    """Returns why no graph is made for such a model, or None where one is."""
    rope = getattr(config, "rope_parameters", None) or {}
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    slides = getattr(config, "sliding_window", None) is not None
    activation = getattr(config, "hidden_act", None)
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is not one of {', '.join(sorted(FAMILIES))}"
    if getattr(config, "quantization_config", None):
        return "its weights are quantized already"
    if layers != {"full_attention"} or (slides and not hasattr(config, "use_sliding_window")):
        return "its attention has a sliding window"
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        return f"its positions are of the type {rope['rope_type']}"
    if rope.get("partial_rotary_factor", 1) != 1:
        return "it turns a part of each head only"
    if activation != "silu":
        return f"its activation is {activation}"
    return None
