"""A conversation with one model, or side by side with several."""

import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from secrets import token_hex
from typing import Any

import gradio as gr
from pydantic import BaseModel, TypeAdapter, ValidationError

from ..http.login import PASSWORD_VARIABLE, TOKEN, derive_key, read_secret
from ..protocol import Message, Model, PromptError
from .asking import Ask, asking, configure_queue, texts_of, within_rate_limits
from .browser import (
    FORGET_CONVERSATION,
    GIVE_PROMPT_BACK,
    GIVE_ROLES,
    MARK_STOPPED,
    OPEN_CONVERSATION,
    STOP_MARKING,
    TAKE_PROMPT,
    fill_at_start,
    keep_conversation,
    make_link,
    take_turn_back,
)
from .conversation import (
    DELIMITERS,
    Turn,
    answered,
    messages_of,
    plain,
    read,
    read_kept,
    shown,
)
from .options import OptionControls, option_text, read_options
from .panes import head_of, state_line
from .prompt import check_prompt, refusal
from .settings import ANSWERS, PageSettings


class HistoryMessage(BaseModel, extra="forbid"):
    """A message in a client's history. `Message` checks the values."""

    role: Any
    content: Any


HISTORY = TypeAdapter(list[HistoryMessage])
HISTORY_SHAPE = (
    'The history must be a list of messages such as {"role": "user", "content": "Hello"}.'
)

Update = dict[Any, Any]
"""New values of components. Components that are not in it stay as they are."""


@dataclass(frozen=True)
class ChatPane:
    chat: gr.Chatbot
    state: gr.HTML


@dataclass(frozen=True)
class ChatControls:
    """The components of the page."""

    prompt: gr.Textbox
    system: gr.Textbox
    options: OptionControls
    panes: Sequence[ChatPane]
    send: gr.Button
    stop: gr.Button
    clear: gr.Button
    share: gr.Button


def chat_panes_of(
    models: Sequence[Model], about: Mapping[str, str] | None = None
) -> list[ChatPane]:
    """Makes the panes, in the order of the models. Call it inside a `gr.Row`, for example.

    Adds a line below the panes that appears when the browser cannot save the conversation.

    Args:
        about: text to show under each model's name.
    """
    panes = [_pane(model, (about or {}).get(model.name, "")) for model in models]
    gr.HTML('<p role="status"></p>', elem_classes="unkept", padding=False)
    return panes


def _pane(model: Model, about: str) -> ChatPane:
    with gr.Column(min_width=300, elem_classes="pane"):
        state = head_of(model, about)
        chat = gr.Chatbot(
            elem_id=f"pane-{model.name}",
            elem_classes="talk",
            label=model.name,
            show_label=False,
            container=False,
            height="52vh",
            buttons=["copy"],
            editable="user",
            latex_delimiters=DELIMITERS,
            allow_tags=False,
        )
    return ChatPane(chat, state)


def connect_chat(
    page: gr.Blocks,
    controls: ChatControls,
    settings: PageSettings,
    models: Sequence[Model],
    following: Callable[[Ask], Ask] | None = None,
) -> None:
    """Connects the controls to the models, and adds the function `chat` to the page's API.

    Call it once, inside the page's `with` block, after all controls.

    Args:
        following: wraps the function that asks the models for the panes, to see their answers.
    """
    limits, defaults = settings.limits, settings.options
    ask = asking(settings)
    ask_for_panes = within_rate_limits(following(ask) if following else ask)
    chats = [pane.chat for pane in controls.panes]
    states = [pane.state for pane in controls.panes]

    async def go_on(
        request: gr.Request,
        system: str | None,
        said: Sequence[Any],
        asked: Mapping[int, Sequence[Turn]],
    ) -> AsyncGenerator[Update, None]:
        """Lets some models answer their last turns. `asked` has all turns of each.

        A pane is not updated after its answer is complete: the visitor may have asked again.
        """
        # The value of a box that was never shown is None.
        system = system or ""
        if system.strip():
            check_prompt(system, limits.prompt_characters)
        options = read_options(defaults, *said)
        conversations = [messages_of(turns, system) for turns in asked.values()]
        seen: dict[int, object] = {}
        asked_models = [models[number] for number in asked]
        answers = ask_for_panes(asked_models, conversations, options, request)
        async with aclosing(answers) as updates:
            async for update in updates:
                changed: Update = {}
                for (number, turns), answer in zip(asked.items(), update, strict=True):
                    now = (len(answer.text), len(answer.thoughts), answer.state, answer.starting)
                    if seen.get(number) != now:
                        seen[number] = now
                        changed[chats[number]] = shown([*turns[:-1], answered(turns[-1], answer)])
                        changed[states[number]] = state_line(answer)
                yield changed

    async def send(
        request: gr.Request, prompt: str, system: str | None, *rest: Any
    ) -> AsyncGenerator[Update, None]:
        said, talks = split(rest)
        check_prompt(prompt, limits.prompt_characters)
        asked = {number: [*turns, Turn(prompt)] for number, turns in enumerate(talks)}
        async with aclosing(go_on(request, system, said, asked)) as updates:
            async for update in updates:
                yield update

    def edit_in(number: int) -> Callable[..., AsyncGenerator[Update, None]]:
        async def edit(
            event: gr.EditData, request: gr.Request, system: str | None, *rest: Any
        ) -> AsyncGenerator[Update, None]:
            """Asks every model again, from the question that was edited in one pane."""
            said, talks = split(rest)
            roles = [message["role"] for message in rest[len(said) + number]]
            turn, prompt = roles[: event.index].count("user"), plain(str(event.value))
            try:
                check_prompt(prompt, limits.prompt_characters)
            except gr.Error:
                talk = talks[number]
                talk[turn] = replace(talk[turn], question=plain(str(event.previous_value)))
                yield {chats[number]: shown(talk)}
                raise
            asked = {each: [*turns[:turn], Turn(prompt)] for each, turns in enumerate(talks)}
            async with aclosing(go_on(request, system, said, asked)) as updates:
                async for update in updates:
                    yield update

        return edit

    def again_in(
        number: int, turn_of: Callable[[Turn], Turn]
    ) -> Callable[..., AsyncGenerator[Update, None]]:
        async def again(
            request: gr.Request, system: str | None, *rest: Any
        ) -> AsyncGenerator[Update, None]:
            said, talks = split(rest)
            *earlier, last = talks[number]
            asked = {number: [*earlier, turn_of(last)]}
            async with aclosing(go_on(request, system, said, asked)) as updates:
                async for update in updates:
                    yield update

        return again

    async def chat(
        message: str,
        history: list[dict[str, Any]] | None = None,
        system_prompt: str | None = None,
        min_new_tokens: int = defaults.min_new_tokens,
        max_new_tokens: int = defaults.max_new_tokens,
        temperature: str | float = option_text(defaults.temperature),
        top_p: str | float = option_text(defaults.top_p),
        request: gr.Request | None = None,
    ) -> AsyncGenerator[list[str] | str, None]:
        """Asks every model, and streams each one's answer so far, in the order of the settings.

        The history is a list of messages, each with a role and a content. The server stores
        nothing: add the message and an answer to the history, and send it with the next message.
        """
        options = read_options(defaults, min_new_tokens, max_new_tokens, temperature, top_p)
        system_prompt = system_prompt or ""
        messages = messages_from(history or [])
        for text in (message, system_prompt) if system_prompt.strip() else (message,):
            check_prompt(text, limits.prompt_characters)
        if system_prompt.strip():
            messages.insert(0, Message("system", system_prompt))
        messages.append(Message("user", message))
        answers = ask(models, [messages] * len(models), options, request)
        async with aclosing(texts_of(answers)) as updates:
            async for update in updates:
                yield update

    def restore(text: str) -> Update:
        """Shows the conversation from the browser's storage or from a link."""
        try:
            talks = read_kept(text, [model.name for model in models])
        except PromptError as error:
            gr.Warning(str(error), title="No conversation")
            talks = [[] for _ in models]
        return {
            each: shown(turns) if turns else gr.skip()
            for each, turns in zip(chats, talks, strict=True)
        }

    named: dict[str, Any] = {
        "prompt": controls.prompt,
        "system": controls.system,
        **controls.options.named(),
    }
    inputs = [*named.values(), *chats]
    answering: dict[str, Any] = {
        "api_visibility": "private",
        "concurrency_limit": limits.running_requests,
        "concurrency_id": ANSWERS,
        "show_progress": "minimal",
    }
    sending = gr.on(
        [controls.send.click, controls.prompt.submit],
        send,
        inputs,
        [*chats, *states],
        js=TAKE_PROMPT,
        **answering,
    )
    sending.failure(
        None, controls.prompt, controls.prompt, js=GIVE_PROMPT_BACK, api_visibility="private"
    )
    running = [sending]
    for number, pane in enumerate(controls.panes):
        mine = [pane.chat, pane.state]
        anew = again_in(number, lambda turn: Turn(turn.question))
        further = again_in(number, lambda turn: turn)
        running += [
            pane.chat.edit(
                edit_in(number), inputs[1:], [*chats, *states], js=STOP_MARKING, **answering
            ),
            pane.chat.retry(anew, inputs[1:], mine, js=STOP_MARKING, **answering),
            pane.chat.option_select(further, inputs[1:], mine, js=STOP_MARKING, **answering),
        ]
    private: dict[str, Any] = {"api_visibility": "private"}
    controls.stop.click(None, js=MARK_STOPPED, cancels=running, **private)
    controls.clear.click(
        lambda: [[]] * len(chats) + [""] * len(states),
        outputs=[*chats, *states],
        cancels=running,
        js=FORGET_CONVERSATION,
        **private,
    )
    for each in chats:
        each.undo(
            None,
            [controls.prompt, *chats],
            [controls.prompt, *chats, *states],
            js=take_turn_back(len(states)),
            **private,
        )
        each.change(None, chats, js=keep_conversation(models), **private)
    link = make_link(named, models)
    controls.share.click(None, inputs, controls.share, js=link, **private)
    # API clients use this name.
    gr.Button(visible=False).click(
        chat,
        [
            controls.prompt,
            gr.JSON(visible=False, label="History"),
            controls.system,
            *controls.options.named().values(),
        ],
        [gr.Textbox(visible=False, label=model.name) for model in models],
        api_name="chat",
        concurrency_limit=limits.running_requests,
        concurrency_id=ANSWERS,
    )
    fill_at_start(page, named, [])
    page.load(None, js=GIVE_ROLES, **private)
    key = gr.Textbox(visible=False)
    page.load(history_key, None, key, **private).then(
        restore, key, chats, js=OPEN_CONVERSATION, show_progress="hidden", **private
    )
    configure_queue(page, settings, controls.send, controls.stop)


def split(rest: Sequence[Any]) -> tuple[Sequence[Any], list[list[Turn]]]:
    """Splits the inputs into the values of the options and the turns of each pane.

    Raises gr.Error if a pane does not contain a conversation.
    """
    number = len(fields(OptionControls))
    try:
        return rest[:number], [read(each) for each in rest[number:]]
    except PromptError as error:
        raise refusal(str(error)) from error


def messages_from(history: object) -> list[Message]:
    """Returns the messages in a client's history.

    Raises gr.Error if they are invalid.
    """
    try:
        return [Message(each.role, each.content) for each in HISTORY.validate_python(history)]
    except (PromptError, ValidationError) as error:
        why = str(error) if isinstance(error, PromptError) else HISTORY_SHAPE
        raise refusal(why) from error


def history_key(request: gr.Request) -> str:
    """Returns the key that encrypts a logged-in visitor's saved conversation, or "" without login.

    The key changes at the next login, so a saved conversation cannot be read after a logout.
    """
    if request.username is None:
        return ""
    secret = read_secret() or os.environ.get(PASSWORD_VARIABLE)
    # Without a secret, use a random key: no one else can know it, and it ends with the page.
    tokens = [each for name, each in sorted(request.cookies.items()) if name.startswith(TOKEN)]
    return derive_key(secret or token_hex(), "history", request.username, *tokens)
