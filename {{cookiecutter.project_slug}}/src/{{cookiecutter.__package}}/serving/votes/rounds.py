"""The last answers of each session, until there is a vote on them."""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

import gradio as gr

from ..answers import Answer, State
from ..pages.asking import Ask
from ..protocol import GenerationOptions, Message, Model, PromptError
from .ballots import Ballot, Reply, Vote
from .blind import AnonymousModel, sides

SIDES_COOKIE = "sides"
"""A seed of the browser that decides which model is on which side."""

REPEATED = "You have already voted on these answers. Ask again to vote again."

SESSIONS = 1000
"""The number of sessions whose last answers are kept in memory, with their texts."""


@dataclass
class Asked:
    """A prompt in one pane, and its answer."""

    messages: Sequence[Message]
    options: GenerationOptions
    answer: Answer | None = None
    """Set when the answer is complete."""


@dataclass
class Round:
    """The last answers of a session, side by side."""

    models: Sequence[Model]
    """The models of the panes, under their own names."""
    username: str | None = None
    panes: dict[int, Asked] = field(default_factory=dict)
    id: str = ""
    """Changes whenever a pane is asked again."""
    voted: bool = False
    lost: bool = False
    """Whether a vote was reported as lost. The database may still have it."""


class Rounds:
    """Remembers the answers, and which model is behind each pane.

    Args:
        panes: the models under the names on the page. `AnonymousModel` models change sides.
    """

    def __init__(self, panes: Sequence[Model]) -> None:
        self._panes = panes
        self._rounds: OrderedDict[str, Round] = OrderedDict()

    @property
    def blind(self) -> bool:
        return any(isinstance(pane, AnonymousModel) for pane in self._panes)

    @property
    def names(self) -> list[str]:
        """The models' names on the page."""
        return [pane.name for pane in self._panes]

    def remembering(self, ask: Ask) -> Ask:
        """Wraps `ask`, and remembers the answers in the panes."""

        async def remember(
            models: Sequence[Model],
            conversations: Sequence[Sequence[Message]],
            options: GenerationOptions,
            request: gr.Request | None,
        ) -> AsyncGenerator[list[Answer], None]:
            if request is None or request.session_hash is None:
                raise TypeError("a pane is asked by a session")
            numbers = [self._panes.index(model) for model in models]
            now = self._round_of(request.session_hash, request, numbers, conversations)
            asked = [Asked(messages, options) for messages in conversations]
            now.panes.update(zip(numbers, asked, strict=True))
            shown = [self._shown(now, number) for number in numbers]
            async with aclosing(ask(shown, conversations, options, request)) as updates:
                async for update in updates:
                    for each, pane, model, answer in zip(asked, models, shown, update, strict=True):
                        each.answer = answer if answer.state is State.DONE else None
                        if isinstance(model, AnonymousModel):
                            answer.failure = answer.failure.replace(model.model.name, pane.name)
                    yield update

        return remember

    def claim(self, session: str | None, votes: Sequence[Vote]) -> tuple[Round, Ballot]:
        """Returns the session's answers as a ballot, and prevents a second vote on them.

        Raises:
            PromptError: there are no answers, or there is already a vote on them.
        """
        now = self._rounds.get(session or "")
        if now is None or any(each.answer is None for each in self._in_order(now)):
            raise PromptError("There are no answers to vote on. Ask again, then vote.")
        if now.voted:
            raise PromptError(REPEATED)
        now.voted = True
        asked = self._in_order(now)
        ballot = Ballot(
            id=now.id,
            time=datetime.now(UTC),
            username=now.username,
            blind=self.blind,
            prompt=_prompt_of(asked[0].messages),
            replies=[_reply(*each) for each in zip(now.models, asked, strict=True)],
            votes=votes,
        )
        return now, ballot

    def settle(self, now: Round, ballot: Ballot, *, kept: bool) -> None:
        """Lets a session vote again if its vote was lost."""
        if now.id == ballot.id:
            now.voted, now.lost = kept, not kept

    def _in_order(self, now: Round) -> list[Asked]:
        nobody = Asked((), GenerationOptions())
        return [now.panes.get(number, nobody) for number in range(len(self._panes))]

    def _round_of(
        self,
        session: str,
        request: gr.Request,
        numbers: Sequence[int],
        conversations: Sequence[Sequence[Message]],
    ) -> Round:
        now = self._rounds.pop(session, None)
        begun = any(each.role == "assistant" for said in conversations for each in said)
        if now is None or (len(numbers) == len(self._panes) and not begun):
            now = Round(self._on_their_sides(request, conversations[0]))
        self._rounds[session] = now
        if len(self._rounds) > SESSIONS:
            self._rounds.popitem(last=False)
        now.username, now.id = request.username, uuid4().hex
        now.voted = now.lost = False
        return now

    def _on_their_sides(self, request: gr.Request, said: Sequence[Message]) -> list[Model]:
        models = [each.model if isinstance(each, AnonymousModel) else each for each in self._panes]
        if not self.blind:
            return models
        # A conversation that continues on another replica keeps its sides.
        first = next(each.content for each in said if each.role == "user").split("\n\n")[0]
        seed = f"{request.cookies.get(SIDES_COOKIE, '')}\0{first}"
        return [models[number] for number in sides(len(models), seed)]

    def _shown(self, now: Round, number: int) -> Model:
        pane = self._panes[number]
        return (
            AnonymousModel(pane.name, now.models[number])
            if isinstance(pane, AnonymousModel)
            else pane
        )


def _prompt_of(messages: Sequence[Message]) -> str:
    return next(each.content for each in reversed(messages) if each.role == "user")


def _reply(model: Model, asked: Asked) -> Reply:
    answer = asked.answer or Answer()
    messages = list(asked.messages)
    # The model continued a trailing assistant message.
    begun = messages.pop().content if messages[-1].role == "assistant" else ""
    return Reply(
        model=model.name,
        options=asked.options.model_dump(mode="json", exclude_none=True),
        conversation=[asdict(each) for each in messages[:-1]],
        text=begun + answer.text,
        tokens=answer.tokens,
        seconds=answer.seconds,
    )
