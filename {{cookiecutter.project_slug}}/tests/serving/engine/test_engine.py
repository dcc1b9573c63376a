import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from {{ cookiecutter.__package }}.serving.engine import (
    attention,
    decoders,
    groups,
)
from {{ cookiecutter.__package }}.serving.engine.decoders import (
    DecoderBatch,
)
from {{ cookiecutter.__package }}.serving.engine.engine import Engine
from {{ cookiecutter.__package }}.serving.engine.generation import Request
from {{ cookiecutter.__package }}.serving.engine.groups import (
    Group,
    Joining,
    Reader,
)
from {{ cookiecutter.__package }}.serving.engine.sampling import Sampling
from {{ cookiecutter.__package }}.serving.engine.text import AnswerText
from {{ cookiecutter.__package }}.serving.pages.settings import Limits
from {{ cookiecutter.__package }}.serving.protocol import (
    BusyError,
    End,
    GenerationError,
    GenerationOptions,
    Message,
    ModelError,
    Piece,
    PromptError,
)

from ...support.stand_ins import pieces_of, user
from ...support.tiny_models import CORPUS, save_tiny_bart
from .conftest import EngineOf, plain

GREEDY = GenerationOptions(temperature=0, min_new_tokens=8, max_new_tokens=12)
LONG = GenerationOptions(temperature=0, min_new_tokens=200, max_new_tokens=200)
PROMPTS = [
    "The whale",
    "Far out the mist above the water turned to silver",
    "A lamp",
    "灯台",
    "Before dawn",
    "Side by side",
]
EVERY_KIND = pytest.mark.parametrize("kind", ["tiny_decoder", "tiny_encoder_decoder"])


async def answer(engine: Engine, prompt: str, options: GenerationOptions = GREEDY) -> str:
    return "".join(piece.text for piece in await pieces_of(engine.stream(user(prompt), options)))


async def end_of(engine: Engine, options: GenerationOptions = GREEDY) -> End:
    end = [each async for each in engine.stream(user("The whale"), options)][-1]
    assert isinstance(end, End)
    return end


def generated(directory: Path, prompt: str, *, decoder: bool) -> str:
    """Returns the text of transformers' own `generate`."""
    loader = AutoModelForCausalLM if decoder else AutoModelForSeq2SeqLM
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = loader.from_pretrained(directory, dtype=torch.float32)
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, do_sample=False, min_new_tokens=8, max_new_tokens=12)[0]
    new = tokens[inputs["input_ids"].shape[1] :] if decoder else tokens[1:]
    text: str = tokenizer.decode(new, skip_special_tokens=True)
    # An incomplete character at the end is never shown.
    return text.rstrip("�")


@EVERY_KIND
async def test_requests_in_one_batch_each_get_the_text_of_generate(
    kind: str, engine_of: EngineOf, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(kind)
    engine = engine_of(directory)
    texts = await asyncio.gather(*(answer(engine, prompt) for prompt in PROMPTS))
    expected = [generated(directory, p, decoder=kind == "tiny_decoder") for p in PROMPTS]
    assert texts == expected
    # Otherwise mixed-up rows would go unnoticed.
    assert len(set(expected)) >= len(PROMPTS) - 1


async def test_a_prompt_of_several_steps_is_read_alone_and_beside_others(
    tiny_decoder: Path, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "STEP_TOKENS", 16)
    engine = engine_of(tiny_decoder, Limits(update_seconds=0, running_requests=4))
    # The load check also reads in steps; if it failed, another kind of batch would be used.
    assert isinstance(engine._batch, DecoderBatch)
    prompts = [f"{word} {CORPUS}" for word in ("Dawn", "Silver", "Lamp")]
    expected = [generated(tiny_decoder, prompt, decoder=True) for prompt in prompts]
    assert await answer(engine, prompts[0]) == expected[0]
    assert await asyncio.gather(*(answer(engine, prompt) for prompt in prompts)) == expected


@EVERY_KIND
async def test_a_request_joins_while_another_runs(
    kind: str, engine_of: EngineOf, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(kind)
    engine = engine_of(directory)
    first = engine.stream(user("The whale"), LONG)
    await anext(first)
    text = await asyncio.wait_for(answer(engine, "A lamp"), timeout=60)
    assert text == generated(directory, "A lamp", decoder=kind == "tiny_decoder")
    assert await anext(first)
    await first.aclose()


@EVERY_KIND
async def test_generation_ends_within_two_tokens_after_its_reader_disconnects(
    kind: str, engine_of: EngineOf, request: pytest.FixtureRequest
) -> None:
    engine = engine_of(request.getfixturevalue(kind))
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    plain(engine).model.register_forward_hook(count)
    stream = engine.stream(user("The whale"), LONG)
    await anext(stream)
    await stream.aclose()
    when_left = steps
    await asyncio.sleep(0.5)
    assert steps - when_left <= 2
    assert steps < LONG.max_new_tokens


async def test_stopped_answers_leave_nothing_in_the_batch(
    tiny_decoder: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(tiny_decoder)
    for _ in range(20):
        stream = engine.stream(user("The whale"), LONG)
        await anext(stream)
        await stream.aclose()
    batch = engine._batch
    assert isinstance(batch, DecoderBatch)
    assert not batch._running
    scheduler = batch._manager.batch_processor.scheduler
    for _ in range(100):
        # A request is removed at the next step.
        if not scheduler.has_pending_requests():
            break
        await asyncio.sleep(0.1)
    assert not scheduler.has_pending_requests()
    assert batch._manager.output_router.output_queue.empty()


@pytest.mark.parametrize(
    ("left_out", "named"),
    [
        ("transformer.h.0.mlp.c_fc.weight", r"transformer\.h\.0\.mlp\.c_fc\.weight\)"),
        ("transformer.h.1.", r"transformer\.h\.1\.attn\.c_attn\.bias and 11 more\)"),
    ],
)
def test_a_model_with_missing_weights_is_refused(
    left_out: str, named: str, tiny_decoder: Path, tmp_path: Path, engine_of: EngineOf
) -> None:
    shutil.copytree(tiny_decoder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    kept = {name: value for name, value in weights.items() if not name.startswith(left_out)}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"weights are missing: {named}"):
        engine_of(tmp_path)


def test_non_finite_numbers_stay_in_their_row() -> None:
    lengths = [3, 1, 2, 4]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    # [1, heads, tokens, size]
    query, key, value = (torch.rand(1, 2, tokens, 8) for tokens in (4, 10, 10))
    key[:, :, :3] = value[:, :, :3] = torch.nan
    options = {"cu_seq_lens_q": torch.arange(5), "cu_seq_lens_k": bounds, "max_length_k": 4}
    output, _ = attention._attention(torch.nn.Module(), query, key, value, None, **options)
    for row in (1, 2, 3):
        own = slice(bounds[row], bounds[row + 1])
        alone = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, row : row + 1], key[:, :, own], value[:, :, own]
        )
        torch.testing.assert_close(output[0, row], alone[0, :, 0])


def test_a_model_that_needs_its_own_attention_keeps_it(tiny_decoder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder, attn_implementation="eager")
    attention.attend_by_rows(model)
    assert model.config._attn_implementation == "eager"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_group_that_cannot_start_ends_its_requests(
    tiny_encoder_decoder: Path, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    engine = engine_of(tiny_encoder_decoder)
    monkeypatch.setattr(groups, "Group", fail)
    with pytest.raises(GenerationError, match="out of memory"):
        await asyncio.wait_for(answer(engine, "The whale"), timeout=60)


async def test_a_finished_row_is_removed_from_its_group(tiny_encoder_decoder: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_encoder_decoder)
    short, long = (Request([5, 6, 7], Sampling(0, 1, 1, count, count)) for count in (2, 5))
    group = Group(Reader(model, Joining.ANY), frozenset(), [short, long])
    rows = []
    while group.requests:
        rows.append(len(group.requests))
        group.step()
    assert rows == [2, 2, 1, 1, 1]
    assert [short.received, long.received] == [2, 5]


class Dictation:
    """A batch that sends every request the tokens of one text."""

    def __init__(self, tokens: Sequence[int], *, ends: bool = True) -> None:
        self.tokens = tokens
        self.ends = ends
        self.given = 0
        self.cancelled = False
        self._writing: asyncio.Task[None] | None = None

    def start(self, request: Request) -> None:
        self._writing = asyncio.create_task(self._write(request))

    async def _write(self, request: Request) -> None:
        for token in self.tokens:
            await asyncio.sleep(0.005)
            if self.cancelled:
                return
            self.given += 1
            request.add([token], ended=self.ends and self.given == len(self.tokens))

    def cancel(self, request: Request) -> None:
        assert request.received == self.given
        self.cancelled = True


class Dictated:
    """An engine that writes a fixed text, token by token."""

    def __init__(self, engine: Engine, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens: list[int] = engine._tokenizer(text)["input_ids"]
        self.batch = Dictation(self.tokens)
        self._engine = engine
        self._batch = engine._batch
        self._patch = monkeypatch

    async def answer(self, *stop: str) -> tuple[list[Piece], End]:
        options = GenerationOptions(stop=stop)
        with self._patch.context() as patched:
            patched.setattr(self._engine, "_batch", self.batch)
            *pieces, end = [each async for each in self._engine.stream(user("Hi"), options)]
        assert isinstance(end, End)
        return [piece for piece in pieces if isinstance(piece, Piece)], end


async def test_pieces_are_whole_characters(
    tiny_decoder: Path, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "灯台 and 🐋 très loin"
    dictated = Dictated(engine_of(tiny_decoder), text, monkeypatch)
    pieces, end = await dictated.answer()
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.tokens for piece in pieces) == len(dictated.tokens)
    assert len(dictated.tokens) > len(pieces) > 5
    assert not any("�" in piece.text for piece in pieces)
    assert end.reason == "length"


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        (["silver"], "the water turned to "),
        # Across several tokens, inside a word, and at the start.
        (["er turned"], "the wat"),
        (["the"], ""),
        # Text that only starts like a stop text is shown.
        (["turned back", "silver and gold"], "the water turned to silver."),
        # The first complete stop text wins.
        (["water turned", "ter"], "the wa"),
        (["silver", "turned"], "the water "),
        (["silver."], "the water turned to "),
    ],
)
async def test_an_answer_ends_before_a_stop_text(
    stop: list[str],
    shown: str,
    tiny_decoder: Path,
    engine_of: EngineOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "the water turned to silver."
    dictated = Dictated(engine_of(tiny_decoder), text, monkeypatch)
    pieces, end = await dictated.answer(*stop)
    assert "".join(piece.text for piece in pieces) == shown
    assert end.reason == ("length" if shown == text else "stop")
    assert sum(piece.tokens for piece in pieces) <= len(dictated.tokens)


async def test_text_that_may_start_a_stop_text_is_held_back_until_decided(
    tiny_decoder: Path, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictated = Dictated(engine_of(tiny_decoder), "a lamp, a lamb", monkeypatch)
    shown = ""
    for piece in (await dictated.answer("lamb"))[0]:
        shown += piece.text
        assert not shown.endswith(("l", "la", "lam"))
    assert shown == "a lamp, a "


async def test_a_stop_text_ends_generation_at_once_even_with_rare_updates(
    tiny_decoder: Path, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_decoder, Limits(update_seconds=5))
    dictated = Dictated(engine, "the water turned to silver " * 20, monkeypatch)
    await dictated.answer("turned")
    assert dictated.batch.cancelled
    # The tokens up to the stop text, and two that were in flight.
    assert dictated.batch.given <= len(engine._tokenizer("the water turned")["input_ids"]) + 2


@EVERY_KIND
async def test_a_stop_text_frees_the_batch(
    kind: str, engine_of: EngineOf, request: pytest.FixtureRequest
) -> None:
    engine = engine_of(request.getfixturevalue(kind))
    whole = await answer(engine, "The whale", LONG)
    stop = whole[len(whole) // 3 :][:6]
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    plain(engine).model.register_forward_hook(count)
    options = LONG.model_copy(update={"stop": (stop,)})
    *pieces, end = [each async for each in engine.stream(user("The whale"), options)]
    written = [piece for piece in pieces if isinstance(piece, Piece)]
    assert "".join(piece.text for piece in written) == whole[: whole.index(stop)]
    assert isinstance(end, End)
    assert end.reason == "stop"
    when_ended = steps
    await asyncio.sleep(0.5)
    assert steps - when_ended <= 2
    assert steps < LONG.max_new_tokens


async def test_tokens_that_cannot_be_decoded_end_the_answer(
    tiny_decoder: Path, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise ValueError("no such token")

    monkeypatch.setattr(AnswerText, "read", fail)
    with pytest.raises(GenerationError, match="no such token"):
        await asyncio.wait_for(answer(engine_of(tiny_decoder), "The whale"), timeout=60)


@EVERY_KIND
async def test_the_end_has_a_finish_reason_and_the_prompt_length(
    kind: str, engine_of: EngineOf, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(kind)
    engine = engine_of(directory)
    prompt = AutoTokenizer.from_pretrained(directory)("The whale")["input_ids"]
    assert await end_of(engine) == End("length", len(prompt))
    # Every token ends the text once the minimum is reached.
    engine._end = frozenset(range(len(engine._tokenizer)))
    assert (await end_of(engine)).reason == "stop"


@EVERY_KIND
async def test_a_seed_gives_the_same_text_alone_and_beside_others(
    kind: str, engine_of: EngineOf, request: pytest.FixtureRequest
) -> None:
    engine = engine_of(request.getfixturevalue(kind), temperature=2)
    seeded = GenerationOptions(min_new_tokens=40, max_new_tokens=40, seed=7)
    others = [seeded.model_copy(update={"seed": seed}) for seed in (None, None, 8, -(2**63))]
    alone = await answer(engine, "The whale", seeded)
    beside, *rest = await asyncio.gather(
        *(answer(engine, "The whale", options) for options in [seeded, *others])
    )
    assert beside == alone
    assert len({alone, *rest}) == 5


async def test_a_seeded_request_writes_the_same_text_after_it_is_evicted(
    tiny_decoder: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(
        tiny_decoder, Limits(update_seconds=0, cache_tokens=96), temperature=2, top_k=50
    )
    seeded = GenerationOptions(min_new_tokens=60, max_new_tokens=60, seed=7)
    alone = await answer(engine, "The whale", seeded)
    together = await asyncio.gather(*(answer(engine, "The whale", seeded) for _ in range(3)))
    assert together == [alone] * 3


@EVERY_KIND
async def test_a_token_is_drawn_from_the_top_k(
    kind: str, engine_of: EngineOf, request: pytest.FixtureRequest
) -> None:
    engine = engine_of(request.getfixturevalue(kind), temperature=2, top_k=1)
    options = GREEDY.model_copy(update={"temperature": None})
    assert await answer(engine, "The whale", options) == await answer(engine, "The whale")
    wild = options.model_copy(update={"top_k": 50})
    assert len({await answer(engine, "The whale", wild) for _ in range(4)}) > 1


async def test_a_model_without_a_chat_template_can_continue_an_answer(
    tiny_decoder: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(tiny_decoder, prompt="Q: {prompt} A:")
    messages = [Message("user", "The whale"), Message("assistant", " A lamp")]
    texts = [piece.text for piece in await pieces_of(engine.stream(messages, GREEDY))]
    expected = generated(tiny_decoder, "Q: The whale A: A lamp", decoder=True)
    assert "".join(texts) == expected


async def test_an_encoder_decoder_cannot_continue_an_answer(
    tiny_encoder_decoder: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(tiny_encoder_decoder)
    messages = [Message("user", "The whale"), Message("assistant", "A lamp")]
    with pytest.raises(PromptError, match="tiny cannot continue an answer"):
        await anext(engine.stream(messages, GREEDY))


def test_settings_that_the_tokenizer_does_not_support_are_refused_at_load(
    tiny_decoder: Path, engine_of: EngineOf
) -> None:
    with pytest.raises(ModelError, match="has no chat template, which `system` needs") as error:
        engine_of(tiny_decoder, system="Be kind.")
    assert "cannot be loaded" not in str(error.value)


async def test_pieces_that_arrive_in_quick_succession_are_merged(
    tiny_decoder: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(tiny_decoder, Limits(update_seconds=5))
    pieces = await pieces_of(engine.stream(user("The whale"), LONG))
    assert len(pieces) <= 3


@EVERY_KIND
async def test_the_sampling_settings_apply_unless_the_request_overrides_them(
    kind: str, engine_of: EngineOf, request: pytest.FixtureRequest
) -> None:
    engine = engine_of(request.getfixturevalue(kind), temperature=2)
    own = await asyncio.gather(
        *(answer(engine, "The whale", GenerationOptions()) for _ in range(4))
    )
    greedy = await asyncio.gather(*(answer(engine, "The whale") for _ in range(4)))
    assert len(set(own)) > 1
    assert len(set(greedy)) == 1


async def test_a_cache_with_room_for_one_request_serves_requests_in_turn(
    tiny_decoder: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(tiny_decoder, Limits(update_seconds=0, cache_tokens=64))
    options = GREEDY.model_copy(update={"min_new_tokens": 40, "max_new_tokens": 40})
    alone = await answer(engine, "The whale", options)
    together = await asyncio.gather(*(answer(engine, "The whale", options) for _ in range(4)))
    assert together == [alone] * 4


@pytest.mark.parametrize("cache_tokens", [128, 160, 256])
async def test_requests_that_outgrow_the_cache_wait_and_resume_where_they_stopped(
    tiny_decoder: Path, engine_of: EngineOf, cache_tokens: int
) -> None:
    engine = engine_of(tiny_decoder, Limits(update_seconds=0, cache_tokens=cache_tokens))
    # Sampling: a restarted request must know which token it has reached.
    options = GenerationOptions(temperature=1, seed=7, min_new_tokens=45, max_new_tokens=45)
    prompts = [f"The whale {number}" for number in range(8)]
    alone = [await answer(engine, prompt, options) for prompt in prompts]
    together = await asyncio.gather(*(answer(engine, prompt, options) for prompt in prompts))
    assert together == alone
    engine.check_health()


async def test_a_prompt_longer_than_the_context_is_refused(
    tiny_decoder: Path, engine_of: EngineOf
) -> None:
    with pytest.raises(PromptError, match=r"too long for tiny: .* has room for only 244\. "):
        await answer(engine_of(tiny_decoder), "whale " * 300)


async def test_a_model_with_learned_positions_stops_at_the_last_one(
    tmp_path: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(save_tiny_bart(tmp_path))
    longest = GREEDY.model_copy(update={"min_new_tokens": 64, "max_new_tokens": 64})
    assert await answer(engine, "The whale", longest)
    with pytest.raises(PromptError, match="tiny can write at most 64 tokens"):
        await answer(engine, "The whale", LONG)


async def test_requests_over_the_limit_are_refused(tiny_decoder: Path, engine_of: EngineOf) -> None:
    engine = engine_of(tiny_decoder, Limits(running_requests=1, waiting_requests=1))
    first, second = engine.stream(user("The whale"), LONG), engine.stream(user("A lamp"), LONG)
    await anext(first)
    waiting = asyncio.create_task(anext(second))
    await asyncio.sleep(0)
    with pytest.raises(BusyError, match="Try again"):
        await answer(engine, "One more")
    await first.aclose()
    assert await waiting
    await second.aclose()
    assert await answer(engine, "Again")


@EVERY_KIND
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_failed_generation_ends_its_streams_and_fails_the_health_check(
    kind: str, engine_of: EngineOf, request: pytest.FixtureRequest
) -> None:
    engine = engine_of(request.getfixturevalue(kind))
    engine.check_health()

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    plain(engine).model.register_forward_pre_hook(fail)
    with pytest.raises(GenerationError, match="out of memory"):
        await asyncio.wait_for(answer(engine, "The whale"), timeout=60)
    await asyncio.sleep(0.2)
    with pytest.raises(GenerationError):
        engine.check_health()
    with pytest.raises(GenerationError):
        await asyncio.wait_for(answer(engine, "The whale"), timeout=60)


def test_damaged_weights_are_reported_in_one_line(
    tiny_decoder: Path, tmp_path: Path, engine_of: EngineOf
) -> None:
    for file in tiny_decoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError) as error:
        engine_of(tmp_path)
    assert str(error.value).startswith("Model 'tiny': ")
    assert "\n" not in str(error.value)
