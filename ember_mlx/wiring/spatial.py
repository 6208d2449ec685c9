"""Neuron maps whose neurons have coordinates: near neurons are connected more often than distant ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import bad_argument
from ..validation import check_choice, check_integer, check_interval, check_rectangular
from .maps import RandomMap
from .ncp import NCPMap
from .neuron_map import NeuronMap

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = NDArray[np.float64]

# the layer arguments for which a map can set defaults
NEURON_PARAMS = ("time_scale_factor",)
TAYLOR_TERMS = 24  # 1/25! is 6e-26, below float64's precision for a matrix of norm 1


def _cosine(a: Points, b: Points) -> Points:
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.maximum(1 - (a * b).sum(-1) / lengths, 0)


METRICS: dict[str, Callable[[Points, Points], Points]] = {
    "euclidean": lambda a, b: np.sqrt(((a - b) ** 2).sum(-1)),
    "manhattan": lambda a, b: np.abs(a - b).sum(-1),
    "chebyshev": lambda a, b: np.abs(a - b).max(-1),
    "cosine": _cosine,
}


class SpatialMap(NeuronMap):
    """A mixin that adds coordinates to a map with random synapses; the base of EnhancedNeuronMap and EnhancedNCPMap.

    Combine it with a map: ``class MyMap(SpatialMap, RandomMap)``, with a constructor that calls `_set_space` after the map's constructor.
    """

    def _set_space(
        self,
        coordinates: ArrayLike | None,
        network_structure: Sequence[int] | None,
        distance_metric: str,
        distance_power: float,
        neuron_type: str | None,
        neuron_params: Mapping[str, float] | None,
    ) -> None:
        """Check and store the spatial arguments, which the subclasses' constructors describe."""
        owner = type(self).__name__
        if coordinates is not None and network_structure is not None:
            raise bad_argument(owner, "network_structure", "be None if coordinates are given", network_structure)
        self.network_structure = None if coordinates is not None else _checked_structure(owner, network_structure, self.units)
        self._coordinates = _checked_coordinates(owner, coordinates, self.units, self.network_structure)
        self.distance_metric = check_choice(owner, "distance_metric", distance_metric, METRICS)
        if distance_metric == "cosine" and not self._coordinates.any(axis=1).all():
            raise bad_argument(owner, "coordinates", "differ from the origin if distance_metric is 'cosine'", [0.0, 0.0, 0.0])
        self.distance_power = check_interval(owner, "distance_power", distance_power, 0, math.inf, open_below=True)
        if neuron_type is not None and not isinstance(neuron_type, str):
            raise bad_argument(owner, "neuron_type", "be a str or None", repr(neuron_type), TypeError)
        self.neuron_type = neuron_type
        self._neuron_params = _checked_params(owner, neuron_params)

    @property
    def coordinates(self) -> Points:
        """The neurons' coordinates, (units, 3), in the order of their ids; read-only."""
        view = self._coordinates.view()
        view.flags.writeable = False
        return view

    @property
    def neuron_params(self) -> dict[str, float]:
        """Default values of layer arguments, set by the map."""
        return dict(self._neuron_params)

    @property
    def distance_matrix(self) -> Points:
        """The pairwise distances of neurons by `distance_metric`, to the power of `distance_power`, (units, units)."""
        points = self._coordinates
        return np.asarray(METRICS[self.distance_metric](points[:, None], points[None, :]) ** self.distance_power)

    @property
    def communicability_matrix(self) -> Points:
        """The communicability of each pair of neurons, (units, units); see `communicability`."""
        return communicability(np.abs(self.adjacency_matrix).astype(np.float64))

    def synapse_weights(self) -> Points:
        """Return exp(-d / mean d), (units, units), with the distances d: near neurons are connected more often than distant ones."""
        distance = self.distance_matrix
        return np.exp(-distance / max(float(distance.mean()), np.finfo(float).tiny))

    def get_dynamic_properties(self) -> dict[str, Any]:
        """Return `neuron_type` and `neuron_params`."""
        return {"neuron_type": self.neuron_type, "neuron_params": self.neuron_params}

    def get_spatial_properties(self) -> dict[str, Any]:
        """Return coordinates, network_structure, distance_metric, distance_power, distance_matrix and communicability_matrix."""
        names = ("coordinates", "network_structure", "distance_metric", "distance_power", "distance_matrix", "communicability_matrix")
        return {name: getattr(self, name) for name in names}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments and both matrices; see NeuronMap.get_config."""
        config = super().get_config()
        return config if self.network_structure is None else {**config, "coordinates": None}

    def draw(self, path: str | Path | None = None, *, title: str | None = None, show_ids: bool | None = None) -> Figure:
        """Draw the neurons at their coordinates, with their recurrent synapses.

        Args:
            path: file to save the figure to, a PNG unless the suffix says otherwise; None: not saved.
            title: the heading; None: class and sizes.
            show_ids: whether to write neuron ids next to the neurons; None: for up to 40 neurons.

        Returns:
            The matplotlib figure, not attached to a window.

        Raises:
            ImportError: if matplotlib is not installed.

        Example:
            >>> figure = EnhancedNeuronMap(12, network_structure=(3, 2, 2)).draw(title="A dozen")
            >>> figure.axes[0].name
            '3d'
        """
        from .draw_spatial import draw_spatial_map  # only drawing needs matplotlib

        return draw_spatial_map(self, path, title=title, show_ids=show_ids)

    def __eq__(self, other: object) -> bool:
        """Maps are equal if their class, sizes, layers, all synapses, coordinates and parameters are equal."""
        equal = super().__eq__(other)
        if equal is not True or not isinstance(other, SpatialMap):
            return equal
        mine, theirs = ((a.distance_metric, a.distance_power, a.get_dynamic_properties()) for a in (self, other))
        return mine == theirs and np.array_equal(self._coordinates, other._coordinates)

    __hash__ = None


class EnhancedNeuronMap(SpatialMap, RandomMap):
    """A random map of neurons with coordinates.

    The numbers of synapses are those of :class:`RandomMap`. Recurrent synapses are drawn one after another, each with a probability
    proportional to exp(-d / mean d), where d is the distance of its two neurons; self-connections, at distance 0, are the most likely.
    Inputs have no coordinates: their synapses are drawn as in RandomMap.

    Args:
        units: number of neurons.
        output_dim: number of output neurons; None: all units.
        input_dim: number of inputs; None: known later, from `build`.
        sparsity_level: fraction of missing synapses, in [0, 1).
        seed: seed of the synapses; None: a fresh one, kept in `seed`.
        coordinates: (units, 3), each neuron's position, in any unit of length.
        network_structure: size (x, y, z) of a grid with spacing 1, which the neurons fill in the order of their ids, z first; at least
            `units` grid points. None, without coordinates: a grid of similar size along each axis.
        distance_metric: "euclidean", "manhattan", "chebyshev" or "cosine" (1 - cosine of the angle at the origin).
        distance_power: every distance is raised to it; greater than 0.
        neuron_type: a name for the kind of neuron, for information only.
        neuron_params: {"time_scale_factor": number}: the default for this argument of a CfC or CTRQNet on this map.
        excitatory_fraction: probability, in [0, 1], that a synapse is excitatory.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, or there are fewer grid points than units.

    Example:
        >>> neuron_map = EnhancedNeuronMap(30, output_dim=2, input_dim=4, sparsity_level=0.8, network_structure=(4, 4, 2))
        >>> neuron_map
        EnhancedNeuronMap(units=30, inputs=4, outputs=2, synapses=180, sensory_synapses=24)
        >>> joined = neuron_map.adjacency_matrix != 0
        >>> bool(neuron_map.distance_matrix[joined].mean() < neuron_map.distance_matrix.mean())
        True

    Source: Achterberg et al. (2023), Spatially embedded recurrent neural networks, Nature Machine Intelligence 5, 1369-1381,
    doi:10.1038/s42256-023-00748-9, whose loss is :func:`ember_mlx.spatial_regularization`.
    """

    def __init__(
        self,
        units: int,
        output_dim: int | None = None,
        input_dim: int | None = None,
        sparsity_level: float = 0.5,
        seed: int | None = 0,
        *,
        coordinates: ArrayLike | None = None,
        network_structure: Sequence[int] | None = None,
        distance_metric: str = "euclidean",
        distance_power: float = 1.0,
        neuron_type: str | None = None,
        neuron_params: Mapping[str, float] | None = None,
        excitatory_fraction: float = 2 / 3,
    ) -> None:
        """See the class."""
        RandomMap.__init__(self, units, output_dim, input_dim, sparsity_level, seed, excitatory_fraction=excitatory_fraction)
        self._set_space(coordinates, network_structure, distance_metric, distance_power, neuron_type, neuron_params)


class EnhancedNCPMap(SpatialMap, NCPMap):
    """A neural circuit policy of neurons with coordinates.

    The numbers of synapses and the layers are those of :class:`NCPMap`. Targets and sources are drawn with a probability proportional to
    exp(-d / mean d), where d is the distance of the two neurons. Inputs have no coordinates.

    Args:
        inter_neurons: number of inter neurons.
        command_neurons: number of command neurons.
        motor_neurons: number of motor neurons, which are the outputs.
        sensory_neurons: number of inputs; None: known later, from `build`.
        sparsity_level: fraction of missing synapses, in [0, 1), which gives the defaults of the numbers of synapses.
        seed: seed of the synapses; None: a fresh one, kept in `seed`.
        coordinates: (units, 3), each neuron's position: motor neurons first, then command, then inter neurons.
        network_structure: size (x, y, z) of a grid; see :class:`EnhancedNeuronMap`.
        distance_metric: "euclidean", "manhattan", "chebyshev" or "cosine".
        distance_power: every distance is raised to it; greater than 0.
        neuron_type: a name for the kind of neuron, for information only.
        neuron_params: {"time_scale_factor": number}; see :class:`EnhancedNeuronMap`.
        sensory_fanout: inter neurons per input, as in :class:`NCPMap`.
        inter_fanout: command neurons per inter neuron.
        recurrent_command_synapses: synapses between command neurons.
        motor_fanin: command neurons per motor neuron.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range, or there are fewer grid points than units.

    Example:
        >>> policy = EnhancedNCPMap(10, 6, 4, 5, network_structure=(5, 2, 2), neuron_params={"time_scale_factor": 0.5})
        >>> policy.layer_names, policy.coordinates.shape
        (['inter', 'command', 'motor'], (20, 3))
        >>> policy.get_dynamic_properties()
        {'neuron_type': None, 'neuron_params': {'time_scale_factor': 0.5}}

    Source: Lechner et al. (2020), doi:10.1038/s42256-020-00237-3; Achterberg et al. (2023), doi:10.1038/s42256-023-00748-9.
    """

    def __init__(
        self,
        inter_neurons: int,
        command_neurons: int,
        motor_neurons: int,
        sensory_neurons: int | None = None,
        sparsity_level: float = 0.5,
        seed: int | None = 0,
        *,
        coordinates: ArrayLike | None = None,
        network_structure: Sequence[int] | None = None,
        distance_metric: str = "euclidean",
        distance_power: float = 1.0,
        neuron_type: str | None = None,
        neuron_params: Mapping[str, float] | None = None,
        sensory_fanout: int | None = None,
        inter_fanout: int | None = None,
        recurrent_command_synapses: int | None = None,
        motor_fanin: int | None = None,
    ) -> None:
        """See the class."""
        NCPMap.__init__(
            self,
            inter_neurons,
            command_neurons,
            motor_neurons,
            sensory_neurons,
            sparsity_level,
            seed,
            sensory_fanout=sensory_fanout,
            inter_fanout=inter_fanout,
            recurrent_command_synapses=recurrent_command_synapses,
            motor_fanin=motor_fanin,
        )
        self._set_space(coordinates, network_structure, distance_metric, distance_power, neuron_type, neuron_params)


def communicability(weights: Points) -> Points:
    """Return exp(M) without its diagonal, M_ij = |w_ij| / sqrt(s_i s_j): a measure of the signals along all paths between two neurons.

    s_i is the mean of neuron i's total outgoing and incoming weights. For symmetric w, M is the degree-normalised matrix of Achterberg et
    al.; for others it is finite even for neurons without outgoing synapses. A symmetric M is exponentiated by its eigenvectors, any other
    by its power series, whose terms cannot cancel since none is negative.

    Args:
        weights: (units, units), indexed [source, target]; only magnitudes count.

    Returns:
        (units, units) float64, 0 on the diagonal.

    Example:
        >>> communicability(np.array([[0.0, 1.0], [1.0, 0.0]])).round(4).tolist()
        [[0.0, 1.1752], [1.1752, 0.0]]

    Source: Crofts and Higham (2009), A weighted communicability measure applied to complex brain networks, Journal of the Royal Society
    Interface 6, 411-414, doi:10.1098/rsif.2008.0484.
    """
    magnitudes = np.abs(weights, dtype=np.float64)
    strength = (magnitudes.sum(axis=0) + magnitudes.sum(axis=1)) / 2
    scale = np.where(strength > 0, 1 / np.sqrt(np.where(strength > 0, strength, 1)), 0)
    normalised = scale[:, None] * magnitudes * scale
    if np.array_equal(normalised, normalised.T):
        values, vectors = np.linalg.eigh(normalised)
        result = (vectors * np.exp(values)) @ vectors.T
    else:
        result = term = np.eye(len(normalised))
        for k in range(1, TAYLOR_TERMS + 1):
            term = term @ normalised / k
            result = result + term
    np.fill_diagonal(result, 0)
    return np.maximum(result, 0)


def _checked_structure(owner: str, structure: Sequence[int] | None, units: int) -> tuple[int, int, int]:
    if structure is None:
        side = math.ceil(units ** (1 / 3) - 1e-9)
        return side, side, math.ceil(units / side**2)
    if not isinstance(structure, list | tuple) or len(structure) != 3:
        raise bad_argument(owner, "network_structure", "be three integers (x, y, z)", repr(structure), TypeError)
    x, y, z = (check_integer(owner, "network_structure", n) for n in structure)
    if x * y * z < units:
        raise bad_argument(owner, "network_structure", f"have at least units = {units} grid points", f"{x} x {y} x {z} = {x * y * z}")
    return x, y, z


def _checked_coordinates(owner: str, coordinates: ArrayLike | None, units: int, structure: tuple[int, int, int] | None) -> Points:
    if coordinates is None:
        _, y, z = (min(n, units) for n in structure or (1, 1, 1))  # the part of the grid that can be occupied
        ids = np.arange(units)
        # starting at 1, since the cosine is undefined at the origin
        return (np.stack([ids // (y * z), ids // z % y, ids % z], axis=1) + 1).astype(np.float64)
    points = check_rectangular(owner, "coordinates", coordinates)
    if points.dtype.kind not in "iuf":
        raise bad_argument(owner, "coordinates", "hold numbers", points.dtype, TypeError)
    if points.shape != (units, 3):
        raise bad_argument(owner, "coordinates", f"have shape (units, 3) = ({units}, 3)", points.shape)
    if not np.isfinite(points).all():
        raise bad_argument(owner, "coordinates", "be finite", points[~np.isfinite(points)][0])
    return points.astype(np.float64)


def _checked_params(owner: str, params: Mapping[str, float] | None) -> dict[str, float]:
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise bad_argument(owner, "neuron_params", "be a dict or None", repr(params), TypeError)
    unknown = [name for name in params if name not in NEURON_PARAMS]
    if unknown:
        raise bad_argument(owner, "neuron_params", f"have names among {', '.join(map(repr, NEURON_PARAMS))}", repr(unknown[0]))
    return {name: check_interval(owner, f"neuron_params {name}", value, 0, math.inf, open_below=True) for name, value in params.items()}
