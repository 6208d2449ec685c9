"""Drawings of neuron maps whose neurons have coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .draw import EXCITATORY, GROUP_COLOURS, INHIBITORY, INK, OTHER_COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .spatial import SpatialMap

SIZE = (10.4, 6.6)  # inches
MOST_IDS = 40  # most neurons for which ids are written by default


def draw_spatial_map(
    neuron_map: SpatialMap, path: str | Path | None = None, *, title: str | None = None, show_ids: bool | None = None
) -> Figure:
    """Draw a spatial map; see `SpatialMap.draw`.

    Args:
        neuron_map: the map.
        path: file to save the figure to; None: not saved.
        title: the heading; None: class and sizes.
        show_ids: whether to write ids next to the neurons; None: for up to MOST_IDS neurons.

    Returns:
        The matplotlib figure, not attached to a window.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('[NeuronMap] draw needs matplotlib: pip install "ember-mlx[plot]".') from error
    figure = Figure(figsize=SIZE, facecolor="white")
    FigureCanvasAgg(figure)  # no window, regardless of the user's backend
    axes = figure.add_axes((0.0, 0.0, 0.76, 0.97), projection="3d", computed_zorder=False)
    draw_synapses(axes, neuron_map.coordinates, neuron_map.adjacency_matrix.astype(float))
    _draw_neurons(axes, neuron_map, neuron_map.units <= MOST_IDS if show_ids is None else show_ids)
    _set_axes(axes, neuron_map.coordinates)
    _draw_legend(figure, neuron_map)
    heading = f"{type(neuron_map).__name__}   units: {neuron_map.units}   outputs: {neuron_map.output_dim}" if title is None else title
    figure.text(0.03, 0.965, heading, ha="left", va="top", size=13, color=INK)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def draw_synapses(axes: Any, coordinates: NDArray[np.float64], strengths: NDArray[np.float64]) -> None:
    """Draw lines from source to target, for signed strengths (units, units): the largest is darkest."""
    from matplotlib.colors import to_rgba
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    source, target = np.nonzero(strengths)
    values = strengths[source, target]
    order = np.argsort(np.abs(values), kind="stable")  # strong ones last, on top
    source, target, values = source[order], target[order], values[order]
    share = np.abs(values) / max(float(np.abs(values).max(initial=0)), np.finfo(float).tiny)
    crowd = float(np.clip(14 / np.sqrt(max(len(values), 1)), 0.15, 0.8))
    colours = [to_rgba(EXCITATORY if value > 0 else INHIBITORY, crowd * part) for value, part in zip(values, share, strict=True)]
    ends = np.stack([coordinates[source], coordinates[target]], axis=1)
    if len(ends):
        axes.add_collection3d(Line3DCollection(list(ends), colors=colours, linewidths=0.3 + share, zorder=1))


def _groups(neuron_map: SpatialMap) -> list[tuple[str, NDArray[np.int64], str]]:
    """Name, neuron ids and colour of each group of neurons."""
    ids, outputs = np.arange(neuron_map.units), neuron_map.output_dim
    if neuron_map.layers is None:
        parts = [("other", ids[outputs:]), ("output", ids[:outputs])]
    else:
        parts = list(zip(neuron_map.layer_names or [], neuron_map.layers, strict=True))
    spare = iter(OTHER_COLOURS * len(parts))
    return [(name, members, GROUP_COLOURS.get(name) or next(spare)) for name, members in parts if len(members)]


def _draw_neurons(axes: Any, neuron_map: SpatialMap, show_ids: bool) -> None:
    size = float(np.clip(6000 / neuron_map.units, 25, 160))  # square points
    for _, ids, colour in _groups(neuron_map):
        x, y, z = neuron_map.coordinates[ids].T
        axes.scatter(x, y, z, s=size, color=colour, edgecolors=INK, linewidths=0.8, depthshade=False, zorder=2)
    if show_ids:
        for neuron, (x, y, z) in enumerate(neuron_map.coordinates):
            axes.text(x, y, z, str(neuron), ha="center", va="center", size=7, color="black", zorder=3)


def _set_axes(axes: Any, coordinates: NDArray[np.float64]) -> None:
    """Set equal scales along the three axes, and few ticks."""
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    extent = np.maximum(high - low, 0.25 * max(float((high - low).max()), 1.0))
    middle = (low + high) / 2
    for set_limits, centre, width in zip((axes.set_xlim, axes.set_ylim, axes.set_zlim), middle, extent, strict=True):
        set_limits(centre - 0.55 * width, centre + 0.55 * width)
    axes.set_box_aspect(extent)
    axes.set(xlabel="x", ylabel="y", zlabel="z")
    axes.locator_params(nbins=5)
    axes.tick_params(labelsize=8, colors=INK)


def _draw_legend(figure: Figure, neuron_map: SpatialMap) -> None:
    from matplotlib.lines import Line2D

    groups = _groups(neuron_map)
    handles = [Line2D([], [], marker="o", linestyle="", markersize=9, color=colour, markeredgecolor=INK) for _, _, colour in groups]
    labels = [f"{name} neurons ({len(ids)})" for name, ids, _ in groups]
    for name, colour, sign in (("excitatory", EXCITATORY, 1), ("inhibitory", INHIBITORY, -1)):
        handles.append(Line2D([], [], color=colour))
        labels.append(f"{name} synapses ({int((neuron_map.adjacency_matrix == sign).sum())})")
    figure.legend(handles, labels, loc="center right", frameon=False, fontsize=10, labelspacing=0.8)
