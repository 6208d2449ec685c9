"""The trial of one configuration and its outcome."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

import ember_mlx
from ember_mlx.scans.registry import RECURRENCES
from tests.metal_host import metal_kernel
from tests.test_kernels import HOST_REASON, kernels_on
from tests.tolerances import FORWARD, GRADIENT

from . import histories, transformations
from .problems import draw_config, exact, make
from .values import Verdict, expected, judge_curvature, judge_gradient, judge_outputs, judge_slope

OWNERS = {f"[{name}]" for name in (*ember_mlx.__all__, *(recurrence.name for recurrence in RECURRENCES.values()), "ember_mlx")}
LOST_BY_COMPILE = "::at"  # of a map in C++: mx.compile lost an array as it fused a graph, as in ml-explore/mlx issues 2864 and 3165
FORMS = ["numpy", "numpy", "numpy", "ops"]
KERNELS = ["metal"] if HOST_REASON is None else []


class Outcome(NamedTuple):
    """A configuration and what came of it: results that are wrong, refusals, results judged, interrupts survived."""

    config: dict
    wrong: list[str]
    refused: list[str]
    judged: int
    interrupts: int


def draw_of(seed, index):
    """The draws of one configuration."""
    rng = np.random.default_rng([seed, index])
    return lambda choices: choices[int(rng.integers(len(choices)))]


def attack(draw: Callable, cell: str | None = None, thorough: bool = True) -> Outcome:
    """Draw a configuration and all that is tried on it; `thorough`: with kernels on the host runner and mx.compile, which take seconds."""
    config = draw_config(draw, cell)
    problem = make(config)
    want = expected(problem)
    wrong, refused, judged, interrupts = [], [], 0, 0
    for name, attempt, judge in attempts(draw, problem, want, thorough):
        try:
            result = attempt()
        except Exception as error:
            (refused if is_refusal(error) else wrong).append(f"{name}: {type(error).__name__}: {error}")
            continue
        verdict = judge(result)
        wrong += [f"{name}: {fault}" for fault in verdict.wrong]
        judged += verdict.judged
        interrupts += verdict.interrupts
    return Outcome(config, wrong, refused, judged, interrupts)


def attempts(draw, problem, want, thorough):
    """(name, a computation, what judges its result): the plain call in one form, then some transformations and histories."""
    form, dtype = draw(FORMS + (KERNELS if thorough else [])), problem.config["dtype"]
    # kernels round products to halves where these are given
    in_halves = form in KERNELS and dtype in ("float16", "bfloat16")
    loose_outputs, loose_gradient = (FORWARD[dtype], GRADIENT[dtype]) if in_halves else (0.0, 0.0)
    yield (
        f"{form} outputs",
        in_form(form, problem, transformations.plain_outputs),
        lambda got: judge_outputs(problem, want, got, loose_outputs, in_halves),
    )
    yield (
        f"{form} gradient",
        in_form(form, problem, transformations.plain_gradient),
        lambda got: judge_gradient(problem, want, got, loose_gradient, in_halves),
    )
    halves = dtype in ("float16", "bfloat16")  # a tangent is rounded to them where it cannot be told how much it matters
    kinds = [
        (transformations.OUTPUTS, lambda got: judge_outputs(problem, want, got)),
        (transformations.GRADIENTS, lambda got: judge_gradient(problem, want, got)),
    ]
    if not halves:
        kinds.append((transformations.SLOPES, lambda got: judge_slope(want, float(exact(got)))))
        kinds.append((transformations.CURVATURES, lambda got: judge_curvature(problem, want, got)))
    ways, judge = draw(kinds)
    way = draw([way for way in ways if way not in transformations.COMPILED or (thorough and is_short(problem.config))])
    yield way.__name__, in_form("auto", problem, way), judge
    history = draw(histories.HISTORIES)
    yield history.__name__, in_form("numpy", problem, history), lambda found: Verdict(found[0], 1, found[1])


def is_short(config):
    """Whether mx.compile, which runs a C++ compiler on every step's operations, is fast enough."""
    return config["T"] * config["options"].get("ode_unfolds", 1) * len(config["strides"] or [1]) <= 2


def in_form(form, problem, way):
    def attempt():
        with kernels_on("host", None, metal_kernel) if form == "metal" else nullcontext(), ember_mlx.use_backend(form):
            result = way(problem._replace(leaves=dict(problem.leaves)))  # after an error mx.grad leaves its own arrays in a dict
            mx.eval([a for _, a in tree_flatten(result) if isinstance(a, mx.array)])
            return result

    return attempt


def is_refusal(error):
    """Whether the package itself says, by name, that something cannot be done, or it is a fault of MLX that says so."""
    return str(error).split(" ")[0] in OWNERS or (isinstance(error, IndexError) and LOST_BY_COMPILE in str(error))
