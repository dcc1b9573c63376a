"""Sends a page's prompts to the models, and counts the running answers."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import gradio as gr
from starlette.exceptions import HTTPException

from ..answers import Answer, State, fan_out_each
from ..base import ALLOWANCE, Allowance
from ..protocol import GenerationOptions, Message, Model, read_tokens
from ..telemetry.logs import keep_request_id, logger, request_id
from .settings import PageSettings

# Extra Gradio workers, so that other clicks do not wait for answers.
OTHER_WORKERS = 8
QUEUE_UPDATE_SECONDS = 1.0
"""How often Gradio updates the position of those waiting in the queue, after the first time."""

Ask = Callable[
    [Sequence[Model], Sequence[Sequence[Message]], GenerationOptions, gr.Request | None],
    AsyncGenerator[list[Answer], None],
]


def asking(settings: PageSettings) -> Ask:
    """Returns a function that sends each model its conversation and yields all answers so far.

    The more answers run, the less often each is updated.
    """
    limits = settings.limits
    running = 0

    async def ask(
        models: Sequence[Model],
        conversations: Sequence[Sequence[Message]],
        options: GenerationOptions,
        request: gr.Request | None,
    ) -> AsyncGenerator[list[Answer], None]:
        nonlocal running
        if request is not None:
            keep_request_id(request.headers)
        running += 1
        characters = len(conversations[0][-1].content)
        user = None if request is None else request.username
        answered: list[Answer] = []
        facts = {"request": request_id.get(), "user": user, "characters": characters}
        logger.info("asked", extra=facts)
        try:
            yield [Answer() for _ in models]
            answers = fan_out_each(
                models,
                conversations,
                options,
                lambda: limits.pause(running),
                limits.answer_seconds,
            )
            async with aclosing(answers) as updates:
                async for answered in updates:
                    yield answered
        finally:
            running -= 1
            if request is not None and (allowance := _allowance_of(request)):
                tokens = sum(map(_tokens_of, answered, conversations))
                allowance.spend(request.request.scope, tokens, user)

    return ask


def within_rate_limits(ask: Ask) -> Ask:
    """Wraps `ask`. If a caller exceeds a rate limit, each pane says so and no model is asked."""

    async def ask_within_limits(
        models: Sequence[Model],
        conversations: Sequence[Sequence[Message]],
        options: GenerationOptions,
        request: gr.Request | None,
    ) -> AsyncGenerator[list[Answer], None]:
        if request is not None and (allowance := _allowance_of(request)):
            try:
                await allowance.take(request.request.scope, request.username)
            except HTTPException as refused:
                answers = [Answer() for _ in models]
                for each in answers:
                    each.fail(refused.detail)
                yield answers
                return
        async with aclosing(ask(models, conversations, options, request)) as updates:
            async for update in updates:
                yield update

    return ask_within_limits


def _allowance_of(request: gr.Request) -> Allowance | None:
    # When a page calls a function by itself, Gradio makes a request without a scope.
    scope = getattr(request.request, "scope", None) or {}
    allowance: Allowance | None = scope.get(ALLOWANCE)
    return allowance


def _tokens_of(answer: Answer, messages: Sequence[Message]) -> int:
    if not answer.tokens and answer.end is None:
        # The request was refused, or no model has started to read it.
        return 0
    return read_tokens(messages, answer.end) + answer.tokens


async def texts_of(
    answers: AsyncGenerator[list[Answer], None],
) -> AsyncGenerator[list[str] | str, None]:
    """Yields the texts as a client of the API gets them: a list, or a string for one model.

    Raises gr.Error if all answers have failed.
    """
    update: list[Answer] = []
    async with aclosing(answers) as updates:
        async for update in updates:
            texts = [each.whole for each in update]
            if any(each.state is not State.WAITING for each in update):
                yield texts if len(texts) > 1 else texts[0]
    if all(each.state is State.FAILED for each in update):
        failures = " ".join(each.failure for each in update)
        raise gr.Error(failures, title="No answer", print_exception=False)


def configure_queue(
    page: gr.Blocks, settings: PageSettings, start: gr.Button, stop: gr.Button
) -> None:
    """Applies the limits to Gradio's queue, and shows either the start or the stop button."""
    start.elem_classes = [*start.elem_classes, "starts"]
    stop.elem_classes = [*stop.elem_classes, "stops"]
    limits = settings.limits
    page.max_threads = limits.running_requests + OTHER_WORKERS
    page.queue(
        # Otherwise Gradio notifies everyone in the queue each time one of them starts.
        status_update_rate=QUEUE_UPDATE_SECONDS,
        max_size=limits.waiting_requests,
        # A direct call would bypass the queue, and return only the first words.
        api_open=False,
    )
