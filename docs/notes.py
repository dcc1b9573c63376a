"""Prints the changelog's entry for a release: `python -m docs.notes v0.2.0`."""

import json
import re
import sys
from pathlib import Path

TEMPLATE = Path(__file__).parents[1]


def notes_of(tag: str, changelog: str, version: str) -> str:
    """Returns the changes of a tagged release, as Markdown.

    Args:
        tag: `v` and the version, such as `v0.2.0`.
        changelog: the text of `CHANGELOG.md`.
        version: the template's version, which every project records.

    Raises:
        ValueError: if the three disagree, or the changelog says nothing about the version.
    """
    if tag != f"v{version}":
        raise ValueError(
            f"the tag is {tag!r}, but the template's version is {version}. Use the tag "
            f"v{version}, or change `_template_version` in cookiecutter.json and the version in "
            "pyproject.toml."
        )
    heading = rf"(?m)^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$"
    found = re.split(heading, changelog)
    if len(found) != 2:
        raise ValueError(
            f"CHANGELOG.md has {len(found) - 1} headings for {version}, but needs exactly one. Change "
            f'the heading of the unreleased changes to "## {version} - YEAR-MONTH-DAY".'
        )
    changes = re.split(r"(?m)^## ", found[1])[0].strip()
    if not changes:
        raise ValueError(
            f"CHANGELOG.md lists no changes for {version}. Add them below its heading."
        )
    return changes


def main() -> None:
    [tag] = sys.argv[1:] or [""]
    version: str = json.loads((TEMPLATE / "cookiecutter.json").read_text("utf-8"))[
        "_template_version"
    ]
    try:
        print(notes_of(tag, (TEMPLATE / "CHANGELOG.md").read_text("utf-8"), version))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
