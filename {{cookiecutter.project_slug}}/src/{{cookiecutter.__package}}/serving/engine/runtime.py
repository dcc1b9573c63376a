"""Runs a decoder's graph on the CPU with OpenVINO."""

import ctypes
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import psutil
from numpy.typing import NDArray
from openvino._offline_transformations import paged_attention_transformation

from .machine import cpu_features

SAMPLED = "sampled"
"""The graph's input with the indices of the tokens whose scores are needed."""


ROUNDED_TOGETHER = 32
"""How many numbers share a scale when they are rounded to 8 bits."""
MMAP_THRESHOLD = -3
"""The mallopt parameter of glibc for the size from which freed memory is returned at once."""
MADV_DONTNEED = 4
MAPPINGS = Path("/proc/self/maps")


@dataclass(frozen=True)
class Part:
    """The tokens of one text that a step reads."""

    tokens: Sequence[int]
    past: int
    """How many tokens of the text were read earlier."""
    pages: Sequence[int]
    """The pages with the keys and values of all tokens, including these."""
    is_last: bool
    """Whether the text ends here, so that the scores for the next token are needed."""


class Decoder:
    """A compiled graph and its pages of keys and values.

    Changes the graph: pages replace its own storage of keys and values.
    """

    def __init__(self, graph: ov.Model) -> None:
        paged_attention_transformation(graph)
        # Compiled in each process, because the runtime cannot load a compiled graph with pages.
        compiled = ov.Core().compile_model(graph, "CPU", properties())
        self._request = compiled.create_infer_request()
        self._caches: dict[str, tuple[ov.Type, list[int]]] = {
            each.any_name: (each.element_type, [side.get_length() for side in sides])
            for each in compiled.inputs
            if "_cache." in each.any_name
            for sides in [list(each.partial_shape)[1:]]
        }
        self.page_tokens: int = self._caches["value_cache.0"][1][1]
        self.page_bytes: int = sum(
            kind.size * math.prod(shape) for kind, shape in self._caches.values()
        )

    @property
    def token_bytes(self) -> int:
        """Memory for the keys and values of one token."""
        return -(-self.page_bytes // self.page_tokens)

    def allocate(self, pages: int) -> None:
        """Allocates the pages. They use memory only after they are written."""
        for name, (kind, shape) in self._caches.items():
            self._request.set_tensor(name, ov.Tensor(kind, ov.Shape([pages, *shape])))

    def warm_up(self) -> None:
        """Runs one step, in which the runtime packs the weights."""
        self.allocate(1)
        self.scores([Part(tokens=[0], past=0, pages=[0], is_last=True)])

    def scores(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """Reads parts of texts, and returns the scores for the next token of each last part.

        The next call overwrites the scores.
        """
        ends = list(accumulate(len(part.tokens) for part in parts))
        inputs: dict[str, tuple[Any, type]] = {
            "input_ids": ([token for part in parts for token in part.tokens], np.int64),
            "position_ids": (
                [place + part.past for part in parts for place in range(len(part.tokens))],
                np.int64,
            ),
            SAMPLED: (
                [end - 1 for part, end in zip(parts, ends, strict=True) if part.is_last],
                np.int64,
            ),
            "past_lens": ([part.past for part in parts], np.int32),
            "subsequence_begins": ([0, *ends], np.int32),
            "block_indices": ([page for part in parts for page in part.pages], np.int32),
            "block_indices_begins": ([0, *accumulate(len(part.pages) for part in parts)], np.int32),
            "max_context_len": (max(part.past + len(part.tokens) for part in parts), np.int32),
        }
        for name, (values, kind) in inputs.items():
            self._request.set_tensor(name, ov.Tensor(np.array(values, kind)))
        self._request.infer()
        scores: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return scores


def read_graph(path: Path) -> ov.Model:
    """Reads a graph. Its weights stay mapped from the file, so processes share their memory."""
    return ov.Core().read_model(path)


def release_file(path: Path) -> None:
    """Releases the memory of a mapped file.

    The runtime reads a graph's weights once to pack them. If it needs them again, the kernel
    reads them from the file.
    """
    if sys.platform != "linux":
        return
    for line in MAPPINGS.read_text(encoding="utf-8").splitlines():
        if line.endswith(f" {path.resolve()}"):
            start, end = (int(side, 16) for side in line.split()[0].split("-"))
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED
            )


def return_freed_memory() -> None:
    """Makes glibc return freed memory at once. Loading a model frees half a gigabyte.

    By default, glibc raises the threshold up to 32 MB, and keeps smaller blocks.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 1 << 18)


def properties() -> dict[str, Any]:
    """Returns the properties for compiling graphs."""
    multiplies_tiles = "amx_bf16" in cpu_features()
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads(),
        # With pinning, several replicas would share the same core.
        "ENABLE_CPU_PINNING": False,
        # Without 16-bit tile instructions, the runtime is faster if it rounds activations to
        # 8 bits, which it only does with float32.
        "INFERENCE_PRECISION_HINT": ov.Type.bf16 if multiplies_tiles else ov.Type.f32,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": ROUNDED_TOGETHER,
        # Takes half the memory of 16 bits, and is read twice as fast.
        "KV_CACHE_PRECISION": ov.Type.u8,
    }


def threads() -> int:
    """Returns the number of CPUs of this replica, which Ray sets for all libraries, or all cores."""
    match = re.match(r"\d+", os.environ.get("OMP_NUM_THREADS", ""))
    return int(match[0]) if match else psutil.cpu_count(logical=False) or 1
