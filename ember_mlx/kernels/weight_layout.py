"""Weights packed in the order in which the threads of a threadgroup read them; metal/product.metal describes how they share a product."""

from typing import NamedTuple

import mlx.core as mx


class ProductShape(NamedTuple):
    """One matrix product of a step: RESULTS results from INPUTS inputs by THREADS threads.

    Args:
        inputs: K.
        results: J.
        split: lanes per lane group; they share K for the same results.
        outputs: results per lane group in each block.
        threads: threads per threadgroup.
        by_unit: whether a lane group's results are rows u, units + u, 2 units + u, ... (the heads of unit u) instead of neighbouring rows.
    """

    inputs: int
    results: int
    split: int
    outputs: int
    threads: int
    by_unit: bool = False

    @property
    def share(self) -> int:
        """Inputs per lane, a multiple of 4."""
        return -(-self.inputs // (4 * self.split)) * 4

    @property
    def blocks(self) -> int:
        """Blocks of results that a lane group computes one after another."""
        return -(-self.results // (self.threads // self.split * self.outputs))

    @property
    def row4(self) -> int:
        """float4s of a padded row of inputs."""
        return self.split * self.share // 4

    @property
    def floats(self) -> int:
        """Weights per lane."""
        return self.blocks * self.outputs * self.share


def outputs_for(results: int, groups: int) -> int:
    """Results per lane group in each block: 1, 2 or 4, so that no group is idle."""
    by_group = -(-results // groups)
    return by_group if by_group < 3 else 4


def pack(weight: mx.array, shape: ProductShape) -> mx.array:
    """(results, inputs) -> flat, zero-padded, in the kernel's order of reads: block, output, four inputs, lane group, lane.

    Example:
        >>> import mlx.core as mx
        >>> from ember_mlx.kernels.weight_layout import ProductShape, pack
        >>> pack(mx.array([[1, 2, 3], [4, 5, 6]]), ProductShape(3, 2, 1, 2, 1)).tolist()
        [1, 2, 3, 0, 4, 5, 6, 0]
    """
    groups, quarters, rest = shape.threads // shape.split, shape.share // 4, shape.split * shape.share - shape.inputs
    rows = (shape.blocks, groups)
    if shape.by_unit:
        units = shape.results // shape.outputs
        weight = mx.pad(weight.reshape(shape.outputs, units, -1), [(0, 0), (0, shape.blocks * groups - units), (0, rest)])
        axes = weight.reshape(shape.outputs, *rows, quarters, shape.split, 4).transpose(1, 0, 3, 2, 4, 5)
    else:
        weight = mx.pad(weight, [(0, shape.blocks * groups * shape.outputs - shape.results), (0, rest)])
        axes = weight.reshape(*rows, shape.outputs, quarters, shape.split, 4).transpose(0, 2, 3, 1, 4, 5)
    return axes.reshape(-1)
