"""The NumPy form of the LQNet and CTRQNet scan: forward, and a handwritten backward. It computes in the dtype of its arrays.

The state is psi = h_c + i h_s. Both take the arrays of one scan as a tree (T steps, B sequences, I inputs, H units):

    x        (T, B, I)   inputs
    dt       (T, B)      elapsed time before each step
    h_c0     (B, H)      real part of the state before the first step;  h_s0 (B, H) the imaginary part
    lengths  (B,)        optional, integers in 1..T
    w_x      (H, I), b (H,), the drive
    t        (T, B)      with `harmonic` only: the total elapsed time at each step;  f (H, I) frequencies, phi (H, I) phases
    omega    (H, H)      rotation weights; symmetric for a Hamiltonian flow, which the scan does not require
    w_h      (H, H)      relaxation weights, with tau (H,)
    xi       (T, B, 2 H) optional, standard normal numbers, H for the real part, then H for the imaginary one;  w_noise (H, H)

The loops over T contain only the sequential part. The backward uses only the stored states: it recomputes everything else from them, a
block of steps at a time, then runs dh -> dr -> dtheta -> dh, then computes the weights' gradients as products over the block.
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..linear import Product, Sums
from ..matmul import multiply
from ..packed_sequences import PackedLayout
from ..pointwise import Array
from ..scratch import Scratch
from .spec import QuantumSpec

Tree = dict[str, Any]
Pair = tuple[Array, Array]  # real and imaginary part
WAVES = 2**15  # sines of the harmonic drive computed at a time, to stay in the cache; always at least those of one input
BLOCK_ROWS = 800  # rows (step and sequence) recomputed at a time: enough for products on two threads, few enough to bound the memory


def quantum_forward(spec: QuantumSpec, arrays: Tree, kept: Scratch | None = None) -> tuple[Array, Array]:
    """Run an LQNet or CTRQNet scan over T steps.

    Args:
        spec: the static part.
        arrays: the tree above, float32 or float64.
        kept: unused, since the backward recomputes intermediate results.

    Returns:
        (h_c, h_s) of shape (T, B, H) each, zero past each length.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import QuantumSpec, quantum_forward
        >>> weights = {"w_x": np.ones((3, 4)), "b": np.zeros(3), "omega": np.ones((3, 3)), "w_h": np.eye(3), "tau": np.ones(3)}
        >>> sequence = {"x": np.ones((5, 2, 4)), "dt": np.ones((5, 2)), "h_c0": np.zeros((2, 3)), "h_s0": np.zeros((2, 3))}
        >>> h_c, h_s = quantum_forward(QuantumSpec(), sequence | weights)
        >>> h_c.shape, bool((np.hypot(h_c, h_s) < np.sqrt(2)).all())
        ((5, 2, 3), True)
    """
    scratch = Scratch(arrays["h_c0"].dtype)
    scan = _Scan(spec, arrays, scratch)
    layout, H, dtype = scan.layout, arrays["h_c0"].shape[1], arrays["h_c0"].dtype
    results = layout.result(H, dtype), layout.result(H, dtype)
    h_c, h_s = layout.sort(arrays["h_c0"]), layout.sort(arrays["h_s0"])
    for first, last in layout.chunks(BLOCK_ROWS):
        block = scan.block(first, last)
        states = [layout.room(layout.flat(a), block.rows, scratch(f"states{k}", block.n, H)) for k, a in enumerate(results)]
        u = scan.drive.project(block)
        for rows in block.steps:
            n = rows.stop - rows.start
            h_c, h_s = scan.step.run((h_c[:n], h_s[:n]), u[rows], block.dt[rows], None if block.noise is None else block.noise[rows])
            for a, part in zip(states, (h_c, h_s), strict=True):
                a[rows] = part
        for a, result in zip(states, results, strict=True):
            layout.store(a, layout.flat(result), block.rows)
    return results


def quantum_backward(
    spec: QuantumSpec, arrays: Tree, outputs: tuple[Array, ...], cotangents: tuple[Array, ...], kept: Scratch | None = None
) -> Tree:
    """The gradients of an LQNet or CTRQNet scan, from those of its outputs.

    Args:
        spec: the static part.
        arrays: the arguments of `quantum_forward`.
        outputs: its results.
        cotangents: the gradient of each output, same shapes.
        kept: unused.

    Returns:
        The gradient of every array but `lengths` and `xi`, as a tree of the same structure. The noise's factor sqrt(dt) is given the
        slope 0 at dt = 0.
    """
    scratch = Scratch(arrays["h_c0"].dtype)
    scan = _Scan(spec, arrays, scratch)
    layout, H = scan.layout, arrays["h_c0"].shape[1]
    initial = layout.sort(arrays["h_c0"]), layout.sort(arrays["h_s0"])
    flat, flat_dy = [layout.flat(a) for a in outputs], [layout.flat(a) for a in cotangents]
    dh = np.zeros((2, *arrays["h_c0"].shape), arrays["h_c0"].dtype)
    for first, last in reversed(layout.chunks(BLOCK_ROWS)):
        block = scan.block(first, last)
        dy = [layout.rows_of(a, block.rows, out=scratch(f"dy{k}", block.n, H)) for k, a in enumerate(flat_dy)]
        h_c, h_s = (layout.previous(initial[k], flat[k], block.rows, out=scratch(f"h{k}", block.n, H)) for k in range(2))
        point = scan.step.linearise((h_c, h_s), scan.drive.project(block), block)
        for rows in reversed(block.steps):
            n = rows.stop - rows.start
            for k in range(2):
                np.add(dh[k, :n], dy[k][rows], out=point.dh[k, rows])
            scan.step.pull(point, rows, dh[:, :n])
        scan.accumulate(block, point)
    return scan.gradients(*(layout.unsort(part) for part in dh))


class QuantumStep:
    """A single step for repeated calls: each call reads x, dt, t and the state from the arrays passed to the constructor.

    Args:
        spec: the static part.
        arrays: arguments as for `quantum_forward`, contiguous, with T = 1 and without lengths and noise.

    Example:
        >>> import numpy as np
        >>> from ember_mlx.reference import QuantumSpec, QuantumStep
        >>> arrays = {"w_x": np.ones((3, 4)), "b": np.zeros(3), "omega": np.ones((3, 3)), "w_h": np.eye(3), "tau": np.ones(3)}
        >>> arrays |= {"x": np.ones((1, 2, 4)), "dt": np.ones((1, 2)), "h_c0": np.zeros((2, 3)), "h_s0": np.zeros((2, 3))}
        >>> step = QuantumStep(QuantumSpec(), arrays)
        >>> for _ in range(5):
        ...     arrays["h_c0"][...], arrays["h_s0"][...] = step()
    """

    def __init__(self, spec: QuantumSpec, arrays: Tree):
        self.scan = _Scan(spec, arrays, Scratch(arrays["h_c0"].dtype))
        self.block, self.before = self.scan.block(0, 1), (arrays["h_c0"], arrays["h_s0"])

    def __call__(self) -> Array:
        """The state after the step, h_c and h_s (2, B, H); the next call overwrites it."""
        return self.scan.step.run(self.before, self.scan.drive.project(self.block), self.block.dt, None)


class _Block(NamedTuple):
    """A block of whole steps, n rows in total."""

    rows: slice  # in packed order
    n: int
    steps: list[slice]  # the rows of each step, relative to the block's first row
    x: Array  # (n, I)
    dt: Array  # (n, 1)
    t: Array  # (n, 1): the total elapsed time with `harmonic`, else dt
    xi: Array | None  # (2 n, H): the two parts of each row, interleaved
    root: Array | None  # (n, 1): sqrt(dt)
    spread: Array | None  # (n, 2, H): xi W_noise
    noise: Array | None  # (n, 2, H): the noise added to the two parts


class _LinearDrive:
    """u = x W_in + b."""

    def __init__(self, arrays: Tree, scratch: Scratch):
        self.w_x = arrays["w_x"]
        self.product, self.sums = (
            Product(self.w_x, arrays["b"], None, len(arrays["h_c0"]), scratch.part("product")),
            Sums(scratch.part("sums")),
        )

    def project(self, block: _Block) -> Array:
        """(n, H) for a block of steps."""
        return self.product(block.x)  # (1)

    def pull(self, block: _Block, du: Array, dx: Array) -> None:
        """Fill the gradient of x, and add a block's part of the weights'."""
        multiply(du, self.w_x, out=dx)
        self.sums.add_product("w_x", du, block.x)
        self.sums.add("b", du.sum(0))


class _HarmonicDrive:
    """u_j = sum_i x_i a_ij sin(2 pi f_ij t + phi_ij) + b_j, a few inputs at a time, since the sines of all take I times the memory."""

    def __init__(self, arrays: Tree, scratch: Scratch):
        self.a, self.f, self.phi = (np.ascontiguousarray(arrays[name].T) for name in ("w_x", "f", "phi"))  # (I, H)
        self.angular = 2 * math.pi * self.f
        self.b, self.scratch = arrays["b"], scratch
        self.d = {name: np.zeros_like(self.a) for name in ("w_x", "f", "phi")}
        self.d_b = np.zeros_like(self.b)

    def project(self, block: _Block) -> Array:
        """(n, H) for a block of steps."""
        (I, H), n = self.a.shape, block.n
        u, together = self.scratch("u", n, H), max(1, WAVES // max(1, n * H))
        u[...] = self.b
        for first in range(0, I, together):
            some = slice(first, first + together)
            wave = np.multiply(self.angular[some, None], block.t, out=self.scratch("waves", len(self.a[some]), n, H))
            wave += self.phi[some, None]
            np.sin(wave, out=wave)
            wave *= self.a[some, None]
            wave *= block.x.T[some, :, None]
            u += wave[0] if len(wave) == 1 else wave.sum(axis=0)  # (1)
        return u

    def pull(self, block: _Block, du: Array, dx: Array) -> Array:
        """Fill the gradient of x, and add a block's part of the weights'; returns the gradient of t, (n, 1)."""
        d_t = np.zeros_like(block.dt)
        self.d_b += du.sum(0)
        for i, a in enumerate(self.a):
            phase = self._phase(block, i)
            wave = np.sin(phase, out=self.scratch("wave", *phase.shape))
            wave *= du
            dx[:, i] = wave @ a
            self.d["w_x"][i] += block.x[:, i] @ wave
            np.cos(phase, out=phase)
            phase *= du
            phase *= block.x[:, i : i + 1]
            phase *= a
            self.d["phi"][i] += phase.sum(0)
            self.d["f"][i] += 2 * math.pi * (block.t[:, 0] @ phase)
            d_t[:, 0] += phase @ self.angular[i]
        return d_t

    def _phase(self, block: _Block, i: int) -> Array:
        """2 pi f_ij t + phi_ij for input i, (n, H)."""
        phase = np.multiply(self.angular[i], block.t, out=self.scratch("phase", block.n, len(self.b)))
        phase += self.phi[i]
        return phase


class _Stages(NamedTuple):
    """The intermediate results of one step, or of a block of steps; (n, H) each, pairs (2, n, H)."""

    p: Array  # |psi|^2
    by_time: Array  # theta / dt
    cos: Array
    sin: Array
    rotated: Array  # after (2)
    r: Array  # after (3)
    nu: Array  # (n, 1)
    stay: Array  # 1 - kappa
    kappa: Array
    a: Array  # tanh(r R + u)


class _Step:
    """Equations (2) to (5)."""

    def __init__(self, spec: QuantumSpec, arrays: Tree, scratch: Scratch):
        self.spec, self.scratch = spec, scratch
        self.omega, self.w_h, self.tau = arrays["omega"], arrays["w_h"], arrays["tau"]
        # stored as (in, out): a third faster for the few rows of a step
        self.omega_T, self.w_h_T = (scratch.copy(f"{name}_T", arrays[name].T) for name in ("omega", "w_h"))
        self.sums = Sums(scratch.part("sums"))

    def evaluate(self, h: Pair, u: Array, dt: Array, noise: Array | None, place: Scratch) -> _Stages:
        """From the state (n, H) to the intermediate results of the step, in the buffers of `place`, valid until these are reused."""
        h_c, h_s = h
        n, H = h_c.shape
        p, by_time, cos, sin, stay, kappa = (place(name, n, H) for name in ("p", "by_time", "cos", "sin", "stay", "kappa"))
        np.multiply(h_c, h_c, out=p)
        p += np.multiply(h_s, h_s, out=stay)
        multiply(p, self.omega_T, out=by_time)
        theta = np.multiply(by_time, dt, out=stay)  # (2)
        np.cos(theta, out=cos)
        np.sin(theta, out=sin)
        rotated = _rotated(h, cos, sin, place("rotated", 2, n, H), place)
        r = rotated
        if noise is not None:
            r = np.add(rotated, noise.swapaxes(0, 1), out=place("r", 2, n, H))  # (3)
        density = np.einsum("knh,knh->n", r, r)[:, None] / H
        nu = self.spec.nu_0 * np.exp(-self.spec.beta * density)  # (4)
        np.divide(-nu * dt, self.tau, out=stay)
        np.negative(np.expm1(stay, out=kappa), out=kappa)  # (5); 1 - stay would lose the digits of a short time
        np.exp(stay, out=stay)
        a = place("a", 2, n, H)
        multiply(r.reshape(2 * n, H), self.w_h_T, out=a.reshape(2 * n, H))
        a[0] += u
        np.tanh(a, out=a)
        return _Stages(p, by_time, cos, sin, rotated, r, nu.astype(u.dtype, copy=False), stay, kappa, a)

    def run(self, h: Pair, u: Array, dt: Array, noise: Array | None) -> Array:
        """The next state, (2, n, H); the next call overwrites it after reading its own input state."""
        s = self.evaluate(h, u, dt, noise, self.scratch.part("step"))
        np.multiply(s.r, s.stay, out=s.r)
        np.multiply(s.a, s.kappa, out=s.a)
        return np.add(s.a, s.r, out=s.a)

    def linearise(self, h: Pair, u: Array, block: _Block) -> "_Point":
        """For a block of steps at once: everything that `pull` needs and that does not depend on the gradients, and an unset `dh`."""
        s = self.evaluate(h, u, block.dt, block.noise, self.scratch.part("block"))
        pairs = {name: self.scratch(name, *s.r.shape) for name in ("slope_q", "slope_nu", "change", "dh", "d_q", "dr")}
        np.subtract(s.a, s.r, out=pairs["change"])
        # the slope of kappa by nu, times that of nu by the mean of |r|^2, times that of the mean by r, divided by r
        factor = block.dt * s.nu * (-2 * self.spec.beta / s.p.shape[1])
        np.multiply(pairs["change"], s.stay * (factor / self.tau), out=pairs["slope_nu"])
        np.multiply(s.a, s.a, out=pairs["slope_q"])
        np.subtract(1, pairs["slope_q"], out=pairs["slope_q"])
        pairs["slope_q"] *= s.kappa
        return _Point(h, s, block.dt, 2 * block.dt, d_theta=self.scratch("d_theta", *s.p.shape), **pairs)

    def pull(self, point: "_Point", local: slice, dh: Array) -> None:
        """From the gradient of the state after one step, in `point`, to that of the state before it, `dh` (2, n, H)."""
        s, given, d_q, dr = point.stages, point.dh[:, local], point.d_q[:, local], point.dr[:, local]
        np.multiply(given, point.slope_q[:, local], out=d_q)
        by_norm = np.einsum("knh,knh->n", given, point.slope_nu[:, local])[:, None]
        np.multiply(given, s.stay[local], out=dr)
        dr += by_norm * s.r[:, local]
        for k in range(2):
            dr[k] += multiply(d_q[k], self.w_h)
        cos, sin, (rotated_c, rotated_s) = s.cos[local], s.sin[local], s.rotated[:, local]
        dr_c, dr_s = dr
        d_theta = point.d_theta[local]
        np.multiply(dr_s, rotated_c, out=d_theta)
        d_theta -= dr_c * rotated_s
        dp = multiply(d_theta * point.twice_dt[local], self.omega)
        dh[0] = dr_c * cos + dr_s * sin + dp * point.h[0][local]
        dh[1] = dr_s * cos - dr_c * sin + dp * point.h[1][local]

    def accumulate(self, point: "_Point") -> Array:
        """Add a block's part of the weights' gradients; returns the gradient of dt, (n, 1), by (2) and (5)."""
        s, dt = point.stages, point.dt
        n, H = s.p.shape
        self.sums.add("omega", multiply((point.d_theta * dt).T, s.p))
        self.sums.add("w_h", multiply(point.d_q.reshape(2 * n, H).T, s.r.reshape(2 * n, H)))
        d_exponent = (point.dh * point.change).sum(0) * s.stay  # gradient of nu dt / tau
        by_dt = d_exponent * (s.nu / self.tau)
        self.sums.add("tau", -(by_dt * dt).sum(0) / self.tau)
        return (point.d_theta * s.by_time + by_dt).sum(1, keepdims=True)


def _rotated(h: Pair, cos: Array, sin: Array, out: Array, place: Scratch) -> Array:
    """psi times exp(i theta), (2, n, H), written to `out`."""
    h_c, h_s = h
    other = place("other", *cos.shape)
    np.multiply(h_c, cos, out=out[0])
    out[0] -= np.multiply(h_s, sin, out=other)
    np.multiply(h_c, sin, out=out[1])
    out[1] += np.multiply(h_s, cos, out=other)
    return out


class _Point(NamedTuple):
    """The step linearised at the states of a block of N steps; (2, N, H) each unless noted."""

    h: Pair  # before the step
    stages: _Stages
    dt: Array  # (N, 1)
    twice_dt: Array  # (N, 1)
    slope_q: Array  # slope of the next state by r R + u
    slope_nu: Array  # slope of the next state by kappa, times that of kappa by r, divided by r
    change: Array  # slope of the next state by kappa
    dh: Array  # gradient of the next state
    d_q: Array  # gradient of r R + u
    dr: Array  # gradient of r
    d_theta: Array  # (N, H)


class _Scan:
    """The parts of one scan, over packed rows."""

    def __init__(self, spec: QuantumSpec, arrays: Tree, scratch: Scratch):
        steps, batch = arrays["dt"].shape
        self.arrays, self.layout, self.scratch = arrays, PackedLayout(steps, batch, arrays.get("lengths")), scratch
        given = {"x": arrays["x"], "dt": arrays["dt"][:, :, None]}
        given |= {"t": arrays["t"][:, :, None]} if spec.harmonic else {}
        self.by_step = {name: self.layout.flat(a) for name, a in given.items()}
        self.d = {name: self.layout.flat(self.layout.result(a.shape[1], a.dtype)) for name, a in self.by_step.items()}
        self.xi = self.layout.flat(arrays["xi"]) if "xi" in arrays else None
        self.spread = Product(arrays["w_noise"], None, None, 2 * batch, scratch.part("spread")) if "xi" in arrays else None
        self.d_w_noise = Sums(scratch.part("d_w_noise"))
        self.drive = (_HarmonicDrive if spec.harmonic else _LinearDrive)(arrays, scratch.part("drive"))
        self.step = _Step(spec, arrays, scratch.part("steps"))

    def block(self, first: int, last: int) -> _Block:
        """The steps [first, last)."""
        starts = self.layout.starts[first : last + 1]
        rows, n = slice(starts[0], starts[-1]), starts[-1] - starts[0]
        given = {
            name: self.layout.rows_of(a, rows, out=self.scratch(name, n, a.shape[1]))
            for name, a in {**self.by_step, **({} if self.xi is None else {"xi": self.xi})}.items()
        }
        steps = [slice(a - starts[0], b - starts[0]) for a, b in pairwise(starts)]
        x, dt = given["x"], given["dt"]
        if self.spread is None:
            return _Block(rows, n, steps, x, dt, given.get("t", dt), None, None, None, None)
        H = self.arrays["h_c0"].shape[1]
        xi, root = given["xi"].reshape(2 * n, H), np.sqrt(dt)
        spread = self.spread(xi).reshape(n, 2, H)
        return _Block(rows, n, steps, x, dt, given.get("t", dt), xi, root, spread, spread * root[:, None])

    def accumulate(self, block: _Block, point: _Point) -> None:
        """Add a block's part of the weights' gradients, and store those of the inputs and the times."""
        d = {name: self.layout.room(a, block.rows, self.scratch(f"d_{name}", block.n, a.shape[1])) for name, a in self.d.items()}
        d["dt"][...] = self.step.accumulate(point)
        if block.xi is not None and block.root is not None and block.spread is not None:
            d_noise = point.dr.swapaxes(0, 1)  # (n, 2, H)
            self.d_w_noise.add("w_noise", multiply((d_noise * block.root[:, None]).reshape(block.xi.shape).T, block.xi))
            by_root = (d_noise * block.spread).sum((1, 2))[:, None]
            d["dt"] += np.where(block.root > 0, by_root / (2 * np.where(block.root > 0, block.root, 1)), 0)
        d_t = self.drive.pull(block, point.d_q[0], d["x"])
        if d_t is not None:
            d["t"][...] = d_t
        for name, a in self.d.items():
            self.layout.store(d[name], a, block.rows)

    def gradients(self, d_c: Array, d_s: Array) -> Tree:
        """All gradients, in the structure of the scan's arrays."""
        T, B = self.layout.steps, self.layout.batch
        result: Tree = {"x": self.d["x"].reshape(T, B, -1), "dt": self.d["dt"].reshape(T, B), "h_c0": d_c, "h_s0": d_s}
        if isinstance(self.drive, _HarmonicDrive):
            result |= {"t": self.d["t"].reshape(T, B), "b": self.drive.d_b} | {name: a.T for name, a in self.drive.d.items()}
        else:
            result |= self.drive.sums.totals
        return result | self.step.sums.totals | self.d_w_noise.totals
