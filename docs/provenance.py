"""What a picture shows, recorded in the picture itself."""

import json
import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

TEMPLATE = Path(__file__).parents[1]
KEYWORD = "Provenance"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHUNK_BYTES = 12
"""What a chunk contains besides its data: a length, a kind and a checksum."""


@dataclass(frozen=True)
class Provenance:
    page: str
    """The kind of page: the answer to `page`."""
    models: Mapping[str, str]
    """The source of each model that answered, by its name."""
    code: str
    """The template's version and commit."""

    def text(self) -> str:
        return json.dumps(asdict(self))


def code() -> str:
    """Returns the version and commit of the files that projects are made from."""
    context = json.loads((TEMPLATE / "cookiecutter.json").read_text("utf-8"))
    made_of = (
        "--",
        "cookiecutter.json",
        "hooks",
        "templates",
        ":(literal){{cookiecutter.project_slug}}",
    )
    commit = git("log", "-1", "--format=%h", "--abbrev=12", *made_of)
    changed = ", changed" if git("status", "--porcelain", *made_of) else ""
    return f"{context['_template_version']}, commit {commit}{changed}"


def git(*arguments: str) -> str:
    command = ("git", *arguments)
    done = subprocess.run(command, cwd=TEMPLATE, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def provenance_of(picture: bytes) -> Provenance | None:
    """Returns what a PNG records about itself, or None if it records nothing."""
    for kind, data in chunks(picture):
        keyword, _, text = data.partition(b"\0")
        if kind == b"tEXt" and keyword == KEYWORD.encode("latin-1"):
            return Provenance(**json.loads(text.decode("latin-1")))
    return None


def chunks(picture: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not picture.startswith(SIGNATURE):
        raise ValueError("This is not a PNG.")
    at = len(SIGNATURE)
    while at < len(picture):
        [length] = struct.unpack_from(">I", picture, at)
        yield picture[at + 4 : at + 8], picture[at + 8 : at + 8 + length]
        at += CHUNK_BYTES + length
