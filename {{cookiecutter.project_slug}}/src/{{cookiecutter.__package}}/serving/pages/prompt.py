"""Checks a visitor's prompt before any model is asked."""

import unicodedata

import gradio as gr


def check_prompt(prompt: str, most_characters: int) -> None:
    """Raises gr.Error, which the page shows, if no model could answer the prompt."""
    if not prompt.strip():
        raise refusal("Enter some text first.")
    if len(prompt) > most_characters:
        raise refusal(
            f"The text has {len(prompt):,} characters. Shorten it to {most_characters:,}."
        )
    for position, character in enumerate(prompt, start=1):
        category = unicodedata.category(character)
        if category == "Cs":
            raise refusal(
                f"Character {position} is incomplete, so the text is not valid UTF-8. "
                "Remove it, or type it again."
            )
        if category == "Cc" and character not in "\t\n\r":
            raise refusal(
                f"Character {position} is the control character U+{ord(character):04X}. Remove it."
            )


def refusal(reason: str) -> gr.Error:
    return gr.Error(reason, title="Not sent", print_exception=False)
