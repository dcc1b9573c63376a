"""4-bit weights of files: kept unchanged if nothing is lost, converted to 8 bits otherwise."""

from collections.abc import Callable
from pathlib import Path

import openvino as ov
import pytest
import torch
from openvino import opset15 as ops
from transformers import AutoModelForCausalLM

from {{ cookiecutter.__package }}.serving.engine import graphs
from {{ cookiecutter.__package }}.serving.engine.runtime import (
    Decoder,
    Part,
)

from ...support.tiny_models import save_tiny
from .test_paged import LLAMA, compute_exactly

ROWS, COLUMNS, GROUP = 48, 128, 32
PROMPT = [5, 9, 60, 31, 7, 44, 12]


def steps(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns groups that use all 4-bit codes, and a scale for each group."""
    codes = torch.randint(0, 16, (rows, columns // GROUP, GROUP)).float()
    codes[..., :2] = torch.tensor([0.0, 15.0])
    # In 16 bits, as in a file.
    scales = (torch.rand(rows, columns // GROUP, 1) + 0.5).half().float() / 16
    return codes, scales


def as_q4_0(rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    """Zero is one of the codes, and the scale may be negative."""
    codes, scales = steps(rows, columns)
    signs = torch.where(torch.rand_like(scales) < 0.5, -1, 1)
    return ((codes - 8) * scales * signs).reshape(rows, columns)


def as_q4_1(rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    """Zero may lie between two codes."""
    codes, scales = steps(rows, columns)
    least = -(torch.rand_like(scales).half().float() * 15 * scales).half().float()
    return (codes * scales + least).reshape(rows, columns)


class Multiplied:
    """A linear layer as the graph computes it."""

    def __init__(self, weights: torch.Tensor) -> None:
        self.linear = torch.nn.Linear(weights.shape[1], weights.shape[0], bias=False)
        self.linear.weight.data = weights.clone()
        states = ops.parameter([-1, -1, weights.shape[1]], ov.Type.f32)
        [product] = graphs._linears([self.linear], states)
        self.graph = ov.Model([ops.result(product)], [states], "linear")

    @property
    def kinds(self) -> set[ov.Type]:
        return kinds_of(self.graph)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        exactly = {"INFERENCE_PRECISION_HINT": ov.Type.f32, "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        compiled = ov.Core().compile_model(self.graph, "CPU", exactly)
        return torch.from_numpy(compiled([states.numpy()])[0])


def kinds_of(graph: ov.Model) -> set[ov.Type]:
    """Returns the small integer types of its weights."""
    kinds = {
        node.get_element_type() for node in graph.get_ops() if node.get_type_name() == "Constant"
    }
    return kinds & {ov.Type.i4, ov.Type.u4, ov.Type.u8}


@pytest.fixture(autouse=True)
def the_same_numbers() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("made", "kind"), [(as_q4_0, ov.Type.u4), (as_q4_1, ov.Type.i4)])
def test_4_bit_weights_are_kept_unchanged(made: Callable[[], torch.Tensor], kind: ov.Type) -> None:
    weights = made()
    multiplied = Multiplied(weights)
    assert multiplied.kinds == {kind}
    assert torch.allclose(multiplied.linear.weight, weights, rtol=0, atol=1e-6)
    states = torch.randn(1, 3, COLUMNS)
    assert torch.allclose(multiplied(states), states @ weights.T, rtol=0, atol=1e-4)


def test_a_group_may_use_only_some_codes() -> None:
    weights = as_q4_1()
    weights[:, :GROUP] = torch.arange(GROUP).remainder(12) * 0.25 - 1
    weights[:, GROUP : 2 * GROUP] = 0.5
    multiplied = Multiplied(weights)
    assert multiplied.kinds == {ov.Type.i4}
    assert torch.allclose(multiplied.linear.weight, weights, rtol=0, atol=1e-6)


def test_weights_that_do_not_match_4_bit_codes_take_8_bits() -> None:
    weights = as_q4_1(rows=400)
    codes_apart = (weights[-1, -GROUP:].max() - weights[-1, -GROUP:].min()) / 15
    between = weights[-1, -GROUP:].argsort()[GROUP // 2]
    weights[-1, COLUMNS - GROUP + between] += 0.4 * codes_apart
    assert Multiplied(weights).kinds == {ov.Type.u8}


def test_a_width_that_is_no_multiple_of_the_group_takes_8_bits() -> None:
    assert Multiplied(as_q4_0()[:, : COLUMNS - 8]).kinds == {ov.Type.u8}


def test_a_model_with_4_and_8_bit_weights_scores_as_the_plain_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_exactly(monkeypatch)
    save_tiny("llama", tmp_path, **LLAMA)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for layer, made in zip(model.model.layers, (as_q4_0, as_q4_1), strict=True):
        for linear in (layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.up_proj):
            linear.weight.data = made(*linear.weight.shape)
    graph = graphs.graph_of(model)
    assert kinds_of(graph) == {ov.Type.i4, ov.Type.u4, ov.Type.u8}
    decoder = Decoder(graph)
    decoder.allocate(1)
    [scores] = decoder.scores([Part(PROMPT, 0, [0], is_last=True)])
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0, -1]
    apart = (torch.from_numpy(scores) - expected).abs().max()
    assert apart <= 1e-3 * expected.abs().max()
