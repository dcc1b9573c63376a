"""Missing programs are installed before anything starts, or named."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import programs

from .answers import TEMPLATE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="apt-get and sudo are no scripts")

APT_GET = """
for word in "$@"; do
    case $word in
        chromium | haproxy | nginx | prometheus | redis-server) command=$word ;;
        iproute2) command=ip ;;
        postgresql) command=pg_ctlcluster ;;
        *) continue ;;
    esac
    echo "#!/bin/sh" > "$MACHINE/$command"
    /bin/chmod +x "$MACHINE/$command"
done
"""
UV = """
case "$*" in
    *"playwright install"*) : > "$MACHINE/playwrights-chromium" ;;
    *) test -e "$MACHINE/playwrights-chromium" ;;
esac
"""


class Machine:
    """Its programs are scripts in a folder that record their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.log = folder / "log"
        self.log.touch()
        env = shutil.which("env")
        assert env
        (folder / "env").symlink_to(env)

    def has(self, command: str, script: str = "") -> None:
        path = self.folder / command
        path.write_text(f'#!/bin/sh\necho "{command} $*" >> "$MACHINE/log"\n{script}')
        path.chmod(0o755)

    def calls(self) -> list[str]:
        """Returns the calls without options."""
        return [re.sub(r" (-o \S+|--(yes|quiet)\b)", "", line) for line in self.all_calls()]

    def all_calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A Debian machine with only the programs that a test adds."""
    machine = Machine(tmp_path / "machine")
    monkeypatch.setenv("PATH", str(machine.folder))
    monkeypatch.setenv("MACHINE", str(machine.folder))
    monkeypatch.setattr(programs, "is_debian", lambda: True)
    monkeypatch.setattr(programs, "has_library", lambda _: True)
    forget()
    return machine


def forget() -> None:
    """Forgets earlier results, as if nox were restarted."""
    programs.update_package_lists.cache_clear()
    programs.playwright_has_chromium.cache_clear()


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.mark.usefixtures("root")
def test_nothing_runs_if_every_program_is_installed(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    for command in (
        "google-chrome",
        "haproxy",
        "nginx",
        "pg_ctl",
        "redis-server",
        "ip",
        "prometheus",
        "apt-get",
        "sudo",
        "uv",
    ):
        machine.has(command)

    programs.bring("tests", "faults", "generated")

    assert machine.calls() == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("root")
def test_a_session_without_programs_installs_none(machine: Machine) -> None:
    machine.has("apt-get", APT_GET)

    programs.bring("demo", "lint", "update")

    assert machine.calls() == []


@pytest.mark.usefixtures("root")
def test_root_installs_missing_packages_in_one_command(
    machine: Machine, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.has("apt-get", APT_GET)

    programs.bring("tests", "faults", "generated")

    assert machine.calls() == [
        "apt-get update",
        "apt-get install --no-install-recommends "
        "chromium haproxy nginx postgresql redis-server iproute2 prometheus",
    ]
    brought = "chromium, haproxy, nginx, postgresql, redis-server, iproute2, prometheus"
    assert brought in capfd.readouterr().out


@pytest.mark.usefixtures("root")
def test_root_installs_nothing_installed_or_unneeded(machine: Machine) -> None:
    machine.has("apt-get", APT_GET)
    machine.has("chromium")

    programs.bring("faults")
    programs.bring("faults", "generated")

    assert machine.calls() == [
        "apt-get update",
        "apt-get install --no-install-recommends haproxy nginx redis-server iproute2",
        "apt-get install --no-install-recommends postgresql prometheus",
    ]


@pytest.mark.usefixtures("root")
def test_libraries_that_playwright_needs_are_packages_too(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        programs, "has_library", lambda name: name == "libatomic.so.1" and bool(machine.calls())
    )
    machine.has("apt-get", APT_GET)
    machine.has("chromium")

    programs.bring("tests")

    assert machine.calls() == [
        "apt-get update",
        "apt-get install --no-install-recommends libatomic1",
    ]


def test_a_library_counts_as_installed_if_it_can_be_loaded() -> None:
    assert not programs.has_library("libnothing-of-this-name.so.1")
    assert programs.has_library("libc.so.6") == (sys.platform == "linux")


@pytest.mark.usefixtures("root")
def test_package_lists_are_updated_once(machine: Machine) -> None:
    machine.has("apt-get", APT_GET)

    programs.bring("tests")
    programs.bring("dashboard")

    assert machine.calls() == [
        "apt-get update",
        "apt-get install --no-install-recommends chromium",
        "apt-get install --no-install-recommends prometheus",
    ]


@pytest.mark.usefixtures("root")
def test_apt_get_is_non_interactive_and_has_timeouts(
    machine: Machine,
) -> None:
    machine.has("apt-get", f'echo "$DEBIAN_FRONTEND" >> "$MACHINE/log"\n{APT_GET}')

    programs.bring("tests")

    [update, frontend, install, _] = machine.all_calls()
    for call in (update, install):
        for option in ("--yes", "http::Timeout=30", "https::Timeout=30", "Lock::Timeout=300"):
            assert option in call
    assert frontend == "noninteractive"


@pytest.mark.usefixtures("user")
def test_a_user_with_passwordless_sudo_installs_with_sudo(machine: Machine) -> None:
    machine.has("apt-get", APT_GET)
    machine.has("sudo", 'shift; test "$1" = true || exec "$@"')

    programs.bring("tests")

    update = "apt-get update"
    install = "apt-get install --no-install-recommends chromium"
    through = "sudo --non-interactive env DEBIAN_FRONTEND=noninteractive"
    assert machine.calls() == [
        "sudo --non-interactive true",
        *(f"{through} {update}", update),
        *(f"{through} {install}", install),
    ]


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("sudo", ["absent", "asks"])
def test_other_users_get_chromium_from_playwright(sudo: str, machine: Machine) -> None:
    machine.has("apt-get", APT_GET)
    machine.has("redis-server")
    machine.has("uv", UV)
    if sudo == "asks":
        machine.has("sudo", "exit 1")

    programs.bring("tests", "faults")

    [installed] = [call for call in machine.calls() if "playwright install" in call]
    assert re.fullmatch(
        r"uv tool run --from playwright>=\S+ playwright install chromium", installed
    )
    assert not [call for call in machine.calls() if "apt-get" in call]


@pytest.mark.usefixtures("user")
def test_an_installed_chromium_of_playwright_is_not_installed_again(machine: Machine) -> None:
    machine.has("uv", UV)

    programs.bring("tests")
    forget()
    programs.bring("tests")

    assert len([call for call in machine.calls() if "playwright install" in call]) == 1


@pytest.mark.usefixtures("root")
def test_without_a_chromium_package_playwright_installs_it_with_its_libraries(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "is_debian", lambda: False)
    machine.has("apt-get", APT_GET)
    machine.has("uv", UV)

    programs.bring("tests", "faults")

    assert (
        "apt-get install --no-install-recommends haproxy nginx redis-server iproute2"
        in machine.calls()
    )
    assert [call for call in machine.calls() if "playwright install --with-deps chromium" in call]


@pytest.mark.usefixtures("root")
def test_if_packages_cannot_be_installed_playwright_installs_chromium(machine: Machine) -> None:
    machine.has("apt-get", "exit 100")
    machine.has("uv", UV)

    programs.bring("tests")

    assert [call for call in machine.calls() if "playwright install chromium" in call]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("apt_get", ["absent", "fails"])
def test_if_nothing_can_be_installed_one_line_names_the_packages(
    apt_get: str, machine: Machine
) -> None:
    machine.has("uv", UV)
    if apt_get == "fails":
        machine.has("apt-get", "exit 100")

    with pytest.raises(SystemExit) as refused:
        programs.bring("tests", "faults", "dashboard")

    message = str(refused.value)
    assert "HAProxy, nginx, Redis, iproute2, Prometheus" in message
    assert "`apt-get install haproxy nginx redis-server iproute2 prometheus`" in message
    assert "\n" not in message
    assert not [call for call in machine.calls() if "playwright install" in call]


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("script", ["exit 1", "case $* in *install*) ;; *) exit 1 ;; esac"])
def test_a_missing_or_broken_chromium_is_reported(script: str, machine: Machine) -> None:
    machine.has("uv", script)

    with pytest.raises(SystemExit, match=r"^Missing: Chromium\. .*`apt-get install chromium`\.$"):
        programs.bring("tests")


def test_nox_starts_no_check_before_all_programs_are_installed(machine: Machine) -> None:
    machine.has("uv", "exit 1")

    nox = subprocess.run(
        [sys.executable, "-m", "nox", "-s", "prepare", "lint"],
        cwd=TEMPLATE,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert nox.returncode == 1
    assert re.search(r"^Missing: ", nox.stderr.splitlines()[-1])
    assert "session lint" not in nox.stderr


def test_programs_are_listed_only_for_existing_nox_sessions() -> None:
    noxfile = (TEMPLATE / "noxfile.py").read_text("utf-8")
    sessions = set(re.findall(r"^def (\w+)\(\w+: nox\.Session\)", noxfile, re.MULTILINE))

    for program in programs.PROGRAMS:
        assert set(program.sessions) <= sessions


def test_nox_without_arguments_installs_programs_first() -> None:
    noxfile = (TEMPLATE / "noxfile.py").read_text("utf-8")

    assert 'nox.options.sessions = ["prepare", ' in noxfile
