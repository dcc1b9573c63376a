{% from "text.jinja" import python %}
"""What the application serves and within which limits.

A Serve config changes any of it under `args:`, with the same names.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

{% if cookiecutter.models == "bundled" %}
BUNDLED = "bundled:SmolLM2-135M-Instruct"
{% endif %}
DEPLOYMENT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
PAGE_DEPLOYMENT = "GradioServer"
SESSION_LOST = "x-session-lost"
"""Header that the page finds in a request whose session went with a replica that is gone."""
ANSWERS_AT_FULL_PACE = 2
SLOWEST_PACE = 5


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"{path} is not absolute; write it from / on")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Host = Annotated[
    str,
    StringConstraints(pattern=r"^(\*\.)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(:[0-9]{1,5})?$"),
]
Origin = Annotated[str, StringConstraints(pattern=r"^https://[A-Za-z0-9.*-]+(:[0-9]+)?$")]


class Strict(BaseModel):
    """Refuses names it does not know, so that a misspelt argument is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Strict):
    """A model, and how it is asked when a request does not say otherwise."""

    name: Annotated[str, StringConstraints(pattern=DEPLOYMENT_NAME)]
    """Name of its pane and of its deployment."""
{% if cookiecutter.models == "bundled" %}
    source: str = Field(min_length=1)
    """A Hugging Face model id, a local directory, or `BUNDLED`."""
{% else %}
    source: str = Field(min_length=1)
    """A Hugging Face model id or a local directory."""
{% endif %}
    base_url: str | None = Field(default=None, pattern="^https?://")
    """Of a server that speaks OpenAI's protocol; the source then names one of its models."""
    api_key_variable: str = Field(default="OPENAI_API_KEY", min_length=1)
    """Name of the environment variable with the key for that server."""
    revision: str | None = None
    """Branch, tag or commit of a model id; None takes the main branch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Format of the numbers. "auto": on a GPU the one that the weights were saved in, on a
    CPU bfloat16 where it has instructions for it, else float32."""
    prompt: str = "{prompt}"
    """What the model reads; `{prompt}` stands for the user's text."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 always takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Samples from the likeliest tokens that together have this probability."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == PAGE_DEPLOYMENT:
            raise ValueError(f"{PAGE_DEPLOYMENT} is the page's name; name the model differently")
        if "{prompt}" not in self.prompt:
            raise ValueError("prompt must contain {prompt}, where the user's text goes")
        return self


class GenerationOptions(Strict):
    """How one request is answered. None leaves the choice to each model's settings."""

    min_new_tokens: int = Field(default=20, ge=0)
    max_new_tokens: int = Field(default=100, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"at least {self.min_new_tokens} tokens and at most {self.max_new_tokens} "
                "contradict each other; raise the maximum or lower the minimum"
            )
        return self


class Limits(Strict):
    """What one process takes on."""

    prompt_characters: int = Field(default=20_000, ge=1)
    new_tokens: int = Field(default=512, ge=1)
    """The most tokens that a request may ask of a model."""
    running_requests: int = Field(default=32, ge=1)
    """Requests that the page, and each model, work on at the same time."""
    waiting_requests: int = Field(default=200, ge=1)
    """Requests that may wait for their turn, on the page and at a model; one more is refused."""
    cache_tokens: int | None = Field(default=None, ge=64)
    """Tokens, of all running requests, whose keys and values a decoder keeps.

    None sizes it from the model and the free memory.
    """
    update_seconds: float = Field(default=0.1, ge=0, le=5)
    """Pause between two updates of an answer, while few are running."""
    answer_seconds: float = Field(default=600, gt=0)
    """The longest that an answer may take; then its pane says so."""
    request_bytes: int = Field(default=2**20, ge=1024)
    """Size of one HTTP request, and of one file where a page takes files."""

    def pause(self, running: int) -> float:
        """Returns the seconds between two updates of each of that many running answers.

        Text that comes sooner is shown together. Many answers take turns in being updated, so
        that updates do not take the time in which their text is made.
        """
        return self.update_seconds * min(max(running / ANSWERS_AT_FULL_PACE, 1), SLOWEST_PACE)


def default_models() -> tuple[ModelSettings, ...]:
    return (
{% if cookiecutter.models == "bundled" and cookiecutter.task == "text-generation" %}
        ModelSettings(
            name="smollm2-focused",
            source=BUNDLED,
            temperature=0.4,
            top_p=0.9,
        ),
{% if cookiecutter.parallel_models %}
        ModelSettings(
            name="smollm2-lively",
            source=BUNDLED,
            temperature=1.0,
            top_p=0.95,
        ),
{% endif %}
{% elif cookiecutter.models == "bundled" %}
        ModelSettings(
            name="smollm2-focused",
            source=BUNDLED,
            prompt="Summarize this text in one or two sentences:\n\n{prompt}",
            temperature=0.3,
            top_p=0.9,
        ),
{% if cookiecutter.parallel_models %}
        ModelSettings(
            name="smollm2-lively",
            source=BUNDLED,
            prompt="Summarize this text in one or two sentences:\n\n{prompt}",
            temperature=0.9,
            top_p=0.95,
        ),
{% endif %}
{% elif cookiecutter.task == "text-generation" %}
        ModelSettings(
            name="gpt2",
            source="gpt2",
        ),
{% if cookiecutter.parallel_models %}
        ModelSettings(
            name="distilgpt2",
            source="distilgpt2",
        ),
{% endif %}
{% else %}
        ModelSettings(
            name="t5-small",
            source="t5-small",
            prompt="summarize: {prompt}",
            temperature=0.5,
        ),
{% if cookiecutter.parallel_models %}
        ModelSettings(
            name="flan-t5-small",
            source="google/flan-t5-small",
            prompt="summarize: {prompt}",
            temperature=0.5,
        ),
{% endif %}
{% endif %}
    )


class Settings(Strict):
    """The arguments of the application."""

    title: str = {{ python(cookiecutter.project_name) }}
    description: str = {{ python(cookiecutter.description) }}
    models: tuple[ModelSettings, ...] = Field(default_factory=default_models, min_length=1)
    options: GenerationOptions = GenerationOptions()
    """What the page's controls show at first."""
    limits: Limits = Limits()
    login_user: str | None = Field(default=None, min_length=1, pattern="^[^:]+$")
    """Asks everybody for this name, and for the password in the variable `PAGE_PASSWORD`."""
    mcp: bool = False
    """Whether clients of the Model Context Protocol find the page's function at `/mcp`."""
    log_prompts: bool = False
    """Whether the log holds what was asked, beside who answered and how fast."""
    hosts: tuple[Host, ...] = ()
    """Names by which browsers reach the page, of a proxy before it too: `page.example.org`,
    `*.example.org`, with a port where only that one is right. Its addresses and localhost need
    none."""
    embedded_in: tuple[Origin, ...] = ()
    """Sites that show the page in a frame, over HTTPS: `https://wiki.example.org`."""
    allowed_paths: tuple[AbsolutePath, ...] = ()
    """Files and directories that every visitor may read, and the page's functions may return."""
    blocked_paths: tuple[AbsolutePath, ...] = ()
    """Files and directories that no visitor reads, wherever they are."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"each model needs a name of its own, these are: {', '.join(names)}")
        if self.options.max_new_tokens > self.limits.new_tokens:
            raise ValueError(
                f"options.max_new_tokens ({self.options.max_new_tokens}) is over "
                f"limits.new_tokens ({self.limits.new_tokens})"
            )
        return self
