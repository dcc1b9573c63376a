"""The page: an example to replace with your app. README.md explains how."""

from pathlib import Path

import gradio as gr

from .serving import Launch

# The arguments that you would pass to `launch()`, with the same names.
LAUNCH = Launch(theme=gr.themes.Soft())


def number_lines(
    text: str, texts: int, progress: gr.Progress = gr.Progress()
) -> tuple[str, int, str]:
    """Numbers the lines of a text, and counts the texts in this session."""
    lines = Path(text).read_text("utf-8").splitlines()
    numbered = [f"{number} {line}\n" for number, line in enumerate(progress.tqdm(lines), 1)]
    # Next to the upload, which has its own directory.
    result = Path(text).with_name("numbered.txt")
    result.write_text("".join(numbered), "utf-8")
    return str(result), texts + 1, f"{texts + 1} in this session"


def build_page() -> gr.Blocks:
    """Returns the app that you would `launch()`. Each replica of the page calls it once."""
    with gr.Blocks(title="Numbered lines", analytics_enabled=False) as page:
        gr.Markdown("# Numbered lines\nThis is an example. Replace it with your own app.")
        text = gr.File(label="Text", file_types=["text"])
        run = gr.Button("Number the lines", variant="primary")
        texts, result, said = gr.State(0), gr.File(label="Result"), gr.Textbox(label="Texts")
        run.click(number_lines, [text, texts], [result, texts, said])
    return page.queue(default_concurrency_limit=8)
