"""The tools that check what is rendered."""

import shutil
import subprocess
import sys
from pathlib import Path


def run(tool: str, *arguments: str | Path) -> None:
    """Runs a tool of this environment; raises AssertionError with what it says if it fails."""
    path = shutil.which(tool, path=str(Path(sys.executable).parent))
    assert path
    result = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def check_with_ruff(project: Path) -> None:
    run("ruff", "check", "--no-cache", project)
    run("ruff", "format", "--diff", "--no-cache", project)
