"""The docs agree with their sources."""

import re
from pathlib import Path

import pytest

from docs.provenance import Provenance, provenance_of
from docs.write import pages

from .answers import CHOICES, QUESTIONS, TEMPLATE
from .models.architectures import DECODERS, ENCODER_DECODERS, THIRTY

# The pages that only the site has link to other pages of the site, and its build checks the links.
MARKDOWN = [
    *TEMPLATE.glob("*.md"),
    *(path for path in TEMPLATE.glob("docs/**/*.md") if "site" not in path.parts),
]
PROJECT = "{{cookiecutter.project_slug}}"
PICTURES = TEMPLATE / "docs" / "pictures"
DRAWN_FROM_FIGURES = {TEMPLATE / "docs" / "benchmarks" / "tokens.png"}
SERVED_FOR_THE_DASHBOARD = "compare"
MODELS = "src/{{cookiecutter.__package}}/models.bundled.text-generation.parallel.py"
"""The default project's models, which a chat also has."""
PICTURE_BYTES = 200_000


def test_the_generated_pages_are_up_to_date() -> None:
    for path, text in pages().items():
        assert path.read_text("utf-8") == text, "run nox -s docs to update it"


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_question_has_a_reason(question: str) -> None:
    decisions = (TEMPLATE / "docs" / "design-decisions.md").read_text("utf-8")
    reasons = decisions.partition("## Questions")[2].partition("\n## ")[0]

    assert f"`{question}`" in reasons


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_every_link_within_the_repository_leads_to_a_file(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.name)
def test_every_picture_that_a_page_shows_is_there_for_both_color_schemes(path: Path) -> None:
    shown = shown_in(path)

    assert [each.name for each in shown if not each.is_file()] == []
    for light in (each for each in shown if each.name.endswith("-light.png")):
        assert light.with_name(light.name.replace("-light", "-dark")) in shown


def test_readme_shows_each_kind_of_page() -> None:
    kinds = {said.page for each in shown_in(TEMPLATE / "README.md") if (said := read(each))}

    assert kinds == set(CHOICES["page"])


@pytest.mark.parametrize("path", sorted(PICTURES.glob("*.png")), ids=lambda path: path.name)
def test_a_picture_is_of_the_page_that_its_name_says_and_of_its_real_models(path: Path) -> None:
    said = read(path)
    kind = path.name.partition("-")[0].replace("dashboard", SERVED_FOR_THE_DASHBOARD)

    assert said, "`nox -s pictures` and `nox -s dashboard` make them"
    assert said.page == kind
    assert said.models == ({} if kind == "own" else bundled_models())
    assert re.fullmatch(r"\d+\.\d+\.\d+, commit [0-9a-f]{12}(, changed)?", said.code)
    assert path.stat().st_size < PICTURE_BYTES


def test_no_page_shows_a_picture_that_does_not_say_what_it_is_of() -> None:
    shown = {each for path in MARKDOWN for each in shown_in(path)} - DRAWN_FROM_FIGURES

    assert shown == set(PICTURES.glob("*.png"))


def shown_in(page: Path) -> set[Path]:
    found = re.findall(r'(?:src|srcset)="([^"]+)"|!\[[^]]*\]\(([^)]+)\)', page.read_text("utf-8"))
    return {(page.parent / (html or markdown)).resolve() for html, markdown in found}


def read(picture: Path) -> Provenance | None:
    return provenance_of(picture.read_bytes())


def bundled_models() -> dict[str, str]:
    models = (TEMPLATE / PROJECT / MODELS).read_text("utf-8")
    found = re.findall(r'name="([^"]+)".*?source="(bundled:[^"]+)"', models, re.DOTALL)
    assert found
    return dict(found)


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

    named = re.findall(r"`([\w-]+)`", page.partition("| How it runs |")[2])
    assert sorted(named) == sorted(["model_type", *DECODERS, *ENCODER_DECODERS]), "nox -s models"
    assert set(THIRTY) <= set(named)
    assert len(named) > 60
