"""A problem: a layer and a call of it, drawn at random, as MLX arrays and as float64 numbers."""

from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

import ember_mlx

from . import cfc, gated, ltc, quantum, recurrent
from .equations import NeuronData
from .sequences import CELLS

DTYPES = {"float64": mx.float64, "float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
MAPPED = ("CfC", "LTC", "LQNet", "CTRQNet")
TIMES = ("usual", "usual", "short", "long", "any", "none")  # sizes of time deltas


class Problem(NamedTuple):
    """What is judged: `leaves` are the arrays that a result depends on, by name: x, dt, "state k" and "p." with a parameter's path."""

    config: dict[str, Any]
    layer: Any
    neurons: NeuronData | None
    leaves: dict[str, mx.array]
    constants: dict[str, np.ndarray]  # times as a number, and states that are integers or left out
    states: list[tuple[str, bool]]  # the path of each in what a call returns, and whether the call is given one
    cotangents: dict[str, np.ndarray]  # of the outputs that the loss knows
    directions: dict[str, np.ndarray]  # in which the loss is differentiated
    key: mx.array | None
    xi: np.ndarray | None


def draw_config(draw, cell=None):
    """A layer and a call in numbers and names."""
    name = cell or draw(list(CELLS))
    config = {"cell": name, "input_size": draw([1, 2, 3, 5]), "map": draw_map(draw) if name in MAPPED else None}
    full = config["map"] is not None and (config["map"]["kind"] == "int" or config["map"].get("self_connections", False))
    module = {"CfC": cfc, "LTC": ltc, "Recurrent": recurrent}.get(name, quantum if name in MAPPED else gated)
    config["options"] = module.options(draw, name, full) if name in MAPPED else module.options(draw, name)
    is_timed = config["options"]["cell"] in recurrent.TIMED if name == "Recurrent" else module.TIMED
    config["both"] = draw([False, False, False, name in MAPPED or not config["options"]["bidirectional"]])
    may_stride = not config["both"] and not config["options"].get("bidirectional")
    config["strides"] = draw([None, None, [1, 2], [3], [2, 5, 1], [40]]) if may_stride else None
    config |= {"go_backwards": draw([False, False, True]) and not config["both"], "batched": draw([True, True, True, False])}
    config |= {"batch_first": draw([True, True, False]), "T": draw([1, 2, 3, 5, 9]), "B": draw([1, 2, 3, 5]) if config["batched"] else 1}
    ragged = config["batched"] and draw([False, True])
    config["lengths"] = [draw(range(1, config["T"] + 1)) for _ in range(config["B"])] if ragged else None
    config["lengths_as"] = draw(["list", "numpy", "mlx"])
    config |= {"times": draw(TIMES), "times_form": draw(["steps", "steps", "scalar", "number"]), "times_last_axis": draw([False, True])}
    if not (is_timed and (draw([True] * 5 + [False]))):
        config["times"] = None
    elif config["options"].get("solver") in ("explicit", "rk4"):
        config["times"] = "short"  # past some cm / den these solvers diverge
    elif config["options"].get("cell") in ("LEM", "ODELSTM"):
        config["times"] = draw(["usual", "short", "none"])  # so do steps of Euler's
    # float64 is held to float32's digits: MLX's own exp, sigmoid, sin and logaddexp have no more in it
    config |= {"dtype": draw(["float32"] * 4 + ["bfloat16", "float16", "float64"]), "x_dtype": draw(["same", "same", "float32"])}
    config |= {"state": draw(["none", "all", "all", "some"]), "x_size": draw([1, 1, 1e-3, 20]), "swapped": draw([False, False, True])}
    config |= {"return_sequences": draw([True, True, False]), "train": draw([True, False]), "padding": draw([0.0, float("nan"), 1e30])}
    if name in ("LQNet", "CTRQNet") and (config["both"] or config["strides"]):
        config["train"] = False  # each part draws noise of its own
    draws_noise = name in ("LQNet", "CTRQNet") and config["train"]
    config["checkpoint_steps"] = None if draws_noise else draw([None, None, 1, 2, 4])
    config |= {"unused": draw(["nothing", "nothing", "y", "states"]), "again": draw([None, None, None, 0.5]), "seed": draw(range(10**6))}
    return config


def draw_map(draw):
    kind = draw(["int", "FullyConnectedMap", "NCPMap", "RandomMap", "AutoNCPMap"])
    seed = draw(range(4))
    if kind == "int":
        return {"kind": kind, "units": draw([1, 2, 5, 8])}
    if kind == "NCPMap":
        sizes = {name: draw([1, 2, 4]) for name in ("inter_neurons", "command_neurons", "motor_neurons")}
        return {"kind": kind, **sizes, "sparsity_level": draw([0.2, 0.5, 0.8]), "seed": seed}
    units = draw([5, 7, 12])
    if kind == "AutoNCPMap":
        return {"kind": kind, "units": units, "output_size": draw([1, 2]), "sparsity_level": draw([0.3, 0.7]), "seed": seed}
    own = {"self_connections": draw([True, True, False])} if kind == "FullyConnectedMap" else {"sparsity_level": draw([0.1, 0.5, 0.9])}
    return {"kind": kind, "units": units, "output_dim": draw([None, 1, 3]), "seed": seed, **own}


def make_layer(config):
    """The layer with parameters near those that it starts with, in its dtype."""
    name, given, size, strides = config["cell"], config["options"], config["input_size"], config["strides"]
    mx.random.seed(config["seed"])
    back = {name: config[name] for name in ("go_backwards", "batch_first", "checkpoint_steps")}
    inner = {} if strides else back
    if name in MAPPED:
        described = dict(config["map"])
        kind = described.pop("kind")
        neuron_map = described["units"] if kind == "int" else getattr(ember_mlx, kind)(**described)
        if strides and name in ("CfC", "LTC"):
            layer = getattr(ember_mlx, f"StrideAware{name}")(neuron_map, strides, size, **given, **back)
        else:
            layer = getattr(ember_mlx, name)(neuron_map, input_size=size, **given, **inner)
    elif name == "Recurrent":
        own = {option: value for option, value in given.items() if option not in ("cell", "settings")}
        layer = ember_mlx.Recurrent(getattr(ember_mlx.cells, given["cell"])(**given["settings"]), size, **own, **inner)
    else:
        layer = getattr(ember_mlx, name)(size, **given, **inner)
    neurons = neuron_data(layer.layers[0] if strides and name in ("CfC", "LTC") else layer) if name in MAPPED else None
    if strides and name not in ("CfC", "LTC"):
        layer = ember_mlx.StrideAware(layer, strides, **back)
    if config["both"]:
        layer = ember_mlx.Bidirectional(layer)
    layer.train(config["train"])
    return layer, neurons


def neuron_data(layer):
    given = layer.neuron_map
    layers = None if given.layers is None else [[int(k) for k in ids] for ids in given.layers]
    return NeuronData(given.units, given.output_dim, np.array(given.adjacency_matrix), np.array(given.sensory_adjacency_matrix), layers)


def make(config):
    layer, neurons = make_layer(config)
    rng = np.random.default_rng(config["seed"])
    dtype = DTYPES[config["dtype"]]
    layer.set_dtype(dtype)
    leaves, constants = {"x": draw_x(config, rng)}, {}
    if config["times"] is not None:
        dt = draw_times(config, rng)
        if config["times_form"] == "number":
            constants["dt"] = dt
        else:
            leaves["dt"] = mx.array(dt, mx.float64 if config["dtype"] == "float64" else mx.float32)
    for path, a in tree_flatten(layer.parameters()):
        if path.split(".")[-1] != "map_id":
            leaves[f"p.{path}"] = mx.array(drawn_parameter(path, np.array(a.astype(mx.float32)), rng), mx.float64).astype(dtype)
    states = []
    _, final = layer(mx.zeros_like(leaves["x"]), return_state=True)
    for k, (path, a) in enumerate(tree_flatten(final)):
        given = config["state"] == "all" or (config["state"] == "some" and bool(rng.integers(2)))
        states.append((path, given))
        value, integer = rng.standard_normal(a.shape), a.dtype == mx.int32
        if integer:
            constants[f"state {k}"] = np.full(a.shape, rng.choice([0, 1, 7, 2**20]) if given else 0)
        elif given:
            clock = config["strides"] and path.startswith(f"{len(config['strides'])}.")
            value = mx.array(np.abs(value) if clock else value, mx.float64)
            leaves[f"state {k}"] = value.astype([mx.float32, dtype][rng.integers(2)])
        else:
            constants[f"state {k}"] = np.zeros(a.shape)
    key, xi = None, None
    if noisy(config):
        key = mx.random.key(config["seed"])
        xi = np.array(mx.random.normal((config["T"], config["B"], 2 * layer.units), key=key), np.float64)
    problem = Problem(config, layer, neurons, leaves, constants, states, {}, {}, key, xi)
    for name, a in run(problem, leaves).items():
        if not (a.dtype == mx.int32 or config["unused"] == ("y" if name == "y" else "states")):
            problem.cotangents[name] = rng.integers(-12, 13, a.shape) / 8
    for name, a in leaves.items():
        problem.directions[name] = direction(config, name, a, rng)
    mx.eval(leaves, layer.parameters(), key)  # a thread may not compute what another one has only asked for
    return problem


def noisy(config):
    return config["cell"] in ("LQNet", "CTRQNet") and config["train"] and config["options"]["noise_scale"] > 0


def is_padding(config):
    """A mask of padding steps, in the layout of the caller's x without features."""
    T, B = config["T"], config["B"]
    if not config["batched"]:
        return np.zeros(T, bool)
    padding = np.arange(T) >= np.array(config["lengths"] or [T] * B)[:, None]
    return padding if config["batch_first"] else padding.T


def draw_x(config, rng):
    padding = is_padding(config)
    x = config["x_size"] * rng.standard_normal((*padding.shape, config["input_size"]))
    x = np.where(padding[..., None], config["padding"], x)
    return mx.array(x, mx.float64).astype(DTYPES[config["dtype"] if config["x_dtype"] == "same" else config["x_dtype"]])


def draw_times(config, rng):
    """Time deltas in float64, of float32 numbers unless all is float64."""
    padding = is_padding(config)
    shape = padding.shape if config["times_form"] == "steps" else ()
    dt = {
        "usual": lambda: rng.uniform(0.1, 2, shape),
        "short": lambda: rng.uniform(0, 0.03, shape),
        "long": lambda: 10 ** rng.uniform(0, 12, shape),
        "any": lambda: np.where(rng.uniform(size=shape) < 0.2, 0, 10 ** rng.uniform(-9, 12, shape)),
        "none": lambda: np.zeros(shape),
    }[config["times"]]()
    dt = dt if config["dtype"] == "float64" else np.float32(dt).astype(np.float64)
    if not shape:
        return dt
    dt = np.where(padding, np.nan if config["padding"] != 0 else -1.0, dt)
    return dt[..., None] if config["times_last_axis"] else dt


def drawn_parameter(path, a, rng):
    """A value near the layer's initial one, with the same sign if that matters."""
    near = a + 0.1 * rng.standard_normal(a.shape)
    return np.abs(near) if path.split(".")[-1] in ("w", "sensory_w", "cm", "gleak") else near


def direction(config, name, a, rng):
    """One of the size of the numbers themselves, in their dtype; 0 where nothing may change."""
    a = exact(a)
    d = rng.choice([-1.0, 1.0], a.shape) * np.where(np.abs(a) > 0, np.abs(a), 1e-3)
    if name in ("x", "dt") and a.ndim and is_padding(config).any():
        padding = is_padding(config)
        d = np.where(padding[..., None] if a.ndim > padding.ndim else padding, 0, d)
    if name == "dt" and noisy(config):
        d = np.where(a > 0, d, 0)  # the noise's square root has no slope at 0
    return d


def exact(a):
    """An MLX array's numbers in float64."""
    return np.array(a.astype(mx.float64))


def run(problem, leaves):
    """Call the layer: its outputs by name, "y" and "state k"."""
    config, layer = problem.config, problem.layer
    layer.update(tree_unflatten([(name[2:], a) for name, a in leaves.items() if name.startswith("p.")]))
    x = leaves["x"]
    if config["swapped"]:
        x = x.swapaxes(0, -1)
        x = x.reshape(-1).reshape(x.shape).swapaxes(0, -1)  # the same numbers, laid out the other way round
    lengths = config["lengths"]
    if lengths is not None and config["lengths_as"] != "list":
        lengths = np.array(lengths) if config["lengths_as"] == "numpy" else mx.array(lengths)
    dt = None if config["times"] is None else leaves["dt"] if "dt" in leaves else float(problem.constants["dt"])
    options = {"time_deltas": dt} if dt is not None else {}
    options |= {} if problem.key is None else {"key": problem.key}
    y, final = layer(
        x,
        initial_state=state_of(problem, leaves),
        lengths=lengths,
        return_sequences=config["return_sequences"],
        return_state=True,
        **options,
    )
    return {"y": y} | {f"state {k}": a for k, (_, a) in enumerate(tree_flatten(final))}


def state_of(problem, leaves):
    """The initial state in the form that the call takes."""
    if not any(given for _, given in problem.states):
        return None
    entries = []
    for k, (path, given) in enumerate(problem.states):
        name = f"state {k}"
        a = leaves[name] if name in leaves else mx.array(problem.constants[name].astype(np.int32)) if given else None
        entries.append((path, a))
    return tree_unflatten(entries)


def loss(problem, leaves):
    """What is differentiated: some outputs of a call, or of two calls of the layer, times numbers."""
    calls = [leaves] if problem.config["again"] is None else [leaves, {**leaves, "x": problem.config["again"] * leaves["x"]}]
    total = mx.array(0, mx.float64 if problem.config["dtype"] == "float64" else mx.float32)
    for given in calls:
        outputs = run(problem, given)
        for name, cotangent in problem.cotangents.items():
            total = total + (outputs[name].astype(total.dtype) * mx.array(cotangent, total.dtype)).sum()
    return total
