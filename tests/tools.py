"""The tools that check rendered projects."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

PYTORCH_OF_THIS_MACHINE = ("UV_FIND_LINKS", "UV_INDEX", "UV_NO_SOURCES")


def run(tool: str, *arguments: str | Path) -> None:
    """Runs a tool of this environment; raises AssertionError with its output if it fails."""
    result = subprocess.run(
        [path_of(tool), *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def path_of(tool: str) -> str:
    path = shutil.which(tool, path=str(Path(sys.executable).parent))
    assert path
    return path


def uv(project: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs uv in a project as if the machine had no PyTorch index of its own."""
    others = {
        name: value for name, value in os.environ.items() if name not in PYTORCH_OF_THIS_MACHINE
    }
    return subprocess.run(
        [path_of("uv"), *shlex.split(command)],
        cwd=project,
        env={
            **others,
            "UV_PYTHON": sys.executable,
            "UV_PYTHON_DOWNLOADS": "never",
            **variables,
        },
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def check_with_ruff(project: Path) -> None:
    run("ruff", "check", "--no-cache", project)
    run("ruff", "format", "--diff", "--no-cache", project)
