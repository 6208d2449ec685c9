"""Small random LQNet and CTRQNet scans of every kind, for tests, benchmarks and the first-use check of kernels."""

from typing import Any

import numpy as np

from .spec import QuantumSpec

Tree = dict[str, Any]
I = 3  # inputs

VARIANTS: dict[str, dict[str, bool]] = {
    "lqnet": {},
    "lqnet_noise": {"noise": True},
    "ctrqnet": {"harmonic": True},
    "ctrqnet_noise": {"harmonic": True, "noise": True},
}


def quantum_problem(
    variant: str, T: int, B: int, H: int, *, lengths: bool = False, seed: int = 0, dtype: Any = np.float64
) -> tuple[QuantumSpec, Tree]:
    """A spec and its arrays, with weights small enough that the recurrence does not amplify rounding errors.

    Args:
        variant: a key of VARIANTS.
        T: number of steps.
        B: number of sequences.
        H: number of units.
        lengths: whether the sequences have different lengths, one of them T.
        seed: seed of the random numbers.
        dtype: dtype of the arrays.
    """
    kind = VARIANTS[variant]
    spec = QuantumSpec(nu_0=0.9, beta=0.3, harmonic=kind.get("harmonic", False))
    return spec, random_arrays(spec, T, B, H, lengths=lengths, noise=kind.get("noise", False), seed=seed, dtype=dtype)


def random_arrays(spec: QuantumSpec, T: int, B: int, H: int, *, lengths: bool, noise: bool, seed: int = 0, dtype: Any = np.float64) -> Tree:
    """Arrays for a spec; see `quantum_problem`."""
    rng = np.random.Generator(np.random.PCG64(seed))
    normal = rng.standard_normal
    arrays: Tree = {"x": normal((T, B, I)), "dt": rng.uniform(0.1, 2, (T, B)), "h_c0": 0.5 * normal((B, H)), "h_s0": 0.5 * normal((B, H))}
    arrays |= {"w_x": 0.6 * normal((H, I)), "b": 0.1 * normal(H), "w_h": 0.6 * normal((H, H)) / np.sqrt(H)}
    arrays |= {"omega": 0.2 * normal((H, H)) / np.sqrt(H), "tau": rng.uniform(0.5, 2, H)}
    if spec.harmonic:
        t = rng.uniform(0, 1, B) + np.cumsum(arrays["dt"], axis=0)
        arrays |= {"t": t, "f": rng.uniform(0, 0.2, (H, I)), "phi": rng.uniform(0, 2 * np.pi, (H, I))}
    if noise:
        arrays |= {"xi": normal((T, B, 2 * H)), "w_noise": 0.1 * normal((H, H)) / np.sqrt(H)}
    arrays = {name: a.astype(dtype) for name, a in arrays.items()}
    if lengths:
        arrays["lengths"] = np.concatenate([rng.integers(1, T + 1, B - 1), [T]]).astype(np.int32)
    return arrays
