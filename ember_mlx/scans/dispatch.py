"""One recurrence in several forms, with one gradient.

`scan` runs a recurrence as GPU kernels or, on the CPU, in its NumPy form, through mx.custom_function. The ops form is used when these
cannot run: when arrays have no values on the CPU (inside mx.compile, vmap and export), for sizes that no kernel supports, and for
derivatives that the other forms do not have (jvp, second and higher derivatives).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import repeat
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..backend import KERNEL_BACKENDS, current_backend, gpu_kind
from ..errors import bad_argument
from ..kernels.first_use import SmallProblem, complaint
from ..kernels.launches import Launches
from ..kernels.loader import is_available
from ..kernels.tiles import Tile
from .pytrees import leaves_like, leaves_of, with_leaves
from .scratch import Scratch

Tree = dict[str, Any]


class FusedForms(NamedTuple):
    """A recurrence as GPU kernels; `kind` is "metal" or "cuda".

    Args:
        forward: (kind, spec, arrays) -> list of outputs.
        backward: (kind, spec, arrays, outputs, cotangents) -> gradients, a tree like the arrays.
        refusal: (kind, spec, arrays) -> the reason why no kernel supports these arrays, or None.
        key: (kind, spec, arrays) -> the kernel variant for them.
        small_problem: (kind, spec, arrays) -> a short problem for the same variant (kernels.first_use.SmallProblem).
        half: whether the kernels take float16 and bfloat16 inputs and weights; otherwise these are converted to float32.
        launches: forward and backward as generators of launches (kernels.launches.Launches), so that the launches of several scans can be
            merged; None if not supported.
        parts: (kind, spec, arrays) -> pairs of a specification and its arrays that the first-use check runs separately.
        layouts: (family, spec) -> every layout (kernels.tiles.Tile) that can be chosen on a GPU family, for their check.
    """

    forward: Callable[..., list[mx.array]]
    backward: Callable[..., Tree]
    refusal: Callable[..., str | None]
    key: Callable[..., Hashable]
    small_problem: Callable[..., SmallProblem]
    half: bool = False
    launches: tuple[Callable[..., Launches], Callable[..., Launches]] | None = None
    parts: Callable[..., list[tuple[Any, Tree]]] = lambda kind, spec, arrays: [(spec, arrays)]
    layouts: Callable[..., Sequence[Tile]] = lambda family, spec: ()


class Recurrence(NamedTuple):
    """The forms of one recurrence. Each takes the static specification and a tree of arrays.

    Args:
        name: name in messages.
        forward: NumPy: (spec, arrays, kept=None) -> tuple of outputs; in the buffers `kept` it may store intermediate results for
            `backward`.
        backward: NumPy: (spec, arrays, outputs, cotangents, kept=None) -> gradients, a tree like the arrays without those that
            have none.
        ops: MLX: (spec, arrays) -> list of outputs.
        variants: names of small problems of every kind.
        problem: (variant, T, B, H, lengths=, seed=, dtype=) -> (spec, arrays), NumPy arrays of such a problem.
        fused: the kernels.
        depth: (spec, arrays) -> number of sequential evaluations of the cell, which is the depth of the ops form's graph.
    """

    name: str
    forward: Callable[..., tuple[np.ndarray, ...]]
    backward: Callable[..., Tree]
    ops: Callable[..., list[mx.array]]
    variants: tuple[str, ...]
    problem: Callable[..., tuple[Any, Tree]]
    fused: FusedForms
    depth: Callable[..., int] = lambda spec, arrays: cast(int, arrays["dt"].shape[0])


# Limits on sequential evaluations of a cell in the ops form. MLX 0.32.4 traverses the graph recursively: with the usual stack of 8 MB,
# mx.compile of a gradient crashes from 2,400 (LQNet) to 18,000 (RNN) evaluations on, and a gradient of a gradient from 5,800 on.
MOST_TRACED = 1500  # inside mx.compile, mx.vmap and export; compile time grows with the square
MOST_TWICE = 3000  # for second derivatives, which the backend "ops" cannot detect


def scan(recurrence: Recurrence, spec: Hashable, arrays: Tree, keep: bool = True) -> list[mx.array]:
    """Run a recurrence over a tree of arrays in the form chosen by the current backend; differentiable.

    With `keep` the NumPy form stores intermediate results, so that its backward pass need not recompute them.
    """
    leaves = leaves_of(arrays)
    if not recurrence.fused.half:
        leaves = widened(leaves)
    form = _choose(recurrence, spec, arrays, leaves)
    if form not in KERNEL_BACKENDS:
        leaves = widened(leaves)
    if form == "ops":
        arrays = with_leaves(arrays, leaves)
        check_depth(recurrence, spec, arrays)
        return recurrence.ops(spec, arrays)
    skeleton = with_leaves(arrays, repeat(None))  # without arrays, since MLX may keep the function alive longer than they are needed
    return _function(recurrence, form, spec, skeleton, keep)(*leaves)


def _choose(recurrence: Recurrence, spec: Hashable, arrays: Tree, leaves: list[mx.array]) -> str:
    """The form to run now: "ops", "numpy", "metal" or "cuda"."""
    name = current_backend()
    if name == "auto":
        kind = gpu_kind()
        if kind is None:
            return "numpy" if can_evaluate(leaves) else "ops"
        arrays = with_leaves(arrays, leaves)
        usable = recurrence.fused.refusal(kind, spec, arrays) is None and complaint(kind, recurrence, spec, arrays) is None
        return kind if usable else "ops"
    reason = None
    if name == "numpy" and not can_evaluate(leaves):
        reason = "arrays have no values inside mx.compile, mx.vmap and export"
    elif name in KERNEL_BACKENDS:
        arrays = with_leaves(arrays, leaves)
        reason = recurrence.fused.refusal(name, spec, arrays) if is_available(name) else f"there is no {name} device"
    if reason is not None:
        raise RuntimeError(f"[{recurrence.name}] backend {name!r} cannot run: {reason}; use 'auto' or 'ops'.")
    return name


def check_depth(recurrence: Recurrence, spec: Hashable, arrays: Tree, most: float = math.inf) -> None:
    """Raise a ValueError if the ops form's graph would be deeper than `most`, or too deep for MLX to trace."""
    depth = recurrence.depth(spec, arrays)
    where = "with second derivatives"
    if depth > MOST_TRACED and not can_evaluate(leaves_of(arrays)):
        most, where = min(most, MOST_TRACED), "inside mx.compile, mx.vmap and export without a kernel"
    if depth > most:
        expected = f"have at most {most} sequential evaluations of the cell {where}; split the sequence and carry the state"
        raise bad_argument(recurrence.name, "a sequence", expected, depth)


def widened(leaves: Sequence[mx.array]) -> list[mx.array]:
    """Arrays in the dtype of sums: float64 if any of them is float64, else float32. Kernels convert internally."""
    floating = [mx.issubdtype(a.dtype, mx.floating) for a in leaves]
    dtype = mx.float64 if mx.float64 in [a.dtype for a in leaves] else mx.float32
    return [a.astype(dtype) if real and a.dtype != dtype else a for a, real in zip(leaves, floating, strict=True)]


def can_evaluate(arrays: list[mx.array]) -> bool:
    """Whether the arrays can be evaluated now; False inside mx.compile, mx.vmap and export."""
    try:
        mx.eval(*arrays)
    except (ValueError, RuntimeError) as error:
        if "function transformations" not in str(error):
            raise
        return False
    return True


def as_numpy(array: mx.array) -> np.ndarray:
    """The array's memory as a NumPy array, without a copy; read-only, since MLX arrays never change."""
    view = np.asarray(array)
    view.flags.writeable = False
    return view


def as_mlx(array: np.ndarray) -> mx.array:
    """A copy in the same dtype; mx.array alone would convert float64 to float32."""
    return mx.array(array, mx.float64) if array.dtype == np.float64 else mx.array(array)


def _function(recurrence: Recurrence, form: str, spec: Hashable, like: Tree, keep: bool) -> Callable[..., list[mx.array]]:
    """One form of the recurrence, as a differentiable function of the leaves of a tree like this one, for a single call.

    Intermediate results stored by its forward pass live until MLX can no longer request a gradient of this call.
    """
    run, run_back = _numpy_forms(recurrence, spec, like, keep) if form == "numpy" else _kernel_forms(recurrence, form, spec, like)

    def ops(*leaves: mx.array) -> list[mx.array]:
        check_depth(recurrence, spec, with_leaves(like, leaves))
        return recurrence.ops(spec, with_leaves(like, widened(leaves)))

    def ops_backward(leaves: list[mx.array], cotangents: list[mx.array]) -> list[mx.array]:
        check_depth(recurrence, spec, with_leaves(like, leaves), MOST_TWICE)
        return mx.vjp(ops, leaves, cotangents)[1]

    @mx.custom_function
    def forward(*leaves: mx.array) -> list[mx.array]:
        return run(leaves)

    @mx.custom_function
    def backward(leaves: list[mx.array], outputs: list[mx.array], cotangents: list[mx.array]) -> list[mx.array]:
        gradients = leaves_like(run_back(leaves, outputs, cotangents), like)
        return [mx.zeros_like(leaf) if d is None else d.astype(leaf.dtype) for d, leaf in zip(gradients, leaves, strict=True)]

    @forward.vjp
    def forward_vjp(leaves: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        if form == "numpy" and not can_evaluate(cotangents):  # mx.vmap over cotangents only, as for a Jacobian
            return ops_backward(list(leaves), cotangents)
        return cast(list[mx.array], backward(list(leaves), outputs, cotangents))

    @forward.jvp
    def forward_jvp(leaves: Any, tangents: Any) -> list[mx.array]:
        return jvp_of_given(ops, list(leaves), list(tangents))

    @backward.vjp
    def backward_vjp(primals: Any, cotangents: Any, _: Any) -> Any:
        leaves, outputs, dy = primals
        _, gradients = mx.vjp(lambda *a: ops_backward(list(a[: len(leaves)]), list(a[len(leaves) :])), [*leaves, *dy], list(cotangents))
        return gradients[: len(leaves)], tree_map(mx.zeros_like, outputs), gradients[len(leaves) :]

    @backward.jvp
    def backward_jvp(primals: Any, tangents: Any) -> list[mx.array]:
        leaves, _, dy = primals
        d_leaves, _, d_dy = tangents
        return jvp_of_given(lambda *a: ops_backward(list(a[: len(leaves)]), list(a[len(leaves) :])), [*leaves, *dy], [*d_leaves, *d_dy])

    return cast(Callable[..., list[mx.array]], forward)


# as in MLX, no floating-point warnings; a BLAS may also raise them for lanes that it does not use
SILENT: dict[str, Any] = {"all": "ignore"}
Run = Callable[[Sequence[mx.array]], list[mx.array]]  # leaves -> outputs
RunBack = Callable[[Sequence[mx.array], list[mx.array], list[mx.array]], Tree]  # leaves, outputs, cotangents -> gradients


def _numpy_forms(recurrence: Recurrence, spec: Hashable, like: Tree, keep: bool) -> tuple[Run, RunBack]:
    """The NumPy form, over MLX arrays."""
    kept: Scratch | None = None

    def run(leaves: Sequence[mx.array]) -> list[mx.array]:
        nonlocal kept
        given = [as_numpy(a) for a in leaves]
        if keep:
            kept = Scratch(next(a.dtype for a in given if a.dtype.kind == "f"))
        with np.errstate(**SILENT):
            return [as_mlx(a) for a in recurrence.forward(spec, with_leaves(like, given), kept)]

    def run_back(leaves: Sequence[mx.array], outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
        mx.eval(leaves, outputs, cotangents)
        y, dy = (tuple(map(as_numpy, given)) for given in (outputs, cotangents))
        arrays = with_leaves(like, [as_numpy(a) for a in leaves])
        with np.errstate(**SILENT):
            gradients = recurrence.backward(spec, arrays, y, dy, kept)
        return cast(Tree, with_leaves(gradients, map(as_mlx, leaves_of(gradients))))

    return run, run_back


def _kernel_forms(recurrence: Recurrence, kind: str, spec: Hashable, like: Tree) -> tuple[Run, RunBack]:
    """The fused kernels; their backward pass recomputes intermediate results."""

    def run(leaves: Sequence[mx.array]) -> list[mx.array]:
        return recurrence.fused.forward(kind, spec, with_leaves(like, leaves))

    def run_back(leaves: Sequence[mx.array], outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
        return recurrence.fused.backward(kind, spec, with_leaves(like, leaves), outputs, cotangents)

    return run, run_back


def jvp_of_given(function: Callable[..., list[mx.array]], primals: list[mx.array], tangents: list[mx.array | None]) -> list[mx.array]:
    """mx.jvp with respect to the primals that have a tangent; with zeros for the others, mx.vmap fails at products of two of them."""
    given = {k: t for k, t in enumerate(tangents) if t is not None}

    def by_given(*values: mx.array) -> list[mx.array]:
        full = dict(enumerate(primals)) | dict(zip(given, values, strict=True))
        return function(*full.values())

    return mx.jvp(by_given, [primals[k] for k in given], list(given.values()))[1]
