"""CfC and LTC layers from the PyTorch models of the package ncps.

Neither torch nor ncps is imported: a module is recognised by its class name and read through its attributes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from ..layers import LTC, CfC
from ..layers.arguments import type_name
from ..wiring import NeuronMap
from .ncps_ltc import ltc_from_ncps
from .tensors import HEADS, OWNER, copy_lstm, dtype_of, polarity, put, put_linear
from .weights import array_of

ACTIVATIONS = {"LeCun": "lecun_tanh", "Tanh": "tanh", "ReLU": "relu", "SiLU": "silu", "GELU": "gelu"}
"""ncps's class of the backbone's activation -> its name here."""


def from_ncps(module: Any) -> CfC | LTC:
    """Return a layer with the weights, the synapses and therefore the outputs of an ncps.torch.CfC or ncps.torch.LTC.

    A dense CfC becomes a layer on a fully connected map, with the same backbone. A wired one becomes a layer on an explicit
    :class:`NeuronMap` with the synapses that the module uses: those from the inputs to the first layer, those from each layer to the
    next, and every synapse within a layer, where ncps's recurrence is dense regardless of the wiring (with polarity +1 if the wiring
    has none; a CfC does not use polarities). Synapses that ncps does not use, such as those that skip a layer, are dropped. Like the
    module, the layer masks only f and g (``mask_time_heads=False``), and its output is the last layer (``output="motor"``).

    The layer's neuron ids begin with the last layer: motor, command, inter, as in ncps's wirings. The state of a wired ncps module has
    the opposite order: inter, command, motor. Convert it with
    ``np.concatenate(np.split(h, np.cumsum(sizes)[:-1], axis=1)[::-1], axis=1)``, where ``sizes`` are the neurons of each of ncps's layers.

    An LTC becomes an :class:`LTC` on an explicit map with the synapses of the module's masks; neuron ids and states are the same in both
    packages. For a time delta of 0 ncps returns NaN, the layer the unchanged state. ncps handles the time deltas of several sequences
    wrongly (it squeezes each step's values until they broadcast over the units): compare one sequence at a time.

    Differences in calls: the layer returns the state only with ``return_state=True``, for a CfC as [h, t] or [h, c, t], for an LTC as v or
    [v, c]; and ``time_deltas`` are (B, T), (B, T, 1) or a scalar, with separate values for each step and sequence.

    Args:
        module: an ncps.torch.CfC, dense or wired, of any mode, or an ncps.torch.LTC on any wiring; on any device, in float16, bfloat16,
            float32 or float64. It is not changed, and later changes to it do not affect the layer.

    Returns:
        The layer, with parameters of the module's dtype (float64 ones run on the CPU only) and in the module's training or
        evaluation mode. ncps drops no unit of the first backbone layer, while a CfC with ``backbone_dropout`` drops units of every
        layer: the two differ in training with two or more backbone layers.

    Raises:
        TypeError: another object, such as an ncps model for Keras; parameters of another dtype.
        ValueError: a module that ncps itself could not run, or with modified parts that a CfC does not support.

    Example:
        The first two lines need torch and ncps, which this package does not require, so they are not tested.

        >>> module = ncps.torch.CfC(3, ncps.wirings.AutoNCP(16, 4))  # doctest: +SKIP
        >>> from_ncps(module)(mx.zeros((2, 7, 3)), time_deltas=0.5).shape  # doctest: +SKIP
        (2, 7, 4)
        >>> from ember_mlx.convert import from_ncps
        >>> from_ncps(3)
        Traceback (most recent call last):
            ...
        TypeError: [from_ncps] module must be an ncps.torch.CfC or ncps.torch.LTC, got int.

    Source: Lechner and Hasani, ncps, https://github.com/mlech26l/ncps; Hasani et al., Closed-form continuous-time neural networks,
    Nature Machine Intelligence 4, 992-1003 (2022), https://doi.org/10.1038/s42256-022-00556-7; Hasani et al., Liquid time-constant
    networks, AAAI 35, 7657-7666 (2021), https://doi.org/10.1609/aaai.v35i9.16936.
    """
    if _class_of(module) == "LTC":
        return ltc_from_ncps(module)
    cells = list(module.rnn_cell._layers) if _is_wired(module) else [module.rnn_cell]
    layer = _empty_layer(module, cells)
    _copy_weights(layer, module, cells)
    return layer.train(bool(module.training))


def _is_wired(module: Any) -> bool:
    return bool(getattr(module, "wired_mode", False))


def _empty_layer(module: Any, cells: list[Any]) -> CfC:
    """The layer with new weights."""
    wired = _is_wired(module)
    return CfC(
        _neuron_map(module.wiring, cells) if wired else cells[0].hidden_size,
        cells[0].input_size,
        mode=cells[0].mode,
        mixed_memory=bool(module.use_mixed),
        mask_time_heads=not wired,
        proj_size=module.proj_size,
        output="motor" if wired else "units",
        return_sequences=bool(module.return_sequences),
        batch_first=bool(module.batch_first),
        **_backbone_options(cells[0]),
    )


def _class_of(module: Any) -> str:
    """CfC or LTC, the ncps.torch class of the module or its base class; else a TypeError."""
    names = {kind.__name__ for kind in type(module).__mro__ if f"{kind.__module__}.".startswith("ncps.torch.")}
    for name in ("CfC", "LTC"):
        if name in names:
            return name
    raise bad_argument(OWNER, "module", "be an ncps.torch.CfC or ncps.torch.LTC", type_name(module), TypeError)


def _backbone_options(cell: Any) -> dict[str, Any]:
    """The CfC arguments that describe the backbone of an ncps CfCCell."""
    parts = [] if cell.backbone is None else list(cell.backbone)
    if not parts:
        return {"backbone_layers": 0}
    depth = len(_linear_parts(cell))
    activation = type(parts[1]).__name__
    if activation not in ACTIVATIONS:
        raise bad_argument(OWNER, "module.rnn_cell.backbone", f"have an activation of {', '.join(ACTIVATIONS)}", activation)
    dropout = [float(part.p) for part in parts if type(part).__name__ == "Dropout"]
    return {
        "activation": ACTIVATIONS[activation],
        "backbone_layers": depth,
        "backbone_units": parts[0].weight.shape[0],
        "backbone_dropout": dropout[0] if dropout else 0.0,
    }


def _linear_parts(cell: Any) -> list[Any]:
    """The dense layers of a cell's backbone, in order."""
    return [] if cell.backbone is None else [part for part in cell.backbone if type(part).__name__ == "Linear"]


def _neuron_map(wiring: Any, cells: list[Any]) -> NeuronMap:
    """The synapses that a wired module uses, with the polarities of its wiring; see `from_ncps`."""
    layers = _layer_ids(cells)
    units, names = sum(map(len, layers)), _layer_names(wiring, len(layers))
    if units != wiring.units:
        raise bad_argument(OWNER, "module.wiring", f"have its {wiring.units} units in one layer each", f"{units} in all layers")
    adjacency = np.zeros((units, units), np.int8)
    sensory = np.zeros((cells[0].input_size, units), np.int8)
    recurrent_signs, sensory_signs = polarity(wiring.adjacency_matrix), polarity(wiring.sensory_adjacency_matrix)
    theirs = [list(wiring.get_neurons_of_layer(k)) for k in range(len(cells))]  # the same neurons' ids in the wiring
    for k, ids in enumerate(layers):
        mask = _input_mask(cells[k], k)
        if k:
            adjacency[np.ix_(layers[k - 1], ids)] = mask * recurrent_signs[np.ix_(theirs[k - 1], theirs[k])]
        else:
            sensory[:, ids] = mask * sensory_signs[:, theirs[k]]
        adjacency[np.ix_(ids, ids)] = recurrent_signs[np.ix_(theirs[k], theirs[k])]
    return NeuronMap(units, len(layers[-1]), adjacency_matrix=adjacency, sensory_adjacency_matrix=sensory, layers=layers, layer_names=names)


def _layer_ids(cells: list[Any]) -> list[NDArray[np.int64]]:
    """Our neuron ids of each layer; the last layer has the first ids."""
    stop, layers = sum(cell.hidden_size for cell in cells), []
    for cell in cells:
        layers.append(np.arange(stop - cell.hidden_size, stop))
        stop -= cell.hidden_size
    return layers


def _layer_names(wiring: Any, count: int) -> list[str] | None:
    """The neuron type of each layer, or None unless each layer has a single type of its own."""
    kinds = [{str(wiring.get_type_of_neuron(i)) for i in wiring.get_neurons_of_layer(k)} for k in range(count)]
    names = [kind for layer in kinds for kind in layer]
    return names if len(names) == len(set(names)) == count else None


def _input_mask(cell: Any, k: int) -> NDArray[np.int8]:
    """(inputs, H_s) of 0 and 1: the inputs of layer k, from the cell's mask, since the wiring may have changed later."""
    mask = array_of(cell.sparsity_mask).T
    if not (np.isin(mask, (0, 1)).all() and mask[cell.input_size :].all()):
        expected = "hold only 0 and 1, and only 1 for its layer's own neurons"
        raise bad_argument(OWNER, f"module.rnn_cell.layer_{k}.sparsity_mask", expected, "another")
    return mask[: cell.input_size].astype(np.int8)


def _copy_weights(layer: CfC, module: Any, cells: list[Any]) -> None:
    """Replace the layer's parameters by the module's."""
    dtype = dtype_of(cells[0].ff1.weight)
    for k, (stage, cell) in enumerate(zip(layer.stages, cells, strict=True)):
        place = f"module.rnn_cell.layer_{k}" if len(cells) > 1 else "module.rnn_cell"
        for n, part in enumerate(_linear_parts(cell)):
            put_linear(stage.backbone[n], [part], dtype, f"{place}.backbone")
        heads = HEADS[cell.mode]
        put_linear(stage.heads, [getattr(cell, name) for name in heads], dtype, f"{place}.{'/'.join(heads)}")
        if cell.mode == "pure":
            put(stage, "w_tau", array_of(cell.w_tau)[0], dtype, place)
            put(stage, "A", array_of(cell.A)[0], dtype, place)
    if layer.mixed_memory:
        starts = np.cumsum([cell.hidden_size for cell in cells])[:-1]
        copy_lstm(layer.lstm, module.lstm, np.concatenate(np.split(np.arange(layer.units), starts)[::-1]), dtype)
    if layer.proj_size is not None:
        put_linear(layer.proj, [module.fc], dtype, "module.fc")
