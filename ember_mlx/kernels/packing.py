"""Weights in the order in which the threads of a group read them (metal/product.metal says how they share a product)."""

from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import numpy as np


class ProductShape(NamedTuple):
    """One matrix product of a step: RESULTS results from INPUTS inputs by THREADS threads.

    Args:
        inputs: K.
        results: J.
        split: lanes that share K for the same results.
        outputs: results of such a group of lanes in each block.
        threads: of the threadgroup.
        by_unit: a group's results are rows u, units + u, 2 units + u, ... (the heads of unit u), not neighbours.
    """

    inputs: int
    results: int
    split: int
    outputs: int
    threads: int
    by_unit: bool = False

    @property
    def share(self) -> int:
        """Inputs of one lane, a multiple of 4."""
        return -(-self.inputs // (4 * self.split)) * 4

    @property
    def blocks(self) -> int:
        """How often a group takes the next results."""
        return -(-self.results // (self.threads // self.split * self.outputs))

    @property
    def row4(self) -> int:
        """float4s of a padded row of inputs."""
        return self.split * self.share // 4

    @property
    def floats(self) -> int:
        """Weights of one lane."""
        return self.blocks * self.outputs * self.share


def outputs_for(results: int, groups: int) -> int:
    """Results of a group of lanes in each block: 1, 2 or 4, so that no group is idle."""
    by_group = -(-results // groups)
    return by_group if by_group < 3 else 4


@lru_cache(maxsize=128)
def packing_index(shape: ProductShape) -> mx.array:
    """For each packed float the index into the flat (results, inputs) weight, or results * inputs for padding."""
    axes = [np.arange(n) for n in (shape.blocks, shape.outputs, shape.share // 4, shape.threads, 4)]
    block, output, k, lane, component = np.meshgrid(*axes, indexing="ij", sparse=True)
    unit = block * (shape.threads // shape.split) + lane // shape.split
    if shape.by_unit:
        units = shape.results // shape.outputs
        row, exists = output * units + unit, unit < units
    else:
        row = unit * shape.outputs + output
        exists = row < shape.results
    column = (k * shape.split + lane % shape.split) * 4 + component
    index = np.where(exists & (column < shape.inputs), row * shape.inputs + column, shape.results * shape.inputs)
    return mx.array(index.reshape(-1).astype(np.int32))


def pack(weight: mx.array, shape: ProductShape) -> mx.array:
    """(results, inputs) -> flat, in the order of the kernel's reads."""
    flat = mx.concatenate([weight.reshape(-1), mx.zeros((1,), weight.dtype)])
    return mx.take(flat, packing_index(shape))
