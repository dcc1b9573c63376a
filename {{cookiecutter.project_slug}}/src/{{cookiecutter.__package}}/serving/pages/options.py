"""The controls for generation options."""

from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr
from gradio.components import Component
from pydantic import ValidationError

from ..protocol import GenerationOptions
from .prompt import refusal
from .settings import PageSettings

# A dropdown, because Gradio's number field cannot be empty: it shows and sends 0.
OWN = "each model's own"


@dataclass(frozen=True)
class OptionControls:
    min_new_tokens: gr.Slider
    max_new_tokens: gr.Slider
    temperature: gr.Dropdown
    top_p: gr.Dropdown

    def named(self) -> dict[str, Component]:
        """Returns the controls by name, in the order of the arguments of `read_options`."""
        return dict(vars(self))


def option_controls(settings: PageSettings) -> OptionControls:
    """Makes the controls. Call it inside a `gr.Row`, for example."""
    most, defaults = settings.limits.new_tokens, settings.options
    return OptionControls(
        min_new_tokens=gr.Slider(
            0,
            most,
            value=defaults.min_new_tokens,
            step=1,
            label="Minimum tokens",
            info="A token is about three quarters of a word.",
        ),
        max_new_tokens=gr.Slider(
            1,
            most,
            value=defaults.max_new_tokens,
            step=1,
            label="Maximum tokens",
            info="Longer answers are cut off.",
        ),
        temperature=gr.Dropdown(
            [OWN, "0", "0.3", "0.7", "1", "1.5"],
            value=option_text(defaults.temperature),
            allow_custom_value=True,
            label="Temperature",
            info="0 always picks the likeliest token. Higher values vary more.",
        ),
        top_p=gr.Dropdown(
            [OWN, "0.5", "0.8", "0.9", "0.95", "1"],
            value=option_text(defaults.top_p),
            allow_custom_value=True,
            label="Top p",
            info="Samples from the likeliest tokens that add up to this probability.",
        ),
    )


def read_options(
    defaults: GenerationOptions,
    min_new_tokens: int,
    max_new_tokens: int,
    temperature: str | float,
    top_p: str | float,
) -> GenerationOptions:
    """Returns the defaults, overridden by the values of the controls.

    Raises gr.Error with the reason if an option is out of range.
    """
    if min_new_tokens == defaults.min_new_tokens:
        # A caller who sets only the maximum has not chosen the minimum.
        min_new_tokens = min(min_new_tokens, max_new_tokens)
    said = {
        "min_new_tokens": min_new_tokens,
        "max_new_tokens": max_new_tokens,
        "temperature": None if temperature == OWN else temperature,
        "top_p": None if top_p == OWN else top_p,
    }
    try:
        return GenerationOptions.model_validate(defaults.model_dump() | said)
    except ValidationError as error:
        raise refusal("; ".join(_reasons(error))) from error


def option_text(option: float | None) -> str:
    return OWN if option is None else f"{option:g}"


def _reasons(error: ValidationError) -> Iterator[str]:
    for detail in error.errors():
        named = ".".join(str(part) for part in detail["loc"])
        reason = detail["msg"].removeprefix("Value error, ")
        yield f"{named}: {reason}" if named else reason
