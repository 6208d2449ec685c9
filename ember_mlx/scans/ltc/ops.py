"""The MLX-ops form of the LTC scan: slower than the others, but differentiable to any order and inside any transformation.

The arrays are those of the NumPy form (reference.py); gradients are MLX's.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..held import held_by_first
from ..ops import by_step, lstm_step, project
from .spec import LTCSpec
from .synapses import Synapses

Tree = dict[str, Any]
Evaluate = Callable[[mx.array], tuple[mx.array, mx.array]]


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
    """The contributions to num and den other than from the synapses between units, (T, B, H) each."""
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
    return _taken(v, _source_index(synapses))


def _over_targets(synapses: Synapses, s: mx.array) -> mx.array:
    """(..., S) -> (..., H), summed over each target's synapses."""
    with_zero = mx.concatenate([s, mx.zeros((*s.shape[:-1], 1), s.dtype)], axis=-1)
    return _taken(with_zero, _target_index(synapses)).reshape(*s.shape[:-1], synapses.units, -1).sum(axis=-1)


def _taken(a: mx.array, index: mx.array) -> mx.array:
    """(..., N) -> (..., n), the elements at these indices; not by mx.take, whose gradient has no jvp."""
    return mx.take_along_axis(a, mx.broadcast_to(index, (*a.shape[:-1], index.size)), axis=-1)


@held_by_first
def _source_index(synapses: Synapses) -> mx.array:
    return mx.array(synapses.sources)


@held_by_first
def _target_index(synapses: Synapses) -> mx.array:
    return mx.array(synapses.padded(by_target=True).ravel())


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
    """(cm v + delta num) / (cm + delta den), divided through by cm or by delta, whichever is larger, so that the divisor is never 0.

    In each form the gradients of cm and delta cancel where the other form is used, so this also keeps their digits.
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
