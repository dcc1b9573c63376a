"""Parallel requests to several models, without Ray and Gradio."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from {{ cookiecutter.__package }}.serving.answers import Answer, State, fan_out
from {{ cookiecutter.__package }}.serving.protocol import (
    End,
    GenerationOptions,
    Piece,
    PromptError,
)

from ..support.stand_ins import Asleep, StandIn, broken, fast, slow, user


def no_pause() -> float:
    return 0


def answers_of(*models: StandIn, answer_seconds: float = 30) -> AsyncGenerator[list[Answer], None]:
    return fan_out(models, user("Hello"), GenerationOptions(), no_pause, answer_seconds)


async def final(*models: StandIn) -> list[str]:
    return [answer.whole for answer in [update async for update in answers_of(*models)][-1]]


async def test_every_pane_ends_with_the_full_text_of_its_model() -> None:
    assert await final(fast(), StandIn("other", ["a", "b"])) == ["one two three", "ab"]


async def test_a_fast_pane_does_not_wait_for_a_slow_one() -> None:
    async with aclosing(answers_of(slow(), fast())) as updates:
        async for behind, ahead in updates:
            if ahead.text == "one two three":
                assert behind.text == ""
                return
    pytest.fail("the fast pane was never complete")


async def test_a_failing_model_does_not_affect_other_panes() -> None:
    failed, whole = await final(broken(), fast())
    assert whole == "one two three"
    assert failed.startswith("half")
    assert "broken failed to answer" in failed
    assert "secret" not in failed


async def test_a_prompt_error_of_one_model_is_shown_in_its_pane() -> None:
    picky = StandIn("picky", [], failure=PromptError("Too long for picky: shorten it."))
    assert await final(picky, fast()) == ["⚠ Too long for picky: shorten it.", "one two three"]


async def test_a_model_that_takes_too_long_is_stopped_with_a_message() -> None:
    late = StandIn("late", ["in ", "time ", "too late"], pause=0.8)
    updates = [update async for update in answers_of(fast(), late, answer_seconds=2)]
    whole, stopped = updates[-1]
    assert (whole.state, whole.text) == (State.DONE, "one two three")
    assert (stopped.state, stopped.text) == (State.FAILED, "in time ")
    assert "late was stopped because it took too long" in stopped.failure
    assert late.left == 1


async def test_an_answer_says_that_its_model_is_starting_until_text_arrives() -> None:
    seen = []
    models = [Asleep("asleep", ["a", "b"], pause=0.3), slow()]
    async with aclosing(answers_of(*models)) as updates:
        async for asleep, awake in updates:
            seen.append((asleep.starting, asleep.state))
            assert not awake.starting
            if asleep.text:
                break
    assert seen[0] == (True, State.WAITING)
    assert seen[-1] == (False, State.WRITING)


async def test_a_model_that_does_not_start_in_time_is_reported() -> None:
    asleep = Asleep("asleep", ["too late"], pause=60)
    *_, [answer] = [update async for update in answers_of(asleep, answer_seconds=0.5)]
    assert answer.state is State.FAILED
    assert not answer.starting
    assert answer.failure == "asleep is still starting. Try again in a moment."


async def test_a_complete_answer_is_shown_without_delay() -> None:
    models = [fast(), StandIn("late", ["a", "b"], pause=0.1)]
    updates = fan_out(models, user("Hello"), GenerationOptions(), lambda: 60, 30)
    async with asyncio.timeout(20):
        shown = [[answer.text for answer in update] async for update in updates]
    assert shown[-1] == ["one two three", "ab"]


async def test_an_answer_reports_its_progress() -> None:
    model = StandIn("steady", ["a ", "b ", "c"], pause=0.1)
    states, last = [], Answer()
    async for [answer] in answers_of(model):
        states.append(answer.state)
        last = answer
    assert states[0] is State.WRITING
    assert last.state is State.DONE
    assert last.tokens == 3
    assert last.first_text_seconds == pytest.approx(0.1, abs=0.08)
    assert last.tokens_per_second == pytest.approx(10, rel=0.5)


async def test_an_answer_stores_its_finish_reason() -> None:
    [answer] = [update async for update in answers_of(fast())][-1]
    assert answer.end == End("stop")


def test_an_answer_with_no_text_yet_has_no_figures() -> None:
    answer = Answer()
    assert answer.state is State.WAITING
    assert answer.first_text_seconds is answer.tokens_per_second is None
    answer.add(Piece("at once", 2))
    assert answer.tokens == 2
    assert answer.tokens_per_second is None


async def test_closing_the_fan_out_closes_every_stream() -> None:
    models = [slow(), slow()]
    async with aclosing(answers_of(*models)) as updates:
        await anext(updates)
    assert [model.left for model in models] == [1, 1]
