"""Sizes too large for the kernels' int indices raise an error, without allocating memory."""

import mlx.core as mx
import pytest

from ember_mlx.kernels.inputs import INT_COUNTS
from ember_mlx.scans.ltc.fused import block_steps, sum_rows
from ember_mlx.scans.quantum.fused import SLOPES, _blocks
from ember_mlx.scans.registry import RECURRENCES

from .comparisons import to_mlx

# variant, units, name of an array, its shape: the largest numbers of sequences at few steps, where blocks of steps cannot help
WIDE = {
    "cfc-mixed-memory-slopes": ("cfc", "mixed_memory", 64, {"dt": (1, 5_600_000)}),  # 6 H
    "cfc-inputs": ("cfc", "heads_only", 64, {"dt": (2**13, 1024)}),  # T B 4 H
    "ltc-states": ("ltc", "full", 64, {"dt": (2**15, 1024)}),
    "ltc-evaluations": ("ltc", "full", 64, {"dt": (1, 11_200_000)}),  # three unfolds
    "ltc-mixed-memory-slopes": ("ltc", "mixed_memory", 64, {"dt": (1, 3_000_000)}),  # 2 steps, 6 H
    "rnn-inputs": ("rnn", "tanh", 64, {"x": (1, 2**15, 1024, 3)}),
    "lstm-slopes": ("lstm", "lstm", 64, {"x": (1, 1, 5_600_000, 3)}),  # 6 H
    "gru-slopes": ("gru", "gru", 64, {"x": (1, 1, 6_720_000, 3)}),  # 5 H
    "quantum-slopes": ("quantum", "lqnet", 64, {"dt": (1, 3_100_000)}),  # 11 H
}


@pytest.mark.parametrize(("name", "variant", "H", "shapes"), WIDE.values(), ids=WIDE)
def test_an_array_that_an_int_cannot_index_is_refused(name, variant, H, shapes):
    recurrence = RECURRENCES[name]
    spec, arrays = recurrence.problem(variant, 1, 1, H)
    arrays = to_mlx(arrays)
    refused = arrays | {key: mx.broadcast_to(arrays[key], shape) for key, shape in shapes.items()}
    halved = arrays | {key: mx.broadcast_to(arrays[key], (*shape[:-2], *_halved(shape, key))) for key, shape in shapes.items()}
    assert "elements is too large for int indices" in recurrence.fused.refusal("metal", spec, refused)
    assert recurrence.fused.refusal("metal", spec, halved) is None


def _halved(shape, key):
    """Half of the sequences."""
    return (shape[-2] // 2, shape[-1]) if key == "x" else (shape[-2], shape[-1] // 2)


def test_blocks_of_steps_keep_within_an_int():
    for B in (1, 100, 2**14, 2**20):
        for T, H in ((1, 128), (256, 128), (5000, 32)):
            steps = max(block.stop - block.start for block in _blocks(T, B, H))
            assert steps == 1 or steps * B * SLOPES * H < INT_COUNTS
            assert sum(block.stop - block.start for block in _blocks(T, B, H)) == T
            spec, _ = RECURRENCES["ltc"].problem("full", 1, 1, H)
            R = block_steps(spec, T, B) * B * spec.evaluations
            assert (T * B * H >= INT_COUNTS) or block_steps(spec, T, B) == 1 or R * H < INT_COUNTS
            assert 1 <= sum_rows(R, H * H) <= R
