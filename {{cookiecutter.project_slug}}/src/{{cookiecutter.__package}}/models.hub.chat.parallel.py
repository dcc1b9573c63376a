"""The models and their prompts. A Serve config can set other models under `args:`."""

from .serving import ModelSettings

MODELS = (
    ModelSettings(
        name="smollm2",
        about="SmolLM2 with 135M parameters",
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    ModelSettings(
        name="qwen",
        about="Qwen2.5 with 494M parameters, slower but more knowledgeable",
        source="Qwen/Qwen2.5-0.5B-Instruct",
    ),
)
