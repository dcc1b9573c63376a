"""The models, and how each is asked. A Serve config may name others, under `args:`."""

from .serving import ModelSettings

MODELS = (
    ModelSettings(
        name="gpt2",
        source="gpt2",
    ),
)
