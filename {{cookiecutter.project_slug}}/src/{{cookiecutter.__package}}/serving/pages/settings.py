"""What a page of text models shows, and what it takes."""

from collections.abc import Callable
from typing import Self

from pydantic import Field, model_validator

from ..deployments.settings import ModelsSettings
from ..engine.settings import ModelLimits
from ..http.settings import HttpSettings, Policy, RequestLimits
from ..protocol import GenerationOptions


class Limits(ModelLimits, RequestLimits):
    """What one process takes on."""

    request_bytes: int = Field(default=2**20, ge=1024)
    prompt_characters: int = Field(default=20_000, ge=1)
    answer_seconds: float = Field(default=600, gt=0)
    """The longest that an answer may take; then its pane says so."""


class PageSettings(HttpSettings, ModelsSettings):
    """The arguments of an application whose page asks text models."""

    title: str
    description: str
    options: GenerationOptions = GenerationOptions()
    """What the page's controls show at first."""
    content_policy: Policy = "base-uri 'self'; form-action 'self'; object-src 'none'"
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.options.max_new_tokens > self.limits.new_tokens:
            raise ValueError(
                f"options.max_new_tokens ({self.options.max_new_tokens}) is over "
                f"limits.new_tokens ({self.limits.new_tokens})"
            )
        return self

    def start_checks(self) -> list[Callable[[], object]]:
        return [*HttpSettings.start_checks(self), *ModelsSettings.start_checks(self)]
