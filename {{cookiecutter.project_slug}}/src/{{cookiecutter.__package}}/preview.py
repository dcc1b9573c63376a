"""The page without Ray, loaded anew when a file of the package is saved, for who changes it.

It has the settings of `settings.py`, not those of a config.
"""

import argparse
import asyncio
import os
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from .answers import Model, Piece
from .guard import guard
from .mount import mount
from .page import CSS, THEME, build_page
from .settings import GenerationOptions, Settings

ENGINE_VARIABLE = "PREVIEW_ENGINE"
WORDS_PER_SECOND = 50
LOAD_ANEW = """<script>
    setInterval(async () => {
        const answer = await fetch("started").catch(() => null)
        if (answer?.ok && await answer.text() !== '"STARTED"') location.reload()
    }, 500)
</script>"""


@dataclass(frozen=True)
class Echo:
    """Answers at once, with the words that it is asked."""

    name: str

    async def stream(self, prompt: str, options: GenerationOptions) -> AsyncGenerator[Piece, None]:
        words = prompt.split() * options.max_new_tokens
        for word in words[: options.max_new_tokens]:
            yield Piece(f"{word} ", 1)
            await asyncio.sleep(1 / WORDS_PER_SECOND)


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.preview", description=__doc__)
    parser.add_argument("--engine", action="store_true", help="with the models of the settings")
    parser.add_argument("--port", type=int, default=7860, help="another than 7860")
    arguments = parser.parse_args()
    # The server is another process, which starts again with each change.
    os.environ[ENGINE_VARIABLE] = "1" if arguments.engine else ""
    print(f"http://127.0.0.1:{arguments.port}/", flush=True)
    uvicorn.run(
        f"{__package__}.preview:web",
        factory=True,
        port=arguments.port,
        reload=True,
        reload_dirs=[str(Path(__file__).parent)],
        timeout_graceful_shutdown=1,
        log_level="warning",
    )


def web() -> FastAPI:
    settings = Settings()
    started = str(time.time())
    app = FastAPI()
    guard(app, settings)
    app.get("/started")(lambda: started)
    page = build_page(settings, load_models(settings))
    mount(
        app,
        page,
        settings,
        theme=THEME,
        css=CSS,
        head=LOAD_ANEW.replace("STARTED", started),
        show_error=True,
    )
    print("The page is up, and follows each change.", flush=True)
    return app


def load_models(settings: Settings) -> Sequence[Model]:
    if not os.environ.get(ENGINE_VARIABLE):
        return [Echo(model.name) for model in settings.models]
    from .engine import Engine
    from .openai_server import OpenAIServer

    return [
        OpenAIServer(model) if model.base_url else Engine(model, settings.limits)
        for model in settings.models
    ]


if __name__ == "__main__":
    main()
