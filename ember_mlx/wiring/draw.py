"""Drawings of neuron maps: layers as columns, or a ring for a map without layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .neuron_map import NeuronMap

Points = NDArray[np.float64]

# Blue and vermilion of Okabe and Ito, which colour-blind readers can distinguish; the heads differ too. Neurons are pale.
EXCITATORY, INHIBITORY = "#0072B2", "#D55E00"
GROUP_COLOURS = {"sensory": "#C8C8C8", "inter": "#7FCDB8", "command": "#DDA0C4", "motor": "#F2C14E", "output": "#F2C14E"}
OTHER_COLOURS = ["#7FCDB8", "#DDA0C4", "#A8C8EC", "#D8D08A"]
INK = "#333333"

RADIUS = 0.34  # of a neuron; neighbours in a column are 1 apart
MARGIN_INCHES, TITLE_INCHES = 0.25, 0.5


@dataclass
class Group:
    """Neurons with a common colour and legend entry."""

    name: str
    ids: NDArray[np.int64]  # neuron ids, or input indices for the sensory group
    points: Points  # (len(ids), 2)


@dataclass
class Layout:
    """The positions of neurons and the routes of synapses, in units of the distance between neighbours."""

    groups: list[Group]
    sensory: Points  # (inputs, 2)
    neurons: Points  # (units, 2)
    outward: Points  # (units, 2), the direction of a self-connection
    headings: list[tuple[str, float, float]]  # names above the columns, with their positions
    ring: bool


def draw_map(neuron_map: NeuronMap, path: str | Path | None = None, *, title: str | None = None, show_ids: bool | None = None) -> Figure:
    """Draw a neuron map; see `NeuronMap.draw`.

    Args:
        neuron_map: the map, with its inputs if it is built.
        path: file to save the figure to; None: not saved.
        title: the heading; None: class and sizes.
        show_ids: whether to write ids into the neurons; None: if they are large enough.

    Returns:
        The matplotlib figure, not attached to a window.

    Raises:
        ImportError: if matplotlib is not installed.

    Example:
        >>> from ember_mlx.wiring import NCPMap
        >>> figure = draw_map(NCPMap(4, 3, 2, 3), title="A small policy")
        >>> [text.get_text() for text in figure.texts]
        ['A small policy']
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('[NeuronMap] draw needs matplotlib: pip install "ember-mlx[plot]".') from error
    layout = _ring_layout(neuron_map) if neuron_map.layers is None else _column_layout(neuron_map)
    heading = _default_title(neuron_map) if title is None else title
    labels = _legend_labels(neuron_map, layout)
    low, high = _extent(layout)
    scale = float(np.clip(13 / max(high - low), 0.05, 0.5))  # inches per unit: readable for small maps, at most a page for large ones
    frame = _frame((high - low) * scale, heading, labels)
    figure = Figure(figsize=(frame.width, frame.height), facecolor="white")
    FigureCanvasAgg(figure)  # no window, regardless of the user's backend
    axes = figure.add_axes(frame.graph, xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", anchor="W")
    axes.set_axis_off()
    _draw_synapses(axes, neuron_map, layout, scale)
    _draw_neurons(axes, layout, scale, show_ids)
    _draw_legend(figure, layout, labels, frame.legend_left)
    figure.text(MARGIN_INCHES / frame.width, 1 - MARGIN_INCHES / frame.height, heading, ha="left", va="top", size=13, color=INK)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


@dataclass
class Frame:
    """Size of the figure in inches, and the positions of its parts as fractions of it."""

    width: float
    height: float
    graph: tuple[float, float, float, float]  # left, bottom, width, height
    legend_left: float


def _frame(graph_inches: Points, heading: str, labels: list[str]) -> Frame:
    """The graph on the left, the legend on its right, the heading above; wide enough for the texts."""
    legend = 0.85 + 0.082 * max(len(label) for label in labels)
    width = max(graph_inches[0] + legend, 0.12 * len(heading)) + 2 * MARGIN_INCHES
    height = max(graph_inches[1], 0.28 * len(labels) + 0.3) + TITLE_INCHES + 2 * MARGIN_INCHES
    graph_width, graph_height = width - legend - 2 * MARGIN_INCHES, height - TITLE_INCHES - 2 * MARGIN_INCHES
    graph = (MARGIN_INCHES / width, MARGIN_INCHES / height, graph_width / width, graph_height / height)
    return Frame(width, height, graph, 1 - (legend + MARGIN_INCHES) / width)


def _default_title(neuron_map: NeuronMap) -> str:
    inputs = "unknown" if neuron_map.input_dim is None else neuron_map.input_dim
    return f"{type(neuron_map).__name__}   inputs: {inputs}   units: {neuron_map.units}   outputs: {neuron_map.output_dim}"


def _column_layout(neuron_map: NeuronMap) -> Layout:
    """Sensory neurons on the left, then one column per layer."""
    layers = list(zip(neuron_map.layer_names or [], neuron_map.layers or [], strict=True))
    inputs = np.arange(neuron_map.input_dim or 0)
    columns = [("sensory", inputs), *layers] if len(inputs) else layers
    tallest = max(len(ids) for _, ids in columns)
    # Tall columns need space for steep synapses, and long names need width.
    gap = max(3.4 + 0.22 * tallest, 0.22 * max(len(name) for name, _ in columns))
    neurons, groups, headings = np.zeros((neuron_map.units, 2)), [], []
    for column, (name, ids) in enumerate(columns):
        spread = min(1.6, (tallest - 1) / max(len(ids) - 1, 1)) if tallest > 1 else 1.0
        heights = spread * ((len(ids) - 1) / 2 - np.arange(len(ids)))
        points = np.stack([np.full(len(ids), column * gap), heights], axis=1)
        groups.append(Group(name, ids, points))
        headings.append((name, column * gap, (tallest - 1) / 2 + 1.3))
        if len(inputs) == 0 or column > 0:
            neurons[ids] = points
    sensory = groups[0].points if len(inputs) else np.zeros((0, 2))
    return Layout(groups, sensory, neurons, np.tile([0.5, 0.87], (neuron_map.units, 1)), headings, ring=False)


def _ring_layout(neuron_map: NeuronMap) -> Layout:
    """Neurons on a ring in the order of their ids, with the outputs on the right; sensory neurons on the left."""
    units, outputs, inputs = neuron_map.units, neuron_map.output_dim, neuron_map.input_dim or 0
    radius = (1.15 * units + 8) / (2 * np.pi)
    angles = -2 * np.pi / units * (np.arange(units) - (outputs - 1) / 2)
    outward = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    neurons = radius * outward
    spread = max(1.0, min(1.6, 1.4 * radius / max(inputs - 1, 1)))
    heights = spread * ((inputs - 1) / 2 - np.arange(inputs))
    sensory = np.stack([np.full(inputs, -radius - 3.2 - 0.1 * radius), heights], axis=1)
    ids = np.arange(units)
    groups = [Group("sensory", np.arange(inputs), sensory)] if inputs else []
    if outputs < units:
        groups.append(Group("other", ids[outputs:], neurons[outputs:]))
    groups.append(Group("output", ids[:outputs], neurons[:outputs]))
    return Layout(groups, sensory, neurons, outward, [], ring=True)


def _extent(layout: Layout) -> tuple[Points, Points]:
    """Lower left and upper right corner, with space for neurons, self-connections and headings."""
    points = np.concatenate([group.points for group in layout.groups])
    room = 1.4 if layout.ring else 0.9
    low, high = points.min(axis=0) - room, points.max(axis=0) + room
    if layout.headings:
        high[1] = max(y for _, _, y in layout.headings) + 0.35
    return low, high


def _draw_synapses(axes: Axes, neuron_map: NeuronMap, layout: Layout, scale: float) -> None:
    """Lines with an arrow head (excitatory) or a bar (inhibitory) at the target."""
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.colors import to_rgba

    curves, polarities, strengths = _curves(neuron_map, layout)
    if len(curves) == 0:
        return
    crowd = np.sqrt(len(curves))
    alphas, widths = strengths * np.clip(12 / crowd, 0.12, 0.8), strengths * np.clip(22 / crowd, 0.35, 1.3)
    head_size = float(np.clip(np.sqrt(6 * neuron_map.units / len(curves)), 0.55, 1.0))  # smaller if many heads share a neuron's rim
    heading = _unit(curves[:, -1] - curves[:, -3])
    for polarity, colour in ((1, EXCITATORY), (-1, INHIBITORY)):
        chosen = polarities == polarity
        colours = [to_rgba(colour, alpha) for alpha in alphas[chosen]]
        head_colours = [to_rgba(colour, min(1.0, 1.4 * alpha)) for alpha in alphas[chosen]]
        heads = list(_heads(curves[chosen, -1], heading[chosen], polarity, head_size))
        bar = float(np.clip(3.6 * scale * head_size, 0.6, 1.8))
        lines = LineCollection(list(curves[chosen]), colors=colours, linewidths=widths[chosen], zorder=1)
        axes.add_collection(lines, autolim=False)
        if polarity > 0:
            axes.add_collection(PolyCollection(heads, facecolors=head_colours, edgecolors="none", zorder=2), autolim=False)
        else:
            axes.add_collection(LineCollection(heads, colors=head_colours, linewidths=bar, zorder=2), autolim=False)


def _heads(tips: Points, directions: Points, polarity: int, size: float) -> Points:
    """Triangles (n, 3, 2) for excitatory synapses, bars (n, 2, 2) across the line for inhibitory ones."""
    across = 0.12 * size * _across(directions)
    if polarity < 0:
        return np.stack([tips + across, tips - across], axis=1)
    back = tips - 0.26 * size * directions
    return np.stack([tips, back + across, back - across], axis=1)


def _curves(neuron_map: NeuronMap, layout: Layout) -> tuple[Points, NDArray[np.int8], Points]:
    """Lines of all synapses (synapses, samples, 2), their polarities (synapses,) and their drawing strengths."""
    source, target = np.nonzero(neuron_map.adjacency_matrix)
    controls = _inner_controls(layout, source, target)
    polarities, strengths = neuron_map.adjacency_matrix[source, target], np.ones(len(source))
    if neuron_map.is_built():
        matrix = neuron_map.sensory_adjacency_matrix
        source, target = np.nonzero(matrix)
        controls = np.concatenate([_straight_controls(layout.sensory[source], layout.neurons[target]), controls])
        polarities = np.concatenate([matrix[source, target], polarities])
        # Sensory synapses cross the ring: drawn fainter, so that the recurrent ones remain visible.
        strengths = np.concatenate([np.full(len(source), 0.6 if layout.ring else 1.0), strengths])
    start, c1, c2, end = np.moveaxis(controls, 1, 0)
    start = start + (RADIUS + 0.02) * _unit(c1 - start)
    end = end + (RADIUS + 0.08) * _unit(c2 - end)
    t = np.linspace(0, 1, 33)[:, None, None]
    bezier = (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * c1 + 3 * (1 - t) * t**2 * c2 + t**3 * end
    return np.moveaxis(bezier, 0, 1), polarities, strengths


def _straight_controls(start: Points, end: Points) -> Points:
    """Bezier control points (n, 4, 2) of straight lines."""
    return np.stack([start, start + (end - start) / 3, end - (end - start) / 3, end], axis=1)


def _inner_controls(layout: Layout, source: NDArray[np.int64], target: NDArray[np.int64]) -> Points:
    """Bezier control points (n, 4, 2) of the synapses between neurons, bent if a straight line would hide something."""
    start, end = layout.neurons[source], layout.neurons[target]
    controls = _straight_controls(start, end)
    step = end - start
    length = np.linalg.norm(step, axis=1, keepdims=True)
    if layout.ring:
        # Near neighbours are connected inside the ring, not through the neurons between them.
        radius = np.linalg.norm(layout.neurons[0])
        sagitta = radius - np.sqrt(np.maximum(radius**2 - length**2 / 4, 0))
        depth = 4 / 3 * np.clip(1.0 - sagitta, 0, 0.6 * radius)
        side = np.clip(0.08 * length, 0.2, 0.8) * _across(_unit(step))  # separates a synapse from its reverse
        controls[:, 1] += side - depth * layout.outward[source]
        controls[:, 2] += side - depth * layout.outward[target]
    else:
        # Within a column on the right side, where fewer synapses pass than on the left; upward ones further out.
        same = np.abs(step[:, 0]) < 1e-9
        bulge = np.minimum(0.5 + 0.25 * length[:, 0], 2.4) * np.where(step[:, 1] > 0, 1.3, 1.0)
        controls[:, 1:3, 0] += np.where(same, bulge, 0.0)[:, None]
        # A synapse to an earlier layer is bent away from the straight line of the forward one.
        back = np.where(step[:, :1] < -1e-9, np.minimum(0.15 * length, 1.2), 0.0)
        controls[:, 1:3] += (back * _across(_unit(step)))[:, None]
    loops = source == target
    controls[loops] = _loop_controls(start[loops], layout.outward[source[loops]])
    return controls


def _loop_controls(points: Points, outward: Points) -> Points:
    """Bezier control points (n, 4, 2) of self-connections."""
    across = _across(outward)
    reach = 1.15 * outward
    return np.stack([points, points + reach + 0.65 * across, points + reach - 0.65 * across, points], axis=1)


def _across(vectors: Points) -> Points:
    """The vectors (n, 2) rotated left by 90 degrees."""
    return vectors[:, ::-1] * [-1, 1]


def _unit(vectors: Points) -> Points:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _draw_neurons(axes: Axes, layout: Layout, scale: float, show_ids: bool | None) -> None:
    from matplotlib.collections import EllipseCollection

    size = 2 * RADIUS
    for group, colour in zip(layout.groups, _colours(layout), strict=True):
        axes.add_collection(
            EllipseCollection(
                size, size, 0, units="xy", offsets=group.points, offset_transform=axes.transData,
                facecolors=colour, edgecolors=INK, linewidths=0.8, zorder=3,
            ),
            autolim=False,
        )  # fmt: skip
    points_across = size * scale * 72
    font = min(9.0, 0.42 * points_across)
    if show_ids if show_ids is not None else font >= 4.5:
        for group in layout.groups:
            for index, (x, y) in zip(group.ids, group.points, strict=True):
                label = f"x{index}" if group.name == "sensory" else str(index)
                axes.text(x, y, label, ha="center", va="center_baseline", size=font, color="black", zorder=4)
    for name, x, y in layout.headings:
        axes.text(x, y, name, ha="center", va="center", size=11, color=INK)


def _colours(layout: Layout) -> list[str]:
    spare = iter(OTHER_COLOURS * len(layout.groups))
    return [GROUP_COLOURS.get(group.name) or next(spare) for group in layout.groups]


def _legend_labels(neuron_map: NeuronMap, layout: Layout) -> list[str]:
    """Names and counts of the groups of neurons, then of the excitatory and the inhibitory synapses."""
    matrices = [neuron_map.adjacency_matrix]
    if neuron_map.is_built():
        matrices.append(neuron_map.sensory_adjacency_matrix)
    excitatory, inhibitory = (sum(int(np.count_nonzero(matrix == sign)) for matrix in matrices) for sign in (1, -1))
    neurons = [f"{group.name} neurons ({len(group.ids)})" for group in layout.groups]
    return [*neurons, f"excitatory synapses ({excitatory})", f"inhibitory synapses ({inhibitory})"]


def _draw_legend(figure: Figure, layout: Layout, labels: list[str], left: float) -> None:
    """Neuron colours and synapse marks."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", linestyle="", markersize=10, color=colour, markeredgecolor=INK) for colour in _colours(layout)]
    for colour, marker in ((EXCITATORY, ">"), (INHIBITORY, "|")):
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=8, markeredgewidth=1.8))
    style: dict[str, Any] = {"loc": "center left", "frameon": False, "fontsize": 10, "labelspacing": 0.8, "handletextpad": 1.2}
    legend = figure.legend(handles, labels, bbox_to_anchor=(left, 0.5), **style)
    for mark in legend.legend_handles[-2:]:
        if isinstance(mark, Line2D):
            mark.set_markevery([2])  # the head at the line's end, not in its middle
