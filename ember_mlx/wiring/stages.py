"""A neuron map as the stages of a CfC step: its layers in sequence, or all units at once."""

import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from .neuron_map import NeuronMap


def stage_units(owner: str, neuron_map: NeuronMap) -> tuple[tuple[int, int], ...]:
    """The units [start, stop) of each of the map's layers in the order of computation; a single range for a map without layers.

    Raises:
        ValueError: a layer whose neuron ids are not consecutive.
    """
    if neuron_map.layers is None:
        return ((0, neuron_map.units),)
    ranges = []
    for ids in neuron_map.layers:
        start, stop = int(ids[0]), int(ids[-1]) + 1
        if ids.tolist() != list(range(start, stop)):
            raise bad_argument(owner, "neuron_map", "have layers of consecutive neuron ids", ids.tolist())
        ranges.append((start, stop))
    return tuple(ranges)


def stage_masks(owner: str, neuron_map: NeuronMap) -> list[NDArray[np.float32] | None]:
    """For each stage a mask (H_s, fan-in) of 0 and 1 over [u, h], or None if every synapse exists.

    Raises:
        ValueError: a layered map with synapses that a layer-by-layer step does not support.
    """
    sensory, recurrent = neuron_map.get_input_mask(), neuron_map.get_recurrent_mask()  # (I, H), (H, H): [source, target]
    if neuron_map.layers is None:
        return [None if neuron_map.is_fully_connected else np.concatenate([sensory, recurrent]).T]
    masks: list[NDArray[np.float32] | None] = []
    carried, source = np.zeros_like(recurrent), sensory
    carried_sensory = np.zeros_like(sensory)
    carried_sensory[:, neuron_map.layers[0]] = 1
    for k, ids in enumerate(neuron_map.layers):
        if k:
            source = recurrent[neuron_map.layers[k - 1]]
            carried[np.ix_(neuron_map.layers[k - 1], ids)] = 1
        carried[np.ix_(ids, ids)] = 1
        masks.append(np.concatenate([source[:, ids], np.ones((len(ids), len(ids)), np.float32)]).T)
    lost = int((recurrent * (1 - carried)).sum() + (sensory * (1 - carried_sensory)).sum())
    if lost:
        expected = "have synapses only from the inputs to its first layer, from each layer to the next, and within a layer"
        raise bad_argument(owner, "neuron_map", expected, f"{lost} others")
    return masks


def head_masks(owner: str, neuron_map: NeuronMap, mode: str, mask_time_heads: bool) -> list[NDArray[np.float32] | None]:
    """For each stage the mask of all heads, (heads * H_s, fan-in): f in pure mode, else f, g, t_a, t_b stacked by rows."""
    masks = stage_masks(owner, neuron_map)
    return masks if mode == "pure" else [None if mask is None else _of_all_heads(mask, mask_time_heads) for mask in masks]


def _of_all_heads(mask: NDArray[np.float32], mask_time_heads: bool) -> NDArray[np.float32]:
    times = mask if mask_time_heads else np.ones_like(mask)
    return np.concatenate([mask, mask, times, times])
