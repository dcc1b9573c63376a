"""The models and their prompts. A Serve config can set other models under `args:`."""

from .serving import ModelSettings

MODELS = (
    ModelSettings(
        name="smollm2-focused",
        about="SmolLM2 135M, which sticks to the likeliest words",
        source="bundled:SmolLM2-135M-Instruct",
        prompt="Summarize this text in one or two sentences:\n\n{prompt}",
        temperature=0.3,
        top_p=0.9,
    ),
    ModelSettings(
        name="smollm2-lively",
        about="The same model, with more variety",
        source="bundled:SmolLM2-135M-Instruct",
        prompt="Summarize this text in one or two sentences:\n\n{prompt}",
        temperature=0.9,
        top_p=0.95,
    ),
)
