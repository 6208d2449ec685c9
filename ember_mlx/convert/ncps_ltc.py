"""LTC layers from the PyTorch models of the package ncps; see ncps.py."""

from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from ..layers import LTC
from ..wiring import NeuronMap
from .tensors import OWNER, copy_lstm, dtype_of, polarity, put
from .weights import array_of


def ltc_from_ncps(module: Any) -> LTC:
    """The layer of an ncps.torch.LTC."""
    cell = module.rnn_cell
    layer = LTC(
        _neuron_map(cell),
        input_mapping=cell._input_mapping,
        output_mapping=cell._output_mapping,
        ode_unfolds=int(cell._ode_unfolds),
        epsilon=float(cell._epsilon),
        implicit_param_constraints=bool(cell._implicit_param_constraints),
        mixed_memory=bool(module.use_mixed),
        return_sequences=bool(module.return_sequences),
        batch_first=bool(module.batch_first),
    )
    _copy_weights(layer, module)
    return layer.train(bool(module.training))


def _neuron_map(cell: Any) -> NeuronMap:
    """The synapses of a cell's masks, with the wiring's polarities; the masks count even if the wiring was changed later."""
    wiring = cell._wiring
    adjacency = _mask(cell, "sparsity_mask") * polarity(wiring.adjacency_matrix)
    sensory = _mask(cell, "sensory_sparsity_mask") * polarity(wiring.sensory_adjacency_matrix)
    layers = [np.asarray(wiring.get_neurons_of_layer(k), np.int64) for k in range(wiring.num_layers)]
    whole = sorted(np.concatenate(layers).tolist()) == list(range(wiring.units))
    options: dict[str, Any] = {"layers": layers} if whole and len(layers) > 1 else {}
    return NeuronMap(wiring.units, int(wiring.output_dim), adjacency_matrix=adjacency, sensory_adjacency_matrix=sensory, **options)


def _mask(cell: Any, name: str) -> NDArray[np.int8]:
    """(sources, units) of 0 and 1."""
    mask = array_of(getattr(cell, name))
    if not np.isin(mask, (0, 1)).all():
        raise bad_argument(OWNER, f"module.rnn_cell.{name}", "hold only 0 and 1", "another")
    return mask.astype(np.int8)


def _copy_weights(layer: LTC, module: Any) -> None:
    """Replace the layer's parameters by the module's: from its matrices over all pairs of neurons, the values of existing synapses."""
    cell, dtype = module.rnn_cell, dtype_of(module.rnn_cell.gleak)
    for name in [name for name, value in layer.items() if isinstance(value, mx.array) and name != "map_id"]:
        value = array_of(getattr(cell, name))
        if value.ndim == 2:
            targets, sources = np.nonzero(_mask(cell, "sensory_sparsity_mask" if name.startswith("sensory_") else "sparsity_mask").T)
            value = value[sources, targets]
        put(layer, name, value, dtype, "module.rnn_cell")
    if layer.mixed_memory:
        copy_lstm(layer.lstm, module.lstm, np.arange(layer.units), dtype)
