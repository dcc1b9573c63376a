"""The settings of a page with text models."""

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
"""The concurrency id of the page's functions that answer."""
API_NEEDS_KEYS = "openai_api requires keys"


class Limits(ModelLimits, RequestLimits):
    """The limits of one process."""

    request_bytes: int = Field(default=2**20, ge=1024)
    prompt_characters: int = Field(default=20_000, ge=1)
    answer_seconds: float = Field(default=600, gt=0)
    """The maximum time for an answer. An answer that takes longer fails, and its pane says so."""


class TokenLimits(RateLimits):
    """Rate limits for each caller, including tokens, both read and written."""

    tokens_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_day: int | None = Field(default=None, ge=1)


class PageSettings(HttpSettings, ModelsSettings):
    """The arguments of an application whose page uses text models."""

    title: str
    description: str
    options: GenerationOptions = GenerationOptions()
    """The initial values of the page's controls."""
    openai_api: bool | Literal["without-keys"] = False
    """Whether to serve the models at `/v1` with an OpenAI-compatible API, for the keys in
    `API_KEYS`. `without-keys` needs no key, and is only allowed on a loopback host."""
    content_policy: Policy = (
        "base-uri 'self'; form-action 'self'; img-src 'self' blob: data:; object-src 'none'"
    )
    limits: Limits = Limits()
    rate_limits: TokenLimits | None = None

    @field_validator("options", mode="before")
    @classmethod
    def _complete_options(cls, said: object) -> object:
        """Merges the options in a config into the page's own."""
        shown = cls.model_fields["options"].get_default(call_default_factory=True)
        if isinstance(said, Mapping) and isinstance(shown, GenerationOptions):
            return {**shown.model_dump(exclude_unset=True), **said}
        return said

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.options.max_new_tokens > self.limits.new_tokens:
            raise ValueError(
                f"options.max_new_tokens ({self.options.max_new_tokens}) is over "
                f"limits.new_tokens ({self.limits.new_tokens}). Lower it, or raise the limit"
            )
        return self

    @model_validator(mode="after")
    def _check_api(self) -> Self:
        if self.openai_api == "without-keys" and self.asks_login:
            raise ValueError(
                "openai_api: without-keys cannot be combined with a login. Set openai_api to true "
                "and list keys in API_KEYS"
            )
        return self

    def counts(self, concurrency_id: str, visibility: object) -> bool:
        """Whether a call counts towards the rate limits: only answers do. Panes count their own."""
        return concurrency_id == ANSWERS and visibility != "private"

    def start_checks(self) -> list[Callable[[], object]]:
        checks = [*HttpSettings.start_checks(self), *ModelsSettings.start_checks(self)]
        if self.openai_api is not True:
            return checks
        # Imported here so that the settings alone do not load a server.
        from ..http.login import read_keys

        return [partial(read_keys, API_NEEDS_KEYS), *checks]

    def check_host(self, host: str) -> None:
        """Checks that the page may listen on this host.

        Raises:
            StartError: other machines would reach an API that needs no key.
        """
        if self.openai_api == "without-keys" and not is_loopback(host):
            raise StartError(
                f"openai_api: without-keys requires a loopback host, but host is {host}. Set "
                "openai_api to true and list keys in API_KEYS, or set host to 127.0.0.1."
            )

    def middleware_of(self, models: Sequence[Model]) -> Sequence[Middleware]:
        return [self.api_of(models)] if self.openai_api else []

    def api_of(self, models: Sequence[Model]) -> Middleware:
        """Returns the OpenAI-compatible API for these models.

        Raises:
            LoginError: the API needs keys, and there are none.
        """
        # Imported here so that the settings alone do not load a server.
        from ..http.login import read_keys
        from ..http.openai_api import OpenAIApi

        start_traces(self.traces)
        keys = None if self.openai_api == "without-keys" else read_keys(API_NEEDS_KEYS)
        return Middleware(OpenAIApi, models=models, settings=self, limits=self.limits, keys=keys)
