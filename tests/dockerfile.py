"""Reads Dockerfiles."""

import re
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    name: str
    value: str


def instructions(dockerfile: Path) -> list[Instruction]:
    text = re.sub(r"(?m)^\s*#.*\n", "", dockerfile.read_text("utf-8")).replace("\\\n", " ")
    words = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [Instruction(name.upper(), value.strip()) for name, value in words]


def flags_and_rest(value: str) -> tuple[list[str], str]:
    """Splits `--mount=… --chown=… rest` of a COPY or a RUN."""
    flags = []
    while value.startswith("--"):
        flag, _, value = value.partition(" ")
        flags.append(flag)
        value = value.lstrip()
    return flags, value
