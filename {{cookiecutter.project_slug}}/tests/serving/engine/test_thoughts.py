"""Thoughts of reasoning models, in pieces of any size."""

from itertools import groupby
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from {{ cookiecutter.__package }}.serving.engine.thoughts import (
    Part,
    Thoughts,
)
from {{ cookiecutter.__package }}.serving.protocol import (
    GenerationOptions,
    Piece,
)

from ...support.stand_ins import pieces_of, user
from .conftest import EngineOf

TEMPLATE = "Answer the question. <think>\n"


def told(text: str, part: Part, size: int) -> list[tuple[bool, str]]:
    """Splits a text into thoughts and answer, in pieces of the given size."""
    thoughts = Thoughts(part)
    pieces: list[Piece] = []
    for start in range(0, len(text), size):
        pieces += thoughts.tell(Piece(text[start : start + size], 1))
    pieces += thoughts.rest()
    assert sum(piece.tokens for piece in pieces) == len(range(0, len(text), size))
    together = groupby(pieces, lambda piece: piece.thought)
    return [(thought, "".join(piece.text for piece in each)) for thought, each in together]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "part", "expected"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", Part.START, [(True, "Hm.\n"), (False, "Yes.")]),
        ("Hm.\n</think>\n\nYes.", Part.THOUGHTS, [(True, "Hm.\n"), (False, "Yes.")]),
        ("\n <think>a < b</think>c", Part.START, [(True, "a < b"), (False, "c")]),
        ("<think>\n\n</think>\n\nYes.", Part.START, [(False, "Yes.")]),
        ("<think>Never done </thin", Part.START, [(True, "Never done </thin")]),
        ("<thinking> is a word", Part.START, [(False, "<thinking> is a word")]),
        ("<thi", Part.START, [(False, "<thi")]),
        ("Is <think>late</think>", Part.START, [(False, "Is <think>late</think>")]),
        ("<think>as text</think>", Part.ANSWER, [(False, "<think>as text</think>")]),
        ("<think>x</think>y</think>z", Part.START, [(True, "x"), (False, "y</think>z")]),
    ],
)
def test_thoughts_are_separated_from_the_answer(
    text: str, part: Part, expected: list[tuple[bool, str]], size: int
) -> None:
    assert told(text, part, size) == expected


def test_text_that_is_certain_is_passed_on_at_once() -> None:
    thoughts = Thoughts(Part.START)
    assert list(thoughts.tell(Piece("<think>One", 2))) == [Piece("One", 2, thought=True)]
    assert list(thoughts.tell(Piece(" two </", 2))) == [Piece(" two ", 2, thought=True)]
    assert list(thoughts.tell(Piece("b>", 1))) == [Piece("</b>", 1, thought=True)]
    assert list(thoughts.tell(Piece("</think>", 1))) == []
    assert list(thoughts.tell(Piece("\nYes", 1))) == [Piece("Yes", 2)]


@pytest.mark.parametrize("thinks", [True, False])
async def test_an_answer_starts_with_thoughts_if_the_prompt_opens_them(
    tiny_decoder: Path, tmp_path: Path, engine_of: EngineOf, *, thinks: bool
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    if thinks:
        tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = TEMPLATE
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    engine = engine_of(tmp_path)
    options = GenerationOptions(max_new_tokens=8, temperature=0)
    pieces = await pieces_of(engine.stream(user("Why?"), options))
    assert {piece.thought for piece in pieces} == {thinks}
    assert sum(piece.tokens for piece in pieces) == 8
