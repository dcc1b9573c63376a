"""A pane for each model: its text, and a status line."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import gradio as gr

from ..answers import Answer, State
from ..protocol import Model


@dataclass(frozen=True)
class Pane:
    text: gr.Textbox
    state: gr.HTML
    more: gr.Button
    """Continues an answer that was cut off."""


def panes_of(models: Sequence[Model], about: Mapping[str, str] | None = None) -> list[Pane]:
    """Makes the panes, in the order of the models. Call it inside a `gr.Row`, for example.

    Args:
        about: text to show under each model's name.
    """
    return [_pane(model, (about or {}).get(model.name, "")) for model in models]


def _pane(model: Model, about: str) -> Pane:
    with gr.Column(min_width=300, elem_classes="pane"):
        state = head_of(model, about)
        text = gr.Textbox(
            label=model.name,
            lines=10,
            max_lines=24,
            buttons=["copy"],
            elem_id=f"pane-{model.name}",
        )
        more = gr.Button("Continue", size="sm", elem_classes="more")
    return Pane(text, state, more)


def head_of(model: Model, about: str) -> gr.HTML:
    """Makes the head of a pane: the model's name and the status line."""
    said = f'<p class="about">{html.escape(about)}</p>' if about else ""
    gr.HTML(f"<h2>{html.escape(model.name)}</h2>{said}", padding=False)
    return gr.HTML(elem_id=f"state-{model.name}", padding=False)


def state_line(answer: Answer) -> str:
    """Returns a status such as `Writing · first text after 0.4 s · 23 tokens · 31 tokens/s`."""
    # The first class is the state. The second, `cut`, shows the Continue button.
    kind = f"{answer.state} cut" if answer.cut_off else f"{answer.state}"
    thinks = answer.state is State.WRITING and answer.thoughts and not answer.text
    said = ["Cut off" if answer.cut_off else "Thinking" if thinks else answer.state.capitalize()]
    if answer.starting:
        said = ["Starting", "the model is loading and will answer soon"]
    if answer.first_text_seconds is not None:
        said.append(f"first text after {answer.first_text_seconds:.1f} s")
        said.append(_counted(answer.tokens, "token"))
    if answer.tokens_per_second is not None:
        said.append(f"{answer.tokens_per_second:.0f} tokens/s")
    said += _remarks(answer)
    # Screen readers do not read a status that is still changing.
    changing = answer.state in (State.WAITING, State.WRITING) and not answer.starting
    live = "off" if changing else "polite"
    text = html.escape(" · ".join(said))
    return f'<p role="status" aria-live="{live}" class="state {kind}">{text}</p>'


def _remarks(answer: Answer) -> Iterator[str]:
    if answer.failure:
        yield answer.failure
    if answer.cut_off and answer.thoughts and not answer.text:
        yield "it used all of its tokens for thinking; allow more under Options"
    if answer.end is not None and answer.end.reason == "filtered":
        yield "the server filtered the rest"
    if answer.end is not None and answer.end.dropped_messages:
        messages = _counted(answer.end.dropped_messages, "message")
        yield f"without the oldest {messages}, which did not fit in the model's context"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
