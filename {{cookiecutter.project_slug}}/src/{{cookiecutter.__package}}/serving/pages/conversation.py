"""A conversation, as gr.Chatbot shows it and as a model reads it.

The browser stores it, so that any replica can continue it. Input from the browser is validated.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from ..answers import Answer, State
from ..protocol import Message, PromptError

THOUGHTS = "Thoughts"
NO_ANSWER = "No answer"
CONTINUE = "Continue"
NOT_A_CONVERSATION = (
    "The link, or the data saved in your browser, does not contain a conversation for this page. "
    "Start a new one."
)

JOINER = "\u2060"
"""An invisible character. After a sign that starts HTML or an image, it makes the sign text."""
SIGNS = re.compile(r"<(?=[A-Za-z/!?])|!(?=\[)|(?:`{3,}|~{3,})[ \t]*(?=mermaid)")
FORMULAS = re.compile(r"(\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\))", re.DOTALL)
IN_FORMULAS = {"<": r"\lt{}", "!": "!{}"}
"""Replacements inside formulas, where TeX does not know the joiner."""
DELIMITERS = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": r"\[", "right": r"\]", "display": True},
    {"left": r"\(", "right": r"\)", "display": False},
]

Shown = dict[str, Any]
"""A message in the format of gr.Chatbot."""


class _Part(BaseModel):
    text: str


class _Kept(BaseModel):
    role: str
    content: list[_Part]
    metadata: dict[str, Any] | None = None
    options: list[Any] | None = None


KEPT = TypeAdapter(dict[str, list[_Kept]])


@dataclass(frozen=True)
class Turn:
    """A question, and one model's answer."""

    question: str
    answer: str = ""
    thoughts: str = ""
    failure: str = ""
    complete: bool = False
    """Whether the model ended the answer. If not, it can be continued."""


def answered(turn: Turn, answer: Answer) -> Turn:
    """Returns the turn with the new text of the answer added to what it had before."""
    return replace(
        turn,
        answer=turn.answer + answer.text,
        thoughts=turn.thoughts + answer.thoughts,
        failure=answer.failure,
        complete=answer.state is State.DONE and not answer.cut_off,
    )


def messages_of(turns: Sequence[Turn], system: str = "") -> list[Message]:
    """Returns the messages for a model. If the last one is an answer, the model continues it.

    A question without an answer is joined with the next question, because many models require
    the roles to alternate.
    """
    messages = [Message("system", system)] if system.strip() else []
    questions: list[str] = []
    for turn in turns:
        questions.append(turn.question)
        if turn.answer:
            messages.append(Message("user", "\n\n".join(questions)))
            messages.append(Message("assistant", turn.answer))
            questions = []
    if questions:
        messages.append(Message("user", "\n\n".join(questions)))
    return messages


def shown(turns: Sequence[Turn]) -> list[Shown]:
    last = len(turns) - 1
    return [
        message
        for number, turn in enumerate(turns)
        for message in _shown(turn, last=number == last)
    ]


def read(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Returns the turns that `shown` turned into these messages.

    Raises:
        PromptError: a message contains something other than text, or the roles are wrong.
    """
    turns: list[Turn] = []
    for message in messages:
        text = plain("".join(map(_text, message["content"])))
        title = (message.get("metadata") or {}).get("title")
        if message["role"] == "user":
            turns.append(Turn(text))
        elif message["role"] != "assistant" or not turns:
            raise PromptError(
                "A conversation must start with a question and contain only questions and answers. "
                "Clear it and ask again."
            )
        elif title == THOUGHTS:
            turns[-1] = replace(turns[-1], thoughts=text)
        elif title == NO_ANSWER:
            turns[-1] = replace(turns[-1], failure=text)
        else:
            turns[-1] = replace(turns[-1], answer=text, complete=not message.get("options"))
    return turns


def read_kept(text: str, names: Sequence[str]) -> list[list[Turn]]:
    """Returns the turns of each named model, from the browser's storage or from a link.

    A model that the saved conversation does not have gets its questions.

    Raises:
        PromptError: the text is not a saved conversation.
    """
    if not text:
        return [[] for _ in names]
    try:
        kept = KEPT.validate_json(text)
    except ValidationError as error:
        raise PromptError(NOT_A_CONVERSATION) from error
    turns = {
        name: read([message.model_dump() for message in messages])
        for name, messages in kept.items()
    }
    longest = max(turns.values(), key=len, default=[])
    questions = [Turn(turn.question) for turn in longest]
    return [turns.get(name, questions) for name in names]


def safe(text: str) -> str:
    """Returns Markdown that shows HTML, images and diagrams as plain text."""
    parts = FORMULAS.split(text)
    parts[::2] = (SIGNS.sub(rf"\g<0>{JOINER}", part) for part in parts[::2])
    parts[1::2] = (
        SIGNS.sub(lambda sign: IN_FORMULAS.get(sign[0], sign[0] + JOINER), part)
        for part in parts[1::2]
    )
    return "".join(parts)


def plain(text: str) -> str:
    """Returns the text that `safe` escaped."""
    for sign, said in IN_FORMULAS.items():
        text = re.sub(rf"{re.escape(said)}(?=[\[A-Za-z/!?])", sign, text)
    return text.replace(JOINER, "")


def _shown(turn: Turn, *, last: bool) -> Iterator[Shown]:
    yield _message("user", turn.question)
    if turn.thoughts:
        status = "done" if turn.answer or turn.complete else "pending"
        yield _message("assistant", turn.thoughts, metadata={"title": THOUGHTS, "status": status})
    if turn.answer:
        options = [] if turn.complete or not last else [{"value": CONTINUE, "label": CONTINUE}]
        yield _message("assistant", turn.answer, options=options)
    elif turn.failure:
        yield _message("assistant", turn.failure, metadata={"title": NO_ANSWER})


def _message(role: str, text: str, **more: object) -> Shown:
    # As a part, because Gradio removes the indentation of a plain string.
    return {"role": role, "content": [{"type": "text", "text": safe(text)}], **more}


def _text(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    if not isinstance(text, str):
        raise PromptError("Messages may contain only text. Remove images and files.")
    return text
