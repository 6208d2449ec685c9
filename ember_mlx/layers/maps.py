"""A layer's neuron map argument."""

import copy
import hashlib
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import bad_argument
from ..validation import check_integer, check_size
from ..wiring import FullyConnectedMap, NeuronMap
from .arguments import type_name


def built_map(owner: str, neuron_map: Any, input_size: int | None) -> NeuronMap:
    """A copy of the map, built for `input_size`, whose synapses are fixed; an int stands for FullyConnectedMap(int).

    Raises:
        TypeError: neither a NeuronMap nor an int.
        ValueError: a map that is not built, without input_size; or built for another input size.
    """
    if isinstance(input_size, NeuronMap):  # ncps has the opposite order
        raise bad_argument(owner, "neuron_map", "come first, before input_size", repr(neuron_map), TypeError)
    if input_size is not None:
        input_size = check_integer(owner, "input_size", input_size)
    if isinstance(neuron_map, bool) or not (isinstance(neuron_map, NeuronMap) or hasattr(neuron_map, "__index__")):
        raise bad_argument(owner, "neuron_map", "be a NeuronMap or an int", type_name(neuron_map), TypeError)
    if isinstance(neuron_map, NeuronMap):
        neuron_map = copy.deepcopy(neuron_map)
    else:
        units = check_integer(owner, "neuron_map", neuron_map)
        check_size(owner, "neuron_map", units, units)
        neuron_map = FullyConnectedMap(units)
    if input_size is None and not neuron_map.is_built():
        raise bad_argument(owner, "input_size", "be given if neuron_map is not built", "None")
    if neuron_map.is_built() and input_size not in (None, neuron_map.input_dim):
        raise bad_argument(owner, "input_size", f"be {neuron_map.input_dim}, for which neuron_map is built", input_size)
    if input_size is not None:
        check_size(owner, "input_size", input_size, neuron_map.units)
        neuron_map.build(input_size)
    neuron_map.freeze()
    return neuron_map


def map_id(neuron_map: NeuronMap) -> mx.array | None:
    """An empty parameter whose shape identifies the weights' map; None if no synapse is missing.

    When mlx.nn loads weights, into a layer or a module that contains it, it compares only names and shapes.
    """
    matrices = [neuron_map.adjacency_matrix != 0, neuron_map.sensory_adjacency_matrix != 0]
    if all(matrix.all() for matrix in matrices):
        return None
    layers = [] if neuron_map.layers is None else [ids.tolist() for ids in neuron_map.layers]
    content = repr((*(matrix.shape for matrix in matrices), neuron_map.output_dim, layers)).encode()
    digest = hashlib.sha256(content + b"".join(np.packbits(matrix).tobytes() for matrix in matrices)).digest()
    return mx.array(np.zeros((0, 1 + int.from_bytes(digest[:8], "little") % (2**31 - 1)), np.float32))  # needs no stream


def parameter_of_map(neuron_map: NeuronMap, name: str, given: Any, default: float) -> Any:
    """A layer's argument: the given value; if None, the one in the map's neuron_params; else the default."""
    return neuron_map.neuron_params.get(name, default) if given is None else given
