"""The LQNet and CTRQNet scan as fused kernels (metal/quantum.metal): the launches of the scans, and the parallel computations around them.

The arrays are those of the NumPy form (reference.py). MLX operations compute all that is parallel over T: before the forward scan the drive
and the noise; before the backward scan the slopes, from the stored states; after it the weights' gradients.
"""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ...kernels.first_use import STEPS, SmallProblem, few_lengths, few_sequences, few_units, part_within
from ...kernels.inputs import dims, lengths_of, nothing, too_many
from ...kernels.launches import launch, scan_launch
from ...kernels.loader import KernelText, axes
from ...kernels.tiles import (
    FUNCTION,
    THREADGROUP_BYTES,
    Family,
    Tile,
    Work,
    checked_variant,
    current_family,
    forced_tile,
    layouts_for,
    rows_for,
)
from ...kernels.weight_layout import ProductShape, pack
from ..ops import outer
from .ops import drive, noise
from .random_cases import random_arrays
from .spec import QuantumSpec

Tree = dict[str, Any]
BLOCK_STEPS = 256  # most steps per block, whose drive and slopes are in memory at a time
BLOCK_BYTES = 2**28  # bytes of a block's slopes
SLOPES = 11  # slopes per unit, see metal/quantum.metal
SPLIT = 4
ROW_BUFFERS = 6  # rows of threadgroup memory per sequence, forward and backward
BY_STEP = ("x", "dt", "t", "xi")
FILES = ("pointwise.metal", "product.metal", "sequences.metal", "quantum.metal")
SIZES = "Quantum<H, NOISE, THREADS, ROWS, SPLIT, RESIDENT>"
FORWARD = KernelText(
    "quantum_forward",
    SIZES,
    FILES,
    ("u_in", "omega", "w_h", "tau", "noise", "dt_in", "h_c0", "h_s0", "constants", "lengths", "dims"),
    ("h_c_out", "h_s_out"),
    axes(tbh="u_in h_c_out h_s_out", tbph="noise", tb="dt_in", bh="h_c0 h_s0", b="lengths"),
    (("h_c0", "h_c_out"), ("h_s0", "h_s_out")),
)
BACKWARD = KernelText(
    "quantum_backward",
    SIZES,
    FILES,
    ("dy_c", "dy_s", "carry", "slopes", "omega", "w_h", "dt_in", "lengths", "dims"),
    ("dh_out", "dr_out", "dh0"),
    axes(tbh="dy_c dy_s", tbph="slopes dh_out dr_out", tb="dt_in", bph="carry dh0", b="lengths"),
    (("carry", "dh0"),),
)


class Variant(NamedTuple):
    """Sizes of one kernel variant."""

    H: int
    noise: bool
    tile: Tile

    @property
    def square(self) -> ProductShape:
        """Each of a step's two products, and their transposes."""
        return ProductShape(self.H, self.H, self.tile.split, 1, self.tile.threads)

    @property
    def threadgroup_bytes(self) -> int:
        """Bytes of threadgroup memory."""
        return 16 * self.scratch

    @property
    def scratch(self) -> int:
        """float4s of threadgroup memory."""
        return ROW_BUFFERS * self.tile.rows * self.square.row4

    @property
    def work(self) -> Work:
        """The work of a threadgroup in a step."""
        weights = 2 * self.tile.threads * self.square.floats
        streamed = 0 if self.tile.resident else 4 * weights
        # one of the two products takes both parts of psi; each unit computes the cos and sin of (2), the exp of (5) and two tanh
        return Work(1.5 * self.tile.rows * weights, streamed=streamed, phases=2) + FUNCTION * (5 * self.tile.rows * self.H)

    @property
    def template(self) -> list[tuple[str, Any]]:
        """The kernel's template arguments."""
        tile = {"THREADS": self.tile.threads, "ROWS": self.tile.rows, "SPLIT": self.tile.split, "RESIDENT": self.tile.resident}
        return [("H", self.H), ("NOISE", self.noise), *tile.items(), ("SCRATCH", self.scratch)]


def choose_tile(family: Family, H: int, noise: bool, batch: int) -> Tile:
    """Weights in registers if they fit, otherwise read at every step."""
    alone = Variant(H, noise, Tile(family.threads, 1, SPLIT, True))
    resident = 2 * alone.square.floats <= family.register_floats
    return alone.tile._replace(resident=resident, rows=rows_for(family, batch, alone.threadgroup_bytes, resident))


def layouts(family: Family, spec: QuantumSpec) -> list[Tile]:
    """Every layout that `choose_tile` can return on a GPU family, for any size."""
    return layouts_for(family, (SPLIT,))


def variant_of(kind: str, spec: QuantumSpec, arrays: Tree) -> Variant:
    """The kernel variant for these arrays."""
    (batch, H), has_noise = arrays["h_c0"].shape, "xi" in arrays
    checked = checked_variant.get()
    if checked is not None:
        return checked._replace(H=H)
    return Variant(H, has_noise, forced_tile.get() or choose_tile(current_family(), H, has_noise, batch))


def variant_key(kind: str, spec: QuantumSpec, arrays: Tree) -> tuple[Variant, bool]:
    """The key under which the result of a first-use check is stored."""
    return variant_of(kind, spec, arrays), spec.harmonic


def refusal(kind: str, spec: QuantumSpec, arrays: Tree) -> str | None:
    """The reason why no kernel supports these arrays, or None."""
    if arrays["dt"].dtype != mx.float32:
        return "kernels compute in float32"
    variant = variant_of(kind, spec, arrays)
    if variant.tile.rows == 0:
        return f"{variant.H} units need more than {THREADGROUP_BYTES} bytes of threadgroup memory"
    (T, B), H = arrays["dt"].shape, variant.H
    return too_many(2 * (T + 1) * B * H, SLOPES * B * H)


def small_problem(kind: str, spec: QuantumSpec, arrays: Tree) -> SmallProblem:
    """A problem with the same units, or a fraction of them if there are many."""
    variant = variant_of(kind, spec, arrays)
    H = few_units(variant.H, part_within((3 if variant.noise else 2) * variant.H**2))
    B = few_sequences(variant.tile.rows)
    small = random_arrays(spec, STEPS, B, H, lengths=False, noise=variant.noise, dtype=np.float32)
    return SmallProblem(spec, small | {"lengths": few_lengths(B)}, variant)


def quantum_fused_forward(kind: str, spec: QuantumSpec, arrays: Tree) -> list[mx.array]:
    """[h_c, h_s] (T, B, H) each, in one launch."""
    variant = variant_of(kind, spec, arrays)
    (T, B), H = arrays["dt"].shape, variant.H
    # a harmonic drive needs I sines per unit and step
    parts = [_steps(arrays, block) for block in _blocks(T, B, H)] if spec.harmonic else [arrays]
    inputs = [
        mx.concatenate([drive(spec, part) for part in parts]),  # (1)
        pack(arrays["omega"], variant.square),
        pack(arrays["w_h"], variant.square),
        arrays["tau"],
        noise(arrays) if variant.noise else nothing(),
        arrays["dt"],
        arrays["h_c0"],
        arrays["h_s0"],
        mx.array([spec.nu_0, spec.beta, 0, 0, 0, 0, 0, 0], mx.float32),
        lengths_of(arrays, T, B),
    ]
    return _launch(kind, FORWARD, variant, inputs, T, B, [(T, B, H), (T, B, H)])


def quantum_fused_backward(kind: str, spec: QuantumSpec, arrays: Tree, outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
    """The gradients of every array but `lengths` and `xi`, as returned by the NumPy form's backward."""
    variant = variant_of(kind, spec, arrays)
    (T, B), H = arrays["dt"].shape, variant.H
    before = [mx.concatenate([mx.expand_dims(a, 0), kept[:-1]]) for a, kept in zip((arrays["h_c0"], arrays["h_s0"]), outputs, strict=True)]
    weights = [pack(arrays[name].T, variant.square) for name in ("omega", "w_h")]
    lengths, carry, parts = lengths_of(arrays, T, B), mx.zeros((B, 2, H)), []
    for block in reversed(_blocks(T, B, H)):
        part, steps = _steps(arrays, block), block.stop - block.start
        point = linearise(spec, part, *(a[block] for a in before))
        here = mx.clip(lengths - block.start, 0, steps)
        inputs = [*(a[block] for a in cotangents), carry, point.slopes, *weights, part["dt"], here]
        shapes = [(steps, B, 2, H), (steps, B, 2, H), (B, 2, H)]
        dh, dr, carry = _launch(kind, BACKWARD, variant, inputs, steps, B, shapes)
        parts.append(_gradients(spec, part, point, dh, dr))
    return _joined(parts[::-1]) | {"h_c0": carry[:, 0], "h_s0": carry[:, 1]}


class Point(NamedTuple):
    """A block of steps linearised at the stored states; (T, B, H) each, pairs (T, B, 2, H)."""

    slopes: mx.array  # (T, B, 11, H), see metal/quantum.metal
    p: mx.array  # |psi|^2
    by_time: mx.array  # theta / dt
    rotated: mx.array  # the pair after (2)
    r: mx.array  # the pair after (3)
    nu: mx.array  # (T, B, 1)
    stay: mx.array  # 1 - kappa
    change: mx.array  # the pair: derivative of psi by kappa
    slope_q: mx.array  # the pair's slopes by r R + u


def linearise(spec: QuantumSpec, arrays: Tree, h_c: mx.array, h_s: mx.array) -> Point:
    """Recompute a block of steps at once from the states before them."""
    dt = mx.expand_dims(arrays["dt"], 2)
    p = h_c * h_c + h_s * h_s
    by_time = p @ arrays["omega"].T
    theta = dt * by_time  # (2)
    cos, sin = mx.cos(theta), mx.sin(theta)
    rotated = mx.stack([h_c * cos - h_s * sin, h_c * sin + h_s * cos], axis=2)
    r = rotated + noise(arrays) if "xi" in arrays else rotated  # (3)
    density = (r * r).sum(axis=(2, 3))[:, :, None] / p.shape[2]
    nu = spec.nu_0 * mx.exp(-spec.beta * density)  # (4)
    exponent = -nu * dt / arrays["tau"]
    stay, kappa = mx.exp(exponent), -mx.expm1(exponent)  # (5)
    u = drive(spec, arrays)
    a = mx.tanh(r @ arrays["w_h"].T + mx.stack([u, mx.zeros_like(u)], axis=2))
    change, slope_q = a - r, mx.expand_dims(kappa, 2) * (1 - a * a)
    slope_nu = change * mx.expand_dims(stay * (-2 * spec.beta / p.shape[2] * dt * nu / arrays["tau"]), 2)
    singles = mx.stack([cos, sin, h_c, h_s], axis=2)
    slopes = mx.concatenate([slope_q, slope_nu, mx.expand_dims(stay, 2), r, singles], axis=2)
    return Point(slopes, p, by_time, rotated, r, nu, stay, change, slope_q)


def _gradients(spec: QuantumSpec, arrays: Tree, point: Point, dh: mx.array, dr: mx.array) -> Tree:
    """All gradients of a block of steps, from those of its states and of r, (T, B, 2, H) each."""
    dt, tau = mx.expand_dims(arrays["dt"], 2), arrays["tau"]
    d_q = dh * point.slope_q
    d_theta = dr[:, :, 1] * point.rotated[:, :, 0] - dr[:, :, 0] * point.rotated[:, :, 1]
    by_dt = (dh * point.change).sum(axis=2) * point.stay * point.nu / tau
    result = {"omega": outer(d_theta * dt, point.p), "w_h": outer(d_q, point.r), "tau": -(by_dt * dt).sum(axis=(0, 1)) / tau}
    result["dt"] = (d_theta * point.by_time + by_dt).sum(axis=-1)
    before: Tree = {name: arrays[name] for name in ("x", "t", "w_x", "b", "f", "phi") if name in arrays}
    result |= _pulled(lambda a: drive(spec, a), before, d_q[:, :, 0])
    if "xi" in arrays:
        given: Tree = {name: arrays[name] for name in ("dt", "w_noise")}
        of_noise = _pulled(lambda a: noise({**arrays, **a}), given, dr)
        result |= {"dt": result["dt"] + of_noise["dt"], "w_noise": of_noise["w_noise"]}
    return result


def _pulled(function: Any, arrays: Tree, cotangent: mx.array) -> Tree:
    """The gradients of a function's input arrays."""
    names, leaves = zip(*tree_flatten(arrays), strict=True)
    _, gradients = mx.vjp(lambda *a: function(dict(zip(names, a, strict=True))), list(leaves), [cotangent])
    return dict(zip(names, gradients, strict=True))


def _joined(parts: list[Tree]) -> Tree:
    """Join the gradients of consecutive blocks of steps: arrays with a time axis are concatenated, the others added."""
    return {
        name: mx.concatenate([part[name] for part in parts]) if name in BY_STEP else sum(part[name] for part in parts) for name in parts[0]
    }


def _blocks(T: int, B: int, H: int) -> list[slice]:
    steps = max(1, min(BLOCK_STEPS, BLOCK_BYTES // (4 * SLOPES * B * H)))
    return [slice(start, min(start + steps, T)) for start in range(0, T, steps)]


def _steps(arrays: Tree, block: slice) -> Tree:
    """The arrays of a block of steps."""
    return {name: a[block] if name in BY_STEP else a for name, a in arrays.items()}


def _launch(
    kind: str, text: KernelText, variant: Variant, inputs: list[mx.array], T: int, B: int, shapes: list[tuple[int, ...]]
) -> list[mx.array]:
    scan = scan_launch(text, inputs, variant.template, shapes, variant.tile, T, B, dims, variant.work, is_backward=text is BACKWARD)
    return launch(kind, scan)
