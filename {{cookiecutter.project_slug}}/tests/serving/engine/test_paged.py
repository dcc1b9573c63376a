"""8-bit weights, compared with the plain model with the same weights."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import psutil
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from {{ cookiecutter.__package }}.serving.engine import (
    machine,
    paged,
    runtime,
    saved_graphs,
)
from {{ cookiecutter.__package }}.serving.engine.decoders import (
    DecoderBatch,
)
from {{ cookiecutter.__package }}.serving.engine.engine import Engine
from {{ cookiecutter.__package }}.serving.engine.generation import (
    Processor,
    Request,
)
from {{ cookiecutter.__package }}.serving.engine.graphs import graph_of
from {{ cookiecutter.__package }}.serving.engine.loading import CONTINUOUS
from {{ cookiecutter.__package }}.serving.engine.paged import (
    PagedBatch,
    Pages,
)
from {{ cookiecutter.__package }}.serving.engine.runtime import (
    Decoder,
    Part,
)
from {{ cookiecutter.__package }}.serving.engine.sampling import Sampling
from {{ cookiecutter.__package }}.serving.pages.settings import Limits
from {{ cookiecutter.__package }}.serving.protocol import (
    GenerationError,
    GenerationOptions,
    ModelError,
)

from ...support.stand_ins import pieces_of, user
from ...support.tiny_models import save_tiny
from .conftest import EngineOf, plain

PROMPTS = [
    "The whale",
    "Far out the mist above the water turned to silver, and the keeper climbed the stairs",
    "A lamp",
    "灯台",
    "Before dawn",
    "Side by side in his book",
]
OPTIONS = GenerationOptions(temperature=0, min_new_tokens=12, max_new_tokens=12)
LONG = GenerationOptions(temperature=0, min_new_tokens=200, max_new_tokens=200)
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA_3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0} | {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0} | {
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", LLAMA),
    "Llama 3": ("llama", LLAMA | {"rope_parameters": LLAMA_3}),
    "YaRN": ("llama", LLAMA | {"rope_parameters": YARN}),
    "biases": ("llama", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "one weight for both ends": ("llama", LLAMA | {"tie_word_embeddings": True}),
    "a width of no whole groups": ("llama", LLAMA | {"intermediate_size": 72, "head_dim": 32}),
    "keys of its own for each head": ("llama", LLAMA | {"num_key_value_heads": 4}),
    "Mistral": ("mistral", LLAMA | {"sliding_window": None}),
    "Qwen2": ("qwen2", LLAMA),
    "Qwen3": ("qwen3", LLAMA | {"head_dim": 32}),
}


def compute_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses float32 throughout, so that texts match the plain model exactly."""
    usual = runtime.properties

    def properties() -> dict[str, Any]:
        return usual() | {
            "INFERENCE_PRECISION_HINT": ov.Type.f32,
            "KV_CACHE_PRECISION": ov.Type.f32,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }

    monkeypatch.setattr(runtime, "properties", properties)


class Reference:
    """The plain model with the weights of the graph."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        graph_of(self.model)

    def tokens(self, prompt: Sequence[int], count: int) -> list[int]:
        given = torch.tensor([prompt])
        [tokens] = self.model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
        )
        new: list[int] = tokens[len(prompt) :].tolist()
        return new

    def text(self, prompt: str, count: int = 12) -> str:
        tokens = self.tokens(self.tokenizer(prompt)["input_ids"], count)
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        # An incomplete character at the end is never shown.
        return text.rstrip("\N{REPLACEMENT CHARACTER}")


class Asked(Request):
    """A request that a test can wait for."""

    def __init__(self, prompt: Sequence[int], count: int, seed: int | None = None) -> None:
        drawn = Sampling(1, 1, 50, count, count, seed)
        super().__init__(list(prompt), Sampling(0, 1, 1, count, count) if seed is None else drawn)
        self.failure: str | None = None
        self.arrived = threading.Event()
        self.over = threading.Event()

    def add(self, tokens: list[int], *, ended: bool = False, failure: str | None = None) -> None:
        super().add(tokens)
        self.failure = failure
        self.arrived.set()
        if ended or failure is not None:
            self.over.set()

    def wait(self) -> list[int]:
        assert self.over.wait(60)
        return self.text


@dataclass
class Watched:
    """A batch that records what each step reads."""

    batch: PagedBatch
    reference: Reference
    steps: list[list[Part]] = field(default_factory=list)

    def all(self, requests: Sequence[Asked]) -> list[list[int]]:
        for request in requests:
            self.batch.start(request)
        return [request.wait() for request in requests]

    def idle(self) -> None:
        """Waits until nothing runs; a cancelled request runs until the next step."""
        for _ in range(600):
            if not (self.batch._running or self.batch._waiting or self.batch._arrived):
                return
            threading.Event().wait(0.1)
        raise AssertionError("the batch does not come to rest")


WatchedOf = Callable[..., Watched]


@pytest.fixture
def watched_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedOf]:
    compute_exactly(monkeypatch)
    made: list[Watched] = []

    def make(cache_tokens: int = 1024, running_requests: int = 32) -> Watched:
        directory = save_tiny("llama", tmp_path, **LLAMA)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        decoder = Decoder(graph_of(model))
        batch = PagedBatch(decoder, [], running_requests, cache_tokens)
        watched = Watched(batch, Reference(directory))
        usual = decoder.scores

        def scores(parts: Sequence[Part]) -> NDArray[np.float32]:
            watched.steps.append(
                [Part(list(p.tokens), p.past, list(p.pages), p.is_last) for p in parts]
            )
            return usual(parts)

        decoder.scores = scores  # type: ignore[method-assign]
        made.append(watched)
        return watched

    yield make
    for watched in made:
        watched.batch.stop()


async def answer(
    engine: Engine, prompt: str, options: GenerationOptions = OPTIONS, *, after: float = 0
) -> str:
    await asyncio.sleep(after)
    return "".join(piece.text for piece in await pieces_of(engine.stream(user(prompt), options)))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_model_writes_the_text_of_the_plain_model_with_the_same_weights(
    kind: str,
    tmp_path: Path,
    engine_of: EngineOf,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    compute_exactly(monkeypatch)
    model_type, fields = KINDS[kind]
    save_tiny(model_type, tmp_path, **fields)
    reference = Reference(tmp_path)
    with caplog.at_level(logging.INFO):
        engine = engine_of(tmp_path, dtype="int8")
    assert f"tiny runs {CONTINUOUS}, in int8." in caplog.messages
    expected = {prompt: reference.text(prompt) for prompt in PROMPTS}
    assert len(set(expected.values())) >= 4
    for prompt in PROMPTS[:2]:
        assert await answer(engine, prompt) == expected[prompt]
    # Requests that start together, and later ones in another order.
    for prompts, pause in [(PROMPTS, 0.0), (PROMPTS[::-1], 0.005)]:
        texts = await asyncio.gather(
            *(answer(engine, prompt, after=n * pause) for n, prompt in enumerate(prompts))
        )
        assert dict(zip(prompts, texts, strict=True)) == expected
    engine.check_health()


def test_weights_differ_by_at_most_half_a_quantization_step(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, **LLAMA)
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path) for _ in range(2))
    graph_of(after)
    for name, weights in before.named_parameters():
        apart = (weights - after.get_parameter(name)).abs()
        if weights.ndim == 1:
            assert not apart.any()
            continue
        groups = weights.unflatten(-1, (-1, 64))
        step = (groups.amax(-1) - groups.amin(-1)) / 255
        # The zero point is an integer too.
        assert (apart.unflatten(-1, (-1, 64)).amax(-1) <= 1.01 * step).all()
        assert apart.any()


def test_the_plain_weights_are_freed_after_the_comparison(
    tmp_path: Path, engine_of: EngineOf
) -> None:
    engine = engine_of(save_tiny("llama", tmp_path, **LLAMA), dtype="int8")
    assert sum(weights.numel() for weights in plain(engine).model.parameters()) == 0


def test_the_cache_stores_each_number_in_one_byte(tmp_path: Path, engine_of: EngineOf) -> None:
    engine = engine_of(save_tiny("llama", tmp_path, **LLAMA), dtype="int8")
    assert isinstance(engine._batch, PagedBatch)
    numbers = 2 * 2 * 2 * 16
    # Plus a scale and a zero point for each head and channel.
    assert numbers < engine._batch._decoder.token_bytes <= 2 * numbers


@pytest.mark.parametrize(
    ("model_type", "fields", "reason"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}, "gpt2 is not one of llama, mistral, "),
        ("mistral", LLAMA | {"sliding_window": 8}, "its attention has a sliding window"),
        (
            "qwen2",
            LLAMA | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "its attention has a sliding window",
        ),
        (
            "llama",
            LLAMA | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "its rotary embeddings are of type dynamic",
        ),
        ("llama", LLAMA | {"hidden_act": "gelu"}, "its activation is gelu"),
    ],
)
def test_a_model_without_a_graph_is_refused_with_the_reason(
    model_type: str, fields: dict[str, Any], reason: str, tmp_path: Path, engine_of: EngineOf
) -> None:
    save_tiny(model_type, tmp_path, **fields)
    with pytest.raises(ModelError) as error:
        engine_of(tmp_path, dtype="int8")
    assert f"cannot run in int8: {reason}" in str(error.value)
    assert str(error.value).endswith("Remove `dtype`, or choose another one.")
    assert "\n" not in str(error.value)


async def test_auto_chooses_int8_if_the_model_supports_it(
    tmp_path: Path, engine_of: EngineOf, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        engine = engine_of(save_tiny("llama", tmp_path, **LLAMA), dtype="auto")
    assert isinstance(engine._batch, PagedBatch)
    assert f"tiny runs {CONTINUOUS}, in int8." in caplog.messages
    assert await answer(engine, "The whale")


@pytest.mark.parametrize("why", ["its architecture", "its scores", "its steps", "the runtime"])
async def test_auto_chooses_the_plain_model_if_int8_is_not_possible(
    why: str,
    tmp_path: Path,
    engine_of: EngineOf,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model_type = "llama"
    reason = "its scores differ from those of the plain model"
    if why == "its architecture":
        model_type, reason = "phi", "phi is not one of llama, mistral, qwen2, qwen3"
    elif why == "its scores":
        usual = Decoder.scores
        monkeypatch.setattr(Decoder, "scores", lambda *given: np.flip(usual(*given), 1).copy())
    elif why == "its steps":
        reason = "RuntimeError: the runtime fails"

        def fail_at_a_step(*_: object) -> None:
            raise RuntimeError("the runtime fails")

        monkeypatch.setattr(Decoder, "scores", fail_at_a_step)
    else:
        reason = "the runtime knows no such CPU"

        def fail(_: object) -> None:
            raise RuntimeError(reason)

        monkeypatch.setattr(saved_graphs, "Decoder", fail)
    save_tiny(model_type, tmp_path, **LLAMA)
    with caplog.at_level(logging.INFO):
        engine = engine_of(tmp_path, dtype="auto")
    assert f"tiny cannot run in int8: {reason}" in caplog.messages
    assert "The generation thread failed" not in caplog.messages
    assert f"tiny runs {CONTINUOUS}." in caplog.messages
    assert isinstance(engine._batch, DecoderBatch)
    # The weights are the original ones, not the 8-bit ones.
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=plain(engine).model.dtype)
    for name, weights in saved.named_parameters():
        assert torch.equal(weights, plain(engine).model.get_parameter(name))
    assert await answer(engine, "The whale")


@pytest.mark.parametrize(
    ("together", "reason"),
    [
        (False, "its scores differ from those of the plain model"),
        (True, "depend on which other requests run"),
    ],
)
def test_a_graph_with_different_scores_is_refused(
    together: bool,
    reason: str,
    tmp_path: Path,
    engine_of: EngineOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = Decoder.scores

    def scores(decoder: Decoder, parts: Sequence[Part]) -> NDArray[np.float32]:
        right = usual(decoder, parts)
        return right if together and len(parts) == 1 else np.flip(right, 1).copy()

    monkeypatch.setattr(Decoder, "scores", scores)
    with pytest.raises(ModelError, match=reason):
        engine_of(save_tiny("llama", tmp_path, **LLAMA), dtype="int8")


def test_a_long_prompt_is_read_in_chunks_while_others_write(
    watched_of: WatchedOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "STEP_TOKENS", 48)
    watched = watched_of()
    short, long = [5, 6, 7], [11 + number % 60 for number in range(150)]
    writing = Asked(short, 100)
    watched.batch.start(writing)
    assert writing.arrived.wait(60)
    reading = Asked(long, 5)
    watched.batch.start(reading)
    assert reading.wait() == watched.reference.tokens(long, 5)
    assert writing.wait() == watched.reference.tokens(short, 100)
    assert max(sum(len(part.tokens) for part in step) for step in watched.steps) <= 48
    parts = [step for step in watched.steps if any(len(part.tokens) > 3 for part in step)]
    assert len(parts) == 4
    # It delays no other request.
    assert all(len(step) == 2 for step in parts)


def test_only_the_last_chunk_of_a_long_prompt_is_scored(
    watched_of: WatchedOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged, "STEP_TOKENS", 48)
    watched = watched_of()
    long = [11 + number % 60 for number in range(150)]
    assert watched.all([Asked(long, 5)]) == [watched.reference.tokens(long, 5)]
    lasts = [part.is_last for step in watched.steps for part in step]
    assert lasts == [False, False, False, True, *[True] * 4]


def test_a_graph_that_does_not_compile_is_reported(
    tmp_path: Path, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "properties", lambda: {"NO_SUCH_PROPERTY": 1})
    with pytest.raises(ModelError, match=r"cannot run in int8: .*NO_SUCH_PROPERTY"):
        engine_of(save_tiny("llama", tmp_path, **LLAMA), dtype="int8")


def test_requests_join_and_free_their_pages_within_one_step(
    watched_of: WatchedOf,
) -> None:
    watched = watched_of()
    batch = watched.batch
    long, other = Asked([5, 6, 7], 900), Asked([8, 9], 12)
    batch.start(long)
    assert long.arrived.wait(60)
    batch.start(other)
    assert other.wait() == watched.reference.tokens([8, 9], 12)
    assert not long.over.is_set()
    batch.cancel(long)
    steps = len(watched.steps)
    watched.idle()
    assert len(watched.steps) <= steps + 1
    assert batch._pages.available == batch._pages.count


@pytest.mark.parametrize("seed", [None, 7])
def test_requests_that_run_out_of_pages_wait_and_resume_where_they_stopped(
    seed: int | None, watched_of: WatchedOf
) -> None:
    watched = watched_of(cache_tokens=256)
    prompts = [[10 + number, 20, 30] for number in range(8)]
    alone = [watched.all([Asked(prompt, 90, seed)])[0] for prompt in prompts]
    if seed is None:
        assert alone == [watched.reference.tokens(prompt, 90) for prompt in prompts]
    watched.steps.clear()
    assert watched.all([Asked(prompt, 90, seed) for prompt in prompts]) == alone
    # Some were restarted with the text that they had.
    begun = [part for step in watched.steps for part in step if len(part.tokens) > 3]
    assert begun
    # The oldest is never restarted.
    assert not any(part.tokens[0] == 10 and len(part.tokens) > 3 for part in begun)
    watched.idle()
    assert watched.batch._pages.available == watched.batch._pages.count


def test_no_more_requests_run_than_the_limit_allows(watched_of: WatchedOf) -> None:
    watched = watched_of(running_requests=3)
    prompts = [[10 + number, 20] for number in range(7)]
    texts = watched.all([Asked(prompt, 6) for prompt in prompts])
    assert texts == [watched.reference.tokens(prompt, 6) for prompt in prompts]
    assert max(map(len, watched.steps)) == 3


def test_a_turn_that_shares_a_prefix_reads_only_the_new_tokens(watched_of: WatchedOf) -> None:
    watched = watched_of()
    size = watched.batch._decoder.page_tokens
    first = [7 + number % 90 for number in range(2 * size)]
    [text] = watched.all([Asked(first, 10)])
    watched.steps.clear()
    second = [*first, *text, 5, 6]
    assert watched.all([Asked(second, 10)]) == [watched.reference.tokens(second, 10)]
    assert watched.steps[0][0].past == 2 * size
    assert watched.steps[0][0].tokens == second[2 * size :]


def test_a_fully_cached_prompt_recomputes_only_its_last_page(
    watched_of: WatchedOf,
) -> None:
    watched = watched_of()
    size = watched.batch._decoder.page_tokens
    prompt = [7 + number % 90 for number in range(2 * size)]
    both = watched.all([Asked(prompt, 4)]) + watched.all([Asked(prompt, 4)])
    assert both == [watched.reference.tokens(prompt, 4)] * 2
    begins = [step[0].past for step in watched.steps if len(step[0].tokens) > 1]
    assert begins == [0, size]


def test_a_page_is_reused_only_after_the_same_prefix(watched_of: WatchedOf) -> None:
    watched = watched_of()
    size = watched.batch._decoder.page_tokens
    same, other = ([first + number % 50 for number in range(size + 3)] for first in (7, 8))
    # The last prompt starts like the second and continues like the first.
    prompts = [[90] * size + same, [91] * size + other, [91] * size + same]
    texts = [watched.all([Asked(prompt, 8)])[0] for prompt in prompts]
    assert texts == [watched.reference.tokens(prompt, 8) for prompt in prompts]


def test_a_failure_reaches_all_requests_and_ends_generation(
    watched_of: WatchedOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watched_of(running_requests=1)

    def fail(_: Sequence[Part]) -> NDArray[np.float32]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(watched.batch._decoder, "scores", fail)
    asked = [Asked([5, 6], 10), Asked([7, 8], 10)]
    watched.all(asked)
    assert asked[0].failure == "RuntimeError: out of memory"
    assert asked[1].failure in {asked[0].failure, "the generation thread has ended"}
    assert not watched.batch.is_running()
    late = Asked([5], 1)
    watched.batch.start(late)
    late.wait()
    assert late.failure == "the generation thread has ended"


def test_stopping_ends_running_requests(watched_of: WatchedOf) -> None:
    watched = watched_of()
    request = Asked([5, 6], 900)
    watched.batch.start(request)
    assert request.arrived.wait(60)
    watched.batch.stop()
    request.wait()
    assert request.failure == "the generation was stopped"


async def test_a_request_with_non_finite_scores_fails_alone(
    tmp_path: Path, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(save_tiny("llama", tmp_path, **LLAMA), dtype="int8")
    broken = engine._prompts.encode(user(PROMPTS[0]))

    def rules(prompt: list[int], *_: object) -> Processor | None:
        return (lambda _, scores: scores * torch.nan) if prompt == broken else None

    monkeypatch.setattr(plain(engine).configured, "rules", rules)
    failed, *texts = await asyncio.gather(
        *(answer(engine, prompt) for prompt in PROMPTS), return_exceptions=True
    )
    assert isinstance(failed, GenerationError)
    assert "are not finite" in str(failed)
    assert all(isinstance(text, str) and text for text in texts)
    engine.check_health()


async def test_generation_ends_within_two_tokens_after_its_reader_disconnects(
    tmp_path: Path, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(
        save_tiny("llama", tmp_path, **LLAMA), Limits(update_seconds=0), dtype="int8"
    )
    assert isinstance(engine._batch, PagedBatch)
    decoder = engine._batch._decoder
    usual, steps = decoder.scores, 0

    def count(parts: Sequence[Part]) -> NDArray[np.float32]:
        nonlocal steps
        steps += 1
        return usual(parts)

    monkeypatch.setattr(decoder, "scores", count)
    stream = engine.stream(user("The whale"), LONG)
    await anext(stream)
    await stream.aclose()
    when_left = steps
    await asyncio.sleep(0.5)
    assert steps - when_left <= 2
    assert steps < LONG.max_new_tokens


def test_importing_the_runtime_logs_nothing(tmp_path: Path) -> None:
    (tmp_path / "openvino_telemetry.py").write_text("raise SystemExit('it is told')", "utf-8")
    code = f"import {runtime.__name__}"
    variables = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=variables)


def test_unused_pages_are_evicted_one_at_a_time_oldest_first() -> None:
    pages = Pages(4)
    first, second = (pages.take() for _ in range(2))
    assert first is not None
    assert second is not None
    pages.name(first, b"first")
    pages.name(second, b"second")
    pages.release([first])
    pages.release([second])
    assert pages.available == 4
    # Empty pages are used first.
    taken = [pages.take(), pages.take(), pages.take()]
    assert pages.find(b"first") is None
    assert pages.find(b"second") == second
    assert pages.take() is None
    pages.release([page for page in taken if page is not None])
    assert pages.available == 3


def test_the_end_of_a_text_is_evicted_before_its_start() -> None:
    pages = Pages(2)
    text = [page for _ in range(2) if (page := pages.take()) is not None]
    for page, name in zip(text, (b"begin", b"end"), strict=True):
        pages.name(page, name)
    pages.release(text)
    pages.take()
    assert pages.find(b"end") is None
    assert pages.find(b"begin") == text[0]


def test_a_page_stays_in_use_until_its_last_request_ends() -> None:
    pages = Pages(1)
    page = pages.take()
    assert page is not None
    pages.name(page, b"shared")
    assert pages.find(b"shared") == page
    pages.release([page])
    assert pages.take() is None
    pages.release([page])
    assert pages.take() == page


@pytest.mark.parametrize(
    ("told", "expected"), [("1", 1), ("3", 3), ("4,1", 4), ("", None), (None, None)]
)
def test_a_graph_runs_one_thread_for_each_cpu_of_its_replica(
    told: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    used = runtime.properties()["INFERENCE_NUM_THREADS"]
    assert used == (expected or psutil.cpu_count(logical=False))


@pytest.mark.parametrize(("flags", "precision"), [("avx2 amx_bf16", "bf16"), ("avx2", "f32")])
def test_a_graph_computes_in_16_bits_on_cpus_with_amx(
    flags: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags} sse\n\n")
    monkeypatch.setattr(machine, "CPU", tmp_path / "cpuinfo")
    used = runtime.properties()["INFERENCE_PRECISION_HINT"]
    assert used == getattr(ov.Type, precision)
