"""The models and their prompts. A Serve config can set other models under `args:`."""

from .serving import ModelSettings

MODELS = (
    ModelSettings(
        name="smollm2",
        about="SmolLM2 with 135M parameters",
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
)
