"""The conversation of a chat, without a page."""

import json
from typing import Any

import pytest

from {{ cookiecutter.__package }}.serving.answers import Answer, State
from {{ cookiecutter.__package }}.serving.pages.conversation import (
    NO_ANSWER,
    THOUGHTS,
    Turn,
    answered,
    messages_of,
    plain,
    read,
    read_kept,
    safe,
    shown,
)
from {{ cookiecutter.__package }}.serving.pages.panes import (
    state_line,
)
from {{ cookiecutter.__package }}.serving.protocol import (
    End,
    EndReason,
    Message,
    Piece,
    PromptError,
)

TALK = [Turn("Hello", "Hi", complete=True), Turn("And?", "So it", complete=True)]


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [Turn("Hello")],
        TALK,
        [*TALK, Turn("More?", "half of", thoughts="Well", complete=False)],
        [Turn("Hello", failure="busy"), Turn("Hello?", thoughts="hm")],
        [Turn("  <b>\n    indented\n", "1 < 2 & <i>, ![a](b)", complete=True)],
    ],
)
def test_the_shown_conversation_can_be_read_back(turns: list[Turn]) -> None:
    assert read(shown(turns)) == turns


def test_only_an_incomplete_last_answer_offers_to_continue() -> None:
    cut, whole = Turn("a", "b"), Turn("c", "d", complete=True)
    assert [bool(each.get("options")) for each in shown([cut, cut])] == [False] * 3 + [True]
    assert [bool(each.get("options")) for each in shown([cut, whole])] == [False] * 4


def test_thoughts_collapse_once_the_answer_starts() -> None:
    def thought_of(turn: Turn) -> dict[str, Any]:
        found: dict[str, Any] = shown([turn])[1]["metadata"]
        return found

    assert thought_of(Turn("a", thoughts="b")) == {"title": THOUGHTS, "status": "pending"}
    assert thought_of(Turn("a", "c", thoughts="b")) == {"title": THOUGHTS, "status": "done"}


def test_a_failure_is_shown_in_place_of_the_answer() -> None:
    [_, failure] = shown([Turn("a", failure="too busy")])
    assert failure["metadata"] == {"title": NO_ANSWER}
    assert len(shown([Turn("a", "part", failure="lost")])) == 2


@pytest.mark.parametrize(
    ("turns", "read_by_a_model"),
    [
        ([Turn("a")], ["user: a"]),
        ([Turn("a", "b"), Turn("c")], ["user: a", "assistant: b", "user: c"]),
        ([Turn("a", "b")], ["user: a", "assistant: b"]),
        ([Turn("a", failure="lost"), Turn("c")], ["user: a\n\nc"]),
        ([Turn("a", "b", thoughts="hm"), Turn("c")], ["user: a", "assistant: b", "user: c"]),
        ([Turn("a", "part", failure="lost"), Turn("c")], ["user: a", "assistant: part", "user: c"]),
    ],
)
def test_a_model_reads_alternating_questions_and_answers(
    turns: list[Turn], read_by_a_model: list[str]
) -> None:
    said = [f"{message.role}: {message.content}" for message in messages_of(turns)]
    assert said == read_by_a_model


def test_a_system_prompt_comes_first_unless_it_is_blank() -> None:
    assert messages_of([Turn("a")], "Be brief.")[0] == Message("system", "Be brief.")
    assert messages_of([Turn("a")], " \n") == [Message("user", "a")]


def answer_of(*pieces: Piece, state: State = State.DONE, reason: EndReason = "stop") -> Answer:
    answer = Answer()
    for piece in pieces:
        answer.add(piece)
    answer.add(End(reason))
    answer.state = state
    return answer


def test_an_answer_of_only_thoughts_says_so() -> None:
    thought = Piece("hm", 9, thought=True)
    assert "all of its tokens for thinking" in state_line(answer_of(thought, reason="length"))
    assert "thoughts" not in state_line(answer_of(thought, Piece("a", 1), reason="length"))
    assert "thoughts" not in state_line(answer_of(Piece("a", 1), reason="length"))


def test_a_pane_says_that_a_model_is_thinking_until_its_answer_starts() -> None:
    answer = Answer()
    answer.add(Piece("hm", 1, thought=True))
    assert ">Thinking · " in state_line(answer)
    answer.add(Piece("a", 1))
    assert ">Writing · " in state_line(answer)


def test_a_continued_answer_resumes_where_it_stopped() -> None:
    turn = answered(Turn("a", "one "), answer_of(Piece("two", 1)))
    assert turn == Turn("a", "one two", complete=True)


@pytest.mark.parametrize(
    ("answer", "complete"),
    [
        (answer_of(Piece("b", 1)), True),
        (answer_of(Piece("b", 1), reason="length"), False),
        (answer_of(Piece("b", 1), state=State.WRITING), False),
        (answer_of(Piece("b", 1), state=State.FAILED), False),
    ],
)
def test_an_answer_is_complete_when_its_model_says_so(answer: Answer, complete: bool) -> None:
    assert answered(Turn("a"), answer).complete == complete


def test_thoughts_are_not_part_of_the_answer() -> None:
    turn = answered(Turn("a"), answer_of(Piece("hm ", 1, thought=True), Piece("b", 1)))
    assert (turn.thoughts, turn.answer) == ("hm ", "b")


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "a</p><script>alert(1)</script>",
    "<!-- hidden -->",
    "<?php ?>",
    "![pixel](https://example.org/p.png)",
    "![pixel][ref]\n\n[ref]: https://example.org/p.png",
    "$$<img src=x>$$",
    r"\[ <b>bold</b> \] and \( ![a](b) \)",
    "$$ \\[ $$ <b> \\] <i>",
    "```mermaid\ngraph TD\n```",
    "~~~~ mermaid\ngraph TD\n~~~~",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_html_images_and_diagrams_are_escaped(text: str) -> None:
    shown_text = safe(text)
    for sign in ("<img", "<b", "</", "<script", "<!", "<?", "![", "`mermaid", "~ mermaid"):
        assert sign not in shown_text
    assert plain(shown_text) == text


@pytest.mark.parametrize(
    "text", ["1 < 2", "a <- b", "x <= y", "f(x) != 0", "`a < b`", "$$a < b$$", "plain", ""]
)
def test_text_without_html_is_unchanged(text: str) -> None:
    assert safe(text) == text


def test_less_than_in_a_formula_is_written_as_tex() -> None:
    assert safe("$$a<b$$") == r"$$a\lt{}b$$"


def kept(**talks: list[Turn]) -> str:
    return json.dumps({name: shown(turns) for name, turns in talks.items()})


def test_a_stored_conversation_is_restored_to_the_same_models() -> None:
    other = [Turn("Hello", "Ho"), Turn("And?", "Then", complete=True)]
    text = kept(first=TALK, second=other)
    assert read_kept(text, ["second", "first"]) == read_kept(text, ["first", "second"])[::-1]
    assert read_kept(text, ["first"]) == [TALK]


def test_a_new_model_gets_the_stored_questions() -> None:
    assert read_kept(kept(first=TALK), ["new"]) == [[Turn("Hello"), Turn("And?")]]


def test_without_a_stored_conversation_nothing_is_restored() -> None:
    assert read_kept("", ["first", "second"]) == [[], []]


FILE = {"role": "user", "content": [{"type": "file", "file": {"path": "/etc/passwd"}}]}


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[1]",
        '{"first": 1}',
        '{"first": [{"role": "user"}]}',
        json.dumps({"first": [FILE]}),
        json.dumps({"first": shown(TALK)[1:]}),
        json.dumps({"first": [{"role": "system", "content": [{"text": "a"}]}]}),
        "[" * 100_000,
    ],
    ids=lambda text: text[:30],
)
def test_an_invalid_conversation_is_refused_with_one_line(text: str) -> None:
    with pytest.raises(PromptError) as refused:
        read_kept(text, ["first"])
    assert "\n" not in str(refused.value)


def test_a_file_in_a_pane_is_refused() -> None:
    with pytest.raises(PromptError, match="contain only text"):
        read([FILE])


def test_ten_thousand_turns_are_read_and_shown_quickly() -> None:
    turns = [Turn(f"question {number}", "answer", complete=True) for number in range(10_000)]
    assert read(shown(turns)) == turns
