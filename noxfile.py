"""`nox` checks the template, `nox -s demo` shows what it makes."""

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2026"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "tests", "generated"]

TEMPLATE = Path(__file__).parent
CODE = ["noxfile.py", "hooks", "tests"]
GRACE_SECONDS = 90
# A project mostly waits for Ray to start, so two cores carry two at a time.
WORKERS = "2"


@nox.session
def demo(session: nox.Session) -> None:
    """Renders a project and serves it on port 8000 until Ctrl-C; takes `key=value` answers."""
    install(session, "render")
    # Not create_tmp: it sets TMPDIR, below which the paths of Ray's sockets get too long.
    output = session.cache_dir.resolve() / "demo"
    shutil.rmtree(output, ignore_errors=True)
    session.run(
        *("cookiecutter", "--no-input", "--default-config", "--output-dir", str(output)),
        str(TEMPLATE),
        *session.posargs,
    )
    [project] = output.iterdir()
    [package] = project.joinpath("src").iterdir()
    environment = project / ".venv"
    session.chdir(project)
    session.run("uv", "sync", external=True, env={"UV_PROJECT_ENVIRONMENT": str(environment)})
    session.run(
        *(str(environment / "bin" / "python"), "-m", package.name),
        external=True,
        interrupt_timeout=GRACE_SECONDS,
        terminate_timeout=GRACE_SECONDS,
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Checks the template's own Python: style, format and types."""
    install(session, "lint", "tests")
    # By name, because the template's own folder is no Python until it is rendered.
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Tests answers, hooks, rendered files and the demo."""
    install(session, "tests")
    session.run("pytest", "--ignore=tests/generated", *session.posargs)


@nox.session
def generated(session: nox.Session) -> None:
    """Renders every pair of answers; installs, checks, tests and serves each project.

    `nox -s generated -- --collect-only -q` lists the combinations and `-- -k NAME` runs one.
    """
    install(session, "tests")
    session.run("pytest", "tests/generated", "-n", WORKERS, *session.posargs)


def install(session: nox.Session, *groups: str) -> None:
    use_pip_settings(session)
    session.install(*nox.project.dependency_groups(nox.project.load_toml(), *groups))


def use_pip_settings(session: nox.Session) -> None:
    """uv does not read where pip is told to look for wheels, PyTorch's CPU build say."""
    if "PIP_FIND_LINKS" in os.environ:
        session.env.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])
