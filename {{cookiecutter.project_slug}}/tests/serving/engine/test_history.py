import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import GenerationConfig

from {{ cookiecutter.__package }}.serving.engine import decoders
from {{ cookiecutter.__package }}.serving.engine.engine import Engine
from {{ cookiecutter.__package }}.serving.engine.history import Written, fitting
from {{ cookiecutter.__package }}.serving.pages.settings import Limits
from {{ cookiecutter.__package }}.serving.protocol import (
    End,
    GenerationOptions,
    Message,
    PromptError,
)

from ...support.tiny_models import CORPUS, save_tiny, tiny_tokenizer
from .conftest import EngineOf, plain

PAGE = decoders.PAGE_TOKENS
GREEDY = GenerationOptions(temperature=0, min_new_tokens=20, max_new_tokens=20)
DRAWN = GREEDY.model_copy(update={"temperature": 1.0, "seed": 3})
SYSTEM = Message("system", "Be brief.")
{% raw %}
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
{% endraw %}


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a chat template."""
    directory = save_tiny(
        "llama",
        tmp_path_factory.mktemp("talker"),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    (directory / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    # With random weights it would write incomplete characters.
    tokenizer = tiny_tokenizer()
    unread = [n for n in range(len(tokenizer)) if not tokenizer.decode([n]).isalpha()]
    GenerationConfig(suppress_tokens=unread, eos_token_id=0).save_pretrained(directory)
    return directory


def said(*texts: str) -> list[Message]:
    """A conversation that starts with a question."""
    return [Message("assistant" if n % 2 else "user", text) for n, text in enumerate(texts)]


async def answer(
    engine: Engine, messages: Sequence[Message], options: GenerationOptions = GREEDY
) -> tuple[str, End]:
    text = ""
    async for each in engine.stream(messages, options):
        if isinstance(each, End):
            return text, each
        text += each.text
    raise AssertionError("a stream ends with its end")


class Reads:
    """Counts the tokens that the model computes."""

    def __init__(self, engine: Engine) -> None:
        self.tokens = 0
        plain(engine).model.get_input_embeddings().register_forward_hook(self._count)

    def _count(self, _: object, inputs: tuple[object, ...], __: object) -> None:
        self.tokens += inputs[0].numel()  # type: ignore[attr-defined]

    def since(self) -> int:
        tokens, self.tokens = self.tokens, 0
        return tokens


@pytest.mark.parametrize("options", [GREEDY, DRAWN], ids=["greedy", "drawn"])
async def test_a_turn_computes_only_its_new_tokens(
    options: GenerationOptions, talker: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(talker, Limits(update_seconds=0, cache_tokens=2048))
    reads = Reads(engine)
    talk, before = said(CORPUS[:100]), 0
    for question in ("Where is it?", "A lamp?", "And the whale?"):
        text, end = await answer(engine, talk, options)
        assert end.prompt_tokens is not None
        assert not end.dropped_messages
        # Tokens of an incomplete cache page are computed again.
        most = end.prompt_tokens - before + options.max_new_tokens + PAGE
        assert reads.since() <= most
        before = end.prompt_tokens + options.max_new_tokens
        talk += [Message("assistant", text), Message("user", question)]
    assert before > 100


async def test_parallel_conversations_each_reuse_their_own_cache(
    talker: Path, engine_of: EngineOf
) -> None:
    limits = Limits(update_seconds=0, cache_tokens=2048)
    engine = engine_of(talker, limits)
    talks = [said(f"{word} {CORPUS[:120]}") for word in ("Dawn", "Lamp", "Whale", "Silver")]
    texts = [text for text, _ in await asyncio.gather(*(answer(engine, talk) for talk in talks))]
    for talk, text in zip(talks, texts, strict=True):
        talk += [Message("assistant", text), Message("user", "And then?")]
    reads = Reads(engine)
    ended = await asyncio.gather(*(answer(engine, talk) for talk in talks))
    prompts = sum(end.prompt_tokens or 0 for _, end in ended)
    computed = reads.since()
    assert computed - len(talks) * GREEDY.max_new_tokens < prompts / 3
    # A fresh engine gives the same answer to the same tokens.
    fresh = engine_of(talker, limits)
    fresh._written = engine._written
    assert [text for text, _ in ended] == [(await answer(fresh, talk))[0] for talk in talks]


async def test_a_continued_answer_keeps_its_original_tokens(
    talker: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(talker, Limits(update_seconds=0, cache_tokens=2048))
    first, _ = await answer(engine, said("A lamp"), DRAWN)
    more, _ = await answer(engine, said("A lamp", first), DRAWN)
    reads = Reads(engine)
    _, end = await answer(engine, said("A lamp", first + more, "And then?"), DRAWN)
    assert end.prompt_tokens is not None
    assert end.prompt_tokens > 3 * PAGE
    new = len(engine._prompts.encode(said("And then?")))
    assert reads.since() <= new + PAGE + DRAWN.max_new_tokens


async def test_tokens_of_an_answer_are_kept_only_if_they_match_the_shown_text(
    talker: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(talker)
    whole, _ = await answer(engine, said("A lamp"))
    stop = whole[len(whole) // 2 :][:3]
    cut, _ = await answer(engine, said("A lamp"), GREEDY.model_copy(update={"stop": (stop,)}))
    assert len(cut) < len(whole)
    assert engine._written.tokens_of(whole)
    assert engine._written.tokens_of(cut) is None
    # Answers that did not come from this engine are read as usual.
    assert engine._prompts.encode(said("A", "Never said.", "B"), engine._written) == (
        engine._prompts.encode(said("A", "Never said.", "B"))
    )


async def test_the_oldest_cached_conversation_is_evicted_first(
    talker: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(talker, Limits(update_seconds=0, cache_tokens=1024, running_requests=2))
    reads = Reads(engine)
    talks = [said(f"{n} {CORPUS[:150]}") for n in range(8)]
    for talk in talks:
        await answer(engine, talk)
    fresh = reads.since() / len(talks)
    for talk in (talks[-1], talks[-2]):
        await answer(engine, talk)
        assert reads.since() < fresh / 2
    await answer(engine, talks[0])
    assert reads.since() == pytest.approx(fresh, abs=PAGE)


async def test_a_conversation_longer_than_the_context_drops_its_oldest_turns(
    talker: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(talker)
    turns = [text for n in range(12) for text in (f"Question {n}?", f"{n} {CORPUS[:30]}")]
    talk = [SYSTEM, *said(*turns, "And now?")]
    text, end = await answer(engine, talk)
    assert end.dropped_messages > 0
    assert end.dropped_messages % 2 == 0
    kept = [SYSTEM, *talk[1 + end.dropped_messages :]]
    assert kept[1].role == "user"
    assert await answer(engine, kept) == (text, End("length", end.prompt_tokens, 0))
    assert end.prompt_tokens == len(engine._prompts.encode(kept))


async def test_a_last_question_that_is_too_long_is_refused_with_its_own_length(
    talker: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(talker)
    question = CORPUS * 4
    tokens = len(engine._prompts.encode([SYSTEM, *said(question)]))
    with pytest.raises(PromptError, match=f"too long for tiny: {tokens} tokens"):
        await answer(engine, [SYSTEM, *said("Hello", "Hi", question)])
    most = GenerationOptions(max_new_tokens=300)
    with pytest.raises(PromptError, match="leave no room in its context of 256"):
        await answer(engine, said("Hello", "Hi", "Hello"), most)


def words(messages: Sequence[Message]) -> list[int]:
    return [0] * sum(len(message.content.split()) for message in messages)


def count(text: str) -> int:
    return len(text.split())


def test_the_same_turns_are_dropped_for_several_turns_in_a_row() -> None:
    talk, dropped = [SYSTEM], []
    for _ in range(100):
        talk += said("one two", "three four five")
        tokens, without = fitting([*talk, *said("what now")], 100, words, count)
        assert len(tokens) <= 100
        # At most a fraction of the context and one turn stay unused.
        assert not without or len(tokens) > 100 - 25 - 5
        dropped.append(without)
    assert dropped == sorted(dropped)
    assert len(set(dropped)) <= 1 + 100 * 5 // 25


@pytest.mark.parametrize(
    ("messages", "kept"),
    [
        (said("a b c", "d e f", "g h"), said("g h")),
        (said("a b c", "d", "e f", "g"), said("e f", "g")),
        ([SYSTEM, *said("a b c")], [SYSTEM, *said("a b c")]),
        ([Message("user", "a b c d e"), Message("user", "f")], [Message("user", "f")]),
        ([*said("a b", "c d"), SYSTEM, Message("user", "e")], [SYSTEM, Message("user", "e")]),
    ],
    ids=["turns", "a part of an answer", "one question", "unanswered", "a later system prompt"],
)
def test_the_last_question_and_the_system_prompt_are_never_dropped(
    messages: list[Message], kept: list[Message]
) -> None:
    seen: list[Sequence[Message]] = []

    def encode(messages: Sequence[Message]) -> list[int]:
        seen.append(messages)
        return words(messages)

    tokens, dropped = fitting(messages, 4, encode, count)
    assert list(seen[-1]) == kept
    assert (len(tokens), dropped) == (len(words(kept)), len(messages) - len(kept))


def test_encoding_ten_thousand_turns_takes_only_a_few_calls() -> None:
    lengths: list[int] = []

    def encode(messages: Sequence[Message]) -> list[int]:
        lengths.append(len(messages))
        return words(messages)

    tokens, dropped = fitting(said(*["one two"] * 20_001), 1000, encode, count)
    assert len(tokens) <= 1000
    assert dropped > 19_000
    assert len(lengths) < 8
    assert sum(lengths[1:]) < 4000


def test_kept_answer_tokens_stay_within_their_limit() -> None:
    written = Written(10)
    written.keep("one", [1] * 4)
    written.keep("two", [2] * 4)
    assert written.tokens_of("one") == [1] * 4
    written.keep("three", [3] * 4)
    assert written.tokens_of("two") is None
    assert written.tokens_of("one") == [1] * 4
    written.keep("one", [5] * 6)
    assert written.tokens_of("one") == [5] * 6
    assert written.tokens_of("three") == [3] * 4
    written.keep("long", [6] * 11)
    assert [written.tokens_of(text) for text in ("one", "three", "long")] == [None] * 3
