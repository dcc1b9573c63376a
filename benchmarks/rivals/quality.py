"""Reads a text with one engine, with the Python of its environment.

Prints a line of JSON: after each token but the last, the most likely next token and, if the
engine reports it, the log probability of the actual next token.
"""

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

THREADS = int(os.environ["OMP_NUM_THREADS"])

Read = Callable[[Path, list[int]], Iterable[tuple[int, float | None]]]


def plain(dtype: str) -> Read:
    """Runs the model that transformers loads."""

    def read(model: Path, tokens: list[int]) -> Iterable[tuple[int, float | None]]:
        torch, transformers = (
            importlib.import_module("torch"),
            importlib.import_module("transformers"),
        )
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        with torch.inference_mode():
            [scores] = loaded(torch.tensor([tokens])).logits
        return found(scores.float().numpy(), tokens)

    return read


def ours(model: Path, tokens: list[int]) -> Iterator[tuple[int, float | None]]:
    """Runs the graph as it is served: one token per step, as in generation."""
    package = f"{os.environ['BENCHMARK_PACKAGE']}.serving.engine"
    graphs, runtime = (
        importlib.import_module(f"{package}.{name}") for name in ("graphs", "runtime")
    )
    transformers = importlib.import_module("transformers")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    decoder = runtime.Decoder(graphs.graph_of(loaded))
    pages = list(range(-(-len(tokens) // decoder.page_tokens)))
    decoder.allocate(len(pages))
    for place, (token, following) in enumerate(pairwise(tokens)):
        used = pages[: place // decoder.page_tokens + 1]
        scores = decoder.scores([runtime.Part([token], place, used, is_last=True)])
        yield from found(scores, [token, following])


def openvino_genai(model: Path, tokens: list[int]) -> Iterable[tuple[int, float | None]]:
    """Runs the graph that OpenVINO GenAI builds from the file, directly in the runtime."""
    genai, openvino = importlib.import_module("openvino_genai"), importlib.import_module("openvino")
    numpy = importlib.import_module("numpy")
    with tempfile.TemporaryDirectory() as directory:
        # It saves its graph next to the file.
        beside = Path(directory, model.name)
        beside.symlink_to(model)
        genai.LLMPipeline(str(beside), "CPU", enable_save_ov_model=True)
        compiled = openvino.Core().compile_model(
            str(beside.parent / "openvino_model.xml"), "CPU", {"INFERENCE_NUM_THREADS": THREADS}
        )
    count = len(tokens)
    [scores] = compiled(
        {
            "input_ids": numpy.array([tokens], numpy.int64),
            "attention_mask": numpy.ones((1, count), numpy.int64),
            "position_ids": numpy.arange(count)[None],
            "beam_idx": numpy.zeros(1, numpy.int32),
        }
    )["logits"]
    return found(scores, tokens)


def llama_cpp(model: Path, tokens: list[int]) -> Iterator[tuple[int, float | None]]:
    """Asks for the most likely token of each prefix, and reuses its cache."""
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_parallel = 1
    params.n_ctx = len(tokens) + 256
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.verbosity = -1
    server = xllamacpp.Server(params)
    for count in range(1, len(tokens)):
        answered = server.handle_completions(
            {"prompt": tokens[:count], "max_tokens": 1, "temperature": 0, "logprobs": 1}
        )
        [likeliest] = answered["choices"][0]["logprobs"]["content"]
        yield likeliest["id"], None


def found(scores: Any, tokens: list[int]) -> Iterator[tuple[int, float]]:
    """Takes scores of shape [tokens, vocabulary]."""
    numpy = importlib.import_module("numpy")
    for row, following in zip(scores, tokens[1:], strict=False):
        row = row.astype(numpy.float64)
        most = row.max()
        probability = row[following] - most - numpy.log(numpy.exp(row - most).sum())
        yield int(row.argmax()), float(probability)


READS: dict[str, Read] = {
    "float32": plain("float32"),
    "bfloat16": plain("bfloat16"),
    "ours": ours,
    "openvino_genai": openvino_genai,
    "llama_cpp": llama_cpp,
}


def main(kind: str, model: Path) -> None:
    print("read", json.dumps(list(READS[kind](model, json.load(sys.stdin)))), flush=True)
    # Ends the threads of an engine in any state.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
