import asyncio
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from {{ cookiecutter.__package }}.engine import Engine
from {{ cookiecutter.__package }}.errors import ModelError, PromptError
from {{ cookiecutter.__package }}.settings import GenerationOptions, ModelSettings

GREEDY = GenerationOptions(temperature=0, min_new_tokens=8, max_new_tokens=12)


def engine_of(directory: Path, **settings: object) -> Engine:
    model = ModelSettings.model_validate({"name": "tiny", "source": str(directory), **settings})
    return Engine(model, running_requests=4)


async def answer(engine: Engine, prompt: str, options: GenerationOptions = GREEDY) -> str:
    return "".join([piece async for piece in engine.stream(prompt, options)])


async def test_a_decoder_streams_the_tokens_of_generate(tiny_decoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    model = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    inputs = tokenizer("The whale", return_tensors="pt")
    expected = model.generate(**inputs, do_sample=False, min_new_tokens=8, max_new_tokens=12)
    new = expected[0, inputs["input_ids"].shape[1] :]
    assert await answer(engine_of(tiny_decoder), "The whale") == tokenizer.decode(
        new, skip_special_tokens=True
    )


async def test_an_encoder_decoder_streams_the_tokens_of_generate(
    tiny_encoder_decoder: Path,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder_decoder)
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_encoder_decoder)
    inputs = tokenizer("summarize: The whale", return_tensors="pt")
    expected = model.generate(**inputs, do_sample=False, min_new_tokens=8, max_new_tokens=12)
    engine = engine_of(tiny_encoder_decoder, prompt="summarize: {prompt}")
    assert await answer(engine, "The whale") == tokenizer.decode(
        expected[0, 1:], skip_special_tokens=True
    )


async def test_no_piece_shows_half_a_character(tiny_decoder: Path) -> None:
    engine = engine_of(tiny_decoder)
    whole = await answer(engine, "灯台 🐋", GenerationOptions(temperature=0))
    pieces = [p async for p in engine.stream("灯台 🐋", GenerationOptions(temperature=0))]
    assert len(pieces) > 1
    assert "".join(pieces) == whole


async def test_the_settings_sample_unless_the_request_says_otherwise(tiny_decoder: Path) -> None:
    engine = engine_of(tiny_decoder, temperature=2)
    own = [await answer(engine, "The whale", GenerationOptions()) for _ in range(3)]
    greedy = [await answer(engine, "The whale") for _ in range(3)]
    assert len(set(own)) > 1
    assert len(set(greedy)) == 1


async def test_requests_run_at_the_same_time(tiny_decoder: Path) -> None:
    engine = engine_of(tiny_decoder)
    long = GenerationOptions(temperature=0, min_new_tokens=200, max_new_tokens=200)
    first = engine.stream("The whale", long)
    await anext(first)
    assert await asyncio.wait_for(answer(engine, "The lamp"), timeout=20)
    await first.aclose()


async def test_generation_stops_when_its_reader_leaves(tiny_decoder: Path) -> None:
    engine = engine_of(tiny_decoder)
    endless = GenerationOptions(temperature=0, min_new_tokens=230, max_new_tokens=230)
    started = time.monotonic()
    whole = await answer(engine, "The whale", endless)
    whole_seconds = time.monotonic() - started
    assert whole
    stream = engine.stream("The whale", endless)
    await anext(stream)
    await stream.aclose()
    left = time.monotonic()
    engine._threads.shutdown(wait=True)
    assert time.monotonic() - left < whole_seconds / 2


async def test_a_prompt_longer_than_the_context_is_refused(tiny_decoder: Path) -> None:
    with pytest.raises(PromptError, match=r"too long for tiny: .* it reads at most 244"):
        await answer(engine_of(tiny_decoder), "whale " * 300)


async def test_a_generation_that_fails_ends_its_stream(
    tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_decoder)

    def fail(**_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        await asyncio.wait_for(answer(engine, "The whale"), timeout=20)


def test_damaged_weights_are_named_in_one_line(tiny_decoder: Path, tmp_path: Path) -> None:
    for file in tiny_decoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError) as error:
        engine_of(tmp_path)
    assert str(error.value).startswith("Model 'tiny': ")
    assert "\n" not in str(error.value)
