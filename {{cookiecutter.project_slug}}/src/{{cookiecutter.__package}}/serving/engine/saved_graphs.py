"""Saves a model's graph on disk, so that the next start need not round and check it again."""

import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import openvino as ov
from filelock import FileLock
from pydantic import BaseModel, Field, ValidationError
from transformers import GenerationConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..telemetry.logs import logger
from .facts import Facts
from .graph_paths import FACTS, TOKENIZER, GraphPaths
from .runtime import Decoder, read_graph, release_file
from .weights import in_one_line

LOCK_SECONDS = 300
"""How long a process waits for another one that is building the graph of the same model."""
GRAPH = "graph.xml"
NUMBERS = "graph.bin"
GENERATION = "generation.json"
SAMPLE = "The keeper's lamp, 灯台: 1 of many.\n\n  <|im_end|>"
CONTENTS = "kept.json"
UNFINISHED = "unfinished-"
BLOCK = 1 << 20


class _File(BaseModel):
    size: int
    checksum: int


class _Contents(BaseModel):
    """A saved graph's model and files, to check whether it is complete and still needed."""

    model: Path
    """The path of the model. The graph is removed when the model is gone."""
    files: Annotated[dict[str, _File], Field(min_length=3)]


class SavedGraph:
    """The saved graph of one model."""

    def __init__(self, name: str, paths: GraphPaths) -> None:
        self._name = name
        self._paths = paths
        self.directory = paths.directory
        self.damage = ""
        """Why the saved graph cannot be used."""
        self._can_be_kept = False
        self._draft: Path | None = None
        """The directory of a graph that is written but not yet checked."""

    def take(self) -> tuple[Decoder, Facts] | None:
        """Returns the compiled graph and its model's facts, or None if there is no usable graph."""
        if not self.directory.is_dir():
            return None
        try:
            _check_owner(self.directory)
            _check_files(self.directory)
            facts = Facts.model_validate_json((self.directory / FACTS).read_bytes())
            decoder = Decoder(read_graph(self.directory / GRAPH))
            decoder.warm_up()
        except Exception as error:  # The runtime may raise anything for a damaged file.
            self.damage = in_one_line(error)
            return None
        release_file(self.directory / NUMBERS)
        return decoder, facts

    def generation(self) -> GenerationConfig:
        """Returns the generation config that was saved with the graph."""
        return GenerationConfig.from_dict(json.loads((self.directory / GENERATION).read_bytes()))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Returns the tokenizer that was saved with the graph. It does not need PyTorch."""
        return _tokenizer(self.directory / TOKENIZER)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits for other processes that build this graph. Removes an unsaved graph at the end."""
        lock = FileLock(self._paths.above / f"{self._paths.prefix}.lock")
        try:
            self._paths.above.mkdir(parents=True, exist_ok=True)
            self._acquire(lock)
            self._can_be_kept = True
        except OSError as error:  # Includes a timeout of the lock.
            self._warn_unsaved(error)
        try:
            yield
        finally:
            self._drop()
            lock.release()

    def compile(
        self,
        graph: ov.Model,
        facts: Facts,
        generation: GenerationConfig,
        tokenizer: PreTrainedTokenizerBase,
    ) -> Decoder:
        """Compiles a new graph, from files if possible, so that it is in memory only once."""
        if self.damage:
            logger.warning(
                "%s: the graph in %s cannot be used and will be rebuilt: %s",
                self._name,
                self.directory,
                self.damage,
            )
        if self._can_be_kept:
            try:
                self._draft = self._write(graph, facts, generation, tokenizer)
                graph = read_graph(self._draft / GRAPH)
            except Exception as error:  # The runtime has its own kinds.
                self._warn_unsaved(error)
                self._drop()
        return Decoder(graph)

    def keep(self) -> None:
        """Saves the written graph, and removes those of other versions."""
        if self._draft is None:
            return
        release_file(self._draft / NUMBERS)
        try:
            for other in self._outdated():
                shutil.rmtree(other)
            self._draft.replace(self.directory)
        except OSError as error:
            self._warn_unsaved(error)
            return
        self._draft = None
        logger.info("%s: saved its graph in %s", self._name, self.directory)

    def _write(
        self,
        graph: ov.Model,
        facts: Facts,
        generation: GenerationConfig,
        tokenizer: PreTrainedTokenizerBase,
    ) -> Path:
        # Left by a process that was killed. This process has the lock.
        for left in self._paths.above.glob(f"{self._paths.prefix}.{UNFINISHED}*"):
            shutil.rmtree(left)
        # Only this user can read the directory.
        prefix = f"{self._paths.prefix}.{UNFINISHED}"
        draft = Path(tempfile.mkdtemp(dir=self._paths.above, prefix=prefix))
        self._draft = draft
        ov.save_model(graph, draft / GRAPH, compress_to_fp16=False)
        text = generation.to_json_string(use_diff=False)
        (draft / GENERATION).write_text(text, encoding="utf-8")
        (draft / FACTS).write_text(facts.model_dump_json(), encoding="utf-8")
        if isinstance(tokenizer, PreTrainedTokenizerFast):
            tokenizer.save_pretrained(draft / TOKENIZER)
            if _nature(tokenizer) != _nature(_tokenizer(draft / TOKENIZER)):
                shutil.rmtree(draft / TOKENIZER)
        files = {
            str(path.relative_to(draft)): _file(path)
            for path in draft.glob("**/*")
            if path.is_file()
        }
        contents = _Contents(model=self._paths.model, files=files)
        (draft / CONTENTS).write_text(contents.model_dump_json(), encoding="utf-8")
        return draft

    def _drop(self) -> None:
        if self._draft is not None:
            shutil.rmtree(self._draft, ignore_errors=True)
            self._draft = None

    def _acquire(self, lock: FileLock) -> None:
        try:
            lock.acquire(timeout=0)
        except TimeoutError:
            logger.info(
                "%s: another process is building its graph. Waiting up to %s seconds for it",
                self._name,
                LOCK_SECONDS,
            )
            lock.acquire(timeout=LOCK_SECONDS)

    def _outdated(self) -> Iterator[Path]:
        """Yields graphs of other versions of this model, and of models that are gone.

        Graphs for other kinds of CPU stay, because other machines may use them.
        """
        for each in self._paths.above.iterdir():
            if not each.is_dir() or each == self._draft:
                continue
            if each.name.startswith(f"{self._paths.prefix}."):
                if each == self.directory or not each.name.startswith(f"{self._paths.made_by}."):
                    yield each
            elif (contents := _contents(each)) is not None and not contents.model.exists():
                yield each

    def _warn_unsaved(self, error: Exception) -> None:
        logger.warning(
            "%s: its graph cannot be saved in %s (%s), so it is rebuilt at every start. Make that "
            "directory writable, or set HF_HOME to a different one.",
            self._name,
            self._paths.above,
            in_one_line(error),
        )


def _tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    # AutoTokenizer would import PyTorch to find the class.
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(directory)
    return tokenizer


def _nature(tokenizer: PreTrainedTokenizerFast) -> tuple[object, ...]:
    """Returns values that differ if tokenizers do: a special class may do more than its files."""
    tokens = tokenizer(SAMPLE)["input_ids"]
    return (
        tokenizer.backend_tokenizer.to_str(),
        tokens,
        tokenizer.decode(tokens),
        tokenizer.chat_template,
        tokenizer.model_max_length,
        tokenizer.eos_token_id,
    )


def _check_owner(directory: Path) -> None:
    """Refuses files that belong to another user, because the runtime would run their content."""
    if directory.stat().st_uid not in {0, os.geteuid()}:
        raise PermissionError("it belongs to another user")


def _check_files(directory: Path) -> None:
    contents = _contents(directory)
    if contents is None:
        raise ValueError(f"its {CONTENTS} is damaged")
    for name, expected in contents.files.items():
        if _file(directory / name) != expected:
            raise ValueError(f"its {name} is damaged")


def _contents(directory: Path) -> _Contents | None:
    try:
        return _Contents.model_validate_json((directory / CONTENTS).read_bytes())
    except (OSError, ValidationError):
        return None


def _file(path: Path) -> _File:
    size = checksum = 0
    with path.open("rb") as opened:
        while block := opened.read(BLOCK):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return _File(size=size, checksum=checksum)
