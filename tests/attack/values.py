"""A problem's outputs, slopes and curvature in float64, and the comparison of results with them."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np

from tests.tolerances import ATTACK_CURVATURE, ATTACK_GRADIENT, ATTACK_TIMES_ROUNDING, FOLLOWED, ROUNDING, TIMES_ROUNDING_SATURATED

from .problems import DTYPES, exact, is_padding
from .sequences import call

IMAGINARY = 1e-30  # of the complex step, which gives the first derivative without a difference
STEPS = (1e-5, -1e-5, 3e-5, -3e-5)  # of two differences of first derivatives, which agree where they are right
DIGITS = 2.0**-51  # of a difference in float64
ROUNDED = 4  # problems with rounded inputs
HALF = {mx.float16: 2.0**-10, mx.bfloat16: 2.0**-7}  # what a result is rounded by, relatively, with one to spare
LEAST_HALF = {mx.float16: 2.0**-24, mx.bfloat16: 0}  # and absolutely
LARGEST = 1e30  # of a result that is judged at all


class Value(NamedTuple):
    """A float64 result, and by how much it moves where inputs are rounded: an array, and its largest change."""

    value: np.ndarray
    moved: float

    def is_followed(self):
        """Whether arithmetic with this rounding can approximate it."""
        size = largest(self.value)
        return bool(np.isfinite(self.value).all() and np.isfinite(self.moved) and size < LARGEST and self.moved <= FOLLOWED * size)


class Expected(NamedTuple):
    """The outputs, and the derivatives of the loss in the directions of each leaf, and twice in those of all together."""

    outputs: dict[str, Value]
    slopes: dict[str, Value]
    curvature: Value
    terms: dict[str, float]  # the size of what each slope is the sum of: a call each, rounded to the leaf's dtype before they are added
    floor: float  # what a derivative is known to at best: the slopes s (1 - s) of saturated gates come from a rounded s


def expected(problem):
    """Run the loops once for all members: exact and rounded inputs, each with what its derivatives need."""
    numbers = {name: exact(a) for name, a in problem.leaves.items()}
    rng = np.random.default_rng(problem.config["seed"])
    names, members = list(numbers), []
    for k in range(1 + ROUNDED):
        base = {name: a if k == 0 else a * (1 + ROUNDING * rng.uniform(-1, 1, a.shape)) for name, a in numbers.items()}
        members += [base, *(stepped(problem, base, [name], 1j * IMAGINARY) for name in names)]
        members += [stepped(problem, base, names, step + 1j * IMAGINARY) for step in STEPS]
    stacked = {name: np.stack([member[name] for member in members]) for name in names}
    constants = {name: np.broadcast_to(a, (len(members), *a.shape)) for name, a in problem.constants.items()}
    with np.errstate(all="ignore"):
        outputs, losses = evaluated(problem, stacked | constants)
        calls = np.stack(losses).reshape(len(losses), 1 + ROUNDED, -1).imag / IMAGINARY
        loss, terms = calls.sum(axis=0), np.abs(calls[:, 0]).sum(axis=0)
        slopes, ends = loss[:, 1 : -len(STEPS)], loss[:, -len(STEPS) :]
        curvatures = (ends[:, ::2] - ends[:, 1::2]) / (2 * np.array(STEPS[::2]))
        curvature = value_of(curvatures.ravel())
        curvature = curvature._replace(moved=max(curvature.moved, DIGITS * largest(ends) / min(map(abs, STEPS))))
        width = 1 + len(slopes[0]) + len(STEPS)
        return Expected(
            {name: value_of(a[::width].real) for name, a in outputs.items()},
            {name: value_of(slopes[:, k]) for k, name in enumerate(names)},
            curvature,
            {name: float(terms[1 + k]) for k, name in enumerate(names)},
            TIMES_ROUNDING_SATURATED
            * ROUNDING
            * max(1, problem.config["x_size"])  # a weight's slope is that of a gate's sum, times the input
            * sum(float((np.abs(c) * np.minimum(np.abs(outputs[name][0]), 1)).sum()) for name, c in problem.cotangents.items()),
        )


def stepped(problem, base, names, step):
    return base | {name: base[name] + step * problem.directions[name] for name in names}


def value_of(a):
    """The Value from the exact result and those of rounded inputs."""
    return Value(a[0], largest(a - a[0]))


def evaluated(problem, stacked):
    """The outputs of all members, and the loss of each call of the layer."""
    ordered = {name: stacked[name] for name in sorted(stacked, key=lambda n: int(n[6:]) if n.startswith("state ") else -1)}
    outputs = call(problem.config, problem.neurons, ordered, problem.xi)
    losses = [loss_of(problem, outputs)]
    if problem.config["again"] is not None:
        again = {**ordered, "x": problem.config["again"] * ordered["x"]}
        losses.append(loss_of(problem, call(problem.config, problem.neurons, again, problem.xi)))
    return outputs, losses


def loss_of(problem, outputs):
    parts = [(outputs[name] * cotangent).reshape(len(outputs[name]), -1).sum(axis=1) for name, cotangent in problem.cotangents.items()]
    return sum(parts, np.zeros(len(outputs["y"]), complex))


def largest(a):
    return float(np.abs(a).max(initial=0))


class Verdict(NamedTuple):
    """What is wrong, in words, how many arrays were judged, the others being such as no float32 could follow, and interrupts survived."""

    wrong: list[str]
    judged: int
    interrupts: int = 0


def judge_outputs(problem, want, got, loose=0.0, in_halves=False):
    """`loose`: what a result may differ by, relative to its largest value, besides what rounding explains; `in_halves`: products are
    rounded to the dtype given, so that results move as often as that is coarser."""
    if sorted(got) != sorted(want.outputs):
        return Verdict([f"outputs {sorted(got)} instead of {sorted(want.outputs)}"], 1)
    wrong, judged = [], 0
    for name, expected in want.outputs.items():
        a, result = expected.value, got[name]
        if result.shape != a.shape:
            wrong.append(f"{name} has shape {result.shape} instead of {a.shape}")
        elif np.isfinite(a).all() and largest(a) < largest_of(result.dtype):
            numbers, judged = exact(result), judged + 1
            rounding = HALF.get(result.dtype, 0) * np.abs(a) + LEAST_HALF.get(result.dtype, 0)
            allowed = rounding + loose * largest(a) + times(problem, in_halves) * max(ROUNDING * largest(a), expected.moved)
            if problem.config["cell"] in ("CfC", "GRU"):
                allowed = allowed + ROUNDING  # a saturated gate s leaves (1 - s) n, known to the rounding of s
            error = np.abs(numbers - a) - allowed if expected.is_followed() else np.where(np.isfinite(numbers), -1, np.inf)
            if not error.max() <= 0:
                place = tuple(int(k) for k in np.unravel_index(np.nan_to_num(error, nan=np.inf).argmax(), a.shape))
                wrong.append(
                    f"{name}{list(place)} is {numbers[place]:.9g} instead of {a[place]:.9g}, rounding moves it by {expected.moved:.1e}"
                )
    return Verdict(wrong, judged)


def largest_of(dtype):
    """The largest magnitude that a result may have to be certainly finite."""
    return 6e4 if dtype == mx.float16 else LARGEST


def times(problem, in_halves):
    """The allowed error as a multiple of the change caused by rounded inputs."""
    return ATTACK_TIMES_ROUNDING + (HALF[DTYPES[problem.config["dtype"]]] / ROUNDING if in_halves else 0)


def judge_gradient(problem, want, got, loose=0.0, in_halves=False):
    wrong, judged = [], 0
    tame = all(slope.is_followed() for slope in want.slopes.values())  # else what is infinite in float32 makes NaN of zeros too
    for name, gradient in got.items():
        leaf, d, slope = problem.leaves[name], problem.directions[name], want.slopes[name]
        if (gradient.shape, gradient.dtype) != (leaf.shape, leaf.dtype):
            wrong.append(f"gradient of {name}: {gradient.dtype} {gradient.shape} instead of {leaf.dtype} {leaf.shape}")
            continue
        g = exact(gradient)
        if name in ("x", "dt") and g.ndim and (g[is_padding(problem.config)] != 0).any():
            wrong.append(f"gradient of {name} is not 0 past a length")
        infinite = not np.isfinite(g).all()
        if not slope.is_followed() or (infinite and (not tame or gradient.dtype == mx.float16)):
            continue
        products, judged = np.where(d != 0, g * d, 0), judged + 1
        size = max(np.abs(products).sum(), want.terms[name])
        rounding = uses(problem.config) * HALF.get(leaf.dtype, 0) * size + LEAST_HALF.get(leaf.dtype, 0) * np.abs(d).sum()
        wrong += [
            f"gradient of {name}: {fault}"
            for fault in compared(products, slope, want, ATTACK_GRADIENT + loose, rounding, times(problem, in_halves))
        ]
    return Verdict(wrong, judged)


def uses(config):
    """The number of gradients of an array that are added in its dtype."""
    both = config["both"] or config["options"].get("bidirectional", False)
    return len(config["strides"] or [1]) * (2 if both else 1) * (1 if config["again"] is None else 2)


def compared(products, slope, want, tolerance, rounding=0.0, times=ATTACK_TIMES_ROUNDING):
    """A derivative, the sum of these products, against the expected one."""
    size = max(float(np.sqrt((products**2).sum())), abs(slope.value)) if np.isfinite(products).all() else abs(slope.value)
    allowed = tolerance * size + times * slope.moved + rounding + want.floor
    got = float(products.sum())
    return [] if abs(got - slope.value) <= allowed else [f"{got:.9g} instead of {slope.value:.9g}, allowed error {allowed:.1e}"]


def judge_slope(want, got):
    """A derivative in the directions of all leaves together."""
    slopes = list(want.slopes.values())
    if not all(slope.is_followed() for slope in slopes):
        return Verdict([], 0)
    values = np.array([slope.value for slope in slopes])
    total = Value(values.sum(), sum(slope.moved for slope in slopes))
    faults = compared(np.array([got]), total, want, ATTACK_GRADIENT, ATTACK_GRADIENT * float(np.abs(values).sum()))
    return Verdict([f"slope {fault}" for fault in faults], 1)


def judge_curvature(problem, want, got):
    """The second derivative in all directions together, from the Hessian times them."""
    if not want.curvature.is_followed():
        return Verdict([], 0)
    pairs = [(exact(a), problem.directions[name]) for name, a in got.items()]
    products = np.concatenate([np.where(d != 0, g * d, 0).ravel() for g, d in pairs])
    return Verdict([f"curvature {fault}" for fault in compared(products, want.curvature, want, ATTACK_CURVATURE)], 1)
