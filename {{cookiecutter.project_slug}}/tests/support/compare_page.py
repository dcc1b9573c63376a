"""A compare page built only from `serving`, independent of the team's page."""

from collections.abc import Sequence

import gradio as gr
from ray.serve import Application

from {{ cookiecutter.__package }}.serving import (
    PANE_STYLES,
    ApiServer,
    CompareControls,
    GradioServer,
    Launch,
    Model,
    PageOfModels,
    PageSettings,
    connect,
    deployments_of,
    option_controls,
    panes_of,
    readable,
)

MODELS = ("first", "second")
"""Names of the models that the page asks on Ray."""
KEY = "a-wet-whale"
"""The key with which programs call them."""
PROMPT_LABEL = "Prompt"
BUTTON = "Ask"
EXAMPLES = ["Why is the sky blue?", "Why does a whale sing?"]
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
LAUNCH = Launch(theme=readable(gr.themes.Soft(**FONTS)), css=PANE_STYLES)


def build(settings: PageSettings) -> Application:
    page = PageOfModels(settings, build_page)
    return GradioServer.bind(settings, page, *deployments_of(settings), launch=LAUNCH)


def api(settings: PageSettings) -> Application:
    return ApiServer.bind(PageOfModels(settings, PageSettings.api_of), *deployments_of(settings))


def build_page(settings: PageSettings, models: Sequence[Model]) -> gr.Blocks:
    with gr.Blocks(title=settings.title, analytics_enabled=False) as page:
        gr.Markdown(f"# {settings.title}\n{settings.description}")
        prompt = gr.Textbox(label=PROMPT_LABEL, max_lines=12, autofocus=True)
        with gr.Row():
            run = gr.Button(BUTTON, variant="primary")
            stop, clear, share = gr.Button("Stop"), gr.Button("Clear"), gr.Button("Copy a link")
        with gr.Accordion("Options", open=False), gr.Row():
            options = option_controls(settings)
        with gr.Row():
            panes = panes_of(models)
        gr.Examples(EXAMPLES, prompt)
        controls = CompareControls(prompt, options, panes, run, stop, clear, share)
        connect(page, controls, settings, models)
    return page
