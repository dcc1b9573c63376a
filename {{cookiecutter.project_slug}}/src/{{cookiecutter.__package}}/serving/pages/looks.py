"""Themes and styles that every visitor can read."""

import gradio as gr

PANE_STYLES = """
/* A box with several lines would start a new line on Enter instead of submitting. */
.prompt textarea { min-height: 4.5em }
/* While an answer is being written, Stop takes the place of the start button. */
.stops { display: none }
:root:has(.state.waiting, .state.writing) .starts { display: none }
:root:has(.state.waiting, .state.writing) .stops { display: block }
.starts, .stops { align-self: flex-end }
.row:has(> .pane) { align-items: stretch }
.pane {
    gap: 8px; padding: 12px 16px;
    border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg);
    background: var(--block-background-fill);
}
.pane > .block { padding: 0 !important; border-width: 0; border-radius: 0; background: none; box-shadow: none }
/* The card is the text's frame, and its heading the text's label. */
.pane > .form { border-width: 0; background: none; box-shadow: none }
.pane > .form > .block { padding: 0 !important; background: none }
.pane > .form textarea { padding: 0 36px 0 0; border-width: 0; background: none; box-shadow: none }
.pane > .form [data-testid="block-info"] { position: absolute; clip-path: inset(50%); pointer-events: none }
.pane > .form .top-panel { top: 0; right: 0 }
.pane .more { margin-top: auto }
.pane .html-container { padding: 0 }
.pane .bubble-wrap { background: none }
.pane h2 { margin: 0; font-size: 1em }
/* Space for two lines, so that the content below does not move. */
.pane [id^="state-"] { min-height: 2.8em }
/* Gradio would cover a stopped or refused answer with the word Error. */
.pane [data-testid="status-tracker"]:has(.error) { display: none }
/* Only an answer that was cut off can be continued. */
.pane .more { visibility: hidden }
.pane:has(.state.cut) .more { visibility: visible }
/* Hide the buttons that ask all models again while a model is still writing. */
:root:has(.state.waiting, .state.writing) .talk button:is([aria-label="Edit"], [aria-label="Undo"]),
.pane:has(.state.waiting, .state.writing) .options,
/* A single pane cannot be cleared. */
.talk .top-panel { display: none }
.talk .prose a::after {
    content: " (" attr(href) ")"; color: var(--body-text-color-subdued);
    font-size: 0.85em; overflow-wrap: anywhere;
}
/* Gradio's text and code colors are too pale to read. */
.talk .prose, .talk .message-content { opacity: 1 !important }
:root { --code-word: #0a6594; --code-value: #476f0c; --code-aside: #5b6675 }
.dark { --code-word: #7cc7f2; --code-value: #b5d97a; --code-aside: #a9b4c2 }
.talk .prose code .token { color: inherit; background: none; opacity: 1 }
.talk .prose code .token:is(.keyword, .builtin, .function, .class-name, .tag) { color: var(--code-word) }
.talk .prose code .token:is(.string, .number, .boolean, .attr-value) { color: var(--code-value) }
.talk .prose code .token.comment { color: var(--code-aside) }
@media (max-width: 640px) { .talk { height: 38vh !important } }
.unkept { flex: 1 0 100% !important }
.unkept:has(p:empty) { display: none }
.unkept p { margin: 0; font-size: 0.85em; font-weight: 600 }
/* The footer has only one link, so it needs no divider. */
footer .divider { display: none }
.pane .about { margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: 0.85em }
.state { margin: 0; color: var(--body-text-color-subdued); font-size: 0.85em; font-variant-numeric: tabular-nums }
.state.failed { color: var(--error-text-color) }
.state.cut { font-weight: 600 }
"""


def readable(theme: gr.Theme) -> gr.Theme:
    """Returns the theme with colors dark enough for the contrast that WCAG 2.1 AA requires."""
    return theme.set(
        block_info_text_color="*neutral_600",
        block_label_text_color="*primary_700",
        block_title_text_color="*primary_700",
        body_text_color_subdued="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        button_secondary_background_fill_hover_dark="*primary_600",
    )
