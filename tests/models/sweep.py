"""Runs tiny models of many architectures, and compares their texts with those of `generate`.

Runs with a project's Python, in its folder: `nox -s models`, or `nox -s models -- bloom mamba`.
"""

import asyncio
import inspect
import json
import logging
import os
import sys
import tempfile
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PROMPTS = [
    "The whale",
    "Far out the mist above the water turned to silver, and the keeper climbed the stairs",
    "A lamp",
    "灯台",
    "Before dawn",
    "Side by side in his book",
]
NEW_TOKENS = 12
FEWEST_TEXTS = 4
SECONDS = 600
WORKERS = 2


@dataclass
class Row:
    """The result of one architecture."""

    model_type: str
    how: str
    """How it runs, or why it does not."""
    wrong: int = 0
    """Texts that differ from those of `generate`."""
    texts: int = 0
    """Distinct texts among those of `generate`."""
    refused: bool = False

    def fault(self) -> str | None:
        if self.refused:
            return None
        if self.wrong:
            return f"{self.wrong} texts are not those of generate"
        if self.texts < FEWEST_TEXTS:
            return f"its model is too plain: {self.texts} different texts"
        return None


def main() -> int:
    package, target, *chosen = sys.argv[1:]
    sys.path[:0] = [str(Path.cwd()), str(Path(__file__).parent)]
    from architectures import DECODERS, ENCODER_DECODERS

    kinds = chosen or [*DECODERS, *ENCODER_DECODERS]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = []
    with ProcessPoolExecutor(WORKERS, get_context("spawn"), prepare, (sys.path,)) as pool:
        for kind, future in [(kind, pool.submit(swept, package, kind)) for kind in kinds]:
            rows.append(collected(kind, future))
            print(json.dumps(asdict(rows[-1])), flush=True)
    found = {"transformers": version("transformers"), "rows": [asdict(row) for row in rows]}
    Path(target).write_text(json.dumps(found), "utf-8")
    faults = [f"{row.model_type}: {row.fault()}" for row in rows if row.fault()]
    print(*faults, sep="\n")
    return 1 if faults else 0


def prepare(path: list[str]) -> None:
    sys.path[:] = path


def collected(kind: str, future: "Future[Row]") -> Row:
    try:
        return future.result(timeout=SECONDS)
    except Exception as error:
        return Row(kind, (str(error) or repr(error)).splitlines()[0], wrong=len(PROMPTS))


def swept(package: str, model_type: str) -> Row:
    """Creates a model, and compares it with `generate`."""
    import torch
    import transformers
    from architectures import fields

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    save_tiny = import_module("tests.support.tiny_models").save_tiny
    protocol = import_module(f"{package}.serving.protocol")
    config = transformers.CONFIG_MAPPING[model_type]
    accepted = set(inspect.signature(config.__init__).parameters)
    accepted |= set(getattr(config, "__dataclass_fields__", ()))
    with tempfile.TemporaryDirectory() as folder:
        directory = save_tiny(model_type, Path(folder), **fields(model_type, accepted))
        expected = generated(directory)
        heard = Heard()
        try:
            engine = load(package, directory, heard)
        except protocol.ModelError as error:
            reason = str(error).rpartition("served: ")[2].removesuffix(" Choose another model.")
            return Row(model_type, reason, refused=True)
        try:
            got = asyncio.run(asked(engine, protocol))
        finally:
            engine.stop()
    wrong = sum(text != own for texts in got for text, own in zip(texts, expected, strict=True))
    return Row(model_type, heard.how, wrong, len(set(expected)))


class Heard(logging.Handler):
    """Records how an engine reports that its model runs."""

    how = ""

    def emit(self, record: logging.LogRecord) -> None:
        _, runs, how = record.getMessage().partition(" runs ")
        if runs:
            self.how = how.rstrip(".")


def load(package: str, directory: Path, heard: Heard) -> Any:
    module = import_module(f"{package}.serving.engine.engine")
    settings = import_module(f"{package}.serving.engine.settings")
    logger = import_module(f"{package}.serving.telemetry.logs").logger
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    model = settings.EngineSettings(name="tiny", source=str(directory), dtype="float32")
    return module.Engine(model, settings.ModelLimits(update_seconds=0, cache_tokens=4096))


def generated(directory: Path) -> list[str]:
    """Returns the texts of transformers' own `generate`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    encodes = AutoConfig.from_pretrained(directory).is_encoder_decoder
    loader = AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM
    model = loader.from_pretrained(directory, dtype=torch.float32).eval()
    texts = []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
        [written] = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            num_beams=1,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
        new = written[1 if encodes else tokens.shape[1] :]
        # An incomplete character at the end is never shown.
        text = str(tokenizer.decode(new, skip_special_tokens=True))
        texts.append(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    return texts


async def asked(engine: Any, protocol: Any) -> list[list[str]]:
    """Returns the texts of the prompts alone, all at once, and one after another."""
    options = protocol.GenerationOptions(
        temperature=0, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
    )

    async def answer(prompt: str, after: float = 0) -> str:
        await asyncio.sleep(after)
        stream = engine.stream([protocol.Message("user", prompt)], options)
        pieces = [piece async for piece in stream if isinstance(piece, protocol.Piece)]
        return "".join(piece.text for piece in pieces)

    alone = [await answer(prompt) for prompt in PROMPTS]
    at_once = await asyncio.gather(*(answer(prompt) for prompt in PROMPTS))
    later = await asyncio.gather(
        *(answer(prompt, 0.01 * n) for n, prompt in enumerate(reversed(PROMPTS)))
    )
    return [alone, list(at_once), list(reversed(later))]


if __name__ == "__main__":
    sys.exit(main())
