"""The project's engine without Serve and Gradio, and `generate` on one padded batch.

Prints the seconds of each run as JSON. Runs with the project's Python.
"""

import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = os.environ["BENCHMARK_MODEL"]
DTYPE = os.environ["BENCHMARK_DTYPE"]
NEW_TOKENS = int(os.environ["BENCHMARK_NEW_TOKENS"])
PROMPT = os.environ["BENCHMARK_PROMPT"]
PACKAGE = os.environ["BENCHMARK_PACKAGE"]


def main(begin: float, requests: int, rounds: int, *, with_generate: bool) -> None:
    serving = importlib.import_module(f"{PACKAGE}.serving")
    engine_module = importlib.import_module(f"{PACKAGE}.serving.engine.engine")
    model = serving.ModelSettings(
        name="alone", source=MODEL, dtype=DTYPE, temperature=0.7, top_p=0.9
    )
    engine = engine_module.Engine(model, serving.Limits())
    options = serving.GenerationOptions(min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)

    async def answer(number: int) -> None:
        asked = [serving.Message("user", f"{PROMPT} ({number})")]
        async for _ in engine.stream(asked, options):
            pass

    async def run() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(answer(number) for number in range(requests)))
        return time.perf_counter() - started

    async def all_rounds() -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {"engine": [], "generate": []}
        generate = padded_generate(requests) if with_generate else None
        await run()
        if generate:
            generate()
        time.sleep(max(0.0, begin - time.time()))
        for _ in range(rounds):
            seconds["engine"].append(await run())
            if generate:
                seconds["generate"].append(generate())
        return seconds

    seconds = asyncio.run(all_rounds())
    engine.stop()
    print(json.dumps(seconds))


def padded_generate(requests: int) -> Callable[[], float]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=getattr(torch, DTYPE)).eval()
    chats = [[{"role": "user", "content": f"{PROMPT} ({number})"}] for number in range(requests)]
    batch = tokenizer.apply_chat_template(
        chats,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        tokenizer_kwargs={"padding_side": "left"},
    )

    def generate() -> float:
        started = time.perf_counter()
        model.generate(
            **batch,
            do_sample=True,
            temperature=0.7,
            top_p=0.9,
            top_k=50,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
        return time.perf_counter() - started

    return generate


if __name__ == "__main__":
    main(
        float(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        with_generate=sys.argv[4] == "with-generate",
    )
