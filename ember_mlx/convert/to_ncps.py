"""CfC and LTC layers as state dicts of the PyTorch models of the package ncps; see ncps.py."""

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from ..layers import LTC, CfC
from ..layers.arguments import type_name
from ..layers.cfc import CfCStage
from ..layers.ltc import PARAMETERS
from .tensors import HEADS
from .weights import numpy_of

OWNER = "to_ncps_state_dict"
Array = NDArray[Any]


def to_ncps_state_dict(layer: CfC | LTC) -> dict[str, Array]:
    """A layer's parameters as a state dict of the ncps.torch.CfC or ncps.torch.LTC with the same options and the same synapses.

    A CfC on a fully connected map without layers corresponds to a dense module, ``CfC(input_size, units, ...)``. On any other map it
    corresponds to a wired one, ``CfC(input_size, wiring, ...)``, whose wiring has the map's layers (or a single one) with the same numbers
    of neurons. The weights of missing synapses are then 0, since ncps masks only the input of a layer. An LTC fits any wiring with the same
    number of units: the masks are in the state dict. See :func:`from_ncps` for the order of states.

    ncps has no time scale: a CfC's ``time_scale_factor`` is folded into the weights of its time heads. Options that ncps does not have,
    such as ``go_backwards``, must be applied outside.

    Args:
        layer: a CfC or an LTC of this package.

    Returns:
        NumPy arrays by ncps's names, rnn_cell.ff1.weight, ..., with all masks, in the layer's dtype (float32 for bfloat16, which NumPy
        lacks).

    Raises:
        TypeError: another object.
        ValueError: a layer without an equivalent in ncps: a CfC in pure mode with a time scale; a projection of all units of a map that is
            not fully connected; an LTC with a solver other than the semi-implicit one.

    Example:
        >>> from ember_mlx import CfC
        >>> from ember_mlx.convert import to_ncps_state_dict
        >>> state = to_ncps_state_dict(CfC(4, 3, mode="pure"))
        >>> {name: a.shape for name, a in state.items()}  # doctest: +NORMALIZE_WHITESPACE
        {'rnn_cell.backbone.0.weight': (128, 7), 'rnn_cell.backbone.0.bias': (128,), 'rnn_cell.ff1.weight': (4, 128),
         'rnn_cell.ff1.bias': (4,), 'rnn_cell.w_tau': (1, 4), 'rnn_cell.A': (1, 4)}
        >>> module = ncps.torch.CfC(3, 4, mode="pure")  # doctest: +SKIP
        >>> module.load_state_dict({name: torch.tensor(a) for name, a in state.items()})  # doctest: +SKIP

    Source: Lechner and Hasani, ncps, https://github.com/mlech26l/ncps.
    """
    if isinstance(layer, LTC):
        state = _ltc(layer)
    elif isinstance(layer, CfC):
        state = _cfc(layer)
    else:
        raise bad_argument(OWNER, "layer", "be a CfC or an LTC of ember_mlx", type_name(layer), TypeError)
    return {name: np.ascontiguousarray(a) for name, a in state.items()}


def _cfc(layer: CfC) -> dict[str, Array]:
    wired = layer.neuron_map.layers is not None or not layer.neuron_map.is_fully_connected
    if layer.mode == "pure" and layer.time_scale_factor != 1:
        raise bad_argument(OWNER, "layer.time_scale_factor", "be 1 in the mode 'pure'", layer.time_scale_factor)
    if wired and layer.proj_size is not None and layer.output != "motor":
        expected = "be 'motor' for a projection on a map that is not fully connected"
        raise bad_argument(OWNER, "layer.output", expected, repr(layer.output))
    state: dict[str, Array] = {}
    for k, stage in enumerate(layer.stages):
        place = f"rnn_cell.layer_{k}" if wired else "rnn_cell"
        state |= {f"{place}.{name}": a for name, a in _stage(layer, stage, wired).items()}
    if layer.mixed_memory:
        state |= _lstm(layer.lstm, np.concatenate([np.arange(*units) for units in layer.stage_units]))
    if layer.proj_size is not None:
        state |= {f"fc.{name}": numpy_of(a) for name, a in layer.proj.items()}
    return state


def _stage(layer: CfC, stage: CfCStage, wired: bool) -> dict[str, Array]:
    """The parameters of one CfCCell."""
    state: dict[str, Array] = {}
    for n, dense in enumerate(stage.get("backbone", [])):
        # Linear, activation, and with dropout a Dropout from the second layer on
        place = 2 * n + (max(0, n - 1) if layer.backbone_dropout > 0 else 0)
        state |= {f"backbone.{place}.{name}": numpy_of(a) for name, a in dense.items()}
    heads = HEADS[layer.mode]
    weights = numpy_of(stage.heads["weight"] if layer.backbone_layers else stage.masked_heads())
    weights, biases = weights.reshape(len(heads), -1, weights.shape[-1]), numpy_of(stage.heads["bias"]).reshape(len(heads), -1)
    if wired:
        mask = np.ones(weights.shape[1:], np.float32) if stage.mask is None else stage.mask[: weights.shape[1]].copy()
        mask[:, stage.inputs :] = 1
        state["sparsity_mask"] = mask
    for name, weight, bias in zip(heads, weights, biases, strict=True):
        factor = weight.dtype.type(layer.time_scale_factor if name == "time_a" else 1)
        state |= {f"{name}.weight": weight * factor, f"{name}.bias": bias * factor}
    return state | {name: numpy_of(stage[name])[None] for name in ("w_tau", "A") if name in stage}


def _ltc(layer: LTC) -> dict[str, Array]:
    if layer.solver != "semi_implicit":
        raise bad_argument(OWNER, "layer.solver", "be 'semi_implicit'", repr(layer.solver))
    values = {name: numpy_of(a) for name, a in layer.items() if isinstance(a, mx.array) and name != "map_id"}
    for kind, synapses in (("", layer._synapses), ("sensory_", layer._sensory)):
        values[f"{kind}sparsity_mask"] = np.ones(synapses.count, values["gleak"].dtype)
        for name in (*PARAMETERS, "sparsity_mask"):  # from synapses to all pairs, 0 where there is no synapse
            whole = np.zeros((synapses.inputs, synapses.units), values["gleak"].dtype)
            whole[synapses.sources, synapses.targets] = values[kind + name]
            values[kind + name] = whole
    state = {f"rnn_cell.{name}": value for name, value in values.items()}
    return state | (_lstm(layer.lstm, np.arange(layer.units)) if layer.mixed_memory else {})


def _lstm(lstm: dict[str, mx.array], order: Array) -> dict[str, Array]:
    """The mixed memory, with gates a, i, f, o in both packages; `order` is the index here of each unit there."""
    w_x, w_h, bias, H = *(numpy_of(lstm[name]) for name in ("Wx", "Wh", "bias")), len(order)
    return {
        "lstm.input_map.weight": w_x.reshape(4, H, -1)[:, order].reshape(4 * H, -1),
        "lstm.input_map.bias": bias.reshape(4, H)[:, order].reshape(4 * H),
        "lstm.recurrent_map.weight": w_h.reshape(4, H, H)[:, order][:, :, order].reshape(4 * H, H),
    }
