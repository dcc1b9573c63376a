"""The configs of the project, and how the start checks other configs."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray.serve.config import AutoscalingConfig

from {{ cookiecutter.__package }} import app
from {{ cookiecutter.__package }}.app import Settings, build
from {{ cookiecutter.__package }}.serving.base import LoginError, StartError
from {{ cookiecutter.__package }}.serving.config import (
    Planned,
    check_deployments,
    check_host,
    check_resources,
    check_start,
    deployments_in,
    page_url,
    plan,
    read_config,
)

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("config/*.yaml"))
NAME = f"{build.__module__}:{build.__name__}"
THREE = [{"name": name, "source": "org/model"} for name in ("one", "two", "three")]

any_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Planned]:
    """Returns the only application of a config, as planned on this machine."""

    def write(**application: object) -> Planned:
        path = tmp_path / "config.yaml"
        config = {"applications": [{"import_path": NAME, **application}]}
        path.write_text(yaml.safe_dump(config), "utf-8")
        [only] = plan(read_config(path), path, alone=True)
        return only

    return write


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Pretends that the machine has these CPUs and GPUs, for Ray too."""

    def override(cpus: int, gpus: int) -> None:
        monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": cpus, "GPU": gpus}))

    return override


def module(directory: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Writes an importable module, and returns its name."""
    name = f"written_{abs(hash(str(directory)))}"
    (directory / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(directory)
    return name


@any_config
def test_the_configs_name_only_deployments_that_exist(path: Path) -> None:
    [application] = plan(read_config(path), path, alone=True)
    assert application.builder is build
    check_deployments(application, path)


def test_replicas_can_be_set_for_all_models_and_overridden_for_one() -> None:
    models = [{**THREE[0], "deployment": {"num_replicas": 3, "num_gpus": 1}}, *THREE[1:]]
    shared = {"min_replicas": 2, "max_replicas": 4, "num_cpus": 0.25}
    settings = Settings.model_validate({"models": models, "deployment": shared})
    one, two, _ = [settings.deployment_of(model).options() for model in settings.models]
    assert one["num_replicas"] == 3
    assert one["ray_actor_options"] == {"num_cpus": 0.25, "num_gpus": 1}
    assert "autoscaling_config" not in one
    assert two["autoscaling_config"] == {
        "min_replicas": 2,
        "max_replicas": 4,
        "target_ongoing_requests": 16,
        "downscale_delay_s": 600,
    }


def test_one_model_may_have_more_replicas_than_the_others() -> None:
    models = [{**THREE[0], "deployment": {"max_replicas": 9}}, *THREE[1:]]
    settings = Settings.model_validate({"models": models, "deployment": {"num_replicas": 2}})
    one, two, _ = [settings.deployment_of(model).options() for model in settings.models]
    assert one["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 9,
        "target_ongoing_requests": 16,
        "downscale_delay_s": 600,
    }
    assert two["num_replicas"] == 2


def test_a_model_with_a_first_text_target_gets_the_scaling_policy() -> None:
    deployment = {"min_replicas": 0, "max_replicas": 2, "target_first_text_seconds": 1.5}
    settings = Settings.model_validate({"models": THREE, "deployment": deployment})
    first = settings.deployment_of(settings.models[0]).options()
    scaling = AutoscalingConfig.model_validate(first["autoscaling_config"])
    assert scaling.policy.policy_kwargs == {"target_seconds": 1.5}
    assert scaling.upscale_delay_s < 30


@pytest.mark.parametrize(("min_replicas", "seconds"), [(0, 1), (1, 10)])
def test_serve_hears_more_often_of_requests_for_a_model_that_may_be_at_zero(
    min_replicas: int, seconds: float
) -> None:
    deployment = {"min_replicas": min_replicas, "max_replicas": 2}
    settings = Settings.model_validate({"models": THREE, "deployment": deployment})
    first = settings.deployment_of(settings.models[0]).options()
    scaling = AutoscalingConfig.model_validate(first["autoscaling_config"])
    assert scaling.metrics_interval_s == seconds


def test_a_config_that_names_an_unknown_deployment_is_refused(
    planned: Callable[..., Planned],
) -> None:
    application = planned(
        args={"models": THREE}, deployments=[{"name": "gone"}, {"name": "GradioServer"}]
    )
    there = ", ".join(deployments_in(build(Settings.model_validate({"models": THREE}))))
    with pytest.raises(StartError) as refused:
        check_deployments(application, Path("config/ours.yaml"))
    assert str(refused.value) == (
        "config/ours.yaml: deployments lists gone, but the application default "
        f"has only: {there}. Rename or remove it."
    )


def test_an_api_without_keys_is_refused_on_a_public_address(
    planned: Callable[..., Planned],
) -> None:
    application = planned(args={"models": THREE, "openai_api": "without-keys"})
    ours = Path("config/ours.yaml")
    check_host(application, "127.0.0.1", ours)
    with pytest.raises(StartError, match=r"^config/ours\.yaml: openai_api: without-keys"):
        check_host(application, "0.0.0.0", ours)  # noqa: S104
    check_host(planned(args={"models": THREE}), "0.0.0.0", ours)  # noqa: S104


def test_deployment_options_without_a_matching_deployment_are_refused(
    planned: Callable[..., Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        f"from {app.__name__} import Settings\n"
        f"from {app.__package__}.serving import GradioServer\n"
        "def build(settings: Settings):\n    return GradioServer.bind(settings, print)\n"
    )
    name = module(tmp_path, text, monkeypatch)
    args = {"models": THREE, "deployment": {"max_replicas": 4}}
    application = planned(import_path=f"{name}:build", args=args)
    with pytest.raises(
        StartError, match=r"ours\.yaml: deployment is set, but one runs in the page's"
    ):
        check_deployments(application, Path("config/ours.yaml"))


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({"num_replicas": 9}, "9"),
        ({"num_replicas": 9, "ray_actor_options": {"num_cpus": 0.5}}, "4.5"),
        ({"num_replicas": 9, "ray_actor_options": {"num_gpus": 0.5}}, "9"),
        ({"autoscaling_config": {"min_replicas": 9, "max_replicas": 10}}, "9"),
        ({"autoscaling_config": {"initial_replicas": 9, "max_replicas": 10}}, "9"),
        ({"placement_group_bundles": [{"CPU": 4}, {"CPU": 5}]}, "9"),
    ],
)
def test_required_cpus_are_counted_as_serve_counts_them(
    said: dict[str, object],
    asked: str,
    planned: Callable[..., Planned],
    on: Callable[[int, int], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "from ray import serve\n@serve.deployment\nclass Big: ...\napp = Big.bind()\n"
    name = module(tmp_path, text, monkeypatch)
    application = planned(import_path=f"{name}:app", deployments=[{"name": "Big", **said}])
    on(4, 4)
    with pytest.raises(StartError) as refused:
        check_resources([application], Path("config/ours.yaml"))
    reason = f"the deployments need {asked} CPUs (Big {asked}), but this machine has 4"
    assert str(refused.value).startswith(f"config/ours.yaml: {reason}")
    on(9, 9)
    check_resources([application], Path("config/ours.yaml"))


@pytest.mark.parametrize(("gpus", "needed"), [(2, "2 GPUs"), (1, "1 GPU")])
def test_missing_gpus_are_reported(
    gpus: int, needed: str, planned: Callable[..., Planned], on: Callable[[int, int], None]
) -> None:
    page = {"name": "GradioServer", "ray_actor_options": {"num_cpus": 0, "num_gpus": gpus}}
    application = planned(deployments=[page])
    on(99, gpus - 1)
    reason = rf"need {needed} \(GradioServer {gpus}.*but this machine has {gpus - 1}\."
    with pytest.raises(StartError, match=reason):
        check_resources([application], Path("config/ours.yaml"))


def test_the_available_resources_are_those_that_ray_detects(
    planned: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: 3.0)
    found = ResourceAndLabelSpec().resolve(is_head=True).num_cpus
    assert found == 3
    page = {"name": "GradioServer", "num_replicas": 4, "ray_actor_options": {"num_cpus": 1}}
    with pytest.raises(StartError, match=r"but this machine has 3\."):
        check_resources([planned(deployments=[page])], Path("config/ours.yaml"))


def test_a_subclass_of_the_settings_may_add_fields(
    planned: Callable[..., Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        f"from {app.__name__} import Settings, build as base\n"
        "class OurSettings(Settings):\n    motto: str\n"
        "def build(ours: OurSettings):\n    return base(ours)\n"
    )
    name = module(tmp_path, text, monkeypatch)
    application = planned(import_path=f"{name}:build", args={"motto": "Ahoy"})
    assert getattr(application.settings, "motto", None) == "Ahoy"
    assert application.deployments is not None
    assert "GradioServer" in application.deployments
    with pytest.raises(StartError, match=r"config\.yaml: args\.motto: Field required"):
        planned(import_path=f"{name}:build")


def test_postponed_annotations_are_refused(
    planned: Callable[..., Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "from __future__ import annotations\n"
        f"from {app.__name__} import Settings, build as base\n"
        "def build(settings: Settings):\n    return base(settings)\n"
    )
    name = module(tmp_path, text, monkeypatch)
    with pytest.raises(StartError, match=r"Remove that line\."):
        planned(import_path=f"{name}:build")


DEMO = (
    "import gradio as gr\n"
    f"from {app.__package__}.serving import GradioServer, HttpSettings\n"
    "demo = gr.Interface(str, 'text', 'text')\n"
)


def test_a_nested_function_that_returns_a_global_page_is_refused(
    planned: Callable[..., Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would pickle the page with the function, and Gradio objects cannot be pickled."""
    text = (
        "def build(settings: HttpSettings):\n"
        "    def your_page():\n        return demo\n"
        "    return GradioServer.bind(settings, your_page)\n"
    )
    name = module(tmp_path, DEMO + text, monkeypatch)
    with pytest.raises(StartError, match=r"Import the page inside the function") as refused:
        planned(import_path=f"{name}:build")
    assert "\n" not in str(refused.value)


def test_a_module_function_that_returns_a_global_page_is_accepted(
    planned: Callable[..., Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "def your_page():\n    return demo\n"
        "def build(settings: HttpSettings):\n    return GradioServer.bind(settings, your_page)\n"
    )
    name = module(tmp_path, DEMO + text, monkeypatch)
    application = planned(import_path=f"{name}:build")
    assert application.deployments is not None
    assert [*application.deployments] == ["GradioServer"]


@pytest.mark.parametrize(
    "text",
    [
        "def build(args: dict):\n    raise RuntimeError('only on Ray')\n",
        "def build(args):\n    raise RuntimeError('only on Ray')\n",
        "from pydantic import BaseModel\n"
        "class Args(BaseModel):\n    model: str\n"
        "def build(args: Args):\n    raise RuntimeError('only on Ray')\n",
    ],
    ids=["a dictionary", "no annotation", "arguments of its own"],
)
def test_the_checks_of_the_project_do_not_apply_to_other_applications(
    text: str,
    planned: Callable[..., Planned],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = module(tmp_path, text, monkeypatch)
    application = planned(
        import_path=f"{name}:build", args={"model": "large"}, deployments=[{"name": "Large"}]
    )
    check_deployments(application, Path("config.yaml"))
    check_start(application)
    assert application.deployments is None
    assert not application.lacks_login


def test_arguments_of_another_application_are_validated_by_its_builder(
    planned: Callable[..., Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "from pydantic import BaseModel\n"
        "class Args(BaseModel):\n    size: int\n"
        "def build(args: Args): ...\n"
    )
    name = module(tmp_path, text, monkeypatch)
    with pytest.raises(StartError, match=r"args\.size: Input should be a valid integer"):
        planned(import_path=f"{name}:build", args={"size": "large"})


@pytest.mark.parametrize(
    "runtime_env",
    [
        {"working_dir": "https://example.org/app.zip"},
        {"py_modules": ["https://example.org/app.zip"]},
        {"pip": ["app"]},
        {"env_vars": {"PYTHONPATH": "/srv/app"}},
    ],
    ids=lambda runtime_env: next(iter(runtime_env)),
)
def test_code_from_a_runtime_environment_is_not_imported_locally(
    runtime_env: dict[str, object], planned: Callable[..., Planned]
) -> None:
    application = planned(import_path="elsewhere.app:build", runtime_env=runtime_env)
    assert (application.builder, application.settings) == (None, None)
    check_deployments(application, Path("config.yaml"))
    check_resources([application], Path("config.yaml"))
    check_start(application)


def test_an_import_path_that_does_not_exist_is_refused(planned: Callable[..., Planned]) -> None:
    with pytest.raises(
        StartError, match=r"config\.yaml: import_path: elsewhere\.app:build: .*No mod"
    ):
        planned(import_path="elsewhere.app:build")


def test_a_missing_import_path_is_allowed_if_a_cluster_may_have_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("applications: [{import_path: 'elsewhere.app:build'}]")
    [application] = plan(read_config(path), path, alone=False)
    assert application.builder is None


def with_variables(
    planned: Callable[..., Planned], args: Mapping[str, object], **variables: str
) -> Planned:
    return planned(args=args, runtime_env={"env_vars": variables})


def test_a_password_in_the_runtime_environment_is_used(
    planned: Callable[..., Planned], tiny_decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAGE_PASSWORD", raising=False)
    args = {"models": [{"name": "tiny", "source": str(tiny_decoder)}], "login_user": "ada"}
    check_start(with_variables(planned, args, PAGE_PASSWORD="a wet whale"))  # noqa: S106
    with pytest.raises(LoginError, match="PAGE_PASSWORD is not set"):
        check_start(with_variables(planned, args))
    with pytest.raises(StartError, match="PAGE_PASSWORD is not set"):
        check_start(with_variables(planned, args, OURS="1"))
    assert "PAGE_PASSWORD" not in os.environ


def test_models_are_looked_up_in_the_cache_of_the_runtime_environment(
    planned: Callable[..., Planned], tiny_decoder: Path, tmp_path: Path
) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshot = tmp_path / "hub" / "models--org--tiny" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tiny_decoder)
    branch = tmp_path / "hub" / "models--org--tiny" / "refs" / "main"
    branch.parent.mkdir()
    branch.write_text(commit)
    args = {"models": [{"name": "tiny", "source": "org/tiny"}]}
    check_start(with_variables(planned, args, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1"))
    with pytest.raises(StartError, match="not in the cache"):
        check_start(
            with_variables(planned, args, HF_HOME=str(tmp_path / "other"), HF_HUB_OFFLINE="1")
        )


def test_a_custom_check_sees_settings_and_variables(
    planned: Callable[..., Planned], tiny_decoder: Path
) -> None:
    seen = []

    def check(settings: Settings) -> None:
        seen.append((settings.title, os.environ["OURS"]))
        raise StartError("Start the database first.")

    args = {"models": [{"name": "tiny", "source": str(tiny_decoder)}], "title": "Whales"}
    with pytest.raises(StartError, match="Start the database first"):
        check_start(with_variables(planned, args, OURS="1"), [check])
    assert seen == [("Whales", "1")]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("::1", "http://[::1]:8000/"),
        ("::", "http://[::1]:8000/"),
        ("0.0.0.0", "http://127.0.0.1:8000/"),  # noqa: S104
        ("10.0.0.7", "http://10.0.0.7:8000/"),
    ],
)
def test_the_printed_url_works_in_a_browser(host: str, url: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = {"http_options": {"host": host}, "applications": [{"import_path": NAME}]}
    path.write_text(yaml.safe_dump(config))
    read = read_config(path)
    assert page_url(read, read.applications[0]) == url
