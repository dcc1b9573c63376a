"""The settings of the models: which ones there are, and where each runs."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Self

from pydantic import Field, model_validator
from starlette.middleware import Middleware

from ..base import PAGE_DEPLOYMENT, StartError, Strict
from ..engine.settings import EngineSettings, ModelLimits
from ..protocol import Model
from ..telemetry.traces import TracedSettings

SERVES_SCALING = {"min_replicas", "max_replicas", "target_ongoing_requests", "downscale_delay_s"}
SCALING = SERVES_SCALING | {"target_first_text_seconds"}
FIRST_TEXT_POLICY = f"{__package__}.scaling:FirstTextPolicy"
UPSCALE_DELAY_SECONDS = 10
"""How long first texts must be late before a replica is added. Each report is an average."""
REPORT_SECONDS = 1
"""How often Serve hears about requests for a model at zero. Serve's default is 10 seconds."""


class DeploymentSettings(Strict):
    """The replicas of a model and their resources, under Serve's own names.

    `num_replicas` sets a fixed number. With `max_replicas` the number follows the load instead,
    and `min_replicas: 0` lets it fall to zero.
    """

    num_replicas: int = Field(default=1, ge=1)
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int | None = Field(default=None, ge=1)
    target_ongoing_requests: float = Field(default=16, gt=0)
    """Requests for each replica. A replica batches up to `limits.running_requests` of them."""
    target_first_text_seconds: float | None = Field(default=None, gt=0)
    """Also add replicas when first texts take longer than this on average."""
    downscale_delay_s: float = Field(default=600, ge=0)
    """How long the load must be lower before a replica is removed, including the last one."""
    max_surge_percent: int = Field(default=0, ge=0, le=100)
    """How many replicas a new version may start before old ones stop, in percent."""
    num_cpus: float = Field(default=0.5, ge=0)
    """A replica uses one thread per whole CPU, and at least one."""
    num_gpus: float = Field(default=0, ge=0)
    graceful_shutdown_timeout_s: float = Field(default=20, ge=0)
    """How long a stopping replica may take to finish the answers that it has started."""

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        scaling = sorted(SCALING & self.model_fields_set)
        if scaling and "num_replicas" in self.model_fields_set:
            raise ValueError(f"num_replicas and {scaling[0]} cannot be combined. Remove one")
        return self

    def replaced_by(self, other: "DeploymentSettings") -> "DeploymentSettings":
        """Returns these settings, overridden by those that the other one sets."""
        given, own = other.model_dump(exclude_unset=True), self.model_dump(exclude_unset=True)
        if "num_replicas" in given:
            own = {name: value for name, value in own.items() if name not in SCALING}
        elif SCALING & given.keys():
            own.pop("num_replicas", None)
        return DeploymentSettings.model_validate({**own, **given})

    def options(self) -> dict[str, object]:
        """Returns the arguments for Serve's `Deployment.options`."""
        options: dict[str, object] = {
            "graceful_shutdown_timeout_s": self.graceful_shutdown_timeout_s,
            "max_surge_percent": self.max_surge_percent,
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus},
        }
        if self.max_replicas is None:
            return {**options, "num_replicas": self.num_replicas}
        scaling = self.model_dump(include=SERVES_SCALING)
        if self.min_replicas == 0:
            # For a request that finds no replica, a handle immediately reports the numbers that it
            # recorded earlier. The request itself only counts in the next report.
            scaling |= {"metrics_interval_s": REPORT_SECONDS}
        if self.target_first_text_seconds is not None:
            kwargs = {"target_seconds": self.target_first_text_seconds}
            policy = {"policy_function": FIRST_TEXT_POLICY, "policy_kwargs": kwargs}
            scaling |= {"upscale_delay_s": UPSCALE_DELAY_SECONDS, "policy": policy}
        return {**options, "num_replicas": None, "autoscaling_config": scaling}


class ModelSettings(EngineSettings):
    """A model: how it is loaded and prompted, and where it runs."""

    about: str = ""
    """Text under the model's name on the page, such as how it differs from the others."""
    base_url: str | None = Field(default=None, pattern="^https?://")
    """URL of a server with an OpenAI-compatible API. `source` then names one of its models."""
    api_key_variable: str | None = Field(default=None, min_length=1)
    """Name of the environment variable with the server's key, such as `OPENAI_API_KEY`. A server
    of your own may need none."""
    organization_variable: str | None = Field(default=None, min_length=1)
    """Name of the environment variable with the organization to bill, such as `OPENAI_ORG_ID`."""
    deployment: DeploymentSettings | None = None
    """Replicas and resources of this model, where they differ from those of all models."""

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.name == PAGE_DEPLOYMENT:
            raise ValueError(
                f"{PAGE_DEPLOYMENT} is the page's name. Give the model a different name"
            )
        return self

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if self.base_url is not None and self.deployment is not None:
            raise ValueError("base_url and deployment cannot be combined. Remove one")
        return self


class ModelsSettings(TracedSettings):
    """The settings of all models of a page."""

    models: tuple[ModelSettings, ...]
    deployment: DeploymentSettings = DeploymentSettings()
    """Replicas and resources of each model's deployment. A model's own settings override them."""
    limits: ModelLimits = ModelLimits()
    log_prompts: bool = False
    """Whether to log the prompts, in addition to which model answered and how fast."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if not self.models:
            raise ValueError("models is empty. Add at least one model")
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two models have the same name: {', '.join(names)}. Give each a different name"
            )
        return self

    @model_validator(mode="after")
    def _check_deployments(self) -> Self:
        for model in self.models:
            deployment = self.deployment_of(model)
            most, least = deployment.max_replicas, deployment.min_replicas
            if most is None and SCALING & deployment.model_fields_set:
                raise ValueError(
                    f"{model.name}'s deployment sets autoscaling without max_replicas. Set "
                    "max_replicas"
                )
            if most is not None and most < least:
                raise ValueError(
                    f"max_replicas ({most}) is below min_replicas ({least}) in the deployment of "
                    f"{model.name}. Correct one of them"
                )
        return self

    def deployment_of(self, model: ModelSettings) -> DeploymentSettings:
        if model.deployment is None:
            return self.deployment
        return self.deployment.replaced_by(model.deployment)

    @property
    def about(self) -> dict[str, str]:
        """The text under each model's name on the page."""
        return {model.name: model.about for model in self.models}

    def middleware_of(self, models: Sequence[Model]) -> Sequence[Middleware]:  # noqa: ARG002
        """Returns middleware that serves these models at routes next to the page's."""
        return ()

    def on_page(self, models: Sequence[Model]) -> Sequence[Model]:
        """Returns the models under the names that the page shows."""
        return models

    @property
    def resources_setting(self) -> str:
        return "for all models under args: deployment:, or for one model in its own settings"

    def check_deployments(self, there: Collection[str]) -> None:
        """Checks that each model with deployment settings has a deployment.

        Raises:
            StartError: a model runs in the page's process, where these settings have no effect.
        """
        for model in self.models:
            given = model.deployment is not None or self.deployment.model_fields_set
            if given and model.base_url is None and model.name not in there:
                raise StartError(
                    f"deployment is set, but {model.name} runs in the page's process. Remove "
                    f"deployment, and set the resources of {PAGE_DEPLOYMENT} under deployments: "
                    "instead."
                )

    def start_checks(self) -> list[Callable[[], object]]:
        """Returns checks that find or download each model that this machine will load."""
        # Imported here so that the settings alone do not load the hub's client.
        from ..engine.graph_paths import check_model

        return [partial(check_model, model) for model in self.models if model.base_url is None]
