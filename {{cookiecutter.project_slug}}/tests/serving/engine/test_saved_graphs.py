"""Graphs on disk: a second start reuses what the first one built and checked."""

import errno
import logging
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM

from {{ cookiecutter.__package }}.serving.base import StartError
from {{ cookiecutter.__package }}.serving.engine import graph_paths, saved_graphs
from {{ cookiecutter.__package }}.serving.engine.engine import Engine
from {{ cookiecutter.__package }}.serving.engine.graph_paths import check_model
from {{ cookiecutter.__package }}.serving.engine.machine import may_have_gpu
from {{ cookiecutter.__package }}.serving.engine.runtime import (
    Decoder,
    release_file,
)
from {{ cookiecutter.__package }}.serving.engine.settings import EngineSettings
from {{ cookiecutter.__package }}.serving.protocol import (
    GenerationOptions,
    ModelError,
)

from ...support.stand_ins import pieces_of, user
from ...support.tiny_models import save_tiny
from .conftest import EngineOf
from .test_paged import LLAMA

PROMPTS = ["The whale", "Far out the mist above the water turned to silver", "灯台"]
OPTIONS = GenerationOptions(temperature=0, min_new_tokens=12, max_new_tokens=12)
ROUNDING = "tiny: rounding its weights to 8 bits"
ENGINES = """
import logging, sys
from {{ cookiecutter.__package }}.serving.engine import engine, settings
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
model = settings.EngineSettings(name="tiny", source=sys.argv[1], dtype="int8")
engine.Engine(model, settings.ModelLimits()).stop()
"""

Start = Callable[[], tuple[Engine, list[str]]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "model", **LLAMA)


@pytest.fixture
def start(model: Path, engine_of: EngineOf, caplog: pytest.LogCaptureFixture) -> Start:
    """Starts the model, and returns it with its log lines."""

    def start() -> tuple[Engine, list[str]]:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            engine = engine_of(model, dtype="int8")
        return engine, list(caplog.messages)

    return start


@pytest.fixture
def above(hf_home: Path) -> Path:
    """The folder of the graphs."""
    return hf_home / "converted" / "int8"


def graphs(above: Path) -> list[Path]:
    return sorted(each for each in above.glob("*") if each.is_dir())


async def texts(engine: Engine) -> list[str]:
    return [
        "".join(piece.text for piece in await pieces_of(engine.stream(user(prompt), OPTIONS)))
        for prompt in PROMPTS
    ]


def change(model: Path) -> None:
    changed = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for weights in changed.parameters():
            weights.copy_(weights.flip(-1))
    changed.save_pretrained(model)


async def test_a_second_start_writes_the_same_text_without_the_plain_model(
    start: Start, above: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, said = start()
    assert ROUNDING in said
    [graph] = graphs(above)
    assert f"tiny: saved its graph in {graph}" in said

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the plain model is loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    second, said = start()
    assert ROUNDING not in said
    assert any(line.endswith("in int8, from its saved graph.") for line in said)
    expected = await texts(first)
    assert len(set(expected)) == len(PROMPTS)
    assert await texts(second) == expected
    assert second._end == first._end
    assert second._top_k == first._top_k


WITHOUT_PYTORCH = """
import asyncio, sys
sys.modules["torch"] = None
from {{ cookiecutter.__package }}.serving.engine import engine, settings
from {{ cookiecutter.__package }}.serving.protocol import GenerationOptions, Message, Piece
model = settings.EngineSettings(name="tiny", source=sys.argv[1], dtype="int8")
made = engine.Engine(model, settings.ModelLimits())
options = GenerationOptions(temperature=0, min_new_tokens=12, max_new_tokens=12)

async def text(prompt):
    stream = made.stream([Message("user", prompt)], options)
    return "".join([piece.text async for piece in stream if isinstance(piece, Piece)])

print([asyncio.run(text(prompt)) for prompt in sys.argv[2:]])
made.stop()
"""


def said_without_pytorch(model: Path, hf_home: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTORCH, str(model), *PROMPTS],
        env=os.environ | {"HF_HOME": str(hf_home)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    return result.stdout


async def test_a_second_start_imports_no_pytorch(start: Start, model: Path, hf_home: Path) -> None:
    first, _ = start()
    assert said_without_pytorch(model, hf_home) == f"{await texts(first)}\n"


async def test_without_pytorch_a_graph_of_another_cpu_is_used(
    start: Start, model: Path, hf_home: Path, above: Path
) -> None:
    first, _ = start()
    [graph] = graphs(above)
    graph.rename(graph.with_suffix(".another"))
    assert said_without_pytorch(model, hf_home) == f"{await texts(first)}\n"


def settings_of(model: Path, **settings: str) -> EngineSettings:
    return EngineSettings.model_validate({"name": "tiny", "source": str(model), **settings})


def test_a_model_that_needs_pytorch_is_refused_before_ray_starts(
    start: Start, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    lacking = (
        rf"^Model 'tiny': '{model}' needs PyTorch, which is not installed here\. "
        r"Run `uv sync --group pytorch`"
    )
    with pytest.raises(StartError, match=lacking):
        check_model(settings_of(model))
    monkeypatch.undo()
    # Its graph does not need PyTorch.
    start()
    monkeypatch.setitem(sys.modules, "torch", None)
    check_model(settings_of(model))
    with pytest.raises(StartError, match=lacking):
        check_model(settings_of(model, dtype="float32"))


def test_without_pytorch_a_damaged_graph_is_reported(
    start: Start, above: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    [graph] = graphs(above)
    (graph / "graph.xml").unlink()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r"needs PyTorch.*cannot be used: .*graph\.xml.*uv sync"):
        start()


@pytest.mark.parametrize(
    ("build", "sees", "expected"),
    [
        ("2.13.0+cpu", True, False),
        ("2.13.0+cu130", True, True),
        ("2.13.0", True, True),
        ("2.13.0", False, False),
    ],
)
def test_the_gpu_check_asks_pytorch_unless_it_is_a_cpu_build(
    build: str, sees: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("importlib.metadata.version", lambda _: build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    assert may_have_gpu() is expected


async def test_generation_rules_of_a_model_still_apply_after_a_second_start(
    start: Start, model: Path
) -> None:
    plain = AutoModelForCausalLM.from_pretrained(model)
    plain.generation_config.update(do_sample=True, top_k=7, suppress_tokens=[*range(100, 200)])
    plain.generation_config.save_pretrained(model)
    (first, _), (second, _) = start(), start()
    assert second._top_k == first._top_k == 7
    expected = await texts(first)
    assert await texts(second) == expected
    (model / "generation_config.json").unlink()
    without, said = start()
    assert ROUNDING in said
    assert await texts(without) != expected


NAMES = [
    *("graph.bin", "graph.xml", "facts.json", "generation.json", "kept.json"),
    "tokenizer/tokenizer.json",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["cut off", "changed", "missing"])
async def test_a_damaged_graph_is_rebuilt(
    name: str, damage: str, start: Start, above: Path
) -> None:
    first, _ = start()
    [graph] = graphs(above)
    file = graph / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        content[len(content) // 2] ^= 255
        # Write a new file, since the first engine has mapped this one.
        file.unlink()
        file.write_bytes(content if damage == "changed" else content[: len(content) // 2])
    second, said = start()
    assert any(
        line.startswith(f"tiny: the graph in {graph} cannot be used and will be") for line in said
    )
    assert await texts(second) == await texts(first)
    assert graphs(above) == [graph]
    _, said = start()
    assert ROUNDING not in said


async def test_a_graph_that_the_runtime_cannot_read_is_rebuilt(
    start: Start, above: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = start()
    with monkeypatch.context() as patched:

        def fail(_: Path) -> ov.Model:
            patched.undo()
            raise RuntimeError("unknown operation")

        patched.setattr(saved_graphs, "read_graph", fail)
        second, said = start()
    # The next attempt, which holds the lock, reads it.
    assert ROUNDING not in said
    assert await texts(second) == await texts(first)
    assert len(graphs(above)) == 1


async def test_a_graph_of_changed_weights_replaces_the_old_one(
    start: Start, model: Path, above: Path
) -> None:
    first, _ = start()
    before = graphs(above)
    change(model)
    second, said = start()
    assert ROUNDING in said
    assert len(graphs(above)) == 1
    assert graphs(above) != before
    # The first engine still uses its deleted graph.
    assert await texts(first) != await texts(second)


@pytest.mark.parametrize("what", ["a package", "the project"])
def test_a_graph_of_another_version_replaces_the_old_one(
    what: str, start: Start, above: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    before = graphs(above)
    if what == "a package":
        monkeypatch.setattr(graph_paths, "version", lambda name: f"{name} of tomorrow")
    else:
        monkeypatch.setattr(graph_paths, "SOURCES", [*graph_paths.SOURCES, "families.py"])
    _, said = start()
    assert ROUNDING in said
    assert len(graphs(above)) == 1
    assert graphs(above) != before


def test_each_kind_of_cpu_has_its_own_graph(
    start: Start, above: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    before = graphs(above)
    with monkeypatch.context() as patched:
        patched.setattr("platform.machine", lambda: "another")
        _, said = start()
        assert ROUNDING in said
    assert len(graphs(above)) == 2
    assert set(before) < set(graphs(above))
    _, said = start()
    assert ROUNDING not in said


def test_graphs_of_removed_models_are_deleted(
    start: Start, above: Path, engine_of: EngineOf, tmp_path: Path
) -> None:
    other = save_tiny("llama", tmp_path / "other", **LLAMA)
    engine_of(other, dtype="int8")
    [gone] = graphs(above)
    (other / "config.json").unlink()
    for file in other.iterdir():
        file.unlink()
    other.rmdir()
    start()
    assert len(graphs(above)) == 1
    assert not gone.exists()


def test_files_left_by_a_killed_process_are_deleted(start: Start, above: Path) -> None:
    start()
    [graph] = graphs(above)
    left = above / f"{graph.name.split('.')[0]}.unfinished-x"
    graph.rename(left)
    start()
    assert graphs(above) == [graph]


def test_other_users_cannot_read_a_graph(start: Start, above: Path) -> None:
    start()
    [graph] = graphs(above)
    assert graph.stat().st_mode & 0o077 == 0


def test_a_graph_written_by_another_user_is_not_read(
    start: Start, above: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    [graph] = graphs(above)
    if os.geteuid() == 0:
        os.chown(graph, 4242, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 2424)
    _, said = start()
    assert any("rebuilt: it belongs to another user" in line for line in said)


def test_parallel_processes_build_one_graph(model: Path, above: Path, hf_home: Path) -> None:
    variables = os.environ | {"HF_HOME": str(hf_home)}
    command = [sys.executable, "-c", ENGINES, str(model)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables)
        for _ in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(ROUNDING in lines for lines in said) == [False, True]
    assert len(graphs(above)) == 1


def test_waiting_for_another_process_is_logged_and_bounded(
    start: Start, above: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    [graph] = graphs(above)
    graph.rename(above / "away")
    monkeypatch.setattr(saved_graphs, "LOCK_SECONDS", 0.2)
    with FileLock(above / f"{graph.name.split('.')[0]}.lock"):
        _, said = start()
    assert "tiny: another process is building its graph. Waiting up to 0.2 seconds for it" in said
    assert any(line.startswith(f"tiny: its graph cannot be saved in {above} (") for line in said)
    assert not graph.exists()


@pytest.mark.parametrize("why", ["no directory", "a full disk", "a disk that cuts off"])
async def test_without_a_writable_directory_each_start_builds_the_graph_in_memory(
    why: str, start: Start, above: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, _ = start()
    for graph in graphs(above):
        graph.rename(above.parent / "away")
    if why == "no directory":
        # Even root cannot write below a file.
        monkeypatch.setattr(graph_paths, "HF_HOME", str(Path(__file__)))
    else:
        save = ov.save_model

        def fill(graph: ov.Model, path: Path, **options: Any) -> None:
            save(graph, path, **options)
            numbers = path.with_suffix(".bin")
            os.truncate(numbers, numbers.stat().st_size // 2)
            if why == "a full disk":
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(ov, "save_model", fill)
    engine, said = start()
    unkept = [line for line in said if "its graph cannot be saved in" in line]
    assert len(unkept) == 1
    assert re.search(r"\(.+\), so it is rebuilt at every start\. Make that", unkept[0])
    assert await texts(engine) == await texts(usual)
    assert not graphs(above)


def test_a_graph_that_fails_its_check_is_not_kept(
    start: Start, above: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Decoder.scores
    monkeypatch.setattr(Decoder, "scores", lambda *given: np.flip(usual(*given), 1).copy())
    with pytest.raises(ModelError, match="its scores differ from those of the plain model"):
        start()
    assert not graphs(above)


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[tuple[Path, mmap.mmap]]:
    path = tmp_path / "numbers"
    path.write_bytes(b"n" * (1 << 20))
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as read:
        yield path, read


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_a_graph_file_is_dropped_from_memory_and_read_again(
    mapped: tuple[Path, mmap.mmap],
) -> None:
    path, read = mapped

    def in_memory() -> int:
        smaps = Path("/proc/self/smaps").read_text("utf-8")
        part = smaps[smaps.index(f" {path}\n") :]
        found = re.search(r"Rss:\s+(\d+) kB", part)
        assert found is not None
        return int(found[1])

    assert read[:] == path.read_bytes()
    assert in_memory() == 1024
    release_file(path)
    assert in_memory() == 0
    assert read[:] == path.read_bytes()
