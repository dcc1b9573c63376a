"""A rendered project with its environment, and the processes that serve it."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
import psutil
import yaml
from filelock import FileLock
from gradio_client import Client, handle_file

COMMAND_SECONDS = 2700
"""On a slow machine that tests two projects at once, one takes more than half an hour."""
START_SECONDS = 600
ANSWER_SECONDS = 120
STOP_SECONDS = 90
FAILED_TEST = re.compile("(FAILED|ERROR) .*::")
PROMPT = "The sky above the harbour was grey, and the gulls were waiting for the fishing boats."


@dataclass(frozen=True)
class Project:
    root: Path
    environment: Path
    """The virtual environment that it is installed into."""
    variables: Mapping[str, str] = field(default_factory=dict)
    within: tuple[str, ...] = ()
    """What each of its commands starts with, such as `ip netns exec NAME`."""

    @property
    def package(self) -> str:
        [package] = (self.root / "src").iterdir()
        return package.name

    def run(self, *command: str) -> None:
        run_in(self.root, command, self.env())

    @contextmanager
    def started(self, *command: str) -> Iterator["Running"]:
        """Starts a command of the environment, and asserts that it leaves nothing behind."""
        log = self.root.parent / f"{'-'.join([command[0], *self.within[-1:]])}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*self.within, str(self.environment / "bin" / command[0]), *command[1:]],
                cwd=self.root,
                env=self.env(),
                # Keep stdin open: the hub stops when its input ends.
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=listen_to_ctrl_c,
            )
        try:
            yield Running(process, log)
        finally:
            alive = process.poll() is None
            children = psutil.Process(process.pid).children(recursive=True) if alive else []
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            finally:
                process.kill()
                print(log.read_text())
        _, left = psutil.wait_procs(children, timeout=STOP_SECONDS)
        assert left == []

    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "UV_PROJECT_ENVIRONMENT": str(self.environment),
            # Otherwise uv may choose a newer Python.
            "UV_PYTHON": sys.executable,
            "UV_COMPILE_BYTECODE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "GRADIO_ANALYTICS_ENABLED": "False",
            **self.variables,
        }


def run_in(
    directory: Path,
    command: Sequence[str],
    variables: Mapping[str, str],
    seconds: float = COMMAND_SECONDS,
) -> None:
    """Raises if the command fails or times out; pytest shows its output."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=listen_to_ctrl_c,
        )
        try:
            process.wait(seconds)
        finally:
            if process.poll() is None:
                interrupt(process)
            output.seek(0)
            said = output.read()
            print(said)
    # pytest's failures, which are far above the end of a long output.
    failed = "".join(f"\n{line}" for line in said.splitlines() if FAILED_TEST.match(line))
    assert process.returncode == 0, f"in {directory}: {shlex.join(command)}{failed}"


def listen_to_ctrl_c() -> None:
    # Background processes of a script would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Interrupts a session like Ctrl-C, so that it cleans up, and kills what is left."""
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(started, timeout=0)
    for each in left:
        each.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)


def importable_names(environment: Path) -> set[str]:
    """Returns the top-level names in the libraries of an environment."""
    [libraries] = environment.glob("lib/python*/site-packages")
    names = {
        path.name.partition(".")[0]
        for path in libraries.iterdir()
        if path.is_dir() or path.suffix in {".py", ".so"}
    }
    return {name.lower() for name in names if name.isidentifier() and not name.startswith("_")}


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, happened: Callable[[str], bool], seconds: float) -> str:
        """Returns the log once `happened(log)`; raises with the log after the timeout."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            log = self.log.read_text()
            if happened(log):
                return log
            time.sleep(0.2)
        raise TimeoutError(f"{self.process.args!r}:\n{self.log.read_text()}")


@contextmanager
def ray_directory(logs: Path) -> Iterator[str]:
    """Keeps Ray's files in a separate folder, and copies its logs to `logs` after a failure."""
    # Ray's sockets are in it, and their paths may have at most 107 characters.
    directory = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    try:
        yield directory
    except BaseException:
        for session in Path(directory).glob("ray/session_[0-9]*"):
            shutil.copytree(session / "logs", logs / session.name, ignore_dangling_symlinks=True)
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def loopback_hub(project: Project, cache: Path) -> Iterator[Project]:
    """Serves tiny models under the real names, and yields a project that downloads them."""
    with project.started("python", "-m", "tests.support.loopback_hub") as hub:
        log = hub.wait_for(lambda log: "HF_ENDPOINT=" in log, START_SECONDS)
        endpoint = log.partition("HF_ENDPOINT=")[2].strip()
        variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache)}
        yield replace(project, variables={**project.variables, **variables})


@contextmanager
def cluster_with_a_gpu(project: Project) -> Iterator[Project]:
    """Starts Ray with a fake GPU, and yields a project that joins it."""
    port, dashboard, client_server = free_port(), free_port(), free_port()
    # Ray protects a cluster with a token, and clients must be told to use it.
    project = replace(project, variables={**project.variables, "RAY_AUTH_MODE": "token"})
    # `ray start` fails if another Ray uses one of its default ports.
    ports = (
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client_server}",
    )
    command = ("ray", "start", "--head", "--block", "--num-gpus=1", *ports)
    with project.started(*command) as ray:
        ray.wait_for(lambda log: "Ray runtime started" in log, START_SECONDS)
        variables = {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        yield replace(project, variables={**project.variables, **variables})


@contextmanager
def serve_config(project: Project) -> Iterator[str]:
    """Runs `serve run config/local.yaml` on a free port and yields the URL of the page."""
    config = yaml.safe_load((project.root / "config" / "local.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    path = project.root.parent / "local.yaml"
    path.write_text(yaml.safe_dump(config))
    with serve_run(project, str(path), port) as url:
        yield url


@contextmanager
def serve_import_path(project: Project) -> Iterator[str]:
    """Runs `serve run` with the import path, which always uses port 8000."""
    lock = FileLock(Path(tempfile.gettempdir()) / "port-8000.lock", timeout=COMMAND_SECONDS)
    with lock, serve_run(project, f"{project.package}.app:app", 8000) as url:
        yield url


@contextmanager
def serve_run(project: Project, target: str, port: int) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    with project.started("serve", "run", target) as server:
        server.wait_for(lambda _: answers(f"{url}/theme.css"), START_SECONDS)
        yield url


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=10).status_code == 200
    except httpx2.TransportError:
        return False


@dataclass(frozen=True)
class Answered:
    texts: list[str]
    """One for each model."""
    updates: int


@dataclass(frozen=True)
class Numbered:
    text: str
    texts: str
    """How many texts the session has seen."""


def ask(url: str, api: str = "/generate") -> Answered:
    """Completes a queued call with greedy decoding, since a sample may be in any language."""
    # A tiny model has a short context.
    options = {"max_new_tokens": 100, "temperature": "0"}
    job = Client(url, verbose=False).submit(PROMPT, **options, api_name=api)
    last = job.result(timeout=ANSWER_SECONDS)
    texts = [last] if isinstance(last, str) else list(last)
    return Answered(texts, len(job.outputs()))


def ask_example(url: str) -> Numbered:
    """Calls the example of a custom page twice in one session, with a file in and out."""
    client = Client(url, verbose=False)
    with tempfile.TemporaryDirectory() as directory:
        text = Path(directory) / "text.txt"
        text.write_text(PROMPT, "utf-8")
        for _ in range(2):
            result, texts = client.predict(handle_file(text), api_name="/number_lines")
    return Numbered(Path(result).read_text("utf-8"), texts)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port
