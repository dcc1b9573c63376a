"""The models and their prompts. A Serve config can set other models under `args:`."""

from .serving import ModelSettings

MODELS = (
    ModelSettings(
        name="gpt2",
        about="GPT-2 with 124M parameters",
        source="gpt2",
    ),
    ModelSettings(
        name="distilgpt2",
        about="A faster GPT-2, distilled to 82M parameters",
        source="distilgpt2",
    ),
)
