"""Themes and styles that every visitor can read."""

import gradio as gr

PANE_STYLES = """
/* With more than one line of its own, Enter would begin another one and not submit. */
.prompt textarea { min-height: 4.5em }
.pane { gap: 4px }
/* Gradio would lay the word Error over an answer that was stopped, or that a refusal left. */
.pane [data-testid="status-tracker"]:has(.error) { display: none }
/* The one link of the footer needs nothing that divides it from others. */
footer .divider { display: none }
.state { margin: 0; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums }
.state.failed { color: var(--error-text-color) }
"""


def readable(theme: gr.Theme) -> gr.Theme:
    """Returns the theme with colors dark enough for the contrast that WCAG 2.1 AA asks for."""
    return theme.set(
        block_info_text_color="*neutral_600",
        block_label_text_color="*primary_700",
        block_title_text_color="*primary_700",
        body_text_color_subdued="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
    )
