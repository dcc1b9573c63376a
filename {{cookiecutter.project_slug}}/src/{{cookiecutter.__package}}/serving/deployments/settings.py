"""Which models there are, and where each runs."""

from typing import Self

from pydantic import Field, model_validator

from ..engine.settings import EngineSettings, ModelLimits
from ..protocol import PAGE_DEPLOYMENT, Strict


class ModelSettings(EngineSettings):
    """A model: how it is loaded and asked, and where it runs."""

    base_url: str | None = Field(default=None, pattern="^https?://")
    """Of a server that speaks OpenAI's protocol; the source then names one of its models."""
    api_key_variable: str = Field(default="OPENAI_API_KEY", min_length=1)
    """Name of the environment variable with the key for that server."""

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.name == PAGE_DEPLOYMENT:
            raise ValueError(f"{PAGE_DEPLOYMENT} is the page's name; name the model differently")
        return self


class ModelsSettings(Strict):
    """The models that a page asks."""

    models: tuple[ModelSettings, ...]
    limits: ModelLimits = ModelLimits()
    log_prompts: bool = False
    """Whether the log holds what was asked, beside who answered and how fast."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if not self.models:
            raise ValueError("models is empty; name at least one")
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"each model needs a name of its own, these are: {', '.join(names)}")
        return self
