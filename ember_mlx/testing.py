"""For the tests of those who write cells."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from .backend import KERNEL_BACKENDS, gpu_kind, use_backend
from .layers.recurrent import read_cell
from .scans.cell.random_cases import random_arrays
from .scans.cell.scan import RECURRENT
from .scans.dispatch import as_mlx, scan
from .step.cell import Cell
from .step.definition import Definition
from .validation import check_integer

Array = NDArray[np.float64]
Tree = dict[str, Any]

OWNER = "check_cell"
T, LENGTHS = 5, (3, 5, 1)
STEP = 1e-6  # of finite differences
KINK = 1e-5  # from here on the slopes to both sides differ: there is no derivative
# of the largest number; MLX's own exp, sigmoid and sin have float32's digits in float64 too
TOLERANCES = {"numpy": (1e-10, 1e-6), "ops": (1e-5, 1e-4), "metal": (1e-4, 1e-3), "cuda": (1e-4, 1e-3)}


@dataclass(frozen=True)
class CellReport:
    """What `check_cell` has compared; as text, a table.

    Args:
        cell: its name.
        depth: matrix products in sequence per step.
        timed: whether it has dt.
        errors: backend -> the largest deviation of values and of gradients, each as a part of the largest number.
        points: derivatives that were compared with finite differences, of each backend.
        kinks: derivatives that were not, since the step has a kink or a jump there.
    """

    cell: str
    depth: int
    timed: bool
    errors: dict[str, tuple[float, float]]
    points: int
    kinks: int

    @property
    def backends(self) -> list[str]:
        """Those that were compared."""
        return list(self.errors)

    def __str__(self) -> str:
        products = f"{self.depth} matrix product{'' if self.depth == 1 else 's'} in sequence per step"
        lines = [f"{self.cell}: {products}, {'with' if self.timed else 'without'} dt"]
        lines += [f"{name:6} values {a:.0e}   gradients {b:.0e}" for name, (a, b) in self.errors.items()]
        return "\n".join([*lines, f"{self.points} derivatives compared with finite differences, {self.kinks} at kinks left out"])


def check_cell(
    cell: Cell | type[Cell],
    *,
    input_size: int = 3,
    hidden_size: int = 5,
    seed: int = 0,
    backends: Sequence[str] | None = None,
) -> CellReport:
    """Compare all that a cell becomes with its own step.

    The judge is a loop in float64 that calls ``cell.step`` on NumPy arrays. Against it, in each backend: the states after every step; the
    gradients of x, dt, weights, parameters and initial states, by finite differences wherever the step is smooth; sequences cut anywhere
    and continued; sequences of different lengths against each one alone; and steps that take no time, whose states and gradients must be
    finite.

    Args:
        cell: a cell, or a class of cells that is made without arguments.
        input_size: I.
        hidden_size: H.
        seed: of the random numbers.
        backends: "numpy", "ops", "metal" or "cuda"; None: all that can run here.

    Returns:
        What was compared; `print` it.

    Raises:
        AssertionError: two numbers differ, or one is not finite; the message says which.
        ValueError, TypeError: a cell whose step cannot be expressed.

    Example:
        >>> from ember_mlx import Cell
        >>> from ember_mlx.step import sigmoid, tanh
        >>> from ember_mlx.testing import check_cell
        >>> class MinimalGatedUnit(Cell):
        ...     x_products = 2
        ...     h_products = {"W_f": 1, "W_h": 1}
        ...     def step(self, x, h, W_f, W_h):
        ...         f = sigmoid(x[0] + W_f(h))
        ...         return h + f * (tanh(x[1] + W_h(f * h)) - h)
        >>> def test_my_cell():
        ...     check_cell(MinimalGatedUnit)
        >>> report = check_cell(MinimalGatedUnit)
        >>> report.depth, report.points > 100, report.errors["numpy"][0] < 1e-12
        (2, True, True)
    """
    cell = read_cell(OWNER, cell)
    for name, value in (("input_size", input_size), ("hidden_size", hidden_size)):
        check_integer(OWNER, name, value)
    if backends is None:
        kind = gpu_kind()
        backends = ["numpy", "ops", *([] if kind is None else [kind])]
    check = _Check(cell, _arrays(cell, input_size, hidden_size, seed), seed)
    errors = {name: check.all_of(name) for name in backends}
    points = sum(int(smooth.sum()) for _, smooth in check.slopes.values())
    kinks = sum(int((~smooth).sum()) for _, smooth in check.slopes.values())
    return CellReport(check.definition.name, check.definition.depth, check.definition.is_timed, errors, points, kinks)


def run_steps(cell: Cell, arrays: Tree) -> list[Array]:
    """The cell's states after every step, (T, B, H) each, by a loop that calls its step; the arrays are a scan's, in one direction."""
    state = {name: a[0] for name, a in arrays["initial"].items()}
    known: Tree = {name: a[0] for name, a in arrays["parameters"].items()}
    known |= {name: _product(arrays["weights"][name][0], count) for name, count in cell.h_products.items()}
    asked = [name for name in inspect.signature(cell.step).parameters if name in {"x", "dt", *state, *known}]
    rows = []
    for t, x in enumerate(arrays["x"][0]):
        parts = np.split(x @ arrays["w_x"][0].T + arrays["b"][0], cell.x_products, axis=-1)
        values = known | state | {"x": parts[0] if len(parts) == 1 else tuple(parts)}
        values |= {"dt": arrays["dt"][0, t][:, None]} if "dt" in arrays else {}
        with np.errstate(all="ignore"):
            after = cell.step(**{name: values[name] for name in asked})
        state = dict(zip(state, after if isinstance(after, (tuple, list)) else (after,), strict=True))
        rows.append([*state.values()])
    return [np.stack(steps) for steps in zip(*rows, strict=True)]


def _product(weight: Array, count: int) -> Callable[[Array], Any]:
    """W as a step gets it."""

    def product(value: Array) -> Any:
        results = np.split(value @ weight.T, count, axis=-1)
        return tuple(results) if count > 1 else results[0]

    return product


def _arrays(cell: Cell, input_size: int, hidden_size: int, seed: int) -> Tree:
    """A small scan's arrays, with the cell's own initial values near its parameters."""
    B, rng = len(LENGTHS), np.random.default_rng(seed)
    arrays = random_arrays(cell.definition, 1, T, B, hidden_size, lengths=False, seed=seed)
    arrays["x"] = rng.standard_normal((1, T, B, input_size))
    arrays["w_x"] = rng.standard_normal((1, cell.x_products * hidden_size, input_size)) / np.sqrt(input_size)
    for name, parameter in cell.all_parameters.items():
        a = parameter.drawn(type(cell).__name__, name, hidden_size, rng.uniform).astype(np.float64)
        arrays["parameters"][name] = np.where(a == 0, 0.1, a * rng.uniform(0.9, 1, a.shape))[None]
    return arrays


class _Check:
    """The comparisons of one cell.

    Attributes:
        slopes: name of an array -> its gradient by finite differences, and where that is one.
    """

    def __init__(self, cell: Cell, arrays: Tree, seed: int):
        self.cell, self.arrays = cell, arrays
        self.definition: Definition = cell.definition
        self.expected = run_steps(cell, arrays)
        self._finite(self.expected, "the step in float64")
        for name, a, b in zip(self.definition.states, self.expected, run_steps(cell, arrays), strict=True):
            if not np.array_equal(a, b):
                raise AssertionError(f"[{self.definition.name}] state {name}: the step gives other numbers when it is called again")
        rng = np.random.default_rng(seed + 1)
        self.cotangents = [rng.standard_normal(a.shape) for a in self.expected]
        self.slopes = {name: self._slope(name, a) for name, a in _flat(arrays).items()}
        points = [bool(one) for _, smooth in self.slopes.values() for one in smooth.ravel()]
        if sum(points) * 2 < len(points):
            raise AssertionError(f"[{self.definition.name}] has kinks or jumps at most points: {points.count(False)} of {len(points)}")

    def all_of(self, backend: str) -> tuple[float, float]:
        """Compare a backend in everything; the largest deviation of values and of gradients."""
        found, gradients = self._run(backend, self.arrays, self.cotangents)
        worst = [0.0, 0.0]
        for name, a, b in zip(self.definition.states, found, self.expected, strict=True):
            worst[0] = max(worst[0], self._compare(backend, 0, f"state {name}", a, b))
        for name, a in gradients.items():
            slope, smooth = self.slopes[name]
            worst[1] = max(worst[1], self._compare(backend, 1, f"the gradient of {name}", np.where(smooth, a, slope), slope))
        self._cut(backend, found)
        self._lengths(backend)
        if self.definition.is_timed:
            self._no_time(backend)
        return worst[0], worst[1]

    def _cut(self, backend: str, whole: list[Array]) -> None:
        """Sequences cut anywhere and continued."""
        for t in range(1, T):
            before = self._run(backend, _part(self.arrays, slice(0, t)))[0]
            initial = {name: a[-1][None] for name, a in zip(self.definition.states, before, strict=True)}
            after = self._run(backend, _part(self.arrays, slice(t, T)) | {"initial": initial})[0]
            for name, *parts, a in zip(self.definition.states, before, after, whole, strict=True):
                self._compare(backend, 0, f"state {name} of a sequence that is cut at step {t} and continued", np.concatenate(parts), a)

    def _lengths(self, backend: str) -> None:
        """Sequences of different lengths against each alone."""
        lengths = np.array(LENGTHS, np.int32)
        found, gradients = self._run(backend, self.arrays | {"lengths": lengths}, self.cotangents)
        for b, n in enumerate(LENGTHS):
            alone = run_steps(self.cell, _part(_row(self.arrays, b), slice(0, n)))
            for name, a, c in zip(self.definition.states, found, alone, strict=True):
                self._compare(backend, 0, f"state {name} of a sequence of {n} steps", a[:n, b], c[:, 0])
                self._compare(backend, 0, f"state {name} past a length", a[n:, b], np.zeros_like(a[n:, b]))
            self._compare(backend, 1, "the gradient of x past a length", gradients["x"][0, n:, b], np.zeros_like(gradients["x"][0, n:, b]))
        self._finite(gradients.values(), f"a gradient with lengths, {backend}")

    def _no_time(self, backend: str) -> None:
        """Steps that take no time."""
        for dt in (np.zeros_like(self.arrays["dt"]), self.arrays["dt"] * (np.arange(T) % 2)[:, None]):
            found, gradients = self._run(backend, self.arrays | {"dt": dt}, self.cotangents)
            self._finite(found, f"a state where dt is 0, {backend}")
            self._finite(gradients.values(), f"a gradient where dt is 0, {backend}")
            for name, a, b in zip(self.definition.states, found, run_steps(self.cell, self.arrays | {"dt": dt}), strict=True):
                self._compare(backend, 0, f"state {name} where dt is 0", a, b)

    def _run(self, backend: str, arrays: Tree, cotangents: Sequence[Array] | None = None) -> tuple[list[Array], dict[str, Array]]:
        """The states after every step, (T, B, H), and the gradient of every array."""
        kernel = backend in KERNEL_BACKENDS
        dtype, device = (np.float32, mx.default_device()) if kernel else (np.float64, mx.cpu)
        fixed = {"lengths": mx.array(arrays["lengths"])} if "lengths" in arrays else {}
        names, given = zip(*_flat(arrays).items(), strict=True)

        def states(*leaves: mx.array) -> list[mx.array]:
            tree: Tree = {"weights": {}, "parameters": {}, **tree_unflatten(list(zip(names, leaves, strict=True)))}
            return scan(RECURRENT, self.definition, tree | fixed)

        with use_backend(backend), mx.stream(device):
            leaves = [as_mlx(np.ascontiguousarray(a, dtype)) for a in given]
            if cotangents is None:
                outputs, gradients = states(*leaves), list[mx.array]()
            else:
                outputs, gradients = mx.vjp(states, leaves, [as_mlx(a[None].astype(dtype)) for a in cotangents])
            mx.eval(outputs, gradients)
        found = [np.array(a, np.float64)[0] for a in outputs]
        return found, {name: np.array(a, np.float64) for name, a in zip(names, gradients, strict=False)}

    def _slope(self, name: str, a: Array) -> tuple[Array, NDArray[np.bool_]]:
        """The gradient of an array by finite differences, and where the slopes to both sides are the same."""
        flat, here = _flat(self.arrays), self._loss(self.arrays)
        ahead, behind = np.empty(a.shape), np.empty(a.shape)
        for sign, slopes in ((1, ahead), (-1, behind)):
            for place in np.ndindex(a.shape):
                moved = a.copy()
                moved[place] += sign * STEP
                tree = {"weights": {}, "parameters": {}, **tree_unflatten([*(flat | {name: moved}).items()])}
                slopes[place] = sign * (self._loss(tree) - here) / STEP
        slope = (ahead + behind) / 2
        return slope, np.abs(ahead - behind) <= KINK * np.maximum(1, np.abs(slope))

    def _loss(self, arrays: Tree) -> float:
        return float(sum((a * d).sum() for a, d in zip(run_steps(self.cell, arrays), self.cotangents, strict=True)))

    def _compare(self, backend: str, which: int, what: str, found: Array, expected: Array) -> float:
        """The largest deviation as a part of the largest number, or an AssertionError."""
        if found.size == 0:
            return 0.0
        self._finite([found], f"{what}, {backend}")
        scale = max(1.0, float(np.abs(expected).max()))
        off = np.abs(found - expected) / scale
        if off.max() > TOLERANCES[backend][which]:
            place = tuple(int(k) for k in np.unravel_index(off.argmax(), off.shape))
            numbers = f"{found[place]:.9g} at {place}, where the step itself gives {expected[place]:.9g}"
            raise AssertionError(f"[{self.definition.name}] {what}: the {backend} form gives {numbers}")
        return float(off.max())

    def _finite(self, arrays: Iterable[Array], what: str) -> None:
        for a in arrays:
            if not np.isfinite(a).all():
                place = tuple(int(k) for k in np.argwhere(~np.isfinite(a))[0])
                raise AssertionError(f"[{self.definition.name}] {what}: {a[place]} at {place}")


def _flat(arrays: Tree) -> dict[str, Array]:
    """The real arrays by path."""
    return {name: a for name, a in tree_flatten(arrays) if name != "lengths"}


def _part(arrays: Tree, steps: slice) -> Tree:
    """A scan of some of the steps."""
    return arrays | {name: arrays[name][:, steps] for name in ("x", "dt") if name in arrays}


def _row(arrays: Tree, b: int) -> Tree:
    """A scan of one of the sequences."""
    own = {name: arrays[name][:, :, b : b + 1] for name in ("x", "dt") if name in arrays}
    return arrays | own | {"initial": {name: a[:, b : b + 1] for name, a in arrays["initial"].items()}}
