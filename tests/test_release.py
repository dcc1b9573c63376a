"""The notes of a release, and when it is refused."""

import json
import re
import subprocess
import sys

import pytest

from docs.notes import notes_of

from .answers import TEMPLATE

CHANGELOG = """# Changelog

## 0.2.0 - 2026-12-01

- A page sings.

### What to do

Sing.

## 0.1.0 - 2026-11-25

- The first release.
"""


def test_release_notes_have_only_the_changes_of_their_version() -> None:
    assert notes_of("v0.2.0", CHANGELOG, "0.2.0") == ("- A page sings.\n\n### What to do\n\nSing.")
    assert notes_of("v0.1.0", CHANGELOG, "0.1.0") == "- The first release."


@pytest.mark.parametrize("tag", ["0.2.0", "v0.2", "v0.2.0.1", "v0.1.0", "main", ""])
def test_a_tag_that_differs_from_the_template_version_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match=r"tag v0\.2\.0, or change"):
        notes_of(tag, CHANGELOG, "0.2.0")


@pytest.mark.parametrize(
    "changelog",
    [
        CHANGELOG.replace("0.2.0 - 2026-12-01", "Unreleased"),
        CHANGELOG.replace(" - 2026-12-01", ""),
        CHANGELOG.replace("0.2.0", "0x2y0"),
        CHANGELOG + CHANGELOG,
    ],
)
def test_a_version_without_exactly_one_heading_is_refused(changelog: str) -> None:
    with pytest.raises(ValueError, match=r"headings for 0\.2\.0"):
        notes_of("v0.2.0", changelog, "0.2.0")


def test_a_version_without_changes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lists no changes for 0\.2\.0"):
        notes_of(
            "v0.2.0",
            CHANGELOG.replace("- A page sings.", "").replace("### What to do\n\nSing.", ""),
            "0.2.0",
        )


def test_every_release_in_the_changelog_has_notes() -> None:
    changelog = (TEMPLATE / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"(?m)^## (\d+\.\d+\.\d+) - ", changelog)

    assert versions
    for version in versions:
        assert notes_of(f"v{version}", changelog, version)


def test_the_command_names_versions_that_do_not_match() -> None:
    version = json.loads((TEMPLATE / "cookiecutter.json").read_text("utf-8"))["_template_version"]

    refused = subprocess.run(
        [sys.executable, "-m", "docs.notes", "v0.0.0"],
        cwd=TEMPLATE,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert refused.returncode == 1
    assert refused.stderr.startswith(
        f"error: the tag is 'v0.0.0', but the template's version is {version}."
    )
