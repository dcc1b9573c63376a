"""Starts and stops the contenders, in the environment of one rendered project."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import yaml

from tests.generated.project import Project, answers, free_port

from .users import Call

START_SECONDS = 300
UP = "The page is up: h"
NEW_TOKENS = 64
PROMPT = "Why is the sky blue, and why is it red in the evening?"
MODELS = {"smollm2-focused": (0.4, 0.9), "smollm2-lively": (1.0, 0.95)}
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Served:
    call: Call
    process: psutil.Process

    def memory(self) -> float:
        """Returns the memory of all its processes in GB, with shared memory counted once."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(process.memory_full_info().pss for process in processes) / 1e9


@contextmanager
def project(project: Project, dtype: str) -> Iterator[Served]:
    """The rendered project with its defaults, in one number format."""
    config = yaml.safe_load((project.root / "config" / "local.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    config["applications"][0]["args"] = {
        "models": [
            {
                "name": name,
                "source": "bundled:SmolLM2-135M-Instruct",
                "dtype": dtype,
                "temperature": temperature,
                "top_p": top_p,
            }
            for name, (temperature, top_p) in MODELS.items()
        ]
    }
    path = project.root / "benchmark.yaml"
    path.write_text(yaml.safe_dump(config))
    with project.started("python", "-m", project.package, str(path)) as running:
        running.wait_for(lambda log: UP in log, START_SECONDS)
        data: list[str | int | float | None] = [PROMPT, NEW_TOKENS, NEW_TOKENS, "1", "0.9"]
        call = Call(f"http://127.0.0.1:{port}", "generate", data)
        yield Served(call, psutil.Process(running.process.pid))


@contextmanager
def tutorial(project: Project, model: Path, dtype: str) -> Iterator[Served]:
    """The guide's pattern: a pipeline call for each request."""
    application = {"name": "tutorial", "import_path": "benchmarks.rivals.tutorial:app"}
    with serve_run(with_variables(project, model, dtype), application) as (url, process):
        yield Served(Call(url, "generate", [PROMPT]), process)


@contextmanager
def original(project: Project, model: Path, dtype: str) -> Iterator[Served]:
    """The guide's "original approach": Gradio alone, both models in turn."""
    with launched(project, "benchmarks.rivals.original", model, dtype) as served:
        yield served


@contextmanager
def launched(project: Project, module: str, model: Path, dtype: str) -> Iterator[Served]:
    """Gradio alone, launched by the module."""
    port = free_port()
    project = with_variables(project, model, dtype, BENCHMARK_PORT=str(port))
    url = f"http://127.0.0.1:{port}"
    with project.started("python", "-m", module) as running:
        running.wait_for(lambda _: answers(f"{url}/theme.css"), START_SECONDS)
        yield Served(Call(url, "generate", [PROMPT]), psutil.Process(running.process.pid))


@contextmanager
def short_calls_launched(project: Project) -> Iterator[Served]:
    """A page whose function takes ten milliseconds, on plain Gradio."""
    with launched(project, "benchmarks.rivals.short_calls", Path(), "float32") as served:
        yield served


@contextmanager
def short_calls_on_two_replicas(project: Project) -> Iterator[Served]:
    """The same page, served by the project's own command."""
    port = free_port()
    application = {
        "name": "short-calls",
        "route_prefix": "/",
        "import_path": "benchmarks.rivals.short_calls:build",
        "args": {"page_replicas": 2},
    }
    http_options = {"host": "127.0.0.1", "port": port}
    path = project.root / "short-calls.yaml"
    path.write_text(yaml.safe_dump({"http_options": http_options, "applications": [application]}))
    project = with_variables(project, Path(), "float32")
    with project.started("python", "-m", project.package, str(path)) as running:
        running.wait_for(lambda log: UP in log, START_SECONDS)
        call = Call(f"http://127.0.0.1:{port}", "generate", [PROMPT])
        yield Served(call, psutil.Process(running.process.pid))


@contextmanager
def as_rendered(project: Project) -> Iterator[None]:
    """The project's page on this machine, started as in its README."""
    config = project.root / "config" / "local.yaml"
    command = ("-m", project.package, "serve", str(config), "--port", str(free_port()))
    with project.started("python", *command) as running:
        running.wait_for(lambda log: UP in log, START_SECONDS)
        yield


@contextmanager
def empty_application(project: Project) -> Iterator[None]:
    """Ray, and a Serve application of one deployment that imports nothing."""
    application = {"name": "empty", "import_path": "benchmarks.rivals.empty:app"}
    with serve_run(with_variables(project, Path(), "float32"), application, asked=""):
        yield


def with_variables(project: Project, model: Path, dtype: str, **more: str) -> Project:
    variables: Mapping[str, str] = {
        "PYTHONPATH": str(REPOSITORY),
        "BENCHMARK_MODEL": str(model),
        "BENCHMARK_DTYPE": dtype,
        "BENCHMARK_NEW_TOKENS": str(NEW_TOKENS),
        "BENCHMARK_PROMPT": PROMPT,
        "BENCHMARK_PACKAGE": project.package,
        **more,
    }
    return replace(project, variables={**project.variables, **variables})


@dataclass(frozen=True)
class StandIn:
    """A model with a fixed service time; see `rivals/stand_in.py`."""

    name: str
    seconds: float
    replicas: int
    at_once: int
    tokens: int = 100


@contextmanager
def stand_ins(project: Project, *models: StandIn, page_replicas: int = 1) -> Iterator[Served]:
    """The project's page and API with models of a fixed service time."""
    application = {
        "name": "stand-in",
        "import_path": "benchmarks.rivals.stand_in:build",
        "args": {
            "models": [asdict(model) for model in models],
            "page_replicas": page_replicas,
            "openai_api": "without-keys",
        },
    }
    project = with_variables(project, Path(), "float32")
    with serve_run(project, application) as (url, process):
        yield Served(Call(url, "generate", [PROMPT, 1, 1, "1", "1"]), process)


@contextmanager
def serve_run(
    project: Project, application: Mapping[str, object], asked: str = "theme.css"
) -> Iterator[tuple[str, psutil.Process]]:
    """Serves it at the root of a free port; yields its URL and the serving process."""
    port = free_port()
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [{"route_prefix": "/", **application}],
    }
    path = project.root / f"{application['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"
    with project.started("serve", "run", str(path)) as running:
        running.wait_for(lambda _: answers(f"{url}/{asked}"), START_SECONDS)
        yield url, psutil.Process(running.process.pid)
