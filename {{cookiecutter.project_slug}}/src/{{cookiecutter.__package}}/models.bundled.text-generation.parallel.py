"""The models, and how each is asked. A Serve config may name others, under `args:`."""

from .serving import ModelSettings

MODELS = (
    ModelSettings(
        name="smollm2-focused",
        about="SmolLM2 135M, which keeps to the likeliest words",
        source="bundled:SmolLM2-135M-Instruct",
        temperature=0.4,
        top_p=0.9,
    ),
    ModelSettings(
        name="smollm2-lively",
        about="The same model, which takes more chances",
        source="bundled:SmolLM2-135M-Instruct",
        temperature=1.0,
        top_p=0.95,
    ),
)
