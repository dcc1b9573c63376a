"""The docs site holds together, and says what the code says."""

import re
from pathlib import Path

import pytest
import yaml

from docs.site.build import DECISIONS, PROJECTS, broken_links, build, lay_out, led, topics
from docs.site.declared import Code
from docs.site.reference import metrics, setting

from .answers import CHOICES, QUESTIONS, TEMPLATE
from .conftest import Render

SECTIONS = (
    "Start",
    "Bring your app",
    "Change a model",
    "Chat",
    "Deploy",
    "Operate",
    "Update",
    "Design decisions",
    "Benchmarks",
)
THIN = sorted((TEMPLATE / "docs" / "site" / "pages").glob("*.md"))
BROKEN = {
    "[gone](index.md#of-mice)": "local id not found in doc 'index': 'of-mice'",
    "[gone](#of-rats)": "cross-reference target not found: 'of-rats'",
    "[gone](cats.md)": "cross-reference target not found: 'cats.md'",
    "![gone](dogs.png)": "image file not readable: dogs.png",
    '<p><img src="cows.png"></p>': "other.html: cows.png leads nowhere",
    '<picture><source srcset="pigs.png"></picture>': "other.html: pigs.png leads nowhere",
    '<p><a href="index.html#of-hens">gone</a></p>': "other.html: index.html#of-hens leads nowhere",
}
SETTINGS = '''
from pydantic import Field, StringConstraints
from .plain import Strict

Host = Annotated[str, StringConstraints(pattern="^[a-z]+$")]
LEAST = 2 ** 4

class Limits(Strict):
    """What one request may hold."""

    size: int = Field(default=10 * 2**20, ge=LEAST, lt=2**30)
    """The size
    in bytes."""

class Settings(Strict):
    hosts: tuple[Host, ...] = ()
    """Names."""
    limits: Limits = Limits()
    claims: dict[str, str] = Field(default_factory=dict)
    name: str | None = None
    text: str

class Ours(Settings):
    hosts: tuple[Host, ...] = ("a", "b")
    name: str = "ours"
'''


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("laid-out") / "pages"
    lay_out(folder)
    return folder


@pytest.fixture(scope="module")
def site(pages: Path) -> Path:
    folder = pages.parent / "site"
    assert build(pages, folder) == ""
    return folder


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The messages about a site with all of `BROKEN`, and a page in no table of contents."""
    folder = tmp_path_factory.mktemp("broken")
    pages = small(folder, "\n\n".join(BROKEN))
    (pages / "lost.md").write_text("# Lost\n", "utf-8")
    return build(pages, folder / "site")


def test_the_site_has_a_section_for_each_question_of_a_reader(site: Path) -> None:
    index = (site / "index.html").read_text("utf-8")

    captions = re.findall(r'class="caption-text">([^<]+)<', index)
    assert tuple(dict.fromkeys(captions))[: len(SECTIONS)] == SECTIONS


def test_every_document_of_the_template_is_on_the_site(pages: Path, site: Path) -> None:
    laid_out = {title_of(path) for path in pages.rglob("*.md")}

    documents = [*TEMPLATE.glob("docs/*.md"), *TEMPLATE.glob("docs/benchmarks/*.md")]
    assert len(documents) > 10
    assert {title_of(path) for path in documents} <= laid_out
    assert {path.with_suffix("") for path in relative(pages, "*.md")} <= {
        path.with_suffix("") for path in relative(site, "*.html")
    }


def test_every_topic_of_the_decisions_is_a_page_of_its_own(site: Path) -> None:
    decisions = (TEMPLATE / "docs" / "design-decisions.md").read_text("utf-8")

    assert len(list(topics())) == len(re.findall(r"(?m)^## ", decisions)) > 3
    for name, _ in topics():
        assert (site / name).with_suffix(".html").is_file(), name


def test_no_page_of_the_site_is_read_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not re.findall(r'(?:src|rel="stylesheet" href)="https?:', path.read_text("utf-8"))


def test_pages_that_hold_together_are_a_site(tmp_path: Path) -> None:
    pages = small(tmp_path, "[whales](#of-whales), and [first](index.md#first)")

    assert build(pages, tmp_path / "site") == ""
    assert (tmp_path / "site" / "other.html").is_file()


@pytest.mark.parametrize("broken", BROKEN)
def test_a_link_or_a_picture_that_is_not_there_fails_the_build(
    broken: str, complaints: str
) -> None:
    assert BROKEN[broken] in complaints


def test_a_page_in_no_table_of_contents_fails_the_build(complaints: str) -> None:
    assert "lost.md: WARNING: document isn't included in any toctree" in complaints


def test_a_document_finds_its_pictures_and_pages_on_the_site(tmp_path: Path) -> None:
    document, other = tmp_path / "docs" / "one.md", tmp_path / "docs" / "deep" / "two.md"
    picture = tmp_path / "pictures" / "whale.png"
    picture.parent.mkdir()
    picture.write_bytes(b"whale")
    pages = tmp_path / "pages"
    places = {document: "one.md", other: "sea/index.md"}

    text = "[two](deep/two.md#of-whales) ![](../pictures/whale.png) [on](https://example.org/a.md)"
    assert led(text, document, "one.md", places, pages) == (
        "[two](sea/index.md#of-whales) ![](pictures/whale.png) [on](https://example.org/a.md)"
    )
    assert (pages / "pictures" / "whale.png").read_bytes() == b"whale"
    text = '<img src="../../pictures/whale.png"> [one](../one.md) [gone](gone.md)'
    assert led(text, other, "sea/index.md", places, pages) == (
        '<img src="pictures/whale.png"> [one](../one.md) [gone](gone.md)'
    )
    assert (pages / "extra" / "sea" / "pictures" / "whale.png").read_bytes() == b"whale"


def test_a_link_to_a_decision_leads_to_the_page_of_its_topic(tmp_path: Path) -> None:
    places = {DECISIONS: "why/index.md"}

    document = TEMPLATE / "docs" / "sizing.md"
    text = "[why](design-decisions.md#questions) [all](design-decisions.md)"
    assert led(text, document, "sizing.md", places, tmp_path) == (
        "[why](why/questions.md#questions) [all](why/index.md)"
    )
    assert led("[why](#questions)", DECISIONS, "why/the-template.md", places, tmp_path) == (
        "[why](questions.md#questions)"
    )
    assert led("[here](#questions)", document, "sizing.md", places, tmp_path) == (
        "[here](#questions)"
    )


def test_links_to_other_sites_are_not_followed(tmp_path: Path) -> None:
    page = '<a href="https://example.invalid/x"></a><a href="#top"></a><p id="top"></p>'
    (tmp_path / "index.html").write_text(page, "utf-8")

    assert list(broken_links(tmp_path)) == []


@pytest.mark.parametrize("path", THIN, ids=lambda path: path.name)
def test_a_page_of_the_site_alone_names_answers_and_sessions_that_there_are(path: Path) -> None:
    text = path.read_text("utf-8")
    sessions = re.findall(r"(?m)^def (\w+)\(", (TEMPLATE / "noxfile.py").read_text("utf-8"))

    for question, answer in re.findall(r"\b(\w+)=(\w+)", text):
        if question in CHOICES:
            assert answer in {"yes", "no", *map(str, CHOICES[question])}, path
    for question in re.findall(r"gradio-ray-template (\w+)=", text):
        assert question in QUESTIONS
    assert set(re.findall(r"nox\S* -s (\w+)", text)) <= set(sessions)
    assert text.count("\n") < 80


def test_settings_are_described_by_their_code(tmp_path: Path) -> None:
    code = package(tmp_path, app="from .serving import Settings", settings=SETTINGS)
    fields = code.fields("app", "Settings")

    described = {name: said_of(code, name) for name in fields}
    assert described == {
        "hosts": '`list[str]`, default `["a", "b"]`. Names.',
        "limits": "It has the settings that follow.",
        "claims": "`dict[str, str]`, default `{}`.",
        "name": '`str`, default `"ours"`.',
        "text": "`str`, required.",
    }
    [size] = code.fields("serving.settings", "Limits").values()
    assert " ".join(" ".join(setting(code, size, "limits.size", {})).split()) == (
        "### `limits.size` `int`, default `10485760`, at least 16, less than 1073741824. "
        "The size in bytes."
    )


def test_metrics_are_described_by_their_code(tmp_path: Path) -> None:
    counted = """
MODEL = ("model",)
SECONDS = [1, 2]
Counter("answers", "Answers that ended.", ("model", "outcome"))
Counter("failures", "Times that it failed.")
Histogram("wait_seconds", "Seconds to wait.", SECONDS, MODEL)
"""
    code = package(tmp_path, metrics=counted)

    assert list(metrics(code)) == [
        ("ray_answers_total", "counter", ("model", "outcome"), "Answers that ended."),
        ("ray_failures_total", "counter", (), "Times that it failed."),
        ("ray_wait_seconds", "histogram", ("model",), "Seconds to wait."),
    ]


def test_the_site_has_every_setting_metric_and_alert(pages: Path, rendered: Render) -> None:
    project = rendered(**PROJECTS["project"])
    settings, counted, alerts = (
        (pages / f"{name}.md").read_text("utf-8") for name in ("settings", "metrics", "alerts")
    )

    for path in project.rglob("serving/**/settings.py"):
        declared = re.findall(r"(?m)^    (\w+): \S.* = ", path.read_text("utf-8"))
        assert declared
        for name in declared:
            assert re.search(rf"(?m)^### `([\w.]+\.)?{name}`$", settings), name
    rules = project / "deploy" / "monitoring" / "alerts.yaml"
    shown = rules.with_name("grafana-dashboard.json").read_text("utf-8")
    used = set(re.findall(r"ray_[a-z_]+", shown + rules.read_text("utf-8")))
    assert len(used) > 20
    for name in used:
        assert f"`{re.sub('_(bucket|count|sum)$', '', name)}`" in counted, name
    groups = yaml.safe_load(rules.read_text("utf-8"))["spec"]["groups"]
    fired = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    assert re.findall(r"(?m)^## `(\w+)`$", alerts) == fired


def package(folder: Path, **modules: str) -> Code:
    """Writes modules below `serving`, and `app` next to it."""
    serving = folder / "package" / "serving"
    serving.mkdir(parents=True)
    (serving / "__init__.pyi").write_text("from .settings import Ours as Settings\n", "utf-8")
    for name, text in modules.items():
        place = serving.parent if name == "app" else serving
        (place / f"{name}.py").write_text(text, "utf-8")
    return Code(serving.parent)


def said_of(code: Code, name: str) -> str:
    fields = code.fields("app", "Settings")
    [_, *lines] = filter(None, setting(code, fields[name], name, {"Limits": "limits"}))
    return " ".join(lines)


def small(folder: Path, text: str) -> Path:
    """Writes two pages, one of them with this text."""
    pages = folder / "pages"
    pages.mkdir()
    (pages / "index.md").write_text("# First\n\n```{toctree}\nother\n```\n", "utf-8")
    (pages / "other.md").write_text(f"# Other\n\n## Of whales\n\n{text}\n", "utf-8")
    return pages


def title_of(document: Path) -> str:
    return document.read_text("utf-8").partition("\n")[0]


def relative(folder: Path, pattern: str) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob(pattern)}
