"""The models, and how each is asked. A Serve config may name others, under `args:`."""

from .serving import ModelSettings

MODELS = (
    ModelSettings(
        name="smollm2-focused",
        about="SmolLM2 135M, which keeps to the likeliest words",
        source="bundled:SmolLM2-135M-Instruct",
        prompt="Summarize this text in one or two sentences:\n\n{prompt}",
        temperature=0.3,
        top_p=0.9,
    ),
    ModelSettings(
        name="smollm2-lively",
        about="The same model, which takes more chances",
        source="bundled:SmolLM2-135M-Instruct",
        prompt="Summarize this text in one or two sentences:\n\n{prompt}",
        temperature=0.9,
        top_p=0.95,
    ),
)
