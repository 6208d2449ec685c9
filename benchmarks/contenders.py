"""Who contends: each makes its runs for a work with the weights of our layer, and gives its outputs and gradients by our names.

Parameters of a layer of ours are called as in its tree, those of torch and ncps as in their state dicts, into which ours are converted.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ["MLX_ENABLE_TF32"] = os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # before the libraries start

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from works import OPS, OURS, Work, all_works

from ember_mlx import CfC, use_backend
from ember_mlx.check.peers import inputs_of, torch_device
from ember_mlx.convert import to_ncps_state_dict, to_torch_state_dict
from ember_mlx.layers.gated import GatedLayer

Results = dict[str, np.ndarray]
PACKAGES = {"torch": ("torch",), "ncps": ("torch", "ncps"), "jax": ("jax",)}
"""What a contender needs installed, by the first word of its name; the others need MLX alone."""


class Contender(NamedTuple):
    """A way to do a work; both functions return when everything is computed.

    Args:
        run: the work.
        results: its output "y", and with a backward "x" and the parameters' gradients.
        memory: the peak of a run in bytes with what it says of it, or None where the library reports none.
    """

    run: Callable[[], object]
    results: Callable[[], Results]
    memory: Callable[[], tuple[int, str] | None] = lambda: None


class Given(NamedTuple):
    """What every contender of a work gets; the loss is the sum of y times `weight`."""

    work: Work
    layer: nn.Module
    x: np.ndarray
    dt: np.ndarray | None
    lengths: np.ndarray | None
    weight: np.ndarray


def given_for(work: Work) -> Given:
    mx.random.seed(0)
    layer, (x, dt) = work.layer(), inputs_of(work)
    layer.set_dtype(getattr(mx, work.dtype))
    mx.eval(layer.parameters())
    lengths = np.linspace(1, work.T - 1, work.B).round().astype(np.int32) if work.lengths else None
    size = layer(mx.array(x[:1, :1])).shape[-1]
    weight = np.random.default_rng(1).standard_normal((work.B, work.T, size)).astype(np.float32)
    return Given(work, layer, x, dt if work.timed else None, lengths, weight)


# MLX


def ours(given: Given, backend: str = "auto") -> Contender:
    """Our layer in one of its forms."""
    options = {} if given.dt is None else {"time_deltas": mx.array(given.dt)}
    options |= {} if given.lengths is None else {"lengths": given.lengths}

    def names(gradients: nn.Module) -> Results:
        """The gradients also as torch and ncps call them: the conversions are linear."""
        found = {name: numpy_of(a) for name, a in tree_flatten(gradients.trainable_parameters())}
        convert = to_torch_state_dict if isinstance(gradients, GatedLayer) else to_ncps_state_dict
        try:
            return found | {name: np.asarray(a, np.float32) for name, a in convert(gradients).items()}
        except (TypeError, ValueError):
            return found  # a layer that they do not have

    return of_mlx(given, given.layer, lambda m, x: m(x, **options), names, backend)


def of_mlx(given: Given, layer: nn.Module, call: Callable, names: Callable[[nn.Module], Results], backend: str = "auto") -> Contender:
    """A layer of MLX; its peak is MLX's own and what NumPy allocates."""
    dtype = getattr(mx, given.work.dtype)
    x, weight = mx.array(given.x).astype(dtype), mx.array(given.weight)

    def output(m: nn.Module, x: mx.array) -> mx.array:
        y = call(m, x)
        return y[0] if isinstance(y, tuple) else y

    def loss(tree: Any, x: mx.array) -> mx.array:
        layer.update(tree)
        return (output(layer, x).astype(mx.float32) * weight).sum()

    step = mx.value_and_grad(loss, argnums=(0, 1))
    parameters = layer.trainable_parameters()

    def run() -> Any:
        with use_backend(backend):
            result = output(layer, x) if given.work.direction == "forward" else step(parameters, x)
            mx.eval(result)
            return result

    def results() -> Results:
        with use_backend(backend):
            found = {"y": numpy_of(output(layer, x))}
        if given.work.direction == "both":
            gradients, of_x = run()[1]
            layer.update(gradients)
            found |= {"x": numpy_of(of_x), **names(layer)}
        layer.update(parameters)
        return found

    def memory() -> tuple[int, str]:
        import tracemalloc

        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        tracemalloc.start()
        run()
        numpy_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return numpy_peak + mx.get_peak_memory() - before, "mx.get_peak_memory and NumPy's"

    return Contender(run, results, memory)


def mlx_nn(given: Given) -> Contender:
    """mlx.nn's layer of the same name."""
    source = given.layer.layers[0]["forward"]
    cell = type(given.layer).__name__
    layer = getattr(nn, cell)(given.work.inputs, given.work.units)
    theirs = {"RNN": ("Wxh", "Whh", "bias"), "LSTM": ("Wx", "Wh", "bias"), "GRU": ("Wx", "Wh", "b", "bhn")}[cell]
    names = dict(zip(theirs, ("Wx", "Wh", "bias", "bhn"), strict=False))
    for name, own in names.items():
        layer[name] = source[own]
    return of_mlx(given, layer, lambda m, x: m(x), lambda g: {f"layers.0.forward.{own}": numpy_of(g[name]) for name, own in names.items()})


def mlx_loop(given: Given) -> Contender:
    """The CfC as one writes it in MLX: nn.Linear layers, called for each step."""
    dt = mx.array(given.dt)[:, :, None].astype(getattr(mx, given.work.dtype))
    parts = nn.Module()
    stage = given.layer.stages[0]
    for name, source in (("backbone", stage.backbone[0]), ("heads", stage.heads)):
        part = nn.Linear(source["weight"].shape[1], source["weight"].shape[0])
        part.weight, part.bias = source["weight"], source["bias"]
        parts[name] = part

    def call(m: nn.Module, x: mx.array) -> mx.array:
        h, steps = mx.zeros((x.shape[0], given.work.units), x.dtype), []
        for t in range(x.shape[1]):
            z = 1.7159 * mx.tanh(0.666 * m["backbone"](mx.concatenate([x[:, t], h], axis=1)))
            f, g, t_a, t_b = mx.split(m["heads"](z), 4, axis=1)
            t_interp = mx.sigmoid(t_a * dt[:, t] + t_b)
            h = mx.tanh(f) * (1 - t_interp) + mx.tanh(g) * t_interp
            steps.append(h)
        return mx.stack(steps, axis=1)

    def names(gradients: nn.Module) -> Results:
        places = {"backbone": "stages.0.backbone.0", "heads": "stages.0.heads"}
        return {f"{place}.{name}": numpy_of(gradients[part][name]) for part, place in places.items() for name in ("weight", "bias")}

    return of_mlx(given, parts, call, names)


# PyTorch


def torch_nn(given: Given) -> Contender:
    """torch.nn's layer of the same name; with lengths, on packed sequences."""
    torch, *_ = torch_device()
    module = getattr(torch.nn, type(given.layer).__name__)(given.work.inputs, given.work.units, batch_first=True)

    def call(module: Any, x: Any) -> Any:
        if given.lengths is None:
            return module(x)[0]
        rnn = torch.nn.utils.rnn
        packed = rnn.pack_padded_sequence(x, given.lengths.tolist(), batch_first=True, enforce_sorted=False)
        return rnn.pad_packed_sequence(module(packed)[0], batch_first=True, total_length=given.work.T)[0]

    def names(name: str, gradient: np.ndarray) -> np.ndarray:
        if name.startswith("bias_hh"):  # we have but that of a GRU's n gate
            gradient = gradient.copy()
            gradient[: 2 * given.work.units if type(given.layer).__name__ == "GRU" else None] = 0
        return gradient

    return of_torch(given, module, to_torch_state_dict(given.layer), call, names)


def ncps(given: Given) -> Contender:
    """ncps's CfC or LTC on our map; it runs where torch runs."""
    import ncps.torch
    import ncps.wirings

    neuron_map, work, wiring = given.layer.neuron_map, given.work, given.work.units
    if neuron_map.layers is not None:
        ranges = CfC(neuron_map).stage_units

        class Layered(ncps.wirings.Wiring):
            num_layers = len(ranges)

            def get_neurons_of_layer(self, n: int) -> list[int]:
                return list(range(*ranges[n]))

        wiring = Layered(neuron_map.units)
        wiring.set_output_dim(neuron_map.output_dim)
        wiring.set_input_dim(work.inputs)
        wiring.adjacency_matrix, wiring.sensory_adjacency_matrix = (
            neuron_map.adjacency_matrix.copy(),
            neuron_map.sensory_adjacency_matrix.copy(),
        )
    torch, device, _ = torch_device()
    kind = getattr(torch, work.dtype)
    options = {"hx": torch.zeros(work.B, work.units, device=device, dtype=kind)}  # its own zeros are float32
    if given.dt is not None:  # as many as units: it squeezes each step's
        options["timespans"] = torch.tensor(np.repeat(given.dt[:, :, None], work.units, axis=2), device=device, dtype=kind)
    module = getattr(ncps.torch, type(given.layer).__name__)(work.inputs, wiring)
    return of_torch(given, module, to_ncps_state_dict(given.layer), lambda m, x: m(x, **options)[0])


def of_torch(given: Given, module: Any, state: Results, call: Callable, names: Callable = lambda name, gradient: gradient) -> Contender:
    """A module of torch with the weights of a state dict, on torch's GPU, where there is one, without TF32."""
    torch, device, wait = torch_device()
    kind = getattr(torch, given.work.dtype)
    module.load_state_dict({name: torch.tensor(a) for name, a in state.items()})
    module = module.to(device, kind)
    weight = torch.tensor(given.weight, device=device)
    x = torch.tensor(given.x, device=device, dtype=kind)
    asked = torch.tensor(given.x, device=device, dtype=kind, requires_grad=True)

    def run() -> Any:
        if given.work.direction == "forward":
            with torch.no_grad():
                y = call(module, x)
        else:
            module.zero_grad()
            asked.grad = None
            y = call(module, asked)
            (y.float() * weight).sum().backward()
        wait()
        return y

    def results() -> Results:
        found = {"y": of_tensor(run())}
        if given.work.direction == "both":
            found["x"] = of_tensor(asked.grad)
            found |= {name: names(name, of_tensor(p.grad)) for name, p in module.named_parameters() if p.grad is not None}
        return found

    def memory() -> tuple[int, str] | None:
        if device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            run()
            return torch.cuda.max_memory_allocated() - before, "torch.cuda.max_memory_allocated"
        if device == "mps":
            torch.mps.empty_cache()
            before = torch.mps.driver_allocated_memory()
            run()
            return torch.mps.driver_allocated_memory() - before, "torch.mps.driver_allocated_memory after a run"
        return None

    return Contender(run, results, memory)


def of_tensor(tensor: Any) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


# JAX


def jax_scan(given: Given, remat: bool = False) -> Contender:
    """A compiled lax.scan with the product with x before it; with `remat` the backward computes each step again."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_default_matmul_precision", "highest")
    cell = type(given.layer).__name__
    step, projected = {"LSTM": (_lstm_step, True), "GRU": (_gru_step, True), "CfC": (_cfc_step, False)}[cell]
    parameters = {name: jnp.asarray(numpy_of(a)) for name, a in tree_flatten(given.layer.trainable_parameters())}
    x, weight = jnp.asarray(given.x), jnp.asarray(given.weight)
    dt = jnp.ones(x.shape[:2]) if given.dt is None else jnp.asarray(given.dt)
    states = tuple(jnp.zeros((given.work.B, given.work.units)) for _ in range(2 if cell == "LSTM" else 1))

    def forward(parameters: dict, x: Any) -> Any:
        p = {name.removeprefix("layers.0.forward.").removeprefix("stages.0."): a for name, a in parameters.items()}
        a = x @ p["Wx"].T + p["bias"] if projected else x
        body = lambda state, now: step(jax, p, state, *now)  # noqa: E731
        steps = (a.swapaxes(0, 1), dt.T[:, :, None])
        return jax.lax.scan(jax.checkpoint(body) if remat else body, states, steps)[1].swapaxes(0, 1)

    of_forward = jax.jit(forward)
    of_both = jax.jit(jax.value_and_grad(lambda p, x: (forward(p, x) * weight).sum(), argnums=(0, 1)))

    def run() -> Any:
        return jax.block_until_ready((of_forward if given.work.direction == "forward" else of_both)(parameters, x))

    def results() -> Results:
        found = {"y": np.asarray(of_forward(parameters, x))}
        if given.work.direction == "both":
            gradients, of_x = run()[1]
            found |= {"x": np.asarray(of_x), **{name: np.asarray(a) for name, a in gradients.items()}}
        return found

    return Contender(run, results)


def _lstm_step(jax: Any, p: dict, state: Any, a: Any, dt: Any) -> Any:
    h, c = state
    i, f, g, o = jax.numpy.split(a + h @ p["Wh"].T, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
    h = jax.nn.sigmoid(o) * jax.numpy.tanh(c)
    return (h, c), h


def _gru_step(jax: Any, p: dict, state: Any, a: Any, dt: Any) -> Any:
    (h,) = state
    (a_r, a_z, a_n), (h_r, h_z, h_n) = (jax.numpy.split(part, 3, axis=-1) for part in (a, h @ p["Wh"].T))
    z = jax.nn.sigmoid(a_z + h_z)
    h = (1 - z) * jax.numpy.tanh(a_n + jax.nn.sigmoid(a_r + h_r) * (h_n + p["bhn"])) + z * h
    return (h,), h


def _cfc_step(jax: Any, p: dict, state: Any, x: Any, dt: Any) -> Any:
    (h,), jnp = state, jax.numpy
    z = 1.7159 * jnp.tanh(0.666 * (jnp.concatenate([x, h], axis=1) @ p["backbone.0.weight"].T + p["backbone.0.bias"]))
    f, g, t_a, t_b = jnp.split(z @ p["heads.weight"].T + p["heads.bias"], 4, axis=-1)
    t_interp = jax.nn.sigmoid(t_a * dt + t_b)
    h = jnp.tanh(f) * (1 - t_interp) + jnp.tanh(g) * t_interp
    return (h,), h


def numpy_of(a: mx.array) -> np.ndarray:
    return np.array(a.astype(mx.float32))


CONTENDERS: dict[str, Callable[[Given], Contender]] = {
    OURS: ours,
    OPS: lambda given: ours(given, "ops"),
    "mlx.nn": mlx_nn,
    "mlx loop": mlx_loop,
    "torch": torch_nn,
    "ncps": ncps,
    "jax": jax_scan,
    "jax remat": lambda given: jax_scan(given, remat=True),
}


def work_of(key: list) -> Work:
    """The work with a name among those of a run's options."""
    name, quick, full = key
    return next(work for work in all_works(quick, full) if work.name == name)


def device_of(name: str) -> str:
    """What a contender runs on."""
    library = name.split(" ")[0]
    if library in ("torch", "ncps"):
        return torch_device()[1]
    if library == "jax":
        import jax

        return "cpu" if jax.default_backend() == "cpu" else "gpu"
    return "cpu" if mx.default_device().type == mx.DeviceType.cpu else "gpu"
