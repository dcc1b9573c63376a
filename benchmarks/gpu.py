"""Measures a project's engine on a GPU, compared with plain transformers.

    python benchmarks/gpu.py PROJECT

Needs PyTorch, transformers and a rendered project, and downloads nothing: the model is created,
with random weights, in the shape of Qwen2.5-1.5B. Writes docs/benchmarks/gpu.md and gpu.json.
`--small` tries it on any machine in two minutes, with a two-layer model, and writes nothing.
"""

import argparse
import asyncio
import gc
import importlib
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

DIRECTORY = Path(__file__).parents[1] / "docs" / "benchmarks"
ENGINE, PADDED, PAGED = (
    "the project's engine",
    "`generate` on a padded batch",
    "transformers' continuous batching",
)
END = "<end>"
START_SECONDS = 300
PAGE_TOKENS = 16
STEP_TOKENS = 4096
GB = 1e9


@dataclass(frozen=True)
class Size:
    """Size of the model and of the requests."""

    layers: int
    width: int
    inner: int
    heads: int
    vocabulary: int
    dtype: str
    requests: Sequence[int]
    prompt_tokens: int
    new_tokens: int
    left_tokens: int
    """Tokens of an answer whose reader disconnects: more than are written before that."""
    rounds: int


FULL = Size(28, 1536, 8960, 12, 151_936, "bfloat16", (1, 8, 32, 128), 128, 128, 512, 3)
SMALL = Size(2, 128, 256, 4, 600, "float32", (1, 4), 16, 16, 1024, 1)


@dataclass(frozen=True)
class Speed:
    contender: str
    requests: int
    tokens_per_second: float
    first_text: float | None
    """Median seconds; None if an answer arrives all at once."""
    memory: float | None
    """Peak GB; None without a GPU."""


@dataclass(frozen=True)
class Report:
    speeds: list[Speed] = field(default_factory=list)
    same_text: int = 0
    """Number of float32 answers that match `generate` exactly."""
    of_texts: int = 0
    left: float = 0
    """Tokens per second of one answer after all others were cancelled, relative to alone."""
    two_models: list[float] = field(default_factory=list)
    """Tokens per second of each of two models that share a device."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("project", type=Path, help="a rendered project with text models")
    parser.add_argument("--small", action="store_true", help="a small model, to try this script")
    parser.add_argument("--beside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.small and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU. Say --small to try the script on a CPU.")
    size = SMALL if options.small else FULL
    if options.small:
        # More threads would wait for each other on a busy machine.
        torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    serving = engine_of(options.project)
    if options.beside:
        print(json.dumps(beside_another(serving, options.beside, size)))
        return
    with tempfile.TemporaryDirectory() as folder:
        say("making the model")
        directory = save_model(Path(folder), size)
        report = measure(serving, directory, size, options)
    print("\n".join(lines_of(report, size)))
    if not options.small:
        write(report, size)
    if report.same_text < report.of_texts:
        sys.exit("The engine's text in float32 is not that of `generate`.")


def measure(serving: "Serving", directory: Path, size: Size, options: argparse.Namespace) -> Report:
    say("comparing texts in float32")
    same, of = same_texts(serving, directory, size)
    speeds: list[Speed] = []
    for name, contender in (
        (ENGINE, engine_speeds),
        (PADDED, padded_speeds),
        (PAGED, paged_speeds),
    ):
        say(name)
        speeds += contender(serving, directory, size)
        release()
    say("leaving")
    left = speed_after_others_left(serving, directory, size)
    release()
    say("two models at the same time")
    return Report(speeds, same, of, left, two_at_once(directory, options))


@dataclass(frozen=True)
class Serving:
    """The parts of the project that are used."""

    engine: ModuleType
    settings: ModuleType
    protocol: ModuleType

    @contextmanager
    def started(self, directory: Path, dtype: str, temperature: float = 1.0) -> Iterator[Any]:
        engine = self.engine.Engine(
            self.settings.EngineSettings(
                name="measured", source=str(directory), dtype=dtype, temperature=temperature
            ),
            self.settings.ModelLimits(running_requests=128),
        )
        try:
            yield engine
        finally:
            engine.stop()


def engine_of(project: Path) -> Serving:
    source = project.resolve() / "src"
    sys.path.insert(0, str(source))
    [package] = [path.name for path in source.iterdir() if path.joinpath("serving").is_dir()]
    return Serving(
        *(
            importlib.import_module(f"{package}.serving.{name}")
            for name in ("engine.engine", "engine.settings", "protocol")
        )
    )


def save_model(directory: Path, size: Size) -> Path:
    tokenizer = tokenizer_of(size.vocabulary)
    end = tokenizer.eos_token_id
    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=max(size.heads // 6, 1),
        max_position_embeddings=4096,
        # With the usual initial size, the model would repeat its prompt.
        initializer_range=1.7 / size.width**0.5,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(getattr(torch, size.dtype)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tokenizer_of(tokens: int) -> PreTrainedTokenizerFast:
    """Reads a text byte by byte; each token that a model may write is a word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [END, *alphabet, *(f"Ġw{number}" for number in range(tokens - len(alphabet) - 1))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, padding_side="left"
    )


def prompts(size: Size, requests: int) -> list[str]:
    """Each starts differently, so that none can reuse cached parts of another."""
    return [
        f"{number:03}".ljust(size.prompt_tokens, "abcdefgh"[number % 8])
        for number in range(requests)
    ]


def same_texts(serving: Serving, directory: Path, size: Size) -> tuple[int, int]:
    texts = prompts(size, 4)
    with serving.started(directory, "float32", temperature=0) as engine:
        answered = asyncio.run(answers(serving, engine, texts, size.new_tokens))
    model, tokenizer = load(directory, "float32")
    same = 0
    for text, answer in zip(texts, answered, strict=True):
        # One at a time: a padded row may differ in its last bits.
        read = tokenizer(text, return_tensors="pt").to(model.device)
        written = model.generate(**read, **lengths(size), do_sample=False)
        expected = tokenizer.decode(written[0, read["input_ids"].shape[1] :])
        # The engine does not show an incomplete character at the end.
        cut = "\N{REPLACEMENT CHARACTER}"
        same += expected.rstrip(cut) == answer.text.rstrip(cut)
    return same, len(texts)


@dataclass(frozen=True)
class Answer:
    text: str
    first: float


async def answers(serving: Serving, engine: Any, texts: Sequence[str], tokens: int) -> list[Answer]:
    started = time.perf_counter()
    options = serving.protocol.GenerationOptions(min_new_tokens=tokens, max_new_tokens=tokens)

    async def answer(text: str) -> Answer:
        said, first = "", 0.0
        async for piece in engine.stream([serving.protocol.Message("user", text)], options):
            first = first or time.perf_counter() - started
            said += getattr(piece, "text", "")
        return Answer(said, first)

    return await asyncio.gather(*map(answer, texts))


def engine_speeds(serving: Serving, directory: Path, size: Size) -> list[Speed]:
    speeds = []
    with serving.started(directory, size.dtype) as engine:
        for requests in size.requests:
            firsts: list[float] = []

            def run(requests: int = requests, firsts: list[float] = firsts) -> None:
                said = asyncio.run(
                    answers(serving, engine, prompts(size, requests), size.new_tokens)
                )
                firsts += [answer.first for answer in said]

            seconds = timed(run, size.rounds)
            speeds.append(speed(ENGINE, requests, seconds, size, statistics.median(firsts)))
    return speeds


def padded_speeds(_: Serving, directory: Path, size: Size) -> list[Speed]:
    model, tokenizer = load(directory, size.dtype)
    speeds = []
    for requests in size.requests:
        read = tokenizer(prompts(size, requests), return_tensors="pt", padding=True)
        read = read.to(model.device)

        def run(read: Any = read) -> None:
            model.generate(**read, **lengths(size), do_sample=True)

        speeds.append(speed(PADDED, requests, timed(run, size.rounds), size, None))
    return speeds


def paged_speeds(_: Serving, directory: Path, size: Size) -> list[Speed]:
    model, tokenizer = load(directory, size.dtype)
    # It does not support a minimum number of tokens.
    config = GenerationConfig(do_sample=True, max_new_tokens=size.new_tokens, eos_token_id=-1)
    pages = -(-(size.prompt_tokens + size.new_tokens) // PAGE_TOKENS) + 1
    speeds = []
    for requests in size.requests:
        read = tokenizer(prompts(size, requests))["input_ids"]
        # By default, its cache fills the device's memory.
        paged = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=pages * requests,
            max_batch_tokens=max(STEP_TOKENS, requests),
        )

        def run(read: list[list[int]] = read, paged: ContinuousBatchingConfig = paged) -> None:
            written = model.generate_batch(read, config, paged)
            tokens = [len(answer.generated_tokens) for answer in written.values()]
            if tokens != [size.new_tokens] * len(read):
                raise ValueError(f"{PAGED} wrote {tokens} tokens, not {size.new_tokens} each.")

        speeds.append(speed(PAGED, requests, timed(run, size.rounds), size, None))
    return speeds


def speed_after_others_left(serving: Serving, directory: Path, size: Size) -> float:
    """Returns the speed of an answer after all others were cancelled, relative to alone."""
    tokens = size.left_tokens

    async def seconds(engine: Any, others: int) -> float:
        options = serving.protocol.GenerationOptions(min_new_tokens=tokens, max_new_tokens=tokens)
        streams = [
            engine.stream([serving.protocol.Message("user", text)], options)
            for text in prompts(size, 1 + others)
        ]
        for stream in streams:
            await anext(stream)
        for stream in streams[1:]:
            await stream.aclose()
        started, told = time.perf_counter(), 0
        async for piece in streams[0]:
            told += getattr(piece, "tokens", 0)
        return (time.perf_counter() - started) / told

    with serving.started(directory, size.dtype) as engine:
        asyncio.run(seconds(engine, 0))
        return asyncio.run(seconds(engine, 0)) / asyncio.run(seconds(engine, size.requests[-1] - 1))


def two_at_once(directory: Path, options: argparse.Namespace) -> list[float]:
    """Runs two processes, like two deployments."""
    command = [sys.executable, __file__, str(options.project), "--beside", str(directory)]
    if options.small:
        command.append("--small")
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for process in both:
            # Both are ready before either starts.
            while process.stdout and "ready" not in process.stdout.readline():
                if process.poll() is not None:
                    raise ChildProcessError(
                        f"one of two engines exited with status {process.returncode}"
                    )
        for process in both:
            if process.stdin:
                process.stdin.write("\n")
                process.stdin.flush()
        said = [process.communicate(timeout=START_SECONDS)[0] for process in both]
        return [float(text.splitlines()[-1]) for text in said]
    finally:
        for process in both:
            process.kill()
            process.wait()


def beside_another(serving: Serving, directory: Path, size: Size) -> float:
    texts = prompts(size, size.requests[-1] // 2)
    with serving.started(directory, size.dtype) as engine:
        asyncio.run(answers(serving, engine, texts, 2))
        print("ready", flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        asyncio.run(answers(serving, engine, texts, size.new_tokens))
        return len(texts) * size.new_tokens / (time.perf_counter() - started)


def load(directory: Path, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), PreTrainedTokenizerFast.from_pretrained(directory)


def lengths(size: Size) -> dict[str, int]:
    return {"min_new_tokens": size.new_tokens, "max_new_tokens": size.new_tokens}


def timed(run: Callable[[], None], rounds: int) -> list[float]:
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return seconds


def speed(
    contender: str, requests: int, seconds: list[float], size: Size, first: float | None
) -> Speed:
    memory = torch.cuda.max_memory_allocated() / GB if torch.cuda.is_available() else None
    tokens = requests * size.new_tokens / statistics.median(seconds)
    found = Speed(contender, requests, tokens, first, memory)
    say(str(found))
    return found


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def lines_of(report: Report, size: Size) -> list[str]:
    shown = {(each.contender, each.requests): each for each in report.speeds}
    rows = []
    for requests in size.requests:
        ours, padded, paged = (shown[name, requests] for name in (ENGINE, PADDED, PAGED))
        rows.append(
            f"| {requests} | {ours.tokens_per_second:.0f} | {padded.tokens_per_second:.0f} "
            f"| {paged.tokens_per_second:.0f} "
            f"| {ours.tokens_per_second / padded.tokens_per_second:.2f} "
            f"| {ours.tokens_per_second / paged.tokens_per_second:.2f} "
            f"| {ours.first_text or 0:.2f} s | {_memory(ours)} | {_memory(padded)} | {_memory(paged)} |"
        )
    return [
        *("# GPU", "", "`python benchmarks/gpu.py PROJECT`", ""),
        f"{machine()}; {date.today()}. Qwen2.5-1.5B's shape, random weights, {size.dtype}; "
        f"{size.prompt_tokens} tokens read and {size.new_tokens} generated per request; "
        f"median of {size.rounds}.",
        "",
        "| requests | engine, tokens/s | `generate`, padded | transformers' continuous batching "
        "| engine / padded | engine / continuous | first text | GB, engine | padded | continuous |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"In float32, {report.same_text} of {report.of_texts} texts are the same as those of "
        f"`generate`. When {size.requests[-1] - 1} of {size.requests[-1]} readers have left, the last "
        f"answer has {report.left:.2f} times its speed alone. Two models in two processes, with "
        f"{size.requests[-1] // 2} requests each: "
        f"{' and '.join(f'{each:.0f}' for each in report.two_models)} tokens/s.",
        "",
    ]


def _memory(speed: Speed) -> str:
    return "" if speed.memory is None else f"{speed.memory:.1f}"


def write(report: Report, size: Size) -> None:
    measured = {"machine": machine(), "date": f"{date.today()}", **asdict(report)}
    (DIRECTORY / "gpu.json").write_text(json.dumps(measured, indent=2) + "\n")
    (DIRECTORY / "gpu.md").write_text("\n".join(lines_of(report, size)))


def machine() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{name}, PyTorch {torch.__version__}, transformers {transformers.__version__}"


def say(text: str) -> None:
    print(f"{time.strftime('%X')}  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
