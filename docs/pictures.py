"""Takes screenshots of served projects with their real models: `nox -s pictures`.

They are for README and docs. Each records what it shows, as reported by the page and its settings.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import httpx2
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, FilePayload, Locator, Page, expect

from docs.provenance import KEYWORD, Provenance, code
from tests.chromium import chromium
from tests.generated.project import Project, Running, free_port, ray_directory

FOLDER = Path(__file__).with_name("pictures")
START_SECONDS = 600
ANSWER_SECONDS = 120
READ_SECONDS = 30
COLOURS = 256
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
WINDOWS = {"wide": (1024, 400), "phone": (390, 844)}
"""Width and height. A wide picture is as tall as the page, and at least as tall as its window."""
HEIGHT_OF_A_CHAT = 900
"""A conversation takes up half of the window's height."""
SCALE = 1.5
"""Picture pixels per page pixel, so that text is sharp on most screens."""
PROMPT = "Give me three tips for a good night's sleep."
POEM = """\
Half a league, half a league,
Half a league onward,
All in the valley of Death
Rode the six hundred.
"""
ARGS: dict[str, Any] = {"openai_api": "without-keys", "options": {"seed": 8}}
"""The settings of a served project: its models can be listed, and each run shows the same text."""
ENDPOINTS = {"generate": "compare", "chat": "chat", "number_lines": "own"}
"""The kind of page that offers a function under this name."""
SOURCES = """
import json, sys
from {package}.app import Settings
settings = Settings.model_validate_json(sys.argv[1])
print(json.dumps({{model.name: model.source for model in settings.models}}))
"""

Ask = Callable[[Page], None]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    compare, chat, own = (Path(root) for root in sys.argv[1:])
    with chromium() as browser:
        with served(compare, **ARGS) as (url, made_of, _):
            take(browser, url, ask_the_models, made_of)
        with served(chat, **ARGS) as (url, made_of, _):
            take(browser, url, ask_the_models, made_of)
        with served(own) as (url, made_of, _):
            take(browser, url, number_the_lines, made_of)
        asleep = {"min_replicas": 0, "max_replicas": 1}
        with served(compare, **ARGS, deployment=asleep) as (url, made_of, _):
            take_while_models_start(browser, url, made_of)


@contextmanager
def served(root: Path, **args: Any) -> Iterator[tuple[str, Provenance, Running]]:
    """Serves a project on a free port, with these `args` in its config, and stops it.

    Yields the page's URL, its provenance and its process.
    """
    config = yaml.safe_load((root / "config" / "local.yaml").read_text("utf-8"))
    port = config["http_options"]["port"] = free_port()
    config["applications"][0]["args"] |= args
    path = root / "pictures.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    with ray_directory(root.parent / "ray-logs") as ray:
        project = Project(root, root / ".venv", {"RAY_TMPDIR": ray})
        with project.started("python", "-m", project.package, "serve", str(path)) as running:
            running.wait_for(lambda log: "The page is up: h" in log, START_SECONDS)
            url = f"http://127.0.0.1:{port}"
            yield url, made_of(project, url, config["applications"][0]["args"]), running


def made_of(project: Project, url: str, args: Mapping[str, Any]) -> Provenance:
    """Reads a page's kind from the page, and its models from the settings it was served with."""
    with httpx2.Client(base_url=url, timeout=READ_SECONDS) as client:
        offered = client.get("/gradio_api/info").raise_for_status().json()["named_endpoints"]
        [kind] = {ENDPOINTS[name] for each in offered if (name := each.strip("/")) in ENDPOINTS}
        if kind == "own":
            return Provenance(kind, {}, code())
        sources = sources_of(project, args)
        if "openai_api" in args:
            listed = client.get("/v1/models").raise_for_status().json()["data"]
            if sorted(model["id"] for model in listed) != sorted(sources):
                raise RuntimeError(f"The settings have {sources}, and {listed} is served.")
    return Provenance(kind, sources, code())


def sources_of(project: Project, args: Mapping[str, Any]) -> dict[str, str]:
    """Returns each model's source, as the project reads it from the `args` of a config."""
    python = project.environment / "bin" / "python"
    script = SOURCES.format(package=project.package)
    printed = subprocess.run(
        [python, "-c", script, json.dumps(args)],
        cwd=project.root,
        env=project.env(),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    sources: dict[str, str] = json.loads(printed.stdout.splitlines()[-1])
    return sources


def take(browser: Browser, url: str, ask: Ask, made_of: Provenance) -> None:
    for size, scheme, page in windows(browser, url):
        if (size, made_of.page) == ("wide", "chat"):
            width, _ = WINDOWS[size]
            page.set_viewport_size({"width": width, "height": HEIGHT_OF_A_CHAT})
        ask(page)
        keep(page, size, f"{made_of.page}-{size}-{scheme}", made_of)


def take_while_models_start(browser: Browser, url: str, made_of: Provenance) -> None:
    """Opens all windows before asking the models, because they are no longer asleep afterward."""
    opened = list(windows(browser, url))
    for _, _, page in opened:
        page.get_by_label("Prompt").fill(PROMPT)
    for _, _, page in opened:
        page.get_by_label("Prompt").press("Enter")
    for size, scheme, page in opened:
        for state in states(page):
            expect(state).to_contain_text("Starting", timeout=READ_SECONDS * 1000)
        keep(page, size, f"compare-starting-{size}-{scheme}", made_of)


def windows(browser: Browser, url: str) -> Iterator[tuple[str, str, Page]]:
    for size, (width, height) in WINDOWS.items():
        for scheme in SCHEMES:
            page = browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme=scheme,
                device_scale_factor=SCALE,
            )
            page.goto(url)
            yield size, scheme, page


def ask_the_models(page: Page) -> None:
    prompt = page.locator(".prompt textarea")
    prompt.fill(PROMPT)
    prompt.press("Enter")
    for state in states(page):
        expect(state).to_contain_text(re.compile("Done|Cut off"), timeout=ANSWER_SECONDS * 1000)


def states(page: Page) -> list[Locator]:
    """Returns the status line of each pane."""
    found = page.locator("[id^=state-] p")
    expect(found.first).to_be_visible()
    return found.all()


def number_the_lines(page: Page) -> None:
    text: FilePayload = {"name": "poem.txt", "mimeType": "text/plain", "buffer": POEM.encode()}
    page.locator("input[type=file]").first.set_input_files(text)
    expect(page.get_by_text("poem.txt")).to_be_visible()
    page.get_by_role("button", name="Number the lines").click()
    expect(page.get_by_label("Texts")).to_have_value("1 in this session")


def keep(page: Page, size: str, name: str, made_of: Provenance) -> None:
    # On a phone, a chat has scrolled down to its prompt.
    page.evaluate("scrollTo(0, 0)")
    picture = page.screenshot(full_page=size == "wide", caret="hide", animations="disabled")
    page.close()
    save(picture, FOLDER / f"{name}.png", made_of)


def save(picture: bytes, path: Path, made_of: Provenance) -> None:
    """Writes a PNG that records what it shows. With a palette, it is a third as large."""
    image = Image.open(BytesIO(picture)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    said = PngInfo()
    said.add_text(KEYWORD, made_of.text())
    image.save(path, optimize=True, pnginfo=said)
    print(path)


if __name__ == "__main__":
    main()
