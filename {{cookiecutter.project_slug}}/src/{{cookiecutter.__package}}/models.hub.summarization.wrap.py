"""The models and their prompts. A Serve config can set other models under `args:`."""

from .serving import ModelSettings

MODELS = (
    ModelSettings(
        name="t5-small",
        about="T5 with 60M parameters",
        source="t5-small",
        prompt="summarize: {prompt}",
        temperature=0.5,
    ),
)
