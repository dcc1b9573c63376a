"""What the configs of the project say, and what the start makes of any other."""

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
    """Returns the one application of a config, as far as it can be known here."""

    def write(**application: object) -> Planned:
        path = tmp_path / "config.yaml"
        config = {"applications": [{"import_path": NAME, **application}]}
        path.write_text(yaml.safe_dump(config), "utf-8")
        [only] = plan(read_config(path), path, alone=True)
        return only

    return write


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Has the machine so many CPUs and GPUs, for Ray as well."""

    def override(cpus: int, gpus: int) -> None:
        monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps({"CPU": cpus, "GPU": gpus}))

    return override


def module(directory: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Writes a module that this process can import, and returns its name."""
    name = f"written_{abs(hash(str(directory)))}"
    (directory / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(directory)
    return name


@any_config
def test_a_config_names_deployments_that_the_code_makes(path: Path) -> None:
    [application] = plan(read_config(path), path, alone=True)
    assert application.builder is build
    check_deployments(application, path)


def test_replicas_are_said_once_for_all_models_and_once_more_for_one() -> None:
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


def test_a_model_may_scale_further_than_the_others() -> None:
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


def test_a_model_that_scales_by_its_first_text_has_a_policy_for_it() -> None:
    deployment = {"min_replicas": 0, "max_replicas": 2, "target_first_text_seconds": 1.5}
    settings = Settings.model_validate({"models": THREE, "deployment": deployment})
    first = settings.deployment_of(settings.models[0]).options()
    scaling = AutoscalingConfig.model_validate(first["autoscaling_config"])
    assert scaling.policy.policy_kwargs == {"target_seconds": 1.5}
    assert scaling.upscale_delay_s < 30


def test_a_deployment_that_is_not_there(planned: Callable[..., Planned]) -> None:
    application = planned(
        args={"models": THREE}, deployments=[{"name": "gone"}, {"name": "GradioServer"}]
    )
    there = ", ".join(deployments_in(build(Settings.model_validate({"models": THREE}))))
    with pytest.raises(StartError) as refused:
        check_deployments(application, Path("config/ours.yaml"))
    assert str(refused.value) == (
        "config/ours.yaml: deployments names gone, which is not there. The application default "
        f"has: {there}. Rename or remove it."
    )


def test_what_asks_for_no_key_is_not_started_for_other_machines(
    planned: Callable[..., Planned],
) -> None:
    application = planned(args={"models": THREE, "openai_api": "without-keys"})
    ours = Path("config/ours.yaml")
    check_host(application, "127.0.0.1", ours)
    with pytest.raises(StartError, match=r"^config/ours\.yaml: openai_api: without-keys"):
        check_host(application, "0.0.0.0", ours)  # noqa: S104
    check_host(planned(args={"models": THREE}), "0.0.0.0", ours)  # noqa: S104


def test_a_deployment_that_the_settings_describe_and_no_model_has(
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
def test_more_than_the_machine_has_is_counted_as_serve_counts_it(
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
    reason = f"the deployments ask for {asked} CPUs (Big {asked}) and this machine has 4"
    assert str(refused.value).startswith(f"config/ours.yaml: {reason}")
    on(9, 9)
    check_resources([application], Path("config/ours.yaml"))


def test_gpus_that_the_machine_lacks(
    planned: Callable[..., Planned], on: Callable[[int, int], None]
) -> None:
    page = {"name": "GradioServer", "ray_actor_options": {"num_cpus": 0, "num_gpus": 2}}
    application = planned(deployments=[page])
    on(99, 1)
    with pytest.raises(StartError, match=r"2 GPUs \(GradioServer 2.*and this machine has 1\."):
        check_resources([application], Path("config/ours.yaml"))


def test_the_machine_has_what_ray_finds(
    planned: Callable[..., Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: 3.0)
    found = ResourceAndLabelSpec().resolve(is_head=True).num_cpus
    assert found == 3
    page = {"name": "GradioServer", "num_replicas": 4, "ray_actor_options": {"num_cpus": 1}}
    with pytest.raises(StartError, match=r"and this machine has 3\."):
        check_resources([planned(deployments=[page])], Path("config/ours.yaml"))


def test_a_class_of_settings_with_a_field_of_the_teams(
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


def test_annotations_that_serve_does_not_see(
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


def test_a_page_that_is_made_outside_of_a_function_which_is_no_name_in_its_module(
    planned: Callable[..., Planned], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would send the page with the function, and Gradio's objects cannot be pickled."""
    text = (
        "def build(settings: HttpSettings):\n"
        "    def your_page():\n        return demo\n"
        "    return GradioServer.bind(settings, your_page)\n"
    )
    name = module(tmp_path, DEMO + text, monkeypatch)
    with pytest.raises(StartError, match=r"import it inside of the function") as refused:
        planned(import_path=f"{name}:build")
    assert "\n" not in str(refused.value)


def test_a_page_that_is_made_outside_of_a_function_at_the_top_of_its_module(
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
def test_nothing_of_ours_is_asked_of_another_application(
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
    assert not application.has_no_login


def test_the_arguments_of_another_application_are_what_its_builder_takes(
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
def test_code_that_is_elsewhere_is_not_looked_for_here(
    runtime_env: dict[str, object], planned: Callable[..., Planned]
) -> None:
    application = planned(import_path="elsewhere.app:build", runtime_env=runtime_env)
    assert (application.builder, application.settings) == (None, None)
    check_deployments(application, Path("config.yaml"))
    check_resources([application], Path("config.yaml"))
    check_start(application)


def test_code_that_is_nowhere(planned: Callable[..., Planned]) -> None:
    with pytest.raises(
        StartError, match=r"config\.yaml: import_path: elsewhere\.app:build: .*No mod"
    ):
        planned(import_path="elsewhere.app:build")


def test_code_that_is_not_here_may_be_on_the_cluster(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("applications: [{import_path: 'elsewhere.app:build'}]")
    [application] = plan(read_config(path), path, alone=False)
    assert application.builder is None


def with_variables(
    planned: Callable[..., Planned], args: Mapping[str, object], **variables: str
) -> Planned:
    return planned(args=args, runtime_env={"env_vars": variables})


def test_a_password_of_the_application_counts(
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


def test_the_cache_of_the_application_is_where_its_models_are_looked_for(
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


def test_a_check_of_the_teams_own_sees_settings_and_variables(
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
def test_the_address_is_one_that_a_browser_takes(host: str, url: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = {"http_options": {"host": host}, "applications": [{"import_path": NAME}]}
    path.write_text(yaml.safe_dump(config))
    read = read_config(path)
    assert page_url(read, read.applications[0]) == url
