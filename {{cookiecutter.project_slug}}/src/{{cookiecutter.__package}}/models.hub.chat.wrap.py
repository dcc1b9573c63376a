"""The models, and how each is asked. A Serve config may name others, under `args:`."""

from .serving import ModelSettings

MODELS = (
    ModelSettings(
        name="smollm2",
        about="SmolLM2 with 135M parameters",
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
)
