"""Builds the docs site: `nox -s site`, or `python -m docs.site.build FOLDER`.

The pages are the documents of the template and of three rendered projects, and a few that only the
site has, in `docs/site/pages`. A broken link fails the build.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from docs.site import reference
from docs.write import render
from tests.answers import TEMPLATE

SITE = Path(__file__).parent
CONTENTS = SITE / "contents.md"
DECISIONS = TEMPLATE / "docs" / "design-decisions.md"

# The first has all documents. The others link to it for the documents that they don't have.
PROJECTS: dict[str, dict[str, str | bool]] = {
    "project": {
        "project_name": "Compare models",
        "description": "The README of a project that compares text models.",
        "deploy": "kubernetes",
        "votes": True,
    },
    "own": {
        "project_name": "Your app on Ray",
        "description": "The README of a project that serves a Gradio app of yours.",
        "page": "own",
    },
    "chat": {
        "project_name": "Chat with models",
        "description": "The README of a project that offers a chat.",
        "page": "chat",
    },
}
DOCUMENTS = {
    "project": ("README", "docs/changing", "docs/operations", "CONTRIBUTING", "SECURITY"),
    "own": ("README", "docs/changing"),
    "chat": ("README",),
}
OF_THE_TEMPLATE = ("README", "CHANGELOG", "CODE_OF_CONDUCT", "CONTRIBUTING", "SECURITY")

LINK = re.compile(
    r'(?P<before>\]\(|(?:src|srcset|href)=")(?P<path>[^)\s#":]*)(?P<anchor>#[^)\s"]*)?(?=[)\s"])'
)


def main() -> None:
    [folder] = sys.argv[1:] or [str(TEMPLATE / "dist" / "site")]
    with tempfile.TemporaryDirectory() as directory:
        pages = Path(directory) / "pages"
        lay_out(pages)
        if wrong := build(pages, Path(folder)):
            sys.exit(wrong)
    print(f"The site is in {folder}: open index.html.")


def build(pages: Path, site: Path) -> str:
    """Builds a site from a folder of pages, and returns what is wrong with it."""
    shutil.rmtree(site, ignore_errors=True)
    with tempfile.TemporaryDirectory() as state:
        options = ("-W", "-n", "-q", "-b", "html", "-c", SITE, "-d", state)
        result = subprocess.run(
            [sys.executable, "-m", "sphinx", *options, pages, site],
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONUTF8": "1", "NO_COLOR": "1"},
            check=False,
        )
    # Files that a document's HTML shows, because Sphinx passes HTML on unchanged.
    if (pages / "extra").exists():
        shutil.copytree(pages / "extra", site, dirs_exist_ok=True)
    return "\n".join([*([result.stderr] if result.returncode else []), *broken_links(site)])


def lay_out(pages: Path) -> None:
    """Writes the site's pages to a folder."""
    with tempfile.TemporaryDirectory() as directory:
        projects = {kind: render(Path(directory), **answers) for kind, answers in PROJECTS.items()}
        documents = {**documents_of_the_template(), **documents_of(projects)}
        places = {path.resolve(): name for name, path in documents.items()}
        for kind in DOCUMENTS:
            for each in DOCUMENTS["project"]:
                # This project shares the document with the first one.
                shared = projects[kind].joinpath(f"{each}.md").resolve()
                places.setdefault(shared, page_of("project", each))
        for name, path in documents.items():
            write(pages, name, led(path.read_text("utf-8"), path, name, places, pages))
        for topic, text in topics():
            write(pages, topic, led(text, DECISIONS, topic, places, pages))
        for name, text in reference.pages(projects).items():
            write(pages, name, text)
        for path in sorted((SITE / "pages").glob("*.md")):
            write(pages, path.name, path.read_text("utf-8"))
    append(pages / "index.md", CONTENTS.read_text("utf-8"))
    append(pages / "benchmarks" / "index.md", toctree("*"))
    append(pages / "why" / "index.md", toctree(*(topic for topic, _ in topics()), hidden=False))


def documents_of_the_template() -> dict[str, Path]:
    """Returns the template's documents by the names of their pages."""
    documents = {page_of("", name): TEMPLATE / f"{name}.md" for name in OF_THE_TEMPLATE}
    for path in (TEMPLATE / "docs").glob("*.md"):
        documents[path.name] = path
    for path in (TEMPLATE / "docs" / "benchmarks").glob("*.md"):
        documents[page_of("benchmarks", path.stem)] = path
    # Its sections are separate pages.
    del documents[DECISIONS.name]
    return {**documents, "why/index.md": DECISIONS}


def documents_of(projects: dict[str, Path]) -> dict[str, Path]:
    return {
        page_of(kind, name): projects[kind] / f"{name}.md"
        for kind, names in DOCUMENTS.items()
        for name in names
    }


def page_of(folder: str, document: str) -> str:
    """Returns the name of a document's page; a README is the first page of its folder."""
    stem = Path(document).stem.lower()
    return (Path(folder) / f"{'index' if stem == 'readme' else stem}.md").as_posix()


def topics() -> Iterator[tuple[str, str]]:
    """Yields each section of the design decisions as a page."""
    for section in sections()[1:]:
        title, _, text = section.partition("\n")
        # The headings move up one level, with the title.
        text = re.sub(r"(?m)^#(#+ )", r"\1", text)
        yield f"why/{re.sub(r'[^a-z]+', '-', title.lower())}.md", f"# {title}\n{text}"


def page_of_decision(anchor: str) -> str | None:
    """Returns the page of the topic with the heading that has this anchor on GitHub."""
    for page, text in topics():
        for heading in re.findall(r"(?m)^#+ (.*)$", text):
            if anchor == "#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-"):
                return page
    return None


def sections() -> list[str]:
    return re.split(r"(?m)^## ", DECISIONS.read_text("utf-8"))


def led(text: str, document: Path, page: str, places: dict[Path, str], pages: Path) -> str:
    """Points a document's links at the site's pages, and copies the files that it shows."""
    if page == "why/index.md":
        text = sections()[0]

    def lead(link: re.Match[str]) -> str:
        before, anchor = link["before"], link["anchor"] or ""
        path = (document.parent / link["path"]).resolve() if link["path"] else document
        place = places.get(path) if link["path"] else None
        if path == DECISIONS and anchor:
            place = page_of_decision(anchor)
        if place:
            return before + Path(os.path.relpath(place, Path(page).parent)).as_posix() + anchor
        if link["path"] and path.is_file():
            # Below the page's own folder, no matter where the file is.
            name = Path(*(part for part in Path(link["path"]).parts if part != "..")).as_posix()
            folders = ("", "extra") if before.endswith('"') else ("",)
            for folder in folders:
                copy = pages / folder / Path(page).parent / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
            return before + name + anchor
        return link[0]

    return LINK.sub(lead, text)


def toctree(*names: str, hidden: bool = True) -> str:
    options = [":glob:", *([":hidden:"] if hidden else [])]
    return "\n".join(["```{toctree}", *options, "", *(Path(name).stem for name in names), "```"])


def write(pages: Path, name: str, text: str) -> None:
    path = pages / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def append(path: Path, text: str) -> None:
    path.write_text(f"{path.read_text('utf-8')}\n{text}\n", "utf-8")


class Links(HTMLParser):
    """The anchors and the links of an HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in {"href", "src", "srcset"} and value:
                self.targets.append(value)


def broken_links(site: Path) -> Iterator[str]:
    """Yields the broken links within a site, which Sphinx does not see in HTML."""
    pages = {path.resolve(): Links(path.read_text("utf-8")) for path in site.rglob("*.html")}
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = pages[path].anchors if path in pages else set()
            if not path.is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                yield f"{page.relative_to(site.resolve())}: {target} leads nowhere"


if __name__ == "__main__":
    main()
