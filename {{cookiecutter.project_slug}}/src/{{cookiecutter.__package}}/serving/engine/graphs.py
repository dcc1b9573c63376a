"""Builds a decoder's graph for OpenVINO, with 8-bit weights, or 4-bit ones if the file has them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as ops
from transformers import PreTrainedConfig, PreTrainedModel

from .runtime import SAMPLED

GROUP = 64
"""How many weights, along the input, share a scale and a zero point."""
MIN_GROUP = 16
STEPS = 255
"""Steps between the smallest and the largest weight of a group, in 8 bits."""
FOUR_GROUP = 32
"""How many weights share a scale in 4-bit files."""
FOUR_STEPS = 15
FOUR_MIDDLE = 8
FOUR_APART = FOUR_STEPS / STEPS / 2
"""How far a weight may be from a 4-bit step, in steps. Rounding to 8 bits would move it as far."""
FOUR_SAMPLE = 1024
"""How many groups to try before all others."""


def graph_of(model: PreTrainedModel) -> ov.Model:
    """Returns the graph, and rounds the model's weights to those of the graph.

    The graph stores keys and values itself until it is compiled. Its input `sampled` has the
    indices of the tokens whose scores it returns.
    """
    config = model.config
    ids, places, mask, beams = (
        _parameter(name, kind, shape)
        for name, kind, shape in (
            ("input_ids", ov.Type.i64, [-1, -1]),
            ("position_ids", ov.Type.i64, [-1, -1]),
            ("attention_mask", ov.Type.i64, [-1, -1]),
            ("beam_idx", ov.Type.i32, [-1]),
        )
    )
    sampled = _parameter(SAMPLED, ov.Type.i64, [-1])
    embedding = _weights(model.model.embed_tokens.weight)
    tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    head = embedding if tied else _weights(model.lm_head.weight)
    hidden = ops.gather(embedding, ids, _integer(0))
    kept = _Kept(beams, [])
    masked = _wide(mask)
    turned = _angles(model, places)
    for number, layer in enumerate(model.model.layers):
        hidden = _layer(layer, hidden, turned, masked, kept, number, config)
    hidden = _normed(model.model.norm, hidden)
    rows = ops.reshape(hidden, _integers(-1, config.hidden_size), special_zero=False)
    rows = ops.gather(rows, sampled, _integer(0))
    scores = ops.matmul(rows, head, transpose_a=False, transpose_b=True)
    if model.lm_head.bias is not None:
        scores = ops.add(scores, _numbers(model.lm_head.bias))
    result = ops.result(ops.convert(scores, "f32"))
    result.get_output_tensor(0).set_names({"logits"})
    return ov.Model([result], kept.sinks, [ids, places, mask, beams, sampled], "decoder")


@dataclass
class _Kept:
    """Keys and values as states of the graph, until a pass of the runtime replaces them by pages."""

    beams: ov.Node
    sinks: list[ov.Node]

    def add(self, name: str, states: ov.Node, heads: int, size: int) -> ov.Node:
        empty = ops.constant(np.zeros((1, heads, 0, size), np.float32))
        before = ops.read_value(empty, name, ov.Type.f32, ov.PartialShape([-1, heads, -1, size]))
        chosen = ops.gather(before, self.beams, _integer(0))
        joined = ops.concat([chosen, states], 2)
        self.sinks.append(ops.assign(joined, name))
        return joined


def _layer(
    layer: torch.nn.Module,
    hidden: ov.Node,
    turned: tuple[ov.Node, ov.Node],
    mask: ov.Node,
    kept: _Kept,
    number: int,
    config: PreTrainedConfig,
) -> ov.Node:
    attention, mlp = layer.self_attn, layer.mlp
    size: int = attention.head_dim
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    read = _normed(layer.input_layernorm, hidden)
    query, key, value = (
        _heads(states, count, size)
        for states, count in zip(
            _linears([attention.q_proj, attention.k_proj, attention.v_proj], read),
            (heads, shared, shared),
            strict=True,
        )
    )
    if hasattr(attention, "q_norm"):
        query, key = _normed(attention.q_norm, query), _normed(attention.k_norm, key)
    query, key, value = (ops.transpose(each, _integers(0, 2, 1, 3)) for each in (query, key, value))
    query, key = _turned(query, turned, size), _turned(key, turned, size)
    key = kept.add(f"past_key_values.{number}.key", key, shared, size)
    value = kept.add(f"past_key_values.{number}.value", value, shared, size)
    attended = ops.scaled_dot_product_attention(
        query,
        _repeated(key, heads, shared, size),
        _repeated(value, heads, shared, size),
        mask,
        _numbers(torch.tensor(attention.scaling)),
        causal=False,
    )
    attended = ops.transpose(attended, _integers(0, 2, 1, 3))
    attended = ops.reshape(attended, _integers(0, 0, heads * size), special_zero=True)
    hidden = ops.add(hidden, *_linears([attention.o_proj], attended))
    read = _normed(layer.post_attention_layernorm, hidden)
    gate, up = _linears([mlp.gate_proj, mlp.up_proj], read)
    gated = ops.multiply(ops.swish(gate), up)
    return ops.add(hidden, *_linears([mlp.down_proj], gated))


def _heads(states: ov.Node, heads: int, size: int) -> ov.Node:
    return ops.reshape(states, _integers(0, 0, heads, size), special_zero=True)


def _repeated(states: ov.Node, heads: int, shared: int, size: int) -> ov.Node:
    """Repeats keys or values for all query heads that share them."""
    if heads == shared:
        return states
    each = ops.unsqueeze(states, _integer(2))
    shape = ops.shape_of(states, "i64")
    first = ops.gather(shape, _integers(0, 1), _integer(0))
    length = ops.gather(shape, _integers(2, 3), _integer(0))
    wide = ops.broadcast(each, ops.concat([first, _integers(heads // shared), length], 0))
    return ops.reshape(wide, _integers(0, heads, -1, size), special_zero=True)


def _angles(model: PreTrainedModel, places: ov.Node) -> tuple[ov.Node, ov.Node]:
    """Returns the cosines and sines for each token, of shape [1 or batch, 1, tokens, size]."""
    rotary = model.model.rotary_emb
    frequencies = _numbers(rotary.inv_freq.float()[None, :, None])
    row = ops.convert(ops.unsqueeze(places, _integer(1)), "f32")
    angles = ops.transpose(
        ops.matmul(frequencies, row, transpose_a=False, transpose_b=False), _integers(0, 2, 1)
    )
    both = ops.unsqueeze(ops.concat([angles, angles], -1), _integer(1))
    scaling = rotary.attention_scaling
    pair = ops.cos(both), ops.sin(both)
    if scaling == 1:
        return pair
    factor = _numbers(torch.tensor(float(scaling)))
    return ops.multiply(pair[0], factor), ops.multiply(pair[1], factor)


def _turned(states: ov.Node, angles: tuple[ov.Node, ov.Node], size: int) -> ov.Node:
    cosines, sines = angles
    half = size // 2
    first, second = (
        ops.slice(states, _integers(start), _integers(stop), _integers(1), _integers(3))
        for start, stop in ((0, half), (half, np.iinfo(np.int64).max))
    )
    minus = ops.multiply(second, ops.constant(np.array(-1, np.float32)))
    crossed = ops.concat([minus, first], -1)
    return ops.add(ops.multiply(states, cosines), ops.multiply(crossed, sines))


def _wide(mask: ov.Node) -> ov.Node:
    """Returns a mask in the shape that the runtime's pass expects. The pass removes it."""
    return ops.unsqueeze(ops.convert(mask, "f32"), _integers(1, 2))


def _normed(norm: torch.nn.Module, states: ov.Node) -> ov.Node:
    power = ops.power(states, ops.constant(np.array(2, np.float32)))
    mean = ops.reduce_mean(power, _integers(-1), keep_dims=True)
    root = ops.sqrt(ops.add(mean, ops.constant(np.array(norm.variance_epsilon, np.float32))))
    even = ops.multiply(states, ops.divide(ops.constant(np.array(1, np.float32)), root))
    return ops.multiply(even, _numbers(norm.weight))


def _linears(linears: Sequence[torch.nn.Linear], states: ov.Node) -> Sequence[ov.Output]:
    """Multiplies by several matrices at once, because one large product is faster."""
    product = _product(states, [linear.weight for linear in linears])
    if any(linear.bias is not None for linear in linears):
        biases = [
            torch.zeros(linear.out_features) if linear.bias is None else linear.bias.float()
            for linear in linears
        ]
        product = ops.add(product, _numbers(torch.cat(biases)))
    if not linears[1:]:
        return [product]
    widths = _integers(*(linear.out_features for linear in linears))
    split: Sequence[ov.Output] = ops.variadic_split(product, _integer(-1), widths).outputs()
    return split


def _product(states: ov.Node, weights: Sequence[torch.nn.Parameter]) -> ov.Node:
    fours = _fours_of(weights)
    if fours is None:
        return ops.matmul(states, _weights(*weights), transpose_a=False, transpose_b=True)
    if fours.zero is None:
        node = _decompressed(_in_4_bits(fours.codes - FOUR_MIDDLE, ov.Type.i4), None, fours.scale)
    else:
        node = _decompressed(_in_4_bits(fours.codes), _in_4_bits(fours.zero), fours.scale)
    product = ops.matmul(states, node, transpose_a=False, transpose_b=True)
    if fours.rest is None:
        return product
    grouped = ops.reshape(states, _integers(0, 0, -1, FOUR_GROUP), special_zero=True)
    sums = ops.reduce_sum(grouped, _integers(-1), keep_dims=False)
    rest = ops.matmul(sums, _numbers(fours.rest), transpose_a=False, transpose_b=True)
    return ops.add(product, rest)


@dataclass
class _Fours:
    """Weights that a file stores in 4 bits. Each one is scale * (code - zero) + rest."""

    codes: torch.Tensor
    """Shape [rows, groups, weights in a group]. The fields below have one value for each group."""
    zero: torch.Tensor | None
    """None if all are `FOUR_MIDDLE`: the runtime multiplies signed codes faster."""
    scale: torch.Tensor
    rest: torch.Tensor | None
    """Shape [rows, groups]: the offset if the zero point lies between two codes."""


@torch.no_grad()
def _fours_of(weights: Sequence[torch.nn.Parameter]) -> _Fours | None:
    """Returns the weights in 4 bits and writes them into the model, or None if 8 bits are needed."""
    columns = weights[0].shape[1]
    if columns % FOUR_GROUP:
        return None
    joined = torch.cat([weight.detach().float() for weight in weights])
    parts = joined.reshape(-1, FOUR_GROUP)
    if _scales_of(parts[:FOUR_SAMPLE]) is None:
        return None
    scale = _scales_of(parts)
    if scale is None:
        return None
    least = parts.amin(-1, keepdim=True)
    codes = ((parts - least) / scale).round()
    zero = (-least / scale).round().clamp(0, FOUR_STEPS)
    whole = ((least + zero * scale).abs() <= FOUR_APART * scale).all()
    if not whole:
        zero.fill_(FOUR_MIDDLE)
    rest = torch.zeros_like(least) if whole else least + zero * scale
    _write((codes - zero) * scale + rest, weights)
    shape = (len(joined), columns // FOUR_GROUP, -1)
    return _Fours(
        codes.reshape(shape),
        None if (zero == FOUR_MIDDLE).all() else zero.reshape(shape),
        scale.reshape(shape),
        None if whole else rest.reshape(shape[:2]),
    )


def _scales_of(parts: torch.Tensor) -> torch.Tensor | None:
    """Returns the step of each group's weights, or None if a group has no such step."""
    least = parts.amin(-1, keepdim=True)
    width = parts.amax(-1, keepdim=True) - least
    scales = torch.empty_like(least)
    left = torch.arange(len(parts))
    # Most groups use all codes.
    for steps in range(FOUR_STEPS, 0, -1):
        scale = (width[left] / steps).clamp(min=torch.finfo(torch.float32).tiny)
        codes = (parts[left] - least[left]) / scale
        fit = (codes - codes.round()).abs().amax(-1) <= FOUR_APART
        scales[left[fit]] = scale[fit]
        left = left[~fit]
        if not len(left):
            return scales
    return None


@torch.no_grad()
def _weights(*weights: torch.nn.Parameter) -> ov.Node:
    """Returns the weights in 8 bits, and writes the rounded values into the model."""
    columns = weights[0].shape[1]
    rows = sum(len(weight) for weight in weights)
    group = math.gcd(GROUP, columns)
    if group < MIN_GROUP:
        group = columns
    parts = torch.cat([weight.detach().float() for weight in weights]).reshape(rows, -1, group)
    least = parts.amin(-1, keepdim=True).clamp(max=0)
    scale = (parts.amax(-1, keepdim=True).clamp(min=0) - least) / STEPS
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    zero = (-least / scale).round().clamp(0, STEPS)
    codes = (parts / scale + zero).round().clamp(0, STEPS)
    _write((codes - zero) * scale, weights)
    return _decompressed(_in_8_bits(codes), _in_8_bits(zero), scale)


def _write(values: torch.Tensor, weights: Sequence[torch.nn.Parameter]) -> None:
    """Writes the values of the graph into the model."""
    joined = values.reshape(-1, weights[0].shape[1])
    for weight, part in zip(weights, joined.split([len(each) for each in weights]), strict=True):
        weight.copy_(part)


def _decompressed(codes: ov.Node, zero: ov.Node | None, scale: torch.Tensor) -> ov.Node:
    """Returns a matrix in the form that lets the runtime multiply by the codes directly."""
    node = ops.convert(codes, "f32")
    if zero is not None:
        node = ops.subtract(node, ops.convert(zero, "f32"))
    node = ops.multiply(node, ops.constant(scale.numpy()))
    return ops.reshape(node, _integers(len(scale), -1), special_zero=False)


def _in_8_bits(values: torch.Tensor) -> ov.Node:
    return ops.constant(values.to(torch.uint8).numpy())


def _in_4_bits(values: torch.Tensor, kind: ov.Type = ov.Type.u4) -> ov.Node:
    codes = (values.to(torch.int8) & 0xF).to(torch.uint8).flatten()
    if len(codes) % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    # A tensor over NumPy memory would not keep that memory alive.
    tensor = ov.Tensor(kind, ov.Shape(values.shape))
    tensor.data[:] = (codes[::2] | codes[1::2] << 4).numpy().view(tensor.data.dtype)
    return ops.constant(tensor)


def _parameter(name: str, kind: ov.Type, shape: list[int]) -> ov.Node:
    parameter = ops.parameter(shape, kind)
    # The pass finds the parameters by this name.
    parameter.set_friendly_name(name)
    parameter.get_output_tensor(0).set_names({name})
    return parameter


def _numbers(values: torch.Tensor) -> ov.Node:
    return ops.constant(values.detach().float().numpy())


def _integers(*values: int) -> ov.Node:
    return ops.constant(np.array(values, np.int64))


def _integer(value: int) -> ov.Node:
    return ops.constant(np.array(value, np.int64))
