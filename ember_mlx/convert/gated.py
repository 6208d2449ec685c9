"""RNN, LSTM and GRU from PyTorch's and MLX's modules, and to a PyTorch state dict.

torch is not imported: a module is recognised by its class name and read through its attributes.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from ..layers import GRU, LSTM, RNN
from ..layers.arguments import type_name
from ..layers.cell_layer import CellDirection
from ..layers.gated import GatedLayer
from .weights import DTYPES, array_of, numpy_of

Array = NDArray[Any]
Tree = dict[str, Array]

LAYERS: dict[str, type[GatedLayer]] = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
SUFFIXES = {"forward": "", "backward": "_reverse"}
"""Direction -> suffix of torch's parameter names."""


def from_torch(module: Any) -> GatedLayer:
    """Return an RNN, LSTM or GRU with the weights, and therefore the outputs, of a torch.nn.RNN, LSTM or GRU.

    torch has two biases, for the products with x and with h. They are added, except in the GRU's n gate, whose second bias is multiplied by
    the reset gate. Differences in calls: the layer returns the state only with ``return_state=True``, as [h] or (h, c), each in torch's
    shape and order; instead of a packed sequence pass a padded x with ``lengths``.

    Args:
        module: a torch.nn.RNN, LSTM or GRU, on any device, in float16, bfloat16, float32 or float64. It is not changed.

    Returns:
        The layer, with parameters of the module's dtype (float64 ones run on the CPU only), in the module's training or evaluation mode.

    Raises:
        TypeError: another object; parameters of another dtype.

    Example:
        The first two lines need torch, which this package does not require, so they are not tested.

        >>> module = torch.nn.LSTM(3, 16, num_layers=2, bidirectional=True, batch_first=True)  # doctest: +SKIP
        >>> from_torch(module)(mx.zeros((2, 7, 3)), lengths=[7, 4]).shape  # doctest: +SKIP
        (2, 7, 32)
        >>> from ember_mlx.convert import from_torch
        >>> from_torch(3)
        Traceback (most recent call last):
            ...
        TypeError: [from_torch] module must be a torch.nn.RNN, LSTM or GRU, got int.

    Source: PyTorch's documentation, https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html.
    """
    owner = "from_torch"
    kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__module__ == "torch.nn.modules.rnn" and kind.__name__ in LAYERS]
    if not kinds:
        raise bad_argument(owner, "module", "be a torch.nn.RNN, LSTM or GRU", type_name(module), TypeError)
    options: dict[str, Any] = {"activation": module.nonlinearity} if kinds[0] == "RNN" else {}
    if kinds[0] == "LSTM":
        options["proj_size"] = module.proj_size or None
    layer = LAYERS[kinds[0]](
        module.input_size,
        module.hidden_size,
        module.num_layers,
        bias=bool(module.bias),
        dropout=float(module.dropout) if module.num_layers > 1 else 0.0,  # torch ignores it for a single layer
        bidirectional=bool(module.bidirectional),
        batch_first=bool(module.batch_first),
        **options,
    )
    dtype = str(module.weight_ih_l0.dtype)
    if dtype not in DTYPES:
        raise bad_argument(owner, "module", "have parameters in float16, bfloat16, float32 or float64", dtype, TypeError)
    for k, directions in enumerate(layer.layers):
        for name, direction in directions.items():
            values = {ours: array_of(getattr(module, theirs)) for ours, theirs in _torch_names(layer, k, name).items()}
            _put(direction, _from_torch(values, layer.hidden_size), DTYPES[dtype])
    return layer.train(bool(module.training))


def from_mlx(module: nn.RNN | nn.LSTM | nn.GRU) -> GatedLayer:
    """Return an RNN, LSTM or GRU with the weights, and therefore the outputs, of an mlx.nn.RNN, LSTM or GRU.

    Differences in calls: x has at most one batch axis, the first; y holds only h, also for an LSTM; and the last state is returned with
    ``return_state=True``, as [h] or (h, c), each (1, B, H).

    Args:
        module: the mlx.nn module. It is not changed.

    Returns:
        The layer, with parameters of the module's dtype, in its training or evaluation mode.

    Raises:
        TypeError: another object.
        ValueError: an mlx.nn.RNN with a nonlinearity that is neither tanh nor relu.

    Example:
        >>> import mlx.core as mx
        >>> import mlx.nn as nn
        >>> from ember_mlx.convert import from_mlx
        >>> module, x = nn.GRU(3, 16), mx.random.normal((2, 7, 3))
        >>> mx.allclose(from_mlx(module)(x), module(x), atol=1e-5).item()
        True

    Source: MLX's documentation, https://ml-explore.github.io/mlx/build/html/python/nn/layers.html.
    """
    owner = "from_mlx"
    kind = next((name for name in LAYERS if isinstance(module, getattr(nn, name))), None)
    if kind is None:
        raise bad_argument(owner, "module", "be an mlx.nn.RNN, LSTM or GRU", type_name(module), TypeError)
    names = {"Wx": "Wxh" if kind == "RNN" else "Wx", "Wh": "Whh" if kind == "RNN" else "Wh", "bias": "b" if kind == "GRU" else "bias"}
    names |= {"bhn": "bhn"} if kind == "GRU" else {}
    values = {ours: getattr(module, theirs) for ours, theirs in names.items()}
    options: dict[str, Any] = {"activation": _activation(owner, module.nonlinearity)} if kind == "RNN" else {}
    layer = LAYERS[kind](values["Wx"].shape[1], module.hidden_size, bias=values["bias"] is not None, **options)
    direction = layer.layers[0]["forward"]
    for name, value in values.items():
        if value is not None:
            direction[name] = mx.array(value)
    return layer.train(bool(module.training))


def to_torch_state_dict(layer: GatedLayer) -> dict[str, Array]:
    """A layer's parameters as a state dict of the torch.nn.RNN, LSTM or GRU with the same options.

    Args:
        layer: an RNN, LSTM or GRU of this package.

    Returns:
        NumPy arrays by torch's names, weight_ih_l0, ..., in the layer's dtype (float32 for bfloat16, which NumPy lacks). bias_ih holds the
        whole bias and bias_hh is 0, except in a GRU's n gate.

    Raises:
        TypeError: another object.

    Example:
        >>> from ember_mlx import LSTM
        >>> from ember_mlx.convert import to_torch_state_dict
        >>> state = to_torch_state_dict(LSTM(3, 16))
        >>> {name: a.shape for name, a in state.items()}
        {'weight_ih_l0': (64, 3), 'weight_hh_l0': (64, 16), 'bias_ih_l0': (64,), 'bias_hh_l0': (64,)}
        >>> module.load_state_dict({name: torch.tensor(a) for name, a in state.items()})  # doctest: +SKIP

    Source: PyTorch's documentation, https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html.
    """
    if not isinstance(layer, GatedLayer):
        raise bad_argument("to_torch_state_dict", "layer", "be an RNN, LSTM or GRU of ember_mlx", type_name(layer), TypeError)
    state: dict[str, Array] = {}
    for k, directions in enumerate(layer.layers):
        for name, direction in directions.items():
            values = _to_torch(direction, layer.hidden_size)
            state |= {theirs: values[ours] for ours, theirs in _torch_names(layer, k, name).items()}
    return state


def _torch_names(layer: GatedLayer, k: int, direction: str) -> dict[str, str]:
    """torch's names of the parameters of one layer and direction."""
    names = {"Wx": "weight_ih", "Wh": "weight_hh"}
    names |= {"bias": "bias_ih", "bias_h": "bias_hh"} if layer.bias else {}
    names |= {"Wr": "weight_hr"} if layer.proj_size else {}
    return {ours: f"{theirs}_l{k}{SUFFIXES[direction]}" for ours, theirs in names.items()}


def _from_torch(values: Tree, units: int) -> Tree:
    """Convert torch's two biases to ours."""
    bias_h = values.pop("bias_h", None)
    if bias_h is None:
        return values
    if len(bias_h) != 3 * units:
        return values | {"bias": values["bias"] + bias_h}
    bhn = bias_h[2 * units :]
    return values | {"bias": values["bias"] + np.concatenate([bias_h[: 2 * units], np.zeros_like(bhn)]), "bhn": bhn}


def _to_torch(direction: CellDirection, units: int) -> Tree:
    """Convert our biases to torch's two."""
    values = {name: numpy_of(a) for name, a in direction.parameters().items()}
    if "bias" in values:
        values["bias_h"] = np.zeros_like(values["bias"])
        if "bhn" in values:
            values["bias_h"][2 * units :] = values.pop("bhn")
    return values


def _put(direction: CellDirection, values: Tree, dtype: mx.Dtype) -> None:
    """Replace the parameters of one layer and direction."""
    for name, value in values.items():
        direction[name] = mx.array(value, dtype)


def _activation(owner: str, function: Any) -> str:
    """The name of an mlx.nn.RNN's nonlinearity."""
    if function in (mx.tanh, nn.tanh):
        return "tanh"
    if function is nn.relu or isinstance(function, nn.ReLU):
        return "relu"
    raise bad_argument(owner, "module.nonlinearity", "be tanh or relu", repr(function))
