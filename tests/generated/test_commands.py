"""The commands that project tests run."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from .project import run_in

# Like Ray's processes, the second one is in a separate session.
STARTS_ANOTHER = """
import subprocess
other = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(other.pid, flush=True)
other.wait()
"""


@pytest.fixture
def _in_the_background() -> Iterator[None]:
    """Processes that a script starts in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_in_the_background")
def test_a_command_that_times_out_is_stopped_with_its_children_and_its_output_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_in(tmp_path, [sys.executable, "-c", STARTS_ANOTHER], os.environ, seconds=10)
    other, *traceback = capsys.readouterr().out.splitlines()
    assert "KeyboardInterrupt" in traceback
    assert not psutil.pid_exists(int(other))


def test_a_failing_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="exit 3"):
        run_in(tmp_path, ["sh", "-c", "exit 3"], os.environ)


def test_failing_tests_are_named(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text("def test_no(): assert 0\ndef test_yes(): pass\n")
    with pytest.raises(
        AssertionError, match=r"(?s)pytest -q.*FAILED test_two.py::test_no"
    ) as found:
        run_in(tmp_path, [sys.executable, "-m", "pytest", "-q"], os.environ)
    assert "test_yes" not in str(found.value)
