{% from "text.jinja" import python %}
"""The page: its text, theme and controls."""

from collections.abc import Sequence

import gradio as gr

from .serving import (
    PANE_STYLES,
    ChatControls,
    GenerationOptions,
    Launch,
    Model,
    PageSettings,
    chat_panes_of,
    connect_chat,
    option_controls,
    readable,
)

TITLE = {{ python(cookiecutter.project_name) }}
DESCRIPTION = {{ python(cookiecutter.description) }}
PROMPT_LABEL = "Your message"
PROMPT_PLACEHOLDER = "Ask a question"
BUTTON = "Send"
EXAMPLES = [
    "Why is the sky blue?",
    "Write a Python function that finds leap years.",
    "Give me three tips for a good night's sleep.",
]
OPTIONS = GenerationOptions(max_new_tokens=512)

# System fonts, because browsers would download the theme's own fonts from another host.
THEME = readable(
    gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
)
LAUNCH = Launch(theme=THEME, css=PANE_STYLES, footer_links=["api"], run_history=False)


def build_page(settings: PageSettings, models: Sequence[Model]) -> gr.Blocks:
    """Returns a page with a pane for each model, and the API endpoint `/chat`."""
    with gr.Blocks(title=settings.title, analytics_enabled=False) as page:
        gr.Markdown(f"# {settings.title}\n{settings.description}")
        with gr.Row():
            panes = chat_panes_of(models, settings.about)
        with gr.Row():
            prompt = gr.Textbox(
                label=PROMPT_LABEL,
                placeholder=PROMPT_PLACEHOLDER,
                info="Press Enter to send, Shift+Enter for a new line.",
                max_lines=12,
                autofocus=True,
                elem_classes="prompt",
                scale=1,
                min_width=240,
            )
            send = gr.Button(BUTTON, variant="primary", scale=0, min_width=140)
            stop = gr.Button("Stop", variant="stop", scale=0, min_width=140)
        with gr.Row():
            clear = gr.Button("Clear", size="sm", scale=0, min_width=110)
            share = gr.Button("Copy a link", size="sm", scale=0, min_width=110)
        gr.Examples(EXAMPLES, prompt, label="Examples")
        with gr.Accordion("Options", open=False):
            system = gr.Textbox(
                label="System prompt",
                info="Instructions that each model reads before the conversation.",
                max_lines=6,
            )
            with gr.Row():
                options = option_controls(settings)
        controls = ChatControls(prompt, system, options, panes, send, stop, clear, share)
        connect_chat(page, controls, settings, models)
    return page
