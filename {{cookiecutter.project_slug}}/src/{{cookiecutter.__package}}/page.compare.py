{% from "text.jinja" import python %}
"""The page: its text, theme and controls."""

from collections.abc import Sequence

import gradio as gr

from .serving import (
    PANE_STYLES,
    CompareControls,
    GenerationOptions,
    Launch,
    Model,
    PageSettings,
    connect,
    option_controls,
    panes_of,
    readable,
)

TITLE = {{ python(cookiecutter.project_name) }}
DESCRIPTION = {{ python(cookiecutter.description) }}
{% if cookiecutter.task == "text-generation" %}
PROMPT_LABEL = "Prompt"
PROMPT_PLACEHOLDER = "Ask a question, or write the start of a text"
BUTTON = "Generate"
EXAMPLES = [
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper and a whale.",
    "Give me three tips for a good night's sleep.",
]
{% else %}
PROMPT_LABEL = "Text to summarize"
PROMPT_PLACEHOLDER = "Paste some text"
BUTTON = "Summarize"
EXAMPLES = [
    "HOUSTON -- Men have landed and walked on the moon. Two Americans, astronauts of Apollo 11, "
    "steered their fragile four-legged lunar module safely and smoothly to the historic landing "
    "yesterday at 4:17:40 P.M., Eastern daylight time. Neil A. Armstrong, the 38-year-old "
    'commander, radioed to earth and the mission control room here: "Houston, Tranquility Base '
    'here. The Eagle has landed." The first men to reach the moon -- Armstrong and his co-pilot, '
    "Col. Edwin E. Aldrin Jr. of the Air Force -- brought their ship to rest on a level, "
    "rock-strewn plain near the southwestern shore of the arid Sea of Tranquility.",
    "The Great Barrier Reef is the world's largest coral reef system. It is made of over 2,900 "
    "individual reefs and 900 islands that stretch for over 2,300 kilometres along the coast of "
    "Queensland, Australia. The reef can be seen from space. It supports a wide diversity of "
    "life and was selected as a World Heritage Site in 1981. Warmer water, storms and the "
    "crown-of-thorns starfish have cost it half of its coral cover since 1985.",
]
{% endif %}
OPTIONS = GenerationOptions(max_new_tokens=100)

# System fonts, because browsers would download the theme's own fonts from another host.
THEME = readable(
    gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
)
LAUNCH = Launch(theme=THEME, css=PANE_STYLES, footer_links=["api"], run_history=False)


def build_page(settings: PageSettings, models: Sequence[Model]) -> gr.Blocks:
    """Returns a page with a pane for each model, and the API endpoint `/generate`."""
    with gr.Blocks(title=settings.title, analytics_enabled=False) as page:
        gr.Markdown(f"# {settings.title}\n{settings.description}")
        with gr.Row():
            prompt = gr.Textbox(
                label=PROMPT_LABEL,
                placeholder=PROMPT_PLACEHOLDER,
                info="Press Enter to run, Shift+Enter for a new line.",
                max_lines=12,
                autofocus=True,
                elem_classes="prompt",
                scale=1,
                min_width=240,
            )
            run = gr.Button(BUTTON, variant="primary", scale=0, min_width=140)
            stop = gr.Button("Stop", variant="stop", scale=0, min_width=140)
        with gr.Row():
            clear = gr.Button("Clear", size="sm", scale=0, min_width=110)
            share = gr.Button("Copy a link", size="sm", scale=0, min_width=110)
        with gr.Accordion("Options", open=False), gr.Row():
            options = option_controls(settings)
        with gr.Row():
            panes = panes_of(models, settings.about)
        gr.Examples(EXAMPLES, prompt, label="Examples")
        controls = CompareControls(prompt, options, panes, run, stop, clear, share)
        connect(page, controls, settings, models)
    return page
