"""Reads a Serve config, and checks it before anything starts."""

import errno
import inspect
import os
import pickle
import pkgutil
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, Protocol, get_type_hints, runtime_checkable

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray.serve import Application
from ray.serve._private.build_app import build_app
from ray.serve.deployment import deployment_to_schema
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from .base import StartError, explain_pickling_errors
from .http.settings import HttpSettings

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Addresses for all interfaces, and this machine's own address for each."""
RESOURCES = {"num_cpus": "CPU", "num_gpus": "GPU"}

RUN_CHECKS = """
import pickle, signal, sys
from importlib import import_module
base = import_module(f"{sys.argv[1]}.base")
# Otherwise, Ctrl-C would also print a traceback of this process.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# Output of the checks goes to the terminal. Only the error goes to the parent process.
answer, sys.stdout = sys.stdout, sys.stderr
try:
    for check in pickle.load(sys.stdin.buffer):
        check()
except base.StartError as error:
    print(error, end="", file=answer)
    sys.exit(1)
"""

Options = dict[str, Any]
"""Options of a deployment, with Serve's names."""


@runtime_checkable
class HasDeployments(Protocol):
    """Settings that describe deployments."""

    @property
    def resources_setting(self) -> str:
        """Where in a config these settings set the resources of deployments."""

    def check_deployments(self, there: Collection[str]) -> None: ...


@runtime_checkable
class HasHost(Protocol):
    """Settings that do not allow every host."""

    def check_host(self, host: str) -> None: ...


@dataclass(frozen=True)
class Planned:
    """An application of a config, with what this process can find out about it."""

    config: ServeApplicationSchema
    builder: object = None
    """The object at `import_path`, or None if it cannot be imported here."""
    settings: BaseModel | None = None
    """The settings for the builder, or None if it takes none."""
    deployments: Mapping[str, Options] | None = None
    """The deployments in the code, or None if the code cannot run here."""

    @property
    def resources_setting(self) -> str | None:
        """Where its settings set the resources of deployments, if they do."""
        if isinstance(self.settings, HasDeployments):
            return self.settings.resources_setting
        return None

    @property
    def lacks_login(self) -> bool:
        """Whether it is known to have no login."""
        return isinstance(self.settings, HttpSettings) and not self.settings.asks_login

    @property
    def trusts_addresses(self) -> bool:
        """Whether a login or a limit depends on the address of a request."""
        return isinstance(self.settings, HttpSettings) and self.settings.trusts_addresses


def read_config(path: Path) -> ServeDeploySchema:
    """Reads a Serve config."""
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = ServeDeploySchema.model_validate(written)
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}. Pass the path to a Serve config.") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise StartError(f"{path} is not valid YAML: line {line}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StartError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise StartError(f"{path}: {_reasons(error, ())}") from error
    # Serve silently drops unknown names, including misspelled ones.
    for name in _dropped(written, config.model_dump(exclude_unset=True)):
        raise StartError(f"{path}: {name}: there is no such setting. Check the spelling")
    return config


def _dropped(written: object, kept: object, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(written, dict) and isinstance(kept, dict):
        for name, value in written.items():
            if name in kept:
                yield from _dropped(value, kept[name], (*path, str(name)))
            else:
                yield ".".join((*path, str(name)))
    elif isinstance(written, list) and isinstance(kept, list):
        for position, values in enumerate(zip(written, kept, strict=False)):
            yield from _dropped(*values, (*path, str(position)))


def plan(config: ServeDeploySchema, path: Path, *, alone: bool) -> list[Planned]:
    """Builds each application, if its code is available here.

    Args:
        alone: whether Ray will run only on this machine, with this environment.

    Raises:
        StartError: the arguments are not valid, or the code cannot be found.
    """
    return [_plan(application, path, alone) for application in config.applications]


def _plan(application: ServeApplicationSchema, path: Path, alone: bool) -> Planned:
    variables = application.runtime_env.get("env_vars", {})
    # Any other option adds code or packages that this process does not have.
    if set(application.runtime_env) - {"env_vars"}:
        return Planned(application)
    with environment(variables):
        try:
            with explain_pickling_errors():
                builder = pkgutil.resolve_name(application.import_path)
        except StartError:
            raise
        # An import may raise any error.
        except Exception as error:
            if alone and "PYTHONPATH" not in variables:
                raise StartError(
                    f"{path}: import_path: {application.import_path}: {in_one_line(error)}"
                ) from error
            return Planned(application)
        settings = _settings(builder, application, path)
        return Planned(application, builder, settings, _deployments(builder, settings))


def _settings(builder: object, application: ServeApplicationSchema, path: Path) -> BaseModel | None:
    if not isinstance(builder, FunctionType):
        return None
    [name, *_] = [*inspect.signature(builder).parameters, ""]
    kind = get_type_hints(builder).get(name)
    if not (inspect.isclass(kind) and issubclass(kind, BaseModel)):
        return None
    if isinstance(builder.__annotations__[name], str):
        raise StartError(
            f"{builder.__module__} has `from __future__ import annotations`, so Serve cannot see "
            f"the class of {builder.__name__}'s {name}. Remove that line."
        )
    try:
        return kind.model_validate(application.args)
    except ValidationError as error:
        raise StartError(f"{path}: {_reasons(error, ('args',))}") from error


def _deployments(builder: object, settings: BaseModel | None) -> Mapping[str, Options] | None:
    if not isinstance(builder, Application) and settings is None:
        # Calling it may need Ray.
        return None
    try:
        with explain_pickling_errors():
            application = builder if isinstance(builder, Application) else builder(settings)  # type: ignore[operator]
        return deployments_in(application)
    except StartError:
        raise
    except Exception:
        # It may need Ray too. If it really fails, Serve reports the error.
        return None


def deployments_in(application: Application) -> Mapping[str, Options]:
    """Returns the options of each deployment in an application. The page comes first."""
    built = build_app(application, name="planned")
    options = [deployment_to_schema(each) for each in reversed(built.deployments)]
    return {each.name: each.model_dump(exclude_unset=True) for each in options}


def _reasons(error: ValidationError, inside: tuple[str, ...]) -> str:
    details = error.errors()
    # If the only error is in a list's first item, pydantic also reports the list as empty.
    whole = {detail["loc"][:end] for detail in details for end in range(len(detail["loc"]))}
    return "; ".join(
        f"{'.'.join(map(str, (*inside, *detail['loc'])))}: {_reason(detail)}"
        for detail in details
        if detail["loc"] not in whole
    )


def _reason(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return "there is no such setting. Check the spelling"
    return detail["msg"].removeprefix("Value error, ")


def check_deployments(planned: Planned, path: Path) -> None:
    """Checks that the code makes all deployments that a config names."""
    if planned.deployments is None:
        return
    there = planned.deployments.keys()
    unknown = [each.name for each in planned.config.deployments if each.name not in there]
    if unknown:
        one = len(unknown) == 1
        raise StartError(
            f"{path}: deployments lists {', '.join(unknown)}, but the application "
            f"{planned.config.name} has only: {', '.join(there)}. "
            f"Rename or remove {'it' if one else 'them'}."
        )
    if isinstance(planned.settings, HasDeployments):
        try:
            planned.settings.check_deployments(there)
        except StartError as error:
            raise StartError(f"{path}: {error}") from error


def check_host(planned: Planned, host: str, path: Path) -> None:
    """Checks that an application may listen on the config's host."""
    if isinstance(planned.settings, HasHost):
        try:
            planned.settings.check_host(host)
        except StartError as error:
            raise StartError(f"{path}: {error}") from error


def check_start(planned: Planned, checks: Sequence[Callable[[Any], None]] = ()) -> None:
    """Runs the checks of an application's settings, with the application's variables.

    Args:
        checks: further checks, called with the settings.
    """
    if planned.settings is None:
        return
    variables = planned.config.runtime_env.get("env_vars", {})
    new = any(os.environ.get(name) != value for name, value in variables.items())
    with environment(variables):
        if isinstance(planned.settings, HttpSettings):
            own = planned.settings.start_checks()
            if new and own:
                _in_a_process_of_their_own(own)
            else:
                for each in own:
                    each()
        for check in checks:
            check(planned.settings)


def _in_a_process_of_their_own(checks: Sequence[Callable[[], object]]) -> None:
    """Runs checks in a new process, because some libraries read variables only on import."""
    result = subprocess.run(
        [sys.executable, "-c", RUN_CHECKS, __package__],
        input=pickle.dumps(checks),
        stdout=subprocess.PIPE,
        check=False,
    )
    if result.returncode:
        raise StartError(result.stdout.decode() or "a startup check failed. See the output above")


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Adds variables to this process's environment for the block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def check_resources(planned: Sequence[Planned], path: Path) -> None:
    """Checks that this machine has enough resources. Otherwise, Serve would wait forever."""
    machine = ResourceAndLabelSpec().resolve(is_head=True)
    there = {"num_cpus": machine.num_cpus, "num_gpus": machine.num_gpus}
    asked = [each for application in planned for each in _asked(application)]
    lacking = []
    for option, kind in RESOURCES.items():
        total = sum(amounts[option] for _, amounts in asked)
        if total > there[option] + 1e-6:
            parts = ", ".join(f"{name} {amounts[option]:g}" for name, amounts in asked)
            unit = kind if total == 1 else f"{kind}s"
            lacking.append(f"{total:g} {unit} ({parts}), but this machine has {there[option]:g}")
    if lacking:
        said = {
            f"{place}, or for other deployments "
            for each in planned
            if (place := each.resources_setting)
        }
        raise StartError(
            f"{path}: the deployments need {', and '.join(lacking)}. Lower num_cpus, num_gpus "
            f"or the number of replicas {''.join(said)}under deployments:. Or set RAY_ADDRESS to use "
            "a larger cluster."
        )


def _asked(planned: Planned) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields each deployment with the resources that all of its replicas need at the start."""
    said = {each.name: each.model_dump(exclude_unset=True) for each in planned.config.deployments}
    for name in planned.deployments or said:
        code = (planned.deployments or {}).get(name)
        options = {**(code or {}), **said.get(name, {})}
        actor = options.get("ray_actor_options") or {}
        bundles = options.get("placement_group_bundles") or [
            # Serve's default is one CPU. Without the code, the number is not known.
            {"CPU": actor.get("num_cpus", code is not None), "GPU": actor.get("num_gpus", 0)}
        ]
        replicas = _replicas_at_start(said.get(name, {}), code or {})
        yield (
            name,
            {
                option: replicas * sum(bundle.get(kind) or 0 for bundle in bundles)
                for option, kind in RESOURCES.items()
            },
        )


def _replicas_at_start(*options: Options) -> int:
    """Returns the number of replicas from the first options that set it."""
    for each in options:
        if scaling := each.get("autoscaling_config"):
            least = scaling.get("min_replicas", 1)
            initial = scaling.get("initial_replicas")
            return int(least if initial is None else initial)
        if replicas := each.get("num_replicas"):
            return 1 if replicas == "auto" else int(replicas)
    return 1


def set_port(config: ServeDeploySchema, port: int) -> None:
    # Set as a whole, because options that a config does not set are left out later.
    config.http_options = config.http_options.model_copy(update={"port": port})


def check_port(host: str, port: int, option: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError as error:
            raise StartError(f"port {port} is out of range. Choose one below 65536.") from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise StartError(
                    f"{bracketed(host)}:{port} cannot be used: {error.strerror}. Choose another one."
                ) from error
            raise StartError(
                f"port {port} is in use. Stop the program that uses it, or set {option} to a free one."
            ) from error


def page_url(config: ServeDeploySchema, application: ServeApplicationSchema) -> str:
    http = config.http_options
    host = LOOPBACK.get(http.host, http.host)
    return f"http://{bracketed(host)}:{http.port}{application.route_prefix}"


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
