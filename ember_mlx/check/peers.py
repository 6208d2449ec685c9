"""Timed runs of other installed libraries on the work of a row; each run waits for its results."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..backend import use_backend
from .rows import INPUTS, Row

Run = Callable[[], None]
Runs = tuple[Run, Run]  # forward, forward + backward
Array = np.ndarray[Any, Any]


def inputs_of(row: Any) -> tuple[Array, Array]:
    """x (B, T, I) and time deltas (B, T) for a row, or an object with its sizes."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((row.B, row.T, row.inputs)).astype(np.float32), rng.uniform(0.1, 2, (row.B, row.T)).astype(np.float32)


def layer_of(row: Row) -> nn.Module:
    """The layer of a row."""
    mx.random.seed(0)
    layer = row.layer()
    layer.set_dtype(row.dtype)
    mx.eval(layer.parameters())
    return layer


def own(row: Row, backend: str) -> Runs:
    """The row's layer on one backend."""
    x, dt = inputs_of(row)
    return mlx_runs(layer_of(row), mx.array(x).astype(row.dtype), mx.array(dt), backend)


def mlx_runs(layer: Any, x: mx.array, dt: mx.array | None = None, backend: str = "auto") -> Runs:
    """A layer of MLX."""
    options = {"time_deltas": dt} if dt is not None and getattr(layer, "timed", False) else {}

    def output(m: Any) -> mx.array:
        y = m(x, **options)
        return y[0] if isinstance(y, tuple) else y

    step = nn.value_and_grad(layer, lambda m: output(m).astype(mx.float32).sum())

    def run(function: Callable[[Any], Any]) -> Run:
        def timed() -> None:
            with use_backend(backend):
                mx.eval(function(layer))

        return timed

    return run(output), run(step)


def _of_mlx(cell: str) -> Callable[[Row], Runs]:
    return lambda row: mlx_runs(getattr(nn, cell)(row.inputs, row.units), mx.array(inputs_of(row)[0]))


def torch_device() -> tuple[Any, str, Run]:
    """torch without TF32, its device "cuda", "mps" or "cpu", and a function that synchronises it."""
    torch: Any = importlib.import_module("torch")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch, device, {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize, "cpu": lambda: None}[device]


def _torch_runs(make: Callable[[Any], Any], row: Row, times: Array | None = None) -> Runs:
    """A torch module on the GPU, or on the CPU if there is none."""
    torch, device, wait = torch_device()
    kind = getattr(torch, str(row.dtype).removeprefix("mlx.core."))
    module, x = make(torch).to(device, kind), torch.tensor(inputs_of(row)[0], device=device, dtype=kind)
    options = {} if times is None else {"timespans": torch.tensor(times, device=device)}

    def forward() -> None:
        with torch.no_grad():
            module(x, **options)
        wait()

    def both() -> None:
        module.zero_grad()
        module(x, **options)[0].sum().backward()
        wait()

    return forward, both


def _of_torch(cell: str, projected: bool = False) -> Callable[[Row], Runs]:
    """A layer of torch.nn (cuDNN's on CUDA), optionally with its state projected to half the units."""

    def runs(row: Row) -> Runs:
        options = {"proj_size": row.units // 2} if projected else {}
        return _torch_runs(lambda torch: getattr(torch.nn, cell)(row.inputs, row.units, batch_first=True, **options), row)

    return runs


def _of_ncps(cell: str, wired: bool = False) -> Callable[[Row], Runs]:
    def runs(row: Row) -> Runs:
        ncps: Any = importlib.import_module("ncps.torch")
        wirings: Any = importlib.import_module("ncps.wirings")
        size = wirings.NCP(32, 16, 8, 16, 8, 4, 8, seed=1) if wired else row.units
        dt = inputs_of(row)[1][:, :, None] if cell == "CfC" else None
        times = dt if dt is None or wired else np.repeat(dt, row.units, axis=2)
        return _torch_runs(lambda torch: getattr(ncps, cell)(INPUTS, size), row, times)

    return runs


def _flash_lstm(row: Row) -> Runs:
    """FlashRNN's LSTM with one head; its fused form needs bfloat16 and CUDA, and the input product is a linear layer here."""

    def make(torch: Any) -> Any:
        flashrnn: Any = importlib.import_module("flashrnn")

        class FlashLSTM(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inputs = torch.nn.Linear(row.inputs, 4 * row.units, bias=False)
                shapes = ((row.units, row.units), (row.units,))
                self.R, self.b = (torch.nn.Parameter(0.05 * torch.randn(4, 1, *shape)) for shape in shapes)

            def forward(self, x: Any) -> Any:
                projected = self.inputs(x).reshape(*x.shape[:2], 4, 1, row.units)
                zeros = torch.zeros(2, len(x), 1, 1, row.units, device=x.device, dtype=x.dtype)
                return flashrnn.flashrnn(projected, self.R, self.b, states=zeros, function="lstm", backend="cuda_fused")[0]

        return FlashLSTM()

    return _torch_runs(make, row)


def _of_jax(cell: str) -> Callable[[Row], Runs]:
    """A compiled lax.scan, with the input product before it."""

    def runs(row: Row) -> Runs:
        jax: Any = importlib.import_module("jax")
        jnp: Any = importlib.import_module("jax.numpy")
        jax.config.update("jax_default_matmul_precision", "highest")
        gates, rng = {"LSTM": 4, "GRU": 3}[cell], np.random.default_rng(1)
        sizes = ((row.inputs, gates * row.units), (row.units, gates * row.units), (gates * row.units,))
        weights = [jnp.asarray(rng.uniform(-1, 1, size) / row.units**0.5, jnp.float32) for size in sizes]
        x = jnp.asarray(inputs_of(row)[0].swapaxes(0, 1))

        def lstm(W: Any, state: Any, a: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.split(a + h @ W, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        def gru(W: Any, state: Any, a: Any) -> Any:
            (h,) = state
            ar, az, an = jnp.split(a, 3, axis=-1)
            hr, hz, hn = jnp.split(h @ W, 3, axis=-1)
            z = jax.nn.sigmoid(az + hz)
            h = (1 - z) * jnp.tanh(an + jax.nn.sigmoid(ar + hr) * hn) + z * h
            return (h,), h

        def forward(weights: Any) -> Any:
            Wx, W, bias = weights
            states = tuple(jnp.zeros((row.B, row.units)) for _ in range(2 if cell == "LSTM" else 1))
            step = {"LSTM": lstm, "GRU": gru}[cell]
            return jax.lax.scan(lambda state, a: step(W, state, a), states, x @ Wx + bias)[1]

        run, both = jax.jit(forward), jax.jit(jax.value_and_grad(lambda weights: forward(weights).sum()))
        return lambda: jax.block_until_ready(run(weights)), lambda: jax.block_until_ready(both(weights))

    return runs


PEERS: dict[str, Callable[[Row], Runs]] = {
    "operations": lambda row: own(row, "ops"),
    **{f"mlx.nn.{cell}": _of_mlx(cell) for cell in ("RNN", "LSTM", "GRU")},
    **{f"torch {cell}": _of_torch(cell) for cell in ("RNN", "LSTM", "GRU")},
    "torch LSTM, projected": _of_torch("LSTM", projected=True),
    "FlashRNN LSTM": _flash_lstm,
    "jax LSTM": _of_jax("LSTM"),
    "jax GRU": _of_jax("GRU"),
    "ncps CfC": _of_ncps("CfC"),
    "ncps CfC NCP": _of_ncps("CfC", wired=True),
    "ncps LTC": _of_ncps("LTC"),
    "ncps LTC NCP": _of_ncps("LTC", wired=True),
}
PACKAGES = {"torch": "torch", "ncps": "ncps", "jax": "jax", "FlashRNN": "flashrnn"}
"""The module required by a peer, by the first word of its name; MLX's peers need none."""


def runs_of(row: Row, peer: str) -> Runs | None:
    """A peer's runs, or None if its package is not installed."""
    package = PACKAGES.get(peer.split(" ")[0])
    if package is not None and importlib.util.find_spec(package) is None:
        return None
    return PEERS[peer](row)
