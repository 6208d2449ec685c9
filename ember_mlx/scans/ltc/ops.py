"""The MLX-ops form of the LTC scan: slower than the others, and differentiable to any order inside any transformation.

The arrays are those of the NumPy form (reference.py); MLX differentiates it.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from ..held import held_by_first
from ..ops import by_step, lstm_step, project
from .spec import LTCSpec
from .synapses import Synapses

Tree = dict[str, Any]
Evaluate = Callable[[mx.array], tuple[mx.array, mx.array]]
MOST_ONES = 2**17  # elements of a matrix of 0 and 1 by whose product values are gathered: the gradient of mx.take has no jvp


def ltc_ops(spec: LTCSpec, arrays: Tree) -> list[mx.array]:
    """Run an LTC scan: [v] (T, B, H), with mixed memory [v, c]; zero past each length."""
    v, c, lengths = arrays["v0"], arrays.get("c0"), arrays.get("lengths")
    drive = [by_step(a) for a in drives(spec, arrays)]
    delta = by_step(arrays["dt"] / spec.unfolds)
    lstm = arrays.get("lstm")
    if lstm is not None:
        lstm = {**lstm, "projected": by_step(project(arrays["x"], lstm["w_x"], lstm["b"]))}
    steps = []
    for t in range(arrays["dt"].shape[0]):
        next_v, next_c = (v, None) if lstm is None or c is None else lstm_step(lstm, v, c, t)
        next_v = _step(spec, arrays, next_v, [a[t] for a in drive], delta[t][:, None])
        if lengths is None:
            v, c = next_v, next_c
            steps.append((v, c))
            continue
        valid = (t < lengths)[:, None]
        v = mx.where(valid, next_v, v)
        c = None if c is None or next_c is None else mx.where(valid, next_c, c)
        steps.append((mx.where(valid, v, 0), None if c is None else mx.where(valid, c, 0)))
    return [mx.stack(list(kept)) for kept in zip(*steps, strict=True) if kept[0] is not None]


def drives(spec: LTCSpec, arrays: Tree) -> tuple[mx.array, mx.array]:
    """What num and den get beside the synapses among the units, (T, B, H) each."""
    num, den = synapse_sums(spec.sensory, arrays["sensory"], arrays["u"])  # (1)
    epsilon = spec.epsilon if spec.solver == "semi_implicit" else 0
    return num + arrays["gleak"] * arrays["vleak"], den + (arrays["gleak"] + mx.array(epsilon, den.dtype))


def synapse_sums(synapses: Synapses, p: Tree, v: mx.array) -> tuple[mx.array, mx.array]:
    """sum_i s_ij erev_ij and sum_i s_ij, (..., H) each, from the sources' values (..., K)."""
    if synapses.is_full:
        w, sigma, mu, erev = (p[name].reshape(synapses.units, synapses.inputs) for name in ("w", "sigma", "mu", "erev"))
        s = w * mx.sigmoid(sigma * (mx.expand_dims(v, -2) - mu))  # (2)
        return (s * erev).sum(axis=-1), s.sum(axis=-1)
    if synapses.count == 0:
        return (mx.zeros((*v.shape[:-1], synapses.units), v.dtype),) * 2
    s = p["w"] * mx.sigmoid(p["sigma"] * (_of_sources(synapses, v) - p["mu"]))  # (2)
    return _over_targets(synapses, s * p["erev"]), _over_targets(synapses, s)


def _of_sources(synapses: Synapses, v: mx.array) -> mx.array:
    """(..., K) -> (..., S)."""
    if synapses.count * synapses.inputs <= MOST_ONES:
        return v @ _ones(synapses, of_sources=True).astype(v.dtype)
    return mx.take(v, mx.array(synapses.sources), axis=-1)


def _over_targets(synapses: Synapses, s: mx.array) -> mx.array:
    """(..., S) -> (..., H), summed over each target's synapses."""
    if synapses.count * synapses.units <= MOST_ONES:
        return s @ _ones(synapses, of_sources=False).astype(s.dtype)
    with_zero = mx.concatenate([s, mx.zeros((*s.shape[:-1], 1), s.dtype)], axis=-1)
    return mx.take(with_zero, mx.array(synapses.padded(by_target=True)), axis=-1).sum(axis=-1)


@held_by_first
def _ones(synapses: Synapses, of_sources: bool) -> mx.array:
    """(K, S), 1 where the synapse comes from the source; or (S, H), 1 where it reaches the target."""
    if of_sources:
        return mx.array((np.arange(synapses.inputs)[:, None] == synapses.sources).astype(np.float32))
    return mx.array((synapses.targets[:, None] == np.arange(synapses.units)).astype(np.float32))


def _step(spec: LTCSpec, arrays: Tree, v: mx.array, drive: list[mx.array], delta: mx.array) -> mx.array:
    """(B, H) -> (B, H)."""

    def evaluate(v: mx.array) -> tuple[mx.array, mx.array]:
        num, den = synapse_sums(spec.synapses, arrays["synapses"], v)
        num = num + drive[0]  # (3)
        return num, den + drive[1]  # (4)

    cm = arrays["cm"] + mx.array(spec.least_cm, v.dtype)
    for _ in range(spec.unfolds):
        v = STEPS[spec.solver](evaluate, v, delta, cm)
    return v


def _semi_implicit(evaluate: Evaluate, v: mx.array, delta: mx.array, cm: mx.array) -> mx.array:
    """(cm v + delta num) / (cm + delta den), by cm where that is the larger part, else by delta: neither is ever 0 then.

    Both forms keep the digits of the gradients of cm and delta, which are differences that cancel in one where the other is used.
    """
    num, den = evaluate(v)
    short = delta * den <= cm
    r = mx.where(short, delta, 0) / mx.where(short, cm, 1)
    s = mx.where(short, 0, cm) / mx.where(short, 1, delta)
    return mx.where(short, v + r * (num - den * v) / (1 + r * den), (s * v + num) / (s + den))  # (5)


def _explicit(evaluate: Evaluate, v: mx.array, delta: mx.array, cm: mx.array) -> mx.array:
    return v + delta * _rate(evaluate, v, cm)


def _rk4(evaluate: Evaluate, v: mx.array, delta: mx.array, cm: mx.array) -> mx.array:
    first = _rate(evaluate, v, cm)
    second = _rate(evaluate, v + delta / 2 * first, cm)
    third = _rate(evaluate, v + delta / 2 * second, cm)
    fourth = _rate(evaluate, v + delta * third, cm)
    return v + delta / 6 * (first + 2 * second + 2 * third + fourth)


def _rate(evaluate: Evaluate, v: mx.array, cm: mx.array) -> mx.array:
    """dv/dt."""
    num, den = evaluate(v)
    return (num - den * v) / cm


STEPS = {"semi_implicit": _semi_implicit, "explicit": _explicit, "rk4": _rk4}
