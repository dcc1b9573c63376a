"""Writes docs/models.md from the results of the sweep: `nox -s models`."""

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.models.architectures import ENCODER_DECODERS

TEMPLATE = Path(__file__).parents[1]
PAGE = TEMPLATE / "docs" / "models.md"
WRITTEN = "<!-- Written by `nox -s models`. Edit docs/models.py instead. -->"
FASTEST_FIRST = ["in one batch", "in groups that", "in groups of", "one request at a time"]


def page(found: dict[str, Any]) -> Iterator[str]:
    rows = found["rows"]
    yield from ("# Which models run, and how", "", WRITTEN, "")
    yield (
        "Each model is checked before it's ready. A few prompts go through its batch together and "
        "one by one, and through the plain model. The model then runs in the fastest way for which "
        "all three agree. If there is none, the model is refused, and the error names its "
        "architecture and the reason. The log says how a model runs, and why it doesn't run faster."
    )
    yield ""
    yield (
        "The table shows how tiny models with random weights ran on transformers "
        f"{found['transformers']}, in float32. For six prompts, each of them writes the same texts "
        "as `generate`: alone, all at once, and one after another."
    )
    yield from ("", "| How it runs | `model_type` |", "| --- | --- |")
    served = sorted((row for row in rows if not row["refused"]), key=_order)
    for how, alike in groupby(served, lambda row: row["how"]):
        yield f"| {how} | {', '.join(_named(row['model_type']) for row in alike)} |"
    refused = [row for row in rows if row["refused"]]
    if refused:
        yield from ("", "These models are refused:", "", "| `model_type` | Why |", "| --- | --- |")
        for row in refused:
            yield f"| {_named(row['model_type'])} | {row['how'].rstrip('.')} |"
    yield from ("", f"{len(served)} of {len(rows)} run. An asterisk (*) marks an encoder-decoder.")


def _order(row: dict[str, str]) -> tuple[int, str]:
    rank = next(n for n, start in enumerate(FASTEST_FIRST) if row["how"].startswith(start))
    return rank, row["model_type"]


def _named(model_type: str) -> str:
    return f"`{model_type}`{'*' if model_type in ENCODER_DECODERS else ''}"


if __name__ == "__main__":
    PAGE.write_text(
        "\n".join(page(json.loads(Path(sys.argv[1]).read_text("utf-8")))) + "\n", "utf-8"
    )
    print(PAGE.relative_to(TEMPLATE))
