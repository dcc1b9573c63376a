"""The words of the page that depend on what the models are asked to do."""

PROMPT_LABEL = "Prompt"
PROMPT_PLACEHOLDER = "Ask something, or begin a text"
BUTTON = "Generate"
EXAMPLES = [
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper and a whale.",
    "Give me three tips for a good night's sleep.",
]
