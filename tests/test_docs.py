"""The docs agree with their sources."""

import re
from pathlib import Path

import pytest

from docs.write import pages

from .answers import QUESTIONS, TEMPLATE
from .models.architectures import DECODERS, ENCODER_DECODERS, THIRTY

# Links of the pages that only the site has lead to other pages of it, and its build follows them.
MARKDOWN = [
    *TEMPLATE.glob("*.md"),
    *(path for path in TEMPLATE.glob("docs/**/*.md") if "site" not in path.parts),
]


def test_the_generated_pages_are_up_to_date() -> None:
    for path, text in pages().items():
        assert path.read_text("utf-8") == text, "nox -s docs writes it anew"


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_has_a_reason(question: str) -> None:
    decisions = (TEMPLATE / "docs" / "design-decisions.md").read_text("utf-8")
    reasons = decisions.partition("## Questions")[2].partition("\n## ")[0]

    assert f"`{question}`" in reasons


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_every_link_within_the_repository_leads_to_a_file(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


def test_every_path_in_the_contributors_table_exists() -> None:
    page = (TEMPLATE / "CONTRIBUTING.md").read_text("utf-8")
    table = page.partition("## Where to find things")[2].partition("\n## ")[0]

    places = re.findall(r"^\|[^|]+\|([^|]+)\|$", table, re.MULTILINE)
    assert places
    for name in re.findall(r"`([a-z{][\w{}./-]+[./][\w{}/-]*)`", "".join(places)):
        assert (TEMPLATE / name).exists(), name


def test_the_updates_page_names_files_of_a_project() -> None:
    page = (TEMPLATE / "docs" / "updates.md").read_text("utf-8")
    tree = (TEMPLATE / "docs" / "tree.md").read_text("utf-8")

    table = page.partition("## Who owns what")[2].partition("\n## ")[0]
    owned = re.findall(r"`([\w./-]+\.(?:py|md|toml|yaml))`", table)
    assert owned
    files = {Path(name).name for name in owned} - {"uv.lock"}
    assert [name for name in files if f"`{name}`" not in tree] == []


def test_the_models_page_names_each_tested_architecture() -> None:
    page = (TEMPLATE / "docs" / "models.md").read_text("utf-8")

    named = re.findall(r"`([\w-]+)`", page.partition("| Runs |")[2])
    assert sorted(named) == sorted(["model_type", *DECODERS, *ENCODER_DECODERS]), "nox -s models"
    assert set(THIRTY) <= set(named)
    assert len(named) > 60
