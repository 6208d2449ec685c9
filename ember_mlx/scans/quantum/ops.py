"""The MLX-ops form of the LQNet and CTRQNet scan: slower than the others, but differentiable to any order and inside any transformation.

The arrays are those of the NumPy form (reference.py); gradients are MLX's.
"""

import math
from typing import Any

import mlx.core as mx

from ..ops import by_step, project, tanh
from .spec import QuantumSpec

Tree = dict[str, Any]


def quantum_ops(spec: QuantumSpec, arrays: Tree) -> list[mx.array]:
    """Run an LQNet or CTRQNet scan: [h_c, h_s] (T, B, H) each, zero past each length."""
    h_c, h_s, lengths = arrays["h_c0"], arrays["h_s0"], arrays.get("lengths")
    steps = {name: by_step(a) for name, a in (("u", drive(spec, arrays)), ("dt", arrays["dt"]))}
    if "xi" in arrays:
        steps["noise"] = by_step(noise(arrays))
    results = []
    for t in range(arrays["dt"].shape[0]):
        part = {name: a[t] for name, a in steps.items()}
        c, s = _step(spec, arrays, h_c, h_s, part)
        if lengths is None:
            h_c, h_s = c, s
            results.append((h_c, h_s))
            continue
        valid = (t < lengths)[:, None]
        h_c, h_s = mx.where(valid, c, h_c), mx.where(valid, s, h_s)
        results.append((mx.where(valid, h_c, 0), mx.where(valid, h_s, 0)))
    return [mx.stack(list(part)) for part in zip(*results, strict=True)]


def drive(spec: QuantumSpec, arrays: Tree) -> mx.array:
    """The drive u of all steps, added inside tanh: (T, B, H)."""
    if not spec.harmonic:
        return project(arrays["x"], arrays["w_x"], arrays["b"])  # (1)
    t = arrays["t"][:, :, None, None]
    wave = mx.sin(mx.array(2 * math.pi, t.dtype) * arrays["f"] * t + arrays["phi"])  # (T, B, H, I)
    return (arrays["x"][:, :, None] * arrays["w_x"] * wave).sum(axis=-1) + arrays["b"]  # (1)


def noise(arrays: Tree) -> mx.array:
    """sqrt(dt) (xi W_noise), (T, B, 2, H); the slope of sqrt is 0 at dt = 0."""
    T, B, _ = arrays["xi"].shape
    spread = arrays["xi"].reshape(T, B, 2, -1) @ arrays["w_noise"].T
    return root(arrays["dt"])[:, :, None, None] * spread


def root(dt: mx.array) -> mx.array:
    """sqrt(dt), with the slope 0 at dt = 0."""
    return mx.where(dt > 0, mx.sqrt(mx.where(dt > 0, dt, 1)), 0)


def _step(spec: QuantumSpec, p: Tree, h_c: mx.array, h_s: mx.array, part: Tree) -> tuple[mx.array, mx.array]:
    """(h_c, h_s) (B, H) each -> the same after a step."""
    dt = part["dt"][:, None]  # (B, 1)
    theta = dt * ((h_c * h_c + h_s * h_s) @ p["omega"].T)  # (2)
    cos, sin = mx.cos(theta), mx.sin(theta)
    h_c, h_s = h_c * cos - h_s * sin, h_c * sin + h_s * cos
    if "noise" in part:
        noise_c, noise_s = (a.squeeze(1) for a in mx.split(part["noise"], 2, axis=1))
        h_c, h_s = h_c + noise_c, h_s + noise_s  # (3)
    density = (h_c * h_c + h_s * h_s).mean(axis=1, keepdims=True)
    nu = mx.array(spec.nu_0, dt.dtype) * mx.exp(mx.array(-spec.beta, dt.dtype) * density)  # (4)
    exponent = -nu * dt / p["tau"]
    stay, kappa = mx.exp(exponent), -mx.expm1(exponent)  # (5)
    h_c = stay * h_c + kappa * tanh(h_c @ p["w_h"].T + part["u"])
    return h_c, stay * h_s + kappa * tanh(h_s @ p["w_h"].T)
