from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from ray.serve.schema import ServeDeploySchema
from ray.serve.scripts import cli

from {{ cookiecutter.__package }} import app
from {{ cookiecutter.__package }}.app import Settings, build

CONFIGS = sorted((Path(__file__).parents[1] / "config").glob("*.yaml"))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.name)
def config(request: pytest.FixtureRequest) -> ServeDeploySchema:
    return ServeDeploySchema.model_validate(yaml.safe_load(request.param.read_text("utf-8")))


@pytest.fixture
def settings(config: ServeDeploySchema) -> Settings:
    """The arguments that the application takes."""
    [application] = config.applications
    return Settings.model_validate(application.args)


def deployments_of_the_code(directory: Path) -> set[str]:
    """Asks `serve build`, which writes a config from the code."""
    built = directory / "built.yaml"
    application = "{{ cookiecutter.__package }}.app:app"
    arguments = ["build", application, "--output-path", str(built)]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    [application] = yaml.safe_load(built.read_text("utf-8"))["applications"]
    return {deployment["name"] for deployment in application["deployments"]}


def test_both_configs_are_there() -> None:
    assert [path.name for path in CONFIGS] == ["local.yaml", "production.yaml"]


def test_a_config_names_the_deployments_that_the_code_makes(
    config: ServeDeploySchema,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "app", build(settings))
    [application] = config.applications
    named = {deployment.name for deployment in application.deployments}
    assert named == deployments_of_the_code(tmp_path)


def test_a_config_names_the_builder_of_the_application(config: ServeDeploySchema) -> None:
    [application] = config.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
