"""Runs the steps of a Dockerfile without a container engine: each stage is an overlay.

This machine's Debian and Python replace the base image. Needs root, for overlays.
"""

import json
import os
import pwd
import shlex
import shutil
import string
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..dockerfile import flags_and_rest, instructions
from .project import run_in

SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
OF_THIS_MACHINE = (
    "HTTP",
    "NO_PROXY",
    "PIP_",
    "SSL_",
    "UV_DEFAULT_INDEX",
    "UV_FIND_LINKS",
    "UV_INDEX",
)
"""Prefixes of the variables that say how this machine fetches packages."""
ENTER = """
mount --rbind /dev "$0/root/dev" && mount --rbind /proc "$0/root/proc" &&
mount --bind "$0/tmp" "$0/root/tmp" && exec "$@"
"""


@dataclass
class Stage:
    folder: Path
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": SYSTEM_PATH})
    directory: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    health_check: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def layer(self) -> Path:
        """The files that the stage adds to the machine's."""
        return self.folder / "layer"

    def within(self, *prefix: str, variables: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """Returns the command line that runs in the stage, after a prefix: `ip netns exec NAME`."""
        pairs = [f"{key}={value}" for key, value in {**(variables or {}), **self.variables}.items()]
        # Devices and processes are mounted only for the command, and unmounted when it ends.
        enter = ("unshare", "--mount", "sh", "-c", ENTER, str(self.folder))
        chroot = ("chroot", f"--userspec={self.user}", str(self.root))
        return (*prefix, *enter, *chroot, "env", "-i", f"--chdir={self.directory}", *pairs)

    def run(self, command: str) -> None:
        variables = {
            name: value for name, value in os.environ.items() if name.startswith(OF_THIS_MACHINE)
        }
        run_in(Path("/"), [*self.within(variables=variables), "sh", "-c", command], os.environ)

    def path(self, name: str) -> Path:
        """Returns the path of a file as the stage sees it."""
        return self.root / (Path(self.directory) / name).relative_to("/")


@contextmanager
def image(dockerfile: Path, directory: Path) -> Iterator[Stage]:
    """Yields the final stage after its last step."""
    stages: dict[str, Stage] = {}
    with ExitStack() as mounted:
        for name, value in instructions(dockerfile):
            if name == "FROM":
                _, _, title = value.partition(" AS ")
                stage = mounted.enter_context(overlay(directory / f"stage-{len(stages)}"))
                stages[title or str(len(stages))] = stage
            else:
                take(name, value, stage, stages, dockerfile.parent)
        yield stage


@contextmanager
def overlay(folder: Path) -> Iterator[Stage]:
    root, layer, work, temporary = (folder / name for name in ("root", "layer", "work", "tmp"))
    for made in (root, layer, work, temporary):
        made.mkdir(parents=True)
    temporary.chmod(0o1777)
    options = f"lowerdir=/,upperdir={layer},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True)
    try:
        become_the_base_image(root)
        bring_local_indexes(root)
        yield Stage(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)
        # It contains a virtual environment, which is too large to leave after a failed test.
        shutil.rmtree(folder)


def become_the_base_image(root: Path) -> None:
    """Links `python` to this Python, and removes all users except system users."""
    python = root / "usr" / "local" / "bin" / "python"
    python.unlink(missing_ok=True)
    python.symlink_to("/usr/bin/python3")
    for name in ("passwd", "group", "shadow", "gshadow"):
        entries = root / "etc" / name
        people = {user.pw_name for user in pwd.getpwall() if 1000 <= user.pw_uid < 60_000}
        kept = [
            line for line in entries.read_text().splitlines() if line.split(":")[0] not in people
        ]
        entries.write_text("\n".join(kept) + "\n")


def bring_local_indexes(root: Path) -> None:
    """An overlay does not contain other file systems, such as the one with the template."""
    for index in os.environ.get("UV_INDEX", "").split():
        url = urlsplit(index.rpartition("=")[2])
        if url.scheme == "file":
            folder = Path(unquote(url.path))
            there = root / folder.relative_to("/")
            if not there.exists():
                shutil.copytree(folder, there)


def take(name: str, value: str, stage: Stage, stages: Mapping[str, Stage], context: Path) -> None:
    match name:
        case "ENV":
            for pair in shlex.split(value):
                variable, _, text = pair.partition("=")
                stage.variables[variable] = string.Template(text).substitute(stage.variables)
        case "WORKDIR":
            stage.directory = value
            stage.path(".").mkdir(parents=True, exist_ok=True)
        case "COPY":
            copy(value, stage, stages, context)
        case "RUN":
            stage.run(flags_and_rest(value)[1])
        case "USER":
            stage.user = value
        case "CMD":
            stage.command = json.loads(value)
        case "HEALTHCHECK":
            stage.health_check = json.loads(value.partition("CMD")[2])
        case "EXPOSE" | "STOPSIGNAL" | "VOLUME":
            pass
        case _:
            raise NotImplementedError(name)


def copy(value: str, stage: Stage, stages: Mapping[str, Stage], context: Path) -> None:
    flags, rest = flags_and_rest(value)
    options = dict(flag.removeprefix("--").partition("=")[::2] for flag in flags)
    *sources, target = shlex.split(rest)
    origin = options.get("from")
    for source in sources:
        if origin is None:
            found = context / source
        elif origin in stages:
            found = stages[origin].path(source)
        else:
            # A program from another image, which this machine also has.
            program = shutil.which(Path(source).name)
            assert program, source
            found = Path(program)
        if found.is_dir():
            shutil.copytree(found, stage.path(target), symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(found, stage.path(target))
    if owner := options.get("chown"):
        stage.run(f"chown --recursive {owner} {target}")
