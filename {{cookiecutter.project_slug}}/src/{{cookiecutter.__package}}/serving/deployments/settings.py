"""Which models there are, and where each runs."""

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
LATE_SECONDS = 10
"""For which first texts have to be late before a replica is added; each tells an average."""
REPORT_SECONDS = 1
"""How often Serve hears of requests for a model at zero, in place of its own 10 seconds."""


class DeploymentSettings(Strict):
    """How many processes a model has and what each takes, in Serve's own words.

    `num_replicas` fixes their number. With `max_replicas` it follows the load instead, down to no
    replica at all with `min_replicas: 0`.
    """

    num_replicas: int = Field(default=1, ge=1)
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int | None = Field(default=None, ge=1)
    target_ongoing_requests: float = Field(default=16, gt=0)
    """Requests for each replica, which batches up to `limits.running_requests` of them."""
    target_first_text_seconds: float | None = Field(default=None, gt=0)
    """When first texts take longer than this on average, replicas are added for that, too."""
    downscale_delay_s: float = Field(default=600, ge=0)
    """How long there has to be less to do before a replica goes, the last one too."""
    max_surge_percent: int = Field(default=0, ge=0, le=100)
    """Replicas that a new version may start before old ones go, in percent of their number."""
    num_cpus: float = Field(default=0.5, ge=0)
    """A replica computes with as many threads as it has whole CPUs, and with one below that."""
    num_gpus: float = Field(default=0, ge=0)
    graceful_shutdown_timeout_s: float = Field(default=20, ge=0)
    """How long a replica that goes may take for the answers that it has begun."""

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        scaling = sorted(SCALING & self.model_fields_set)
        if scaling and "num_replicas" in self.model_fields_set:
            raise ValueError(f"num_replicas and {scaling[0]} contradict each other; remove one")
        return self

    def replaced_by(self, other: "DeploymentSettings") -> "DeploymentSettings":
        """Returns these settings with what the other one says in their place."""
        said, own = other.model_dump(exclude_unset=True), self.model_dump(exclude_unset=True)
        if "num_replicas" in said:
            own = {name: value for name, value in own.items() if name not in SCALING}
        elif SCALING & said.keys():
            own.pop("num_replicas", None)
        return DeploymentSettings.model_validate({**own, **said})

    def options(self) -> dict[str, object]:
        """Returns what Serve's `Deployment.options` takes."""
        options: dict[str, object] = {
            "graceful_shutdown_timeout_s": self.graceful_shutdown_timeout_s,
            "max_surge_percent": self.max_surge_percent,
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus},
        }
        if self.max_replicas is None:
            return {**options, "num_replicas": self.num_replicas}
        scaling = self.model_dump(include=SERVES_SCALING)
        if self.min_replicas == 0:
            # What a handle reports at once, for a request that finds no replica, are the numbers
            # that it wrote down before. Those of the request itself come with the next report.
            scaling |= {"metrics_interval_s": REPORT_SECONDS}
        if self.target_first_text_seconds is not None:
            kwargs = {"target_seconds": self.target_first_text_seconds}
            policy = {"policy_function": FIRST_TEXT_POLICY, "policy_kwargs": kwargs}
            scaling |= {"upscale_delay_s": LATE_SECONDS, "policy": policy}
        return {**options, "num_replicas": None, "autoscaling_config": scaling}


class ModelSettings(EngineSettings):
    """A model: how it is loaded and asked, and where it runs."""

    about: str = ""
    """What a visitor reads under the name: how the model differs from the others, for example."""
    base_url: str | None = Field(default=None, pattern="^https?://")
    """Of a server that speaks OpenAI's protocol; the source then names one of its models."""
    api_key_variable: str | None = Field(default=None, min_length=1)
    """Name of the environment variable with the key for that server: `OPENAI_API_KEY`. A server
    of one's own may need none."""
    organization_variable: str | None = Field(default=None, min_length=1)
    """Name of the one with the organization that pays: `OPENAI_ORG_ID`."""
    deployment: DeploymentSettings | None = None
    """Its replicas and resources, where they differ from those of all models."""

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.name == PAGE_DEPLOYMENT:
            raise ValueError(f"{PAGE_DEPLOYMENT} is the page's name; name the model differently")
        return self

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if self.base_url is not None and self.deployment is not None:
            raise ValueError("a model on another server has no deployment here; remove one")
        return self


class ModelsSettings(TracedSettings):
    """The models that a page asks."""

    models: tuple[ModelSettings, ...]
    deployment: DeploymentSettings = DeploymentSettings()
    """Replicas and resources of each model's deployment; a model's own come first."""
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

    @model_validator(mode="after")
    def _check_deployments(self) -> Self:
        for model in self.models:
            deployment = self.deployment_of(model)
            most, least = deployment.max_replicas, deployment.min_replicas
            if most is None and SCALING & deployment.model_fields_set:
                raise ValueError(f"the deployment of {model.name} scales up to no max_replicas")
            if most is not None and most < least:
                raise ValueError(
                    f"the deployment of {model.name} has a max_replicas ({most}) below its "
                    f"min_replicas ({least})"
                )
        return self

    def deployment_of(self, model: ModelSettings) -> DeploymentSettings:
        if model.deployment is None:
            return self.deployment
        return self.deployment.replaced_by(model.deployment)

    @property
    def about(self) -> dict[str, str]:
        """What a visitor reads of each model, by its name."""
        return {model.name: model.about for model in self.models}

    def middleware_of(self, models: Sequence[Model]) -> Sequence[Middleware]:  # noqa: ARG002
        """Returns what answers beside a page, with these models."""
        return ()

    def on_page(self, models: Sequence[Model]) -> Sequence[Model]:
        """Returns the models as a page is to name them."""
        return models

    @property
    def resources_setting(self) -> str:
        return "of all models under args: deployment:, of one in its settings"

    def check_deployments(self, there: Collection[str]) -> None:
        """Looks whether the settings describe deployments that the application does not have.

        Raises:
            StartError: a model is loaded by the page, and no setting of a deployment reaches it.
        """
        for model in self.models:
            said = model.deployment is not None or self.deployment.model_fields_set
            if said and model.base_url is None and model.name not in there:
                raise StartError(
                    f"deployment is set, and {model.name} has none of its own: the page loads it. "
                    f"Say under deployments: what {PAGE_DEPLOYMENT} takes, and remove it."
                )

    def start_checks(self) -> list[Callable[[], object]]:
        """Returns what finds, or downloads, each model that this machine is going to load."""
        # Here, so that the settings alone load no client of the hub.
        from ..engine.places import check_model

        return [partial(check_model, model) for model in self.models if model.base_url is None]
