"""Turns a conversation into the tokens of a prompt. A visitor's text never becomes a control token.

Control tokens are added to a tokenizer's vocabulary, such as `<|im_end|>`, `</s>` and `<think>`.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from transformers import PreTrainedTokenizerBase

from ..protocol import Message, ModelError, PromptError
from .history import Written
from .settings import EngineSettings
from .vocabulary import vocabulary_of

MARKS = range(0xF0000, 0x10FFFE)
"""Private-use characters that replace the visitor's texts while a template is rendered."""
TEMPLATE_ARGUMENTS = inspect.signature(
    PreTrainedTokenizerBase.apply_chat_template
).parameters.keys() - {"tools", "documents"}


class PromptEncoder:
    """Encodes the prompts of one model.

    A model with a chat template reads the whole conversation. A model without one reads only the
    user's last message.

    Raises:
        ModelError: the tokenizer does not support the settings.
    """

    def __init__(
        self, model: EngineSettings, tokenizer: PreTrainedTokenizerBase, *, can_continue: bool
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.vocabulary = vocabulary_of(tokenizer)
        self._can_continue = can_continue
        self._control = frozenset(
            number
            for number, token in tokenizer.added_tokens_decoder.items()
            # Some vocabularies add spaces and single characters, which are plain text.
            if len(token.content.strip()) > 1
        )
        self._unknown = self._control & set(self.vocabulary.encode_bare(chr(MARKS[0])))
        """The unknown token. Any text may contain it, because it replaces unknown characters."""
        self._template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
        self._check_settings()

    def encode(self, messages: Sequence[Message], written: Written | None = None) -> list[int]:
        """Returns the tokens of the rendered template, or of the last message without a template.

        They differ from plain encoding in two cases: control tokens in a visitor's text are
        encoded as text, and earlier answers keep the tokens with which they were written.

        Raises:
            PromptError: the conversation cannot be read. The message says what to change.
        """
        if not self._can_continue and messages and messages[-1].role == "assistant":
            raise PromptError(
                f"{self._model.name} cannot continue an answer. Remove the last message."
            )
        texts, marked = self._mark(messages)
        turns = self._model.conversation(marked)
        with_marks = self._rendered(turns)
        parts = re.split(f"([{''.join(texts)}])", with_marks) if texts else [with_marks]
        careful = self._encode_parts(parts, texts)
        tokens = self._encode_whole(turns, texts, careful)
        own = _own_tokens(marked, texts, written) if written else {}
        return self._encode_parts(parts, texts, own) if own and tokens == careful else tokens

    def is_plain(self, tokens: Sequence[int], text: str) -> bool:
        """Whether the tokens stand for exactly this text, without control tokens."""
        return self._control.isdisjoint(tokens) and self.vocabulary.decode(tokens) == text

    def _encode_whole(
        self, turns: Sequence[Message], texts: Mapping[str, str], careful: list[int]
    ) -> list[int]:
        """Encodes the whole rendered template, or returns `careful` if a text makes that unsafe."""
        usual, bare = self.vocabulary.encode, self.vocabulary.encode_bare
        if any(
            self._controls(usual(text)) != self._controls(bare(text)) for text in texts.values()
        ):
            return careful
        tokens: list[int] = self._tokenizer(
            self._rendered(_filled(turns, texts)), add_special_tokens=not self._template
        )["input_ids"]
        # The template's own text and a visitor's text may merge into a control token.
        return tokens if self._controls(tokens) == self._controls(careful) else careful

    def _mark(self, messages: Sequence[Message]) -> tuple[dict[str, str], list[Message]]:
        """Returns the texts by their marks, and the messages with marks instead of texts."""
        texts: dict[str, str] = {}
        marked = []
        marks = self._marks(messages)
        for message in messages:
            content = message.content
            # Spaces stay outside the mark, because many templates trim messages.
            if text := content.strip():
                mark = next(marks)
                texts[mark] = text
                content = content.replace(text, mark, 1)
            marked.append(Message(message.role, content))
        return texts, marked

    def _marks(self, messages: Iterable[Message]) -> Iterator[str]:
        own = self._model.system + self._model.prompt + self._template
        taken = set(own).union(*(message.content for message in messages))
        yield from (mark for mark in map(chr, MARKS) if mark not in taken)
        raise PromptError(f"{self._model.name} cannot read that many messages. Remove some.")

    def _rendered(self, turns: Sequence[Message]) -> str:
        try:
            return self._render(turns)
        except Exception as error:  # Of any kind, because a template is a program.
            raise PromptError(
                f"{self._model.name} rejected this conversation ({_first_line(error)}). "
                "Change the order or the roles of its messages."
            ) from error

    def _render(self, turns: Sequence[Message]) -> str:
        continued = turns[-1].role == "assistant"
        if self._template:
            rendered: str = self._tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in turns],
                tokenize=False,
                add_generation_prompt=not continued,
                continue_final_message=continued,
                **self._model.template_options,
            )
            return rendered
        asked = next(turn.content for turn in reversed(turns) if turn.role == "user")
        return asked + turns[-1].content if continued else asked

    def _encode_parts(
        self,
        parts: Sequence[str],
        texts: Mapping[str, str],
        own: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> list[int]:
        """Encodes the template's parts as usual, and the texts without control tokens.

        `own` has the known tokens of some texts.
        """
        tokens: list[int] = []
        for part in parts:
            if part in own:
                tokens += own[part]
            elif part in texts:
                tokens += self._encode_text(texts[part], follows=bool(tokens))
            elif part:
                tokens += self._encode(part, self.vocabulary.encode, follows=bool(tokens))
        if self._template:
            return tokens
        before, after = self.vocabulary.frame
        return [*before, *tokens, *after]

    def _encode_text(self, text: str, *, follows: bool) -> list[int]:
        """Encodes a visitor's text without control tokens."""
        forbidden, bare = self._control - self._unknown, self.vocabulary.encode_bare
        tokens = self._encode(text, bare, follows=follows)
        if not forbidden.isdisjoint(tokens):
            # The vocabulary may merge characters into a control token. Encode them one by one.
            tokens = [
                token for character in text for token in self._encode(character, bare, follows=True)
            ]
        if not forbidden.isdisjoint(tokens):
            raise PromptError(
                f"{self._model.name} would read part of this text as a control token. Reword it."
            )
        return tokens

    def _encode(self, text: str, encode: Callable[[str], list[int]], *, follows: bool) -> list[int]:
        """Encodes a part of a prompt, without an extra space if it follows another part."""
        if follows:
            newline, tokens = encode("\n"), encode(f"\n{text}")
            if tokens[: len(newline)] == newline:
                return tokens[len(newline) :]
        return encode(text)

    def _controls(self, tokens: Iterable[int]) -> list[int]:
        return [token for token in tokens if token in self._control]

    def _check_settings(self) -> None:
        own = self._model
        if not self._template:
            if own.system:
                raise self._refusal("has no chat template, which `system` needs. Use `prompt`.")
            if own.template_options:
                raise self._refusal("has no chat template. Remove `template_options`.")
            return
        read = set(re.findall(r"\w+", self._template)) - TEMPLATE_ARGUMENTS
        for option in own.template_options:
            if option not in read:
                raise self._refusal(
                    f"has a chat template that does not use {option!r}. Correct or remove it in "
                    "`template_options`."
                )
        user = Message("user", "Hello")
        try:
            self._render([user])
        except Exception as error:
            if not own.template_options:
                raise
            raise self._refusal(
                f"has a chat template that rejects `template_options` ({_first_line(error)}). "
                "Correct or remove them."
            ) from error
        if own.system:
            self._check_system([Message("system", own.system), user])

    def _check_system(self, turns: Sequence[Message]) -> None:
        try:
            rendered = self._render(turns)
        except Exception as error:
            reason = f"rejects `system` ({_first_line(error)})"
            raise self._refusal(f"has a chat template that {reason}. Use `prompt`.") from error
        if self._model.system.strip() not in rendered:
            raise self._refusal("has a chat template that ignores `system`. Use `prompt`.")

    def _refusal(self, reason: str) -> ModelError:
        return ModelError(f"Model {self._model.name!r}: {self._model.source!r} {reason}")


def _filled(turns: Sequence[Message], texts: Mapping[str, str]) -> list[Message]:
    """Replaces the marks by their texts."""
    marks = str.maketrans(dict(texts))
    return [Message(turn.role, turn.content.translate(marks)) for turn in turns]


def _own_tokens(
    marked: Sequence[Message], texts: Mapping[str, str], written: Written
) -> dict[str, Sequence[int]]:
    """Returns the tokens of answers that the model itself wrote, by their marks."""
    marks = [turn.content.strip() for turn in marked if turn.role == "assistant"]
    found = {mark: written.tokens_of(texts[mark]) for mark in marks if mark in texts}
    return {mark: tokens for mark, tokens in found.items() if tokens is not None}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
