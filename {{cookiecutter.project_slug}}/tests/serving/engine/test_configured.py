"""A model's generation config applies."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from {{ cookiecutter.__package }}.serving.engine.engine import Engine
from {{ cookiecutter.__package }}.serving.protocol import (
    End,
    GenerationOptions,
    Piece,
)

from ...support.stand_ins import user
from ...support.tiny_models import save_tiny
from .conftest import EngineOf, plain
from .test_any_model import KINDS, PROMPTS, generated, generated_tokens

OPTIONS = GenerationOptions(temperature=0, max_new_tokens=24)
DECODERS = ["paged attention", "alibi"]
EVERY_KIND = pytest.mark.parametrize("kind", [*DECODERS, "learned positions"])


def save(kind: str, directory: Path, **said: Any) -> Path:
    """Saves a model with a generation config."""
    model_type, _, fields = KINDS[kind]
    save_tiny(model_type, directory, **fields)
    config = GenerationConfig.from_pretrained(directory)
    config.update(**said)
    config.save_pretrained(directory)
    return directory


async def answer(
    engine: Engine, prompt: str, options: GenerationOptions = OPTIONS
) -> tuple[str, End]:
    *pieces, end = [each async for each in engine.stream(user(prompt), options)]
    assert isinstance(end, End)
    return "".join(piece.text for piece in pieces if isinstance(piece, Piece)), end


@EVERY_KIND
@pytest.mark.parametrize(
    "said",
    [
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": list(range(40, 280))},
        {"begin_suppress_tokens": list(range(20, 280))},
        {"bad_words_ids": [[number] for number in range(100, 280)]},
        {"min_length": 9},
        {"forced_eos_token_id": 0},
        {"forced_bos_token_id": 77},
    ],
    ids=lambda said: next(iter(said)),
)
async def test_an_answer_follows_the_generation_config_as_generate_does(
    kind: str, said: dict[str, Any], tmp_path: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(save(kind, tmp_path, **said))
    texts = await asyncio.gather(*(answer(engine, prompt) for prompt in PROMPTS))
    expected = [
        generated(tmp_path, prompt, min_new_tokens=None, max_new_tokens=24) for prompt in PROMPTS
    ]
    assert [text for text, _ in texts] == expected


@EVERY_KIND
async def test_a_model_without_generation_rules_runs_none(
    kind: str, tmp_path: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(save(kind, tmp_path))
    assert plain(engine).configured.rules([5], [5], 9) is None


async def test_a_padding_token_among_the_bad_words_is_not_written(
    tmp_path: Path, engine_of: EngineOf
) -> None:
    # Marian models prefer the padding token.
    directory = save("learned positions", tmp_path, bad_words_ids=[[1]])
    engine = engine_of(directory)
    plain(engine).model.final_logits_bias[0, 1] = 1000.0
    text, _ = await answer(engine, "The whale")
    assert text


@EVERY_KIND
async def test_the_end_token_of_the_tokenizer_also_ends_an_answer(
    kind: str, tmp_path: Path, engine_of: EngineOf
) -> None:
    directory = save(kind, tmp_path)
    written = generated_tokens(directory, "The whale")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    # This fine-tuned model ends its turns with a token that appears later in the text.
    last = next(number for number in written[3:] if number not in written[:3])
    tokenizer.add_special_tokens({"eos_token": tokenizer.convert_ids_to_tokens(last)})
    tokenizer.save_pretrained(directory)
    text, end = await answer(engine_of(directory), "The whale")
    assert end.reason == "stop"
    assert text == tokenizer.decode(written[: written.index(last)])


@EVERY_KIND
async def test_the_end_token_of_the_config_also_ends_an_answer(
    kind: str, tmp_path: Path, engine_of: EngineOf
) -> None:
    directory = save(kind, tmp_path)
    ends = list(range(20, 280))
    config = AutoConfig.from_pretrained(directory)
    config.eos_token_id = ends
    config.save_pretrained(directory)
    engine = engine_of(directory)
    assert engine._end >= set(ends)
    _, end = await answer(engine, "The whale")
    assert end.reason == "stop"


async def test_the_configured_top_k_applies_unless_a_request_sets_another(
    tmp_path: Path, engine_of: EngineOf
) -> None:
    directory = save("paged attention", tmp_path, top_k=1, do_sample=True)
    own = engine_of(directory, temperature=2)
    options = OPTIONS.model_copy(update={"temperature": None})
    greedy, _ = await answer(own, "The whale")
    assert (await answer(own, "The whale", options))[0] == greedy
    said = engine_of(directory, temperature=2, top_k=50)
    assert (await answer(said, "The whale", options))[0] != greedy


def test_unsupported_generation_settings_are_logged_at_load(
    tmp_path: Path, engine_of: EngineOf, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine_of(save("learned positions", tmp_path, num_beams=4))
    [line] = [message for message in caplog.messages if "is ignored" in message]
    assert line.startswith("tiny: num_beams=4 in the model's generation config is ignored: ")


def test_no_minimum_length_is_set_by_default() -> None:
    assert GenerationOptions().min_new_tokens == 0
