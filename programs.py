"""Installs the programs that sessions need and pip cannot install.

They come from Debian packages if possible. Chromium may also come from Playwright.
To add a program, add a line to `PROGRAMS`.
"""

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Program:
    name: str
    commands: tuple[str, ...]
    """Any one of them is enough. The name of a Linux library is checked by loading it."""
    package: str
    """The Debian package."""
    sessions: tuple[str, ...]
    """The nox sessions that need it."""
    makes_networks: bool = False
    """Whether only tests that create networks need it. Without root on Linux, they are skipped."""


FAULTS = ("faults", "soak")
GENERATED = ("generated", "newest")
BROWSER = ("apps", "tests", "pictures", *GENERATED, *FAULTS)
CHROMIUM = Program("Chromium", ("chromium", "google-chrome"), "chromium", BROWSER)
PROGRAMS = (
    CHROMIUM,
    # Playwright itself needs it, no matter which browser it uses.
    Program("libatomic", ("libatomic.so.1",), "libatomic1", BROWSER),
    Program("HAProxy", ("haproxy",), "haproxy", FAULTS, makes_networks=True),
    Program("nginx", ("nginx",), "nginx", FAULTS, makes_networks=True),
    # Not used under this name, but it is the only server command that Debian puts on the PATH.
    Program("PostgreSQL", ("pg_ctlcluster", "pg_ctl"), "postgresql", GENERATED),
    Program("Redis", ("redis-server",), "redis-server", (*GENERATED, *FAULTS)),
    Program("iproute2", ("ip",), "iproute2", (*GENERATED, *FAULTS), makes_networks=True),
    Program("Prometheus", ("prometheus",), "prometheus", ("dashboard", "series", *GENERATED)),
)
APT_GET = (
    *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", "--quiet"),
    *("-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30"),
    *("-o", "Acquire::Retries=2", "-o", "DPkg::Lock::Timeout=300"),
)
PLAYWRIGHT_SECONDS = 900
OPEN_AND_CLOSE = """
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    playwright.chromium.launch().close()
"""


def bring(*sessions: str) -> None:
    """Installs the programs that these sessions lack, or exits with a message."""
    if not missing(sessions):
        return
    install_packages(missing(sessions))
    left = missing(sessions)
    if others := [program for program in left if program != CHROMIUM]:
        exit_without(others)
    if left and not playwright_has_chromium():
        exit_without(left)


def missing(sessions: Sequence[str]) -> list[Program]:
    return [
        program
        for program in PROGRAMS
        if not set(program.sessions).isdisjoint(sessions)
        and not any(map(is_there, program.commands))
        and (can_make_networks() or not program.makes_networks)
    ]


def is_there(command: str) -> bool:
    if ".so." not in command:
        return shutil.which(command) is not None
    return sys.platform != "linux" or has_library(command)


def has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def can_make_networks() -> bool:
    """Whether this is root on Linux, which can create networks and overlay file systems."""
    return sys.platform == "linux" and os.geteuid() == 0


def install_packages(programs: list[Program]) -> None:
    packages = [each.package for each in programs if each != CHROMIUM or is_debian()]
    as_root = prefix_of_root()
    if as_root is None or not packages:
        return
    say(f"Installing the Debian packages {', '.join(packages)}")
    update_package_lists(as_root)
    succeeds(*as_root, *APT_GET, "install", "--no-install-recommends", *packages)


@functools.cache
def update_package_lists(as_root: tuple[str, ...]) -> None:
    succeeds(*as_root, *APT_GET, "update")


def prefix_of_root() -> tuple[str, ...] | None:
    """Returns the prefix of a command that installs packages, or None if that isn't allowed."""
    if not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return ()
    sudo = ("sudo", "--non-interactive")
    return sudo if shutil.which("sudo") and succeeds(*sudo, "true", quiet=True) else None


def is_debian() -> bool:
    """Whether this is Debian. On Ubuntu, the package `chromium` installs a snap."""
    try:
        return platform.freedesktop_os_release()["ID"] == "debian"
    except OSError:
        return False


@functools.cache
def playwright_has_chromium() -> bool:
    """Downloads Playwright's Chromium if needed, and returns whether it starts."""
    if succeeds(*playwright("python", "-c", OPEN_AND_CLOSE), quiet=True):
        return True
    say("Installing Playwright's Chromium")
    # The libraries that it needs are Debian packages.
    libraries = [] if is_debian() or prefix_of_root() is None else ["--with-deps"]
    return succeeds(*playwright("playwright", "install", *libraries, "chromium")) and succeeds(
        *playwright("python", "-c", OPEN_AND_CLOSE), quiet=True
    )


def playwright(*command: str) -> tuple[str, ...]:
    """Returns a command of the Playwright release that the tests use."""
    pyproject = Path(__file__).with_name("pyproject.toml").read_text("utf-8")
    group = tomllib.loads(pyproject)["dependency-groups"]["tests"]
    [requirement] = [each for each in group if str(each).startswith("playwright>")]
    uv = ("uv",) if shutil.which("uv") else (sys.executable, "-m", "uv")
    return (*uv, "tool", "run", "--quiet", "--from", requirement, *command)


def succeeds(*command: str, quiet: bool = False) -> bool:
    output = subprocess.DEVNULL if quiet else None
    try:
        return not subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # apt-get has its own timeouts, and stopping it would leave packages half installed.
            timeout=None if "apt-get" in command else PLAYWRIGHT_SECONDS,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return False


def say(text: str) -> None:
    print(text, flush=True)


def exit_without(programs: list[Program]) -> None:
    names = ", ".join(program.name for program in programs)
    packages = " ".join(program.package for program in programs)
    sys.exit(f"Missing: {names}. Install them first. On Debian, run `apt-get install {packages}`.")
