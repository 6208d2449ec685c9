"""One recurrence in several forms, with one gradient.

`scan` runs a recurrence as GPU kernels or, on the CPU, in its NumPy form, through mx.custom_function. The ops form takes over where
these cannot run: where arrays have no values on the CPU (inside mx.compile, vmap and export), for sizes that no kernel serves, and for
derivatives that the other forms do not have (jvp, second and higher ones).
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
from .dense import Scratch
from .trees import leaves_like, leaves_of, with_leaves

Tree = dict[str, Any]


class FusedForms(NamedTuple):
    """A recurrence as GPU kernels; `kind` is "metal" or "cuda".

    Args:
        forward: (kind, spec, arrays) -> list of outputs.
        backward: (kind, spec, arrays, outputs, cotangents) -> gradients, a tree like the arrays.
        refusal: (kind, spec, arrays) -> why no kernel serves such arrays, or None.
        key: (kind, spec, arrays) -> the kernel variant that serves them.
        small_problem: (kind, spec, arrays) -> a short problem for the same variant (kernels.first_use.SmallProblem).
        half: whether they take float16 and bfloat16 inputs and weights as they are; else float32 ones are made of them.
        launches: forward and backward as computations that ask for their launches (kernels.loader.Launches), so that several scans can
            make theirs together; None where they cannot.
        parts: (kind, spec, arrays) -> what is checked apart on a first use, pairs of a specification and its arrays.
        layouts: (family, spec) -> every layout (kernels.tiles.Tile) that the table can choose on a family of GPUs, for their check.
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
    """The forms of one recurrence. Each takes its static specification and a tree of arrays.

    Args:
        name: how messages call it.
        forward: NumPy: (spec, arrays, kept=None) -> tuple of outputs; in `kept`, memory for it alone, it may leave what helps the backward.
        backward: NumPy: (spec, arrays, outputs, cotangents, kept=None) -> gradients, a tree like the arrays; what it lacks has none.
        ops: MLX: (spec, arrays) -> list of outputs.
        variants: names of small problems of every kind.
        problem: (variant, T, B, H, lengths=, seed=, dtype=) -> (spec, arrays), NumPy arrays of such a problem.
        fused: the kernels.
        depth: (spec, arrays) -> evaluations of the cell one after another: how deep a graph the operations make.
    """

    name: str
    forward: Callable[..., tuple[np.ndarray, ...]]
    backward: Callable[..., Tree]
    ops: Callable[..., list[mx.array]]
    variants: tuple[str, ...]
    problem: Callable[..., tuple[Any, Tree]]
    fused: FusedForms
    depth: Callable[..., int] = lambda spec, arrays: cast(int, arrays["dt"].shape[0])


# Evaluations of a cell one after another in the ops form. MLX 0.32.4 walks such a graph by recursion: with a stack of 8 MB, what is usual,
# mx.compile of a gradient ends the process from 2,400 (LQNet) to 18,000 (RNN) on, and a gradient of a gradient from 5,800 on.
MOST_TRACED = 1500  # inside mx.compile, mx.vmap and export; compiling takes a time that grows with the square
MOST_TWICE = 3000  # of second derivatives; the ops backend itself cannot know of them


def scan(recurrence: Recurrence, spec: Hashable, arrays: Tree, keep: bool = True) -> list[mx.array]:
    """Run a recurrence over a tree of arrays in the form that the backend in use names; differentiable.

    With `keep` the NumPy form spends some memory on what spares its backward a recomputation.
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
    skeleton = with_leaves(arrays, repeat(None))  # MLX may hold the function longer than its arrays
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
        reason = recurrence.fused.refusal(name, spec, arrays) if is_available(name) else f"there is no {name} device here"
    if reason is not None:
        raise RuntimeError(f"[{recurrence.name}] backend {name!r} cannot run: {reason}; use 'auto' or 'ops'.")
    return name


def check_depth(recurrence: Recurrence, spec: Hashable, arrays: Tree, most: float = math.inf) -> None:
    """Raise a ValueError where the ops form's graph would be deeper than `most`, or than what MLX's tracing bears."""
    depth = recurrence.depth(spec, arrays)
    where = "with second derivatives"
    if depth > MOST_TRACED and not can_evaluate(leaves_of(arrays)):
        most, where = min(most, MOST_TRACED), "inside mx.compile, mx.vmap and export where no kernel serves"
    if depth > most:
        expected = f"have at most {most} evaluations of the cell one after another {where}; take a part and carry the state"
        raise bad_argument(recurrence.name, "a sequence", expected, depth)


def widened(leaves: Sequence[mx.array]) -> list[mx.array]:
    """Arrays in the precision of sums: float64 where any of them has it, else float32. Kernels do this inside."""
    floating = [mx.issubdtype(a.dtype, mx.floating) for a in leaves]
    dtype = mx.float64 if mx.float64 in [a.dtype for a in leaves] else mx.float32
    return [a.astype(dtype) if real and a.dtype != dtype else a for a, real in zip(leaves, floating, strict=True)]


def can_evaluate(arrays: list[mx.array]) -> bool:
    """Whether the arrays' values can be had now; False inside mx.compile, mx.vmap and export."""
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
    """A copy in the same dtype; mx.array alone would make float32 of float64."""
    return mx.array(array, mx.float64) if array.dtype == np.float64 else mx.array(array)


def _function(recurrence: Recurrence, form: str, spec: Hashable, like: Tree, keep: bool) -> Callable[..., list[mx.array]]:
    """The recurrence in one form as a function of the leaves of a tree like this one, with the gradient of that form, for one call.

    What its forward keeps lives as long as MLX may still ask for a gradient of this call.
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
        if form == "numpy" and not can_evaluate(cotangents):  # in mx.vmap of a gradient's pull alone, as for a Jacobian
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


# MLX never warns of numbers; and a BLAS sometimes does for lanes that it does not use
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
    """The fused form: its backward recomputes what it needs."""

    def run(leaves: Sequence[mx.array]) -> list[mx.array]:
        return recurrence.fused.forward(kind, spec, with_leaves(like, leaves))

    def run_back(leaves: Sequence[mx.array], outputs: list[mx.array], cotangents: list[mx.array]) -> Tree:
        return recurrence.fused.backward(kind, spec, with_leaves(like, leaves), outputs, cotangents)

    return run, run_back


def jvp_of_given(function: Callable[..., list[mx.array]], primals: list[mx.array], tangents: list[mx.array | None]) -> list[mx.array]:
    """mx.jvp by those primals that have a tangent; zeros for the others would make mx.vmap of it fail at products of two of them."""
    given = {k: t for k, t in enumerate(tangents) if t is not None}

    def by_given(*values: mx.array) -> list[mx.array]:
        full = dict(enumerate(primals)) | dict(zip(given, values, strict=True))
        return function(*full.values())

    return mx.jvp(by_given, [primals[k] for k in given], list(given.values()))[1]
