"""A pane for each model: its text, and a line that says how far it is."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from ..answers import Answer, State
from ..protocol import Model


@dataclass(frozen=True)
class Pane:
    text: gr.Textbox
    state: gr.HTML


def panes_of(models: Sequence[Model]) -> list[Pane]:
    """Makes the panes where it is called, in the order of the models: in a `gr.Row`, say."""
    return [_pane(model) for model in models]


def _pane(model: Model) -> Pane:
    with gr.Column(min_width=300, elem_classes="pane"):
        text = gr.Textbox(
            label=model.name,
            lines=10,
            max_lines=24,
            buttons=["copy"],
            elem_id=f"pane-{model.name}",
        )
        return Pane(text, gr.HTML(elem_id=f"state-{model.name}"))


def state_line(answer: Answer) -> str:
    """Says how far an answer is: `Writing · first text after 0.4 s · 23 tokens · 31 tokens/s`."""
    said = [answer.state.capitalize()]
    if answer.first_text_seconds is not None:
        said += [f"first text after {answer.first_text_seconds:.1f} s", f"{answer.tokens} tokens"]
    if answer.tokens_per_second is not None:
        said.append(f"{answer.tokens_per_second:.0f} tokens/s")
    if answer.failure:
        said.append(answer.failure)
    # What is still changing is not read aloud.
    live = "off" if answer.state in (State.WAITING, State.WRITING) else "polite"
    text = html.escape(" · ".join(said))
    return f'<p role="status" aria-live="{live}" class="state {answer.state}">{text}</p>'
