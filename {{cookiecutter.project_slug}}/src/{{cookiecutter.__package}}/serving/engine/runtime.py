"""Runs a decoder's graph on this machine's CPU, with OpenVINO's runtime."""

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
"""The graph's input that says of which tokens the scores are wanted."""


ROUNDED_TOGETHER = 32
"""Numbers that share a scale where they are rounded to 8 bits."""
MMAP_THRESHOLD = -3
"""What glibc's mallopt calls the size from which on memory goes back as soon as it is freed."""
MADV_DONTNEED = 4
MAPPINGS = Path("/proc/self/maps")


@dataclass(frozen=True)
class Part:
    """What a step reads of one text."""

    tokens: Sequence[int]
    past: int
    """How many tokens of the text were read before."""
    pages: Sequence[int]
    """Where the keys and values of all of them lie, these included."""
    is_last: bool
    """Whether the text ends with them, and the scores of what follows are wanted."""


class Decoder:
    """A compiled graph and its pages of keys and values.

    The graph is changed: pages take the place of the keys and values that it keeps itself.
    """

    def __init__(self, graph: ov.Model) -> None:
        paged_attention_transformation(graph)
        # Compiled anew in each process: the runtime cannot read what it has compiled of pages.
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
        """What the keys and values of one token take."""
        return -(-self.page_bytes // self.page_tokens)

    def allocate(self, pages: int) -> None:
        """Makes so many pages. They take memory once they are written."""
        for name, (kind, shape) in self._caches.items():
            self._request.set_tensor(name, ov.Tensor(kind, ov.Shape([pages, *shape])))

    def warm_up(self) -> None:
        """Computes once: the runtime packs the weights with the first step."""
        self.allocate(1)
        self.scores([Part(tokens=[0], past=0, pages=[0], is_last=True)])

    def scores(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """Reads parts of texts, and returns the scores of what follows those that end.

        The next call writes over them.
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
    """Reads a graph whose numbers stay in their file: all processes have them in memory once."""
    return ov.Core().read_model(path)


def release_file(path: Path) -> None:
    """Takes out of this process what it has read of a file that is mapped into its memory.

    The runtime reads a graph's weights to pack them, and keeps them packed. What it needs later
    comes back by itself.
    """
    if sys.platform != "linux":
        return
    for line in MAPPINGS.read_text(encoding="utf-8").splitlines():
        if line.endswith(f" {path.resolve()}"):
            start, end = (int(side, 16) for side in line.split()[0].split("-"))
            ctypes.CDLL(None).madvise(
                ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED
            )


def give_memory_back() -> None:
    """Has this process return what it frees, of which loading a model frees half a gigabyte.

    glibc raises the size by itself, up to 32 MB, and keeps what is smaller.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 1 << 18)


def properties() -> dict[str, Any]:
    """Returns how graphs are compiled."""
    multiplies_tiles = "amx_bf16" in cpu_features()
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads(),
        # Several replicas would be pinned to the same core.
        "ENABLE_CPU_PINNING": False,
        # Without instructions for tiles of 16 bits, the runtime is faster where it rounds what the
        # weights are multiplied with to 8 bits, which it does in float32 alone.
        "INFERENCE_PRECISION_HINT": ov.Type.bf16 if multiplies_tiles else ov.Type.f32,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": ROUNDED_TOGETHER,
        # Half of what 16 bits take, and read twice as fast.
        "KV_CACHE_PRECISION": ov.Type.u8,
    }


def threads() -> int:
    """Returns how many CPUs Ray gives this replica, as it tells all libraries; else all cores."""
    told = re.match(r"\d+", os.environ.get("OMP_NUM_THREADS", ""))
    return int(told[0]) if told else psutil.cpu_count(logical=False) or 1
