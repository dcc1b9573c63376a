"""What a page of text models shows, and what it takes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from starlette.middleware import Middleware

from ..base import StartError
from ..deployments.settings import ModelsSettings
from ..engine.settings import ModelLimits
from ..http.hosts import is_loopback
from ..http.settings import HttpSettings, Policy, RateLimits, RequestLimits
from ..protocol import GenerationOptions, Model
from ..telemetry.traces import start_traces

ANSWERS = "answers"
"""Which functions of the page take turns: those that answer."""
API_NEEDS_KEYS = "openai_api asks for keys"


class Limits(ModelLimits, RequestLimits):
    """What one process takes on."""

    request_bytes: int = Field(default=2**20, ge=1024)
    prompt_characters: int = Field(default=20_000, ge=1)
    answer_seconds: float = Field(default=600, gt=0)
    """The longest that an answer may take; then its pane says so."""


class TokenLimits(RateLimits):
    """How much each caller may ask for, tokens too: those that are read and those written."""

    tokens_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_day: int | None = Field(default=None, ge=1)


class PageSettings(HttpSettings, ModelsSettings):
    """The arguments of an application whose page asks text models."""

    title: str
    description: str
    options: GenerationOptions = GenerationOptions()
    """What the page's controls show at first."""
    openai_api: bool | Literal["without-keys"] = False
    """Whether programs find the models at `/v1`, by OpenAI's protocol, with a key out of
    `API_KEYS`. `without-keys` asks for none, where the page is reached from its machine alone."""
    content_policy: Policy = (
        "base-uri 'self'; form-action 'self'; img-src 'self' blob: data:; object-src 'none'"
    )
    limits: Limits = Limits()
    rate_limits: TokenLimits | None = None

    @field_validator("options", mode="before")
    @classmethod
    def _complete_options(cls, said: object) -> object:
        """Keeps what the page itself shows, where a config says something else."""
        shown = cls.model_fields["options"].get_default(call_default_factory=True)
        if isinstance(said, Mapping) and isinstance(shown, GenerationOptions):
            return {**shown.model_dump(exclude_unset=True), **said}
        return said

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.options.max_new_tokens > self.limits.new_tokens:
            raise ValueError(
                f"options.max_new_tokens ({self.options.max_new_tokens}) is over "
                f"limits.new_tokens ({self.limits.new_tokens})"
            )
        return self

    @model_validator(mode="after")
    def _check_api(self) -> Self:
        if self.openai_api == "without-keys" and self.asks_login:
            raise ValueError(
                "openai_api: without-keys and a login contradict each other. Set openai_api to "
                "true and name keys in API_KEYS"
            )
        return self

    def counts(self, concurrency_id: str, visibility: object) -> bool:
        """Says that of what the page does, answers count. Those of a pane, the pane asks for."""
        return concurrency_id == ANSWERS and visibility != "private"

    def start_checks(self) -> list[Callable[[], object]]:
        checks = [*HttpSettings.start_checks(self), *ModelsSettings.start_checks(self)]
        if self.openai_api is not True:
            return checks
        # Here, so that the settings alone load no server.
        from ..http.login import read_keys

        return [partial(read_keys, API_NEEDS_KEYS), *checks]

    def check_host(self, host: str) -> None:
        """Looks whether the page may listen there.

        Raises:
            StartError: others would reach what asks for no key.
        """
        if self.openai_api == "without-keys" and not is_loopback(host):
            raise StartError(
                f"openai_api: without-keys is for loopback hosts alone, and host is {host}. Set it "
                "to true and name keys in API_KEYS, or set host to 127.0.0.1."
            )

    def middleware_of(self, models: Sequence[Model]) -> Sequence[Middleware]:
        return [self.api_of(models)] if self.openai_api else []

    def api_of(self, models: Sequence[Model]) -> Middleware:
        """Returns OpenAI's protocol for these models.

        Raises:
            LoginError: it asks for keys, and there are none.
        """
        # Here, so that the settings alone load no server.
        from ..http.login import read_keys
        from ..http.openai_api import OpenAIApi

        start_traces(self.traces)
        keys = None if self.openai_api == "without-keys" else read_keys(API_NEEDS_KEYS)
        return Middleware(OpenAIApi, models=models, settings=self, limits=self.limits, keys=keys)
