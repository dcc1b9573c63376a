"""A team brings its own app as in the README, and calls its own deployments as in the docs."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client

from ..conftest import Render
from .project import Project, ray_directory, serve_config

DEMO = """\
import os, sys
import gradio as gr
from PIL import Image

HERE = os.path.dirname(__file__)
greetings = open(os.path.join(HERE, "greetings.txt")).read().splitlines()

def greet(name, seen):
    if name in seen: return "Again!", seen
    return greetings[0] + ", " + name, seen + [name]

def size(path):
    return str(Image.open(path).size)

with gr.Blocks(title="Hello") as demo:
    name, seen, out = gr.Textbox(), gr.State([]), gr.Textbox()
    gr.Button().click(greet, [name, seen], [out, seen], api_name="greet")
    gr.Image(type="filepath").change(size, gr.File(), out, api_name="size")

if __name__ == "__main__":
    demo.launch(theme=gr.themes.Soft())
"""


@pytest.fixture
def project(render: Render, environment: Path, tmp_path: Path) -> Iterator[Project]:
    # If the PyTorch index is a local folder, `uv add` would look for everything there.
    unnamed = " ".join(each for each in os.environ.get("UV_INDEX", "").split() if "=" not in each)
    with ray_directory(tmp_path / "ray-logs") as ray:
        yield Project(render(page="own"), environment, {"RAY_TMPDIR": ray, "UV_INDEX": unnamed})


def code(text: str) -> list[str]:
    """Returns the Python code blocks in a document, including those in lists."""
    found = re.findall(r"^( *)```python\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("package", [False, True], ids=["a file", "a package with data"])
def test_an_app_of_the_team_is_served_and_the_remaining_tests_pass(
    package: bool, project: Project
) -> None:
    source = project.root / "src" / project.package
    readme = (project.root / "README.md").read_text("utf-8")
    [page, *_] = code(readme.partition("## Bring your own app")[2])
    folder = source / "my_app" if package else source
    folder.mkdir(exist_ok=True)
    (folder / ("main.py" if package else "my_demo.py")).write_text(DEMO, "utf-8")
    (folder / "greetings.txt").write_text("Ahoy\n", "utf-8")
    if package:
        assert "from .my_app.main import demo" in readme
        page = page.replace("from .my_demo import demo", "from .my_app.main import demo")
    (source / "page.py").write_text(page, "utf-8")
    remove_the_test_of_the_example(project.root / "tests" / "test_page.py")
    project.run("uv", "add", "--no-sync", "pillow")
    project.run("uv", "sync", "--quiet")
    project.run("uv", "run", "ruff", "check", "--fix", "--exit-zero")
    project.run("uv", "run", "ruff", "format")
    for check in ("ruff check", "ruff format --check", "mypy", "lint-imports", "pytest -q"):
        project.run("uv", "run", *check.split())
    with serve_config(project) as url:
        client = Client(url, verbose=False)
        assert client.predict("Ada", api_name="/greet") == "Ahoy, Ada"
        assert client.predict("Ada", api_name="/greet") == "Again!"


def remove_the_test_of_the_example(path: Path) -> None:
    kept, mark, example = path.read_text("utf-8").partition("\n\n# Tests the example")
    assert mark
    assert example.count("def test_") == 1
    path.write_text(kept, "utf-8")


@pytest.mark.timeout(3600)
def test_the_recipe_in_the_docs_calls_deployments_in_parallel(project: Project) -> None:
    source = project.root / "src" / project.package
    docs = (project.root / "docs" / "changing.md").read_text("utf-8")
    app, page = code(docs.partition("## Deployments of your own")[2])
    (source / "app.py").write_text(app, "utf-8")
    (source / "page.py").write_text(page, "utf-8")
    remove_the_test_of_the_example(project.root / "tests" / "test_page.py")
    project.run("uv", "sync", "--quiet")
    # Removing the example's test leaves unused imports.
    project.run("uv", "run", "ruff", "check", "--fix", "tests")
    project.run("uv", "run", "ruff", "format", "tests")
    for check in ("ruff check", "ruff format --check", "mypy", "lint-imports", "pytest -q"):
        project.run("uv", "run", *check.split())
    with serve_config(project) as url:
        client = Client(url, verbose=False)
        for name in ("/ask", "/ask_plainly"):
            assert client.predict("ahoy", api_name=name) == ("AHOY!", "AHOY!!!")
