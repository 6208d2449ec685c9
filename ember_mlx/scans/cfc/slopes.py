"""The slopes for the CfC's backward scan, recomputed from the stored states by products and the kernels of cfc_pointwise.metal."""

from typing import Any, NamedTuple

import mlx.core as mx

from ...kernels.inputs import dims, nothing
from ...kernels.loader import KernelText, axes
from ...kernels.parallel import launch_parallel
from ...kernels.tiles import FUNCTION
from ..memory_fused import memory_slopes
from ..ops import project
from ..pointwise import ACTIVATIONS
from .kernel_layout import Weights, by_unit
from .spec import MODES, CfCSpec

Tree = dict[str, Any]
FILES = ("pointwise.metal", "cfc_pointwise.metal")
ACTIVATE = KernelText("cfc_activate", "ACTIVATION, THREADS", FILES, ("a", "dropout", "dims"), ("z", "slope"), axes(tz="a dropout z slope"))
SLOPES = KernelText(
    "cfc_slopes",
    "MODE, H, THREADS",
    FILES,
    ("q", "dt", "pure", "dims"),
    ("by_q", "by_dt", "by_w_tau", "by_A"),
    axes(th="q by_dt by_w_tau by_A", t="dt", tqh="by_q"),
)


def floats(a: mx.array) -> mx.array:
    """In float32."""
    return a.astype(mx.float32)


def projected(arrays: Tree, part: Tree) -> mx.array:
    """The projected inputs of a product."""
    return project(arrays["x"], part["w_x"], part["b"])


class Point(NamedTuple):
    """The slopes of a block of steps, at the stored states."""

    inputs: list[mx.array]  # for each stage (T, B, inputs of the stage)
    h_inner: mx.array  # (T, B, H): the state from which the CfC step starts: the previous state, or the LSTM's h
    z: list[mx.array]  # (T, B, Z) each: the input of each dense layer
    slopes: list[mx.array]  # (T, B, Z) each: slopes of the activations
    slopes_gates: mx.array  # (T, B, 6, H): slopes of c by a, i, f; of the LSTM's h by o and by c; sigma(f + 1)
    slope_q: mx.array  # (T, B, heads, H)
    slope_dt: mx.array  # (T, B, H)
    pure: dict[str, mx.array]  # (T, B, H) each


def linearise(kind: str, spec: CfCSpec, arrays: Tree, states: list[mx.array], h_next: mx.array) -> Point:
    """Recompute a block of steps at once from the states before and after them."""
    stages = arrays["stages"]
    h, slopes_gates = memory_slopes(kind, arrays["lstm"], arrays["x"], *states) if spec.mixed_memory else (states[0], nothing())
    inputs = [arrays["x"], *(h_next[..., start:stop] for start, stop in spec.stages[:-1])]
    products = [
        project(u, stage["w_x"], stage["b"]) + h[..., start:stop] @ stage["w_h"].T
        for u, stage, (start, stop) in zip(inputs, stages, spec.stages, strict=True)
    ]
    z, slopes = [], []
    for k, layer in enumerate(stages[0].get("dense", [])):
        value, slope = activate(kind, spec, products[0], arrays["dropout"][k] if "dropout" in arrays else None)
        z.append(value)
        slopes.append(slope)
        products = [project(value, layer["w"], layer["b"])]
    q = by_unit(spec, products, spec.heads)
    return Point(inputs, h, z, slopes, slopes_gates, *_head_slopes(kind, spec, q, arrays["dt"], Weights.of(spec, stages).pure))


def activate(kind: str, spec: CfCSpec, a: mx.array, dropout: mx.array | None) -> list[mx.array]:
    """One backbone layer's z, and its slope."""
    template = [("ACTIVATION", list(ACTIVATIONS).index(spec.activation))]  # (1)
    Z, R, has_dropout = a.shape[-1], a.size // a.shape[-1], int(dropout is not None)
    inputs = [floats(a).reshape(R, Z), nothing() if dropout is None else floats(dropout).reshape(R, Z)]
    results = launch_parallel(
        kind, ACTIVATE, template, inputs, R, lambda R: R * Z, lambda R: dims(R * Z, has_dropout), [(R, Z)] * 2, FUNCTION * 2
    )
    return [result.reshape(a.shape) for result in results]


def _head_slopes(kind: str, spec: CfCSpec, q: mx.array, dt: mx.array, pure: mx.array) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
    """Point's slope_q, slope_dt and pure."""
    (T, B), H = dt.shape, spec.units
    R, is_pure = T * B, spec.mode == "pure"
    inputs, by_pure = [floats(q).reshape(R, -1), dt.reshape(R), floats(pure)], (R, H) if is_pure else (1,)
    shapes = [(R, spec.heads, H), (R, H), by_pure, by_pure]
    template = [("MODE", MODES.index(spec.mode)), ("H", H)]
    # (2)
    # (3)
    by_q, by_dt, *by = launch_parallel(kind, SLOPES, template, inputs, R, lambda R: R * H, dims, shapes, FUNCTION * 4)
    named = dict(zip(("w_tau", "A"), by, strict=True)) if is_pure else {}
    return by_q.reshape(T, B, -1, H), by_dt.reshape(T, B, H), {name: a.reshape(T, B, H) for name, a in named.items()}
