"""Runs one engine in a separate process, with the Python of its environment.

Each input line is a number of requests. The process sends them at once, and prints the seconds
that all of them took.
"""

import asyncio
import importlib
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROMPT = os.environ["BENCHMARK_PROMPT"]
NEW_TOKENS = int(os.environ["BENCHMARK_NEW_TOKENS"])
THREADS = int(os.environ["OMP_NUM_THREADS"])
TEMPERATURE, TOP_P, TOP_K = 0.7, 0.9, 50
MOST_REQUESTS = 32
CONTEXT = 512

Ask = Callable[[list[str]], None]


def ours(model: Path) -> Ask:
    package = os.environ["BENCHMARK_PACKAGE"]
    engine_module, settings, protocol = (
        importlib.import_module(f"{package}.serving.{name}")
        for name in ("engine.engine", "engine.settings", "protocol")
    )
    engine = engine_module.Engine(
        settings.EngineSettings(
            name="alone",
            source=str(model),
            dtype=os.environ["BENCHMARK_DTYPE"],
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=TOP_K,
        ),
        settings.ModelLimits(running_requests=MOST_REQUESTS),
    )
    options = protocol.GenerationOptions(min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)

    async def answer(prompt: str) -> None:
        async for _ in engine.stream([protocol.Message("user", prompt)], options):
            pass

    async def answer_all(prompts: list[str]) -> None:
        await asyncio.gather(*map(answer, prompts))

    return lambda prompts: asyncio.run(answer_all(prompts))


def openvino_genai(model: Path) -> Ask:
    genai = importlib.import_module("openvino_genai")
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.max_num_seqs = MOST_REQUESTS
    pipeline = genai.LLMPipeline(
        str(model),
        "CPU",
        scheduler_config=scheduler,
        INFERENCE_NUM_THREADS=THREADS,
        ENABLE_CPU_PINNING=False,
    )
    config = genai.GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=TOP_K,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        ignore_eos=True,
    )
    return lambda prompts: pipeline.generate(prompts, config)


def llama_cpp(model: Path) -> Ask:
    xllamacpp = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_parallel = MOST_REQUESTS
    params.n_ctx = MOST_REQUESTS * CONTEXT
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.verbosity = -1
    server = xllamacpp.Server(params)
    pool = ThreadPoolExecutor(MOST_REQUESTS)

    def answer(prompt: str) -> None:
        answered = server.handle_chat_completions(
            {
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": NEW_TOKENS,
                "temperature": TEMPERATURE,
                "top_p": TOP_P,
                "top_k": TOP_K,
                "ignore_eos": True,
            }
        )
        tokens = answered["usage"]["completion_tokens"]
        if tokens != NEW_TOKENS:
            raise ValueError(f"{tokens} tokens instead of {NEW_TOKENS}")

    def answer_all(prompts: list[str]) -> None:
        list(pool.map(answer, prompts))

    return answer_all


def main(contender: str, model: Path) -> None:
    ask = {"ours": ours, "openvino_genai": openvino_genai, "llama_cpp": llama_cpp}[contender](model)
    ask([PROMPT, PROMPT])
    print("ready", flush=True)
    for line in sys.stdin:
        prompts = [f"{PROMPT} ({number})" for number in range(int(line))]
        started = time.perf_counter()
        ask(prompts)
        print("seconds", time.perf_counter() - started, flush=True)
    # Ends the threads of an engine in any state.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
