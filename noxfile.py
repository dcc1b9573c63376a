"""`nox` checks the template, and `nox -s demo` serves a project made from it."""

import os
import shutil
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import nox
from nox.command import CommandFailed

TEMPLATE = Path(__file__).parent
sys.path.insert(0, str(TEMPLATE))

import programs  # noqa: E402

nox.needs_version = ">=2026"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["prepare", "lint", "tests", "update", "faults", "generated"]

CODE = ["noxfile.py", "programs.py", "benchmarks", "docs", "hooks", "tests"]
RIVALS = ["openvino-genai>=2026.4,<2027", "xllamacpp>=2026.10,<2027"]
GRACE_SECONDS = 90
WORKERS = "2"
# Each worker runs all tests of one project. The tests mostly wait, so several workers run at once.
PROJECTS_AT_ONCE = "3"
SLOW = ("apps", "faults", "generated", "monitoring", "update")
WITHOUT_DEMO = "--ignore=tests/test_demo.py"
# If this variable were set, every process would compile the libraries again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# The same as in the project's pyproject.toml. A test compares them.
PYTORCH_INDEX = ("pytorch-cpu", "https://download.pytorch.org/whl/cpu")


@nox.session
def demo(session: nox.Session) -> None:
    """Renders a project and serves it on port 8000 until Ctrl-C. Takes answers as `key=value`."""
    install(session, "render")
    project = make_project(session, "demo", *session.posargs)
    session.chdir(project)
    session.run(
        *(str(python_of(project)), "-m", package_of(project)),
        external=True,
        interrupt_timeout=GRACE_SECONDS,
        terminate_timeout=GRACE_SECONDS,
    )


@nox.session(venv_backend="none")
def prepare(_: nox.Session) -> None:
    """Installs the programs that the checks need, or lists those that you have to install.

    Each session installs the programs that it needs. This one covers everything that `nox` runs.
    """
    programs.bring(*nox.options.sessions or ())


@nox.session
def lint(session: nox.Session) -> None:
    """Checks the template's own Python code: style, formatting and types."""
    install(session, "lint", "faults")
    # Listed by name, because the project's directory is not valid Python until it is rendered.
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Tests answers, hooks, rendered files and the demo.

    `nox -s lint tests -- --ignore=tests/test_demo.py` takes two minutes.
    """
    install(session, "tests")
    slow = [f"--ignore=tests/{name}" for name in SLOW]
    session.run("pytest", "-n", WORKERS, *slow, *session.posargs)


@nox.session
def generated(session: nox.Session) -> None:
    """Renders projects that cover every pair of answers; installs, checks, tests and serves each.

    `nox -s generated -- --collect-only -q` lists the combinations and `-- -k NAME` runs one.
    """
    install(session, "tests")
    folders = ("tests/generated", "tests/monitoring")
    session.run("pytest", *folders, "-n", PROJECTS_AT_ONCE, *session.posargs)


@nox.session
def matrix(session: nox.Session) -> None:
    """Lists the combinations of answers that `generated` tests."""
    install(session, "tests")
    session.run("python", "-m", "tests.matrix", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Writes the pages of docs/ that are generated from other files."""
    install(session, "tests")
    session.run("python", "-m", "docs.write")


@nox.session
def site(session: nox.Session) -> None:
    """Builds the docs site into dist/site, or into another folder: `nox -s site -- FOLDER`."""
    install(session, "tests")
    session.run("python", "-m", "docs.site.build", *session.posargs)


@nox.session
def models(session: nox.Session) -> None:
    """Runs tiny models of every architecture in transformers, and writes docs/models.md.

    `nox -s models -- bloom mamba` runs only some of them.
    """
    install(session, "render")
    project = make_project(session, "models")
    found = project.parent / "models.json"
    sweep = (str(TEMPLATE / "tests" / "models" / "sweep.py"), package_of(project), str(found))
    with session.chdir(project):
        session.run(str(python_of(project)), *sweep, *session.posargs, external=True)
    if not session.posargs:
        session.run("python", "-m", "docs.models", str(found))


@nox.session
def pictures(session: nox.Session) -> None:
    """Serves a project of each kind with its real models, and takes screenshots for the docs."""
    # This group includes matplotlib, which installs Pillow.
    install(session, "benchmark")
    kinds = ("compare", "chat", "own")
    projects = [make_project(session, f"pictures-{kind}", f"page={kind}") for kind in kinds]
    session.run("python", "-m", "docs.pictures", *map(str, projects))


@nox.session
def dashboard(session: nox.Session) -> None:
    """Draws the dashboard after 15 minutes of requests, for docs/pictures.md."""
    install(session, "benchmark")
    project = make_project(session, "dashboard", "deploy=docker")
    session.run("python", "-m", "docs.dashboard", str(project))


@nox.session
def series(session: nox.Session) -> None:
    """Records new series for the alert tests, from projects that are slow, fail and stop.

    `nox -s series -- compare-slow` records only some of them.
    """
    install(session, "tests")
    compares = make_project(session, "series", "deploy=docker")
    own = make_project(session, "series-own", "deploy=docker", "page=own")
    module = ("python", "-m", "tests.monitoring.record")
    session.run(*module, str(compares), str(own), *session.posargs)


@nox.session
def apps(session: nox.Session) -> None:
    """Compares small Gradio apps of every kind, with `launch()` and served on Ray.

    Runs in a project's environment. Takes pytest's options: `nox -s apps -- -k timers`.
    """
    install(session, "render")
    project = make_project(session, "apps")
    session.run(
        *(str(python_of(project)), "-m", "pytest", "tests/apps", "-c", "tests/apps/pytest.ini"),
        *("--rootdir", ".", "--confcutdir", "tests/apps", *session.posargs),
        external=True,
        env={"APPS_PACKAGE": package_of(project)},
    )


@nox.session
def newest(session: nox.Session) -> None:
    """Does what `generated` does, with releases that are newer than the declared versions."""
    install(session, "tests")
    options = ("-rP", "--newest", "-n", PROJECTS_AT_ONCE)
    session.run("pytest", "tests/generated", *options, *session.posargs)


@nox.session
def update(session: nox.Session) -> None:
    """Makes a project from the last release, edits it, and updates it to the working tree."""
    install(session, "update")
    session.run("pytest", "tests/update", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Kills processes of a served project, floods it and attacks it."""
    install(session, "faults")
    session.run("pytest", "tests/faults", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Does what `faults` does, more often and for longer."""
    install(session, "faults")
    session.run("pytest", "-s", "tests/faults", "--soak", *session.posargs)


@nox.session
def benchmark(session: nox.Session) -> None:
    """Compares a rendered project with its alternatives, and writes the report.

    `nox -s benchmark -- users` runs only that part. The other parts are `growth`, `footprint`,
    `own`, `api`, `delivery`, `engines` and `quality`.
    `nox -s benchmark -- quick` takes five minutes, and fails if a ratio clearly misses its goal.
    """
    install(session, "benchmark")
    project = make_project(session, "benchmark")
    own = make_project(session, "benchmark-own", "page=own")
    package = package_of(project)
    weights = (
        f"from {package}.serving.engine.bundled import bundled_weights; print(bundled_weights())"
    )
    python = str(python_of(project))
    printed = session.run(python, "-c", weights, external=True, silent=True) or ""
    [*_, model] = printed.splitlines()
    rivals = session.cache_dir.resolve() / "rivals"
    if not session.posargs or {"engines", "quality"} & {*session.posargs}:
        install_rivals(session, rivals)
    arguments = [str(project), str(project / ".venv"), model, str(own), str(python_in(rivals))]
    session.run("python", "-m", "benchmarks", *arguments, *session.posargs)


def make_project(session: nox.Session, name: str, *answers: str) -> Path:
    """Renders a project and installs it into its own environment."""
    # Not create_tmp, because it sets TMPDIR, which makes the paths of Ray's sockets too long.
    output = session.cache_dir.resolve() / name
    shutil.rmtree(output, ignore_errors=True)
    session.run(
        *("cookiecutter", "--no-input", "--default-config", "--output-dir", str(output)),
        str(TEMPLATE),
        *answers,
    )
    [project] = output.iterdir()
    environment = {"UV_PROJECT_ENVIRONMENT": str(project / ".venv")}
    if "UV_INDEX" in session.env:
        # The wheels on this machine are for this Python.
        environment["UV_PYTHON"] = sys.executable
    with session.chdir(project):
        try:
            session.run("uv", "sync", external=True, env=environment)
        except CommandFailed:
            _, index = PYTORCH_INDEX
            if is_reachable(index):
                raise
            session.error(
                f"{index}, PyTorch's index for Linux, cannot be reached. Run `export "
                "UV_NO_SOURCES=1` to use the package index, whose PyTorch includes gigabytes of "
                "CUDA."
            )
    return project


def install_rivals(session: nox.Session, environment: Path) -> None:
    """Installs the engines that the project's engine is compared with."""
    session.run("uv", "venv", "--quiet", "--clear", str(environment), external=True)
    # openvino-telemetry would report each import of openvino to its developers.
    left_out = environment / "left-out.txt"
    left_out.write_text("openvino-telemetry; sys_platform == 'never'\n", "utf-8")
    options = ("--quiet", "--python", str(python_in(environment)), "--override", str(left_out))
    session.run("uv", "pip", "install", *options, *RIVALS, external=True)


def package_of(project: Path) -> str:
    [package] = project.joinpath("src").iterdir()
    return package.name


def python_of(project: Path) -> Path:
    return python_in(project / ".venv")


def python_in(environment: Path) -> Path:
    return environment / "bin" / "python"


def install(session: nox.Session, *groups: str) -> None:
    use_pip_settings(session)
    # In `tests`, only the demo opens a browser.
    if session.name != "tests" or WITHOUT_DEMO not in session.posargs:
        programs.bring(session.name)
    session.install(*nox.project.dependency_groups(nox.project.load_toml(), *groups))


def use_pip_settings(session: nox.Session) -> None:
    """Passes pip's PIP_FIND_LINKS, where PyTorch's CPU build may be, to uv, which ignores it."""
    if "PIP_FIND_LINKS" not in os.environ:
        return
    session.env.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])
    folders = [Path(place) for place in os.environ["PIP_FIND_LINKS"].split()]
    if wheels := [wheel.resolve() for each in folders for wheel in each.glob("torch-*.whl")]:
        # Replaces PyTorch's own index, even for projects with CUDA.
        name, _ = PYTORCH_INDEX
        index = write_index(session.cache_dir.resolve() / name, wheels)
        session.env["UV_INDEX"] = f"{name}={index.as_uri()} {os.environ.get('UV_INDEX', '')}"


def write_index(folder: Path, wheels: list[Path]) -> Path:
    """Creates a package index of the PyTorch wheels on this machine."""
    links = "".join(f'<a href="{wheel.as_uri()}">{wheel.name}</a>\n' for wheel in wheels)
    page = folder / "torch" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"<!DOCTYPE html>\n{links}", "utf-8")
    return folder


def is_reachable(url: str) -> bool:
    try:
        urlopen(url, timeout=10).close()  # noqa: S310 - the index above
    except HTTPError:
        return True
    except (URLError, TimeoutError):
        return False
    return True
