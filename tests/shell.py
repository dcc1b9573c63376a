"""Reads the commands that a Markdown document shows."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from markdown_it import MarkdownIt

PROGRAMS = {
    *("curl", "docker", "eval", "export", "git", "kubectl", "nox", "pip"),
    *("pytest", "python", "ray", "serve", "sh", "uv", "uvx"),
}
"""An inline code that starts with one of these is a command."""
OPERATORS = {"&&", "||", "|", ";", "&", ""}
"""What ends a command. The empty one is the end of a line."""
SUBSTITUTION = re.compile(r"\$\(([^()]+)\)")
ASSIGNMENT = re.compile(r"([A-Z_a-z][A-Z_a-z0-9]*)=")


@dataclass(frozen=True)
class Command:
    """One program and its arguments, without what the shell does around them."""

    words: list[str]
    variables: dict[str, str] = field(default_factory=dict)
    """Set in front of the program, or with `export`, or alone."""
    writes: str | None = None
    """The file into which the output goes."""


def blocks_in(document: Path) -> list[str]:
    """Returns the commands of each fenced block and of each inline code, as they are written."""
    blocks = []
    for token in MarkdownIt().enable("table").parse(document.read_text("utf-8")):
        if token.type == "fence" and token.info == "sh":
            blocks.append(token.content)
        for child in token.children or ():
            program, *arguments = child.content.split(maxsplit=1)[:2] or [""]
            if child.type == "code_inline" and program in PROGRAMS and arguments:
                blocks.append(child.content)
    return blocks


def commands_of(block: str) -> Iterator[Command]:
    """Yields the commands of a block, what is in its `$(...)` before it. `<name>` is a placeholder.

    Raises:
        ValueError: a quotation does not end.
    """
    block = re.sub(r"(?m)(?:^|(?<=\s))#.*$", "", block).replace("\\\n", " ")
    block = re.sub(r"<(\w+)>", r"\1", block)
    inner = SUBSTITUTION.findall(block)
    numbers = map(str, count())
    block = SUBSTITUTION.sub(lambda _: f"SUBSTITUTION-{next(numbers)}", block)
    lexer = shlex.shlex(block, posix=True, punctuation_chars=";<>|&\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    words: list[str] = []
    for token in [*lexer, "\n"]:
        if token.strip("\n") not in OPERATORS:
            words.append(token)
        elif words:
            for number in re.findall(r"SUBSTITUTION-(\d+)", " ".join(words)):
                yield from commands_of(inner[int(number)])
            yield _command(words)
            words = []


def _command(words: list[str]) -> Command:
    writes = None
    if ">" in words:
        position = words.index(">")
        writes = words[position + 1]
        words = words[:position]
    variables = {}
    while words and (words[0] == "export" or ASSIGNMENT.match(words[0])):
        name, assigned, value = words[0].partition("=")
        if assigned:
            variables[name] = value
        words = words[1:]
    return Command(words, variables, writes)
