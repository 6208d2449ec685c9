"""The base of all neuron maps: two signed matrices of synapses, and how a subclass makes them from a seed."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import bad_argument
from ..validation import check_integer, check_interval, check_names, check_rectangular, check_size

if TYPE_CHECKING:
    import networkx
    from matplotlib.figure import Figure
    from typing_extensions import Self

_MAP_CLASSES: dict[str, type[NeuronMap]] = {}
DRAWN_SYNAPSES, NOTEBOOK_DPI = 10_000, 80  # a map with more synapses is a blot, after seconds
_RECURRENT, _SENSORY = 0, 1  # streams of random numbers: the recurrent synapses do not depend on the number of inputs


class NeuronMap:
    """A map of the synapses among `units` neurons and from the inputs to them.

    Both matrices are indexed [source, target] and hold +1 (excitatory), -1 (inhibitory) or 0 (no synapse). The output
    neurons are the ids 0 ... output_dim - 1.

    Used itself, the class is an explicit map: it has the synapses of the given matrices and those of `add_synapse`
    and `add_sensory_synapse`, no others. A subclass generates its synapses: it overrides `make_synapses` and, where
    not every input shall reach every neuron, `make_sensory_synapses`. These are called when a matrix is first read,
    so a subclass may set its attributes before or after `super().__init__`. A subclass that keeps every argument of
    its constructor as an attribute of the same name needs no `get_config` of its own.

    Args:
        units: number of neurons.
        output_dim: number of output neurons; None: all units.
        input_dim: number of inputs; None: known later, from `build`.
        adjacency_matrix: (units, units) of -1, 0, +1; None: no synapse.
        sensory_adjacency_matrix: (inputs, units) of -1, 0, +1, which also states input_dim; None: no synapse.
        layers: the neuron ids of each layer in processing order, every neuron in exactly one layer; None: no layers.
        layer_names: one name a layer; None: "layer 1", "layer 2", ...
        sparsity_level: fraction in [0, 1) of missing synapses that a subclass aims at; None: none stated.
        seed: seed of the random synapses; None: a fresh one, kept in `seed`.

    Raises:
        TypeError: if a size or the seed is no integer, or a matrix does not hold numbers.
        ValueError: if a size, a matrix, `layers` or `sparsity_level` is out of range or they contradict each other.

    Example:
        >>> ring = NeuronMap(3, output_dim=1, input_dim=1, adjacency_matrix=[[0, 1, 0], [0, 0, 1], [-1, 0, 0]])
        >>> ring.add_sensory_synapse(0, 2, +1)
        >>> ring
        NeuronMap(units=3, inputs=1, outputs=1, synapses=3, sensory_synapses=1)
    """

    __hash__ = None  # type: ignore[assignment]  # synapses can be added, so equal maps need not stay equal

    def __init__(
        self,
        units: int,
        output_dim: int | None = None,
        input_dim: int | None = None,
        *,
        adjacency_matrix: ArrayLike | None = None,
        sensory_adjacency_matrix: ArrayLike | None = None,
        layers: Sequence[ArrayLike] | None = None,
        layer_names: Sequence[str] | None = None,
        sparsity_level: float | None = None,
        seed: int | None = 0,
    ) -> None:
        """See the class."""
        owner = type(self).__name__
        self._units = check_integer(owner, "units", units)
        check_size(owner, "units", self._units, self._units)
        self._output_dim = self._units if output_dim is None else check_integer(owner, "output_dim", output_dim)
        if self._output_dim > self._units:
            raise bad_argument(owner, "output_dim", f"be at most units = {self._units}", output_dim)
        self._input_dim = None if input_dim is None else self._check_inputs(input_dim)
        self._sparsity_level = None if sparsity_level is None else check_sparsity(owner, sparsity_level)
        self._seed = secrets.randbits(32) if seed is None else check_integer(owner, "seed", seed, minimum=0)
        self._layers, self._layer_names = self._check_layers(layers, layer_names)
        self._adjacency: NDArray[np.int8] | None = None
        self._sensory_adjacency: NDArray[np.int8] | None = None
        self._frozen = False
        self._set_matrices(adjacency_matrix, sensory_adjacency_matrix)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the class known to `map_from_config` under its name; the last class of a name wins."""
        super().__init_subclass__(**kwargs)
        _MAP_CLASSES[cls.__name__] = cls

    def make_synapses(self, rng: np.random.Generator) -> ArrayLike:
        """Return the recurrent synapses of a new map; a subclass overrides this.

        The result must not depend on the inputs, which may be unknown yet.

        Args:
            rng: random numbers, the same ones for the same seed.

        Returns:
            (units, units) of -1, 0, +1, indexed [source, target]; here: no synapse.
        """
        return np.zeros((self.units, self.units), np.int8)

    def synapse_weights(self) -> NDArray[np.float64] | None:
        """Return how likely each recurrent synapse is chosen beside the others, (units, units), or None where all are alike.

        The maps of this package that choose synapses at random ask this; a subclass of them may override it.
        """
        return None

    def make_sensory_synapses(self, rng: np.random.Generator) -> ArrayLike:
        """Return the synapses from the inputs of a new map; a subclass may override this.

        Args:
            rng: random numbers, the same ones for the same seed, independent of those for `make_synapses`.

        Returns:
            (inputs, units) of -1, 0, +1, indexed [source, target]; here: no synapse in an explicit map, every one in
            a subclass that makes its own recurrent synapses.
        """
        shape = (self.require_input_dim(), self.units)
        if type(self).make_synapses is NeuronMap.make_synapses:
            return np.zeros(shape, np.int8)
        return random_polarities(rng, shape)

    @property
    def units(self) -> int:
        """Number of neurons."""
        return self._units

    @property
    def input_dim(self) -> int | None:
        """Number of inputs (sensory neurons); None while the map is unbuilt."""
        return self._input_dim

    @property
    def input_size(self) -> int | None:
        """The same as `input_dim`."""
        return self.input_dim

    @property
    def output_dim(self) -> int:
        """Number of output (motor) neurons, which have the ids 0 ... output_dim - 1."""
        return self._output_dim

    @property
    def output_size(self) -> int:
        """The same as `output_dim`."""
        return self.output_dim

    @property
    def sparsity_level(self) -> float | None:
        """The fraction of missing synapses that was asked for; None where none was."""
        return self._sparsity_level

    @property
    def seed(self) -> int:
        """Seed of the random synapses."""
        return self._seed

    @property
    def layers(self) -> list[NDArray[np.int64]] | None:
        """Neuron ids of each layer in processing order, or None for a map without layers."""
        return None if self._layers is None else [_read_only(ids) for ids in self._layers]

    @property
    def layer_names(self) -> list[str] | None:
        """Names of `layers`, or None for a map without layers."""
        return None if self._layer_names is None else list(self._layer_names)

    @property
    def neuron_params(self) -> dict[str, float]:
        """Arguments of layers that the map states for its neurons; here none."""
        return {}

    @property
    def adjacency_matrix(self) -> NDArray[np.int8]:
        """Recurrent synapses, (units, units) of -1, 0, +1, indexed [source, target]; read-only."""
        if self._adjacency is None:
            self._adjacency = self._check_matrix("make_synapses()", self.make_synapses(self._generator(_RECURRENT)), self.units)
        return _read_only(self._adjacency)

    @property
    def sensory_adjacency_matrix(self) -> NDArray[np.int8]:
        """Synapses from the inputs, (inputs, units) of -1, 0, +1, indexed [source, target]; read-only.

        Raises:
            ValueError: while the map is unbuilt.
        """
        if self._sensory_adjacency is None:
            inputs = self.require_input_dim()
            made = self.make_sensory_synapses(self._generator(_SENSORY))
            self._sensory_adjacency = self._check_matrix("make_sensory_synapses()", made, inputs)
        return _read_only(self._sensory_adjacency)

    @property
    def synapse_count(self) -> int:
        """Number of recurrent synapses."""
        return int(np.count_nonzero(self.adjacency_matrix))

    @property
    def sensory_synapse_count(self) -> int:
        """Number of synapses from the inputs; a ValueError while the map is unbuilt."""
        return int(np.count_nonzero(self.sensory_adjacency_matrix))

    @property
    def is_fully_connected(self) -> bool:
        """Whether no recurrent synapse is missing and, once the map is built, no sensory one."""
        return bool(self.adjacency_matrix.all()) and (not self.is_built() or bool(self.sensory_adjacency_matrix.all()))

    def build(self, input_dim: int) -> None:
        """State the number of inputs; stating the same number again changes nothing.

        Args:
            input_dim: number of inputs.

        Raises:
            TypeError: if `input_dim` is no integer.
            ValueError: if `input_dim` is below 1 or not the number the map was built with.

        Example:
            >>> pair = NeuronMap(2)
            >>> pair.build(5)
            >>> pair.get_input_mask().shape
            (5, 2)
        """
        owner = type(self).__name__
        input_dim = self._check_inputs(input_dim)
        if self.is_built() and input_dim != self.input_dim:
            raise bad_argument(owner, "input_dim", f"be {self.input_dim}, with which this map was built", input_dim)
        self._input_dim = input_dim

    def is_built(self) -> bool:
        """Return whether the number of inputs is known."""
        return self.input_dim is not None

    def require_input_dim(self) -> int:
        """Return the number of inputs.

        Raises:
            ValueError: while the map is unbuilt.
        """
        if self.input_dim is None:
            raise bad_argument(type(self).__name__, "sensory synapses", "follow build(input_dim)", "an unbuilt map")
        return self.input_dim

    def get_input_mask(self) -> NDArray[np.float32]:
        """Return (inputs, units) float32: 1 where an input reaches a neuron, else 0.

        Raises:
            ValueError: while the map is unbuilt.
        """
        return np.abs(self.sensory_adjacency_matrix).astype(np.float32)

    def get_recurrent_mask(self) -> NDArray[np.float32]:
        """Return (units, units) float32, indexed [source, target]: 1 where there is a synapse, else 0."""
        return np.abs(self.adjacency_matrix).astype(np.float32)

    def get_output_mask(self) -> NDArray[np.float32]:
        """Return (units,) float32: 1 for the output neurons, else 0."""
        return (np.arange(self.units) < self.output_dim).astype(np.float32)

    def add_synapse(self, source: int, target: int, polarity: int) -> None:
        """Add a synapse between two neurons, or replace the one that is there.

        Args:
            source: id of the neuron that sends, in [0, units).
            target: id of the neuron that receives, in [0, units).
            polarity: +1 (excitatory) or -1 (inhibitory).

        Raises:
            TypeError: if an argument is no integer.
            ValueError: if an id or the polarity is out of range.

        Example:
            >>> pair = NeuronMap(2)
            >>> pair.add_synapse(0, 1, -1)
            >>> pair.adjacency_matrix.tolist()
            [[0, -1], [0, 0]]
        """
        self._adjacency = self._with_synapse(self.adjacency_matrix, source, target, polarity)

    def add_sensory_synapse(self, source: int, target: int, polarity: int) -> None:
        """Add a synapse from an input to a neuron, or replace the one that is there.

        Args:
            source: index of the input, in [0, inputs).
            target: id of the neuron, in [0, units).
            polarity: +1 (excitatory) or -1 (inhibitory).

        Raises:
            TypeError: if an argument is no integer.
            ValueError: if an id or the polarity is out of range, or the map is unbuilt.

        Example:
            >>> pair = NeuronMap(2, input_dim=1)
            >>> pair.add_sensory_synapse(0, 1, +1)
            >>> pair.sensory_adjacency_matrix.tolist()
            [[0, 1]]
        """
        self._sensory_adjacency = self._with_synapse(self.sensory_adjacency_matrix, source, target, polarity)

    def prune(self, keep: ArrayLike | None = None, keep_sensory: ArrayLike | None = None) -> Self:
        """Return a map with some of this one's synapses; this one stays as it is.

        Args:
            keep: (units, units) of bool or 0 and 1, indexed [source, target]: the recurrent synapses to keep; None: all.
            keep_sensory: (inputs, units), the same for those from the inputs; None: all.

        Returns:
            A map of the same class, with the same layers.

        Raises:
            TypeError: if a mask holds neither bool nor integers.
            ValueError: if a mask has another shape or other numbers, or `keep_sensory` is given while the map is unbuilt.

        Example:
            >>> pair = NeuronMap(2, adjacency_matrix=[[0, 1], [-1, 0]])
            >>> pair.prune(keep=[[1, 1], [0, 1]]).adjacency_matrix.tolist()
            [[0, 1], [0, 0]]
        """
        config = self.get_config()
        if keep is not None:
            config["adjacency_matrix"] = self.adjacency_matrix * self._check_keep("keep", keep, self.adjacency_matrix)
        if keep_sensory is not None:
            sensory = self.sensory_adjacency_matrix
            config["sensory_adjacency_matrix"] = sensory * self._check_keep("keep_sensory", keep_sensory, sensory)
        return type(self).from_config(config)

    def freeze(self) -> None:
        """Let no synapse be added from now on; a layer does this to its copy of a map, whose synapses are in its parameters.

        Example:
            >>> pair = NeuronMap(2)
            >>> pair.freeze()
            >>> pair.add_synapse(0, 1, -1)  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ValueError: [NeuronMap] a synapse must be added before a layer is made of the map, got ...
        """
        self._frozen = True

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments and both matrices as values that JSON can hold.

        The matrices are there, not the seed alone, so that a stored model keeps its synapses whatever was added by
        hand and whatever a later version makes of the seed.

        Raises:
            ValueError: if an argument of the constructor is not kept as an attribute of the same name.

        Example:
            >>> config = NeuronMap(2, adjacency_matrix=[[0, 1], [-1, 0]]).get_config()
            >>> config["units"], config["adjacency_matrix"], config["sensory_adjacency_matrix"]
            (2, [[0, 1], [-1, 0]], None)
        """
        config = {}
        for name in _argument_names(type(self)):
            if not hasattr(self, name):
                raise bad_argument(type(self).__name__, name, "be kept as an attribute, as every constructor argument", "none")
            config[name] = _plain(getattr(self, name))
        config["adjacency_matrix"] = self.adjacency_matrix.tolist()
        config["sensory_adjacency_matrix"] = self.sensory_adjacency_matrix.tolist() if self.is_built() else None
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Return the map that `get_config` of the same class described.

        Args:
            config: the result of `get_config`; without the matrices the synapses are made anew from the seed.

        Returns:
            A map equal to the described one.

        Example:
            >>> pair = NeuronMap(2, adjacency_matrix=[[0, 1], [-1, 0]])
            >>> NeuronMap.from_config(pair.get_config()) == pair
            True
        """
        if not isinstance(config, Mapping):
            raise bad_argument(cls.__name__, "config", "be a dict, as get_config returns it", repr(config), TypeError)
        arguments = {name: value for name, value in config.items() if name not in _MATRIX_NAMES}
        neuron_map = cls(**arguments)
        neuron_map._set_matrices(*(config.get(name) for name in _MATRIX_NAMES))
        return neuron_map

    def to_networkx(self) -> networkx.DiGraph:
        """Return the map as a graph of the package networkx, for its measures and layouts.

        Returns:
            A directed graph: neurons are the nodes 0 ... units - 1, inputs, once the map is built, the nodes "x0", "x1", ...;
            a synapse is an edge with the attribute `polarity`, +1 or -1; a node's `layer` is its layer's name, "sensory" or None.

        Raises:
            ImportError: if networkx is not installed.

        Example:
            >>> graph = NeuronMap(2, input_dim=1, adjacency_matrix=[[0, 1], [-1, 0]]).to_networkx()
            >>> sorted(graph.edges(data="polarity"))
            [(0, 1, 1), (1, 0, -1)]
        """
        try:
            import networkx
        except ImportError as error:
            raise ImportError('to_networkx() needs networkx: pip install "ember-mlx[plot]"') from error
        graph = networkx.DiGraph()
        graph.add_nodes_from(range(self.units), layer=None)
        for name, ids in zip(self.layer_names or [], self.layers or [], strict=True):
            graph.add_nodes_from(ids.tolist(), layer=name)
        sources, targets = self.adjacency_matrix.nonzero()
        for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
            graph.add_edge(source, target, polarity=int(self.adjacency_matrix[source, target]))
        if self.is_built():
            sensory = self.sensory_adjacency_matrix
            graph.add_nodes_from((f"x{k}" for k in range(len(sensory))), layer="sensory")
            for source, target in zip(*(ids.tolist() for ids in sensory.nonzero()), strict=True):
                graph.add_edge(f"x{source}", target, polarity=int(sensory[source, target]))
        return graph

    def draw(self, path: str | Path | None = None, *, title: str | None = None, show_ids: bool | None = None) -> Figure:
        """Draw the map as a graph; layers are columns, a map without layers is a ring.

        Args:
            path: where to save the picture, a PNG unless the name ends otherwise; None: it is not saved.
            title: the heading; None: class and sizes.
            show_ids: whether neuron ids are written into the neurons; None: where they are large enough.

        Returns:
            The matplotlib figure, which belongs to no window.

        Raises:
            ImportError: if matplotlib is not installed.

        Example:
            >>> figure = NeuronMap(2, input_dim=1, adjacency_matrix=[[0, 1], [-1, 0]]).draw(title="A pair")
            >>> len(figure.axes)
            1
        """
        from .draw import draw_map  # only who draws needs matplotlib

        return draw_map(self, path, title=title, show_ids=show_ids)

    def __eq__(self, other: object) -> bool:
        """Maps are equal when class, sizes, layers and all synapses are."""
        if not isinstance(other, NeuronMap) or type(self) is not type(other):
            return NotImplemented
        sizes = (self.units, self.input_dim, self.output_dim, self.layer_names)
        if sizes != (other.units, other.input_dim, other.output_dim, other.layer_names):
            return False
        same_layers = all(np.array_equal(a, b) for a, b in zip(self.layers or [], other.layers or [], strict=True))
        if not same_layers or not np.array_equal(self.adjacency_matrix, other.adjacency_matrix):
            return False
        return not self.is_built() or np.array_equal(self.sensory_adjacency_matrix, other.sensory_adjacency_matrix)

    def __repr__(self) -> str:
        """Class, sizes and synapse counts."""
        sensory = self.sensory_synapse_count if self.is_built() else None
        sizes = f"units={self.units}, inputs={self.input_dim}, outputs={self.output_dim}"
        return f"{type(self).__name__}({sizes}, synapses={self.synapse_count}, sensory_synapses={sensory})"

    def _repr_png_(self) -> bytes | None:
        """The picture that `draw` makes, for notebooks; None, so that the text is shown, without matplotlib or for a crowd of synapses."""
        if self.synapse_count + (self.sensory_synapse_count if self.is_built() else 0) > DRAWN_SYNAPSES:
            return None
        try:
            from matplotlib import rc_context

            with rc_context({"figure.constrained_layout.use": False, "figure.autolayout": False}):  # the picture places its parts itself
                figure = self.draw()
        except ImportError:
            return None
        picture = BytesIO()
        figure.savefig(picture, format="png", dpi=NOTEBOOK_DPI)
        return picture.getvalue()

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, stream]))

    def _check_inputs(self, input_dim: int) -> int:
        owner = type(self).__name__
        input_dim = check_integer(owner, "input_dim", input_dim)
        check_size(owner, "input_dim", input_dim, self.units)
        return input_dim

    def _set_matrices(self, adjacency_matrix: ArrayLike | None, sensory_adjacency_matrix: ArrayLike | None) -> None:
        """Take the given matrices; None leaves a matrix to be made when it is first read."""
        if adjacency_matrix is not None:
            self._adjacency = self._check_matrix("adjacency_matrix", adjacency_matrix, self.units)
        if sensory_adjacency_matrix is not None:
            checked = self._check_matrix("sensory_adjacency_matrix", sensory_adjacency_matrix, self.input_dim)
            self._input_dim, self._sensory_adjacency = checked.shape[0], checked

    def _check_matrix(self, name: str, values: ArrayLike, rows: int | None) -> NDArray[np.int8]:
        owner = type(self).__name__
        matrix = check_rectangular(owner, name, values)
        if matrix.ndim != 2 or matrix.shape[0] != (rows or max(matrix.shape[0], 1)) or matrix.shape[1] != self.units:
            raise bad_argument(owner, name, f"have shape ({'inputs' if rows is None else rows}, {self.units})", matrix.shape)
        if matrix.dtype.kind not in "iuf":
            raise bad_argument(owner, name, "hold numbers", matrix.dtype, TypeError)
        wrong = matrix[~np.isin(matrix, (-1, 0, 1))]
        if wrong.size:
            raise bad_argument(owner, name, "hold only -1, 0 and +1", wrong[0])
        return matrix.astype(np.int8)

    def _with_synapse(self, matrix: NDArray[np.int8], source: int, target: int, polarity: int) -> NDArray[np.int8]:
        owner = type(self).__name__
        source = _check_below(owner, "source", source, matrix.shape[0])
        target = _check_below(owner, "target", target, matrix.shape[1])
        if check_integer(owner, "polarity", polarity, minimum=None) not in (-1, 1):
            raise bad_argument(owner, "polarity", "be -1 or +1", polarity)
        if self._frozen:
            got = "a layer's own map; from_config(map.get_config()) makes one to change"
            raise bad_argument(owner, "a synapse", "be added before a layer is made of the map", got)
        changed = matrix.copy()  # a matrix that somebody holds never changes
        changed[source, target] = polarity
        return changed

    def _check_keep(self, name: str, keep: ArrayLike, matrix: NDArray[np.int8]) -> NDArray[np.int8]:
        """A mask of 0 and 1."""
        owner, mask = type(self).__name__, check_rectangular(type(self).__name__, name, keep)
        if mask.dtype.kind not in "biu":
            raise bad_argument(owner, name, "hold bool or 0 and 1", mask.dtype, TypeError)
        if mask.shape != matrix.shape:
            raise bad_argument(owner, name, f"have shape {matrix.shape}", mask.shape)
        if not np.isin(mask, (0, 1)).all():
            raise bad_argument(owner, name, "hold bool or 0 and 1", mask.max())
        return mask.astype(np.int8)

    def _check_layers(
        self, layers: Sequence[ArrayLike] | None, names: Sequence[str] | None
    ) -> tuple[list[NDArray[np.int64]] | None, list[str] | None]:
        owner = type(self).__name__
        if layers is None:
            if names is not None:
                raise bad_argument(owner, "layer_names", "come with layers", names)
            return None, None
        if not isinstance(layers, list | tuple | np.ndarray):
            raise bad_argument(owner, "layers", "be a list of lists of neuron ids", repr(layers), TypeError)
        arrays = [check_rectangular(owner, f"layers[{k}]", ids) for k, ids in enumerate(layers)]
        if any(ids.ndim != 1 or ids.dtype.kind not in "iu" for ids in arrays):
            raise bad_argument(owner, "layers", "hold one list of integer neuron ids a layer", layers, TypeError)
        if not arrays or sorted(np.concatenate(arrays).tolist()) != list(range(self.units)):
            raise bad_argument(owner, "layers", f"hold each of the ids 0 ... {self.units - 1} exactly once", [a.tolist() for a in arrays])
        names = [f"layer {k + 1}" for k in range(len(arrays))] if names is None else names
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise bad_argument(owner, "layer_names", "be a list of str, one a layer", repr(names), TypeError)
        if len(names) != len(arrays):
            raise bad_argument(owner, "layer_names", f"hold {len(arrays)} names", names)
        return [ids.astype(np.int64) for ids in arrays], list(names)


_MAP_CLASSES[NeuronMap.__name__] = NeuronMap
_MATRIX_NAMES = ("adjacency_matrix", "sensory_adjacency_matrix")


def map_to_config(neuron_map: NeuronMap) -> dict[str, Any]:
    """Return class name and config of a map of any class, as values that JSON can hold.

    Args:
        neuron_map: the map to describe.

    Returns:
        {"class": name, "config": the result of `get_config`}.

    Example:
        >>> described = map_to_config(NeuronMap(2, output_dim=1))
        >>> described["class"], described["config"]["output_dim"]
        ('NeuronMap', 1)
    """
    return {"class": type(neuron_map).__name__, "config": neuron_map.get_config()}


def map_from_config(described: dict[str, Any]) -> NeuronMap:
    """Return the map that `map_to_config` described.

    Subclasses of `NeuronMap` are known by name once their module is imported. Of two classes with the same name the
    one defined last is used.

    Args:
        described: {"class": name, "config": the result of `get_config`}.

    Returns:
        A map equal to the described one.

    Raises:
        TypeError: if it is no dict.
        ValueError: if it lacks one of the two, or no class of that name is known.

    Example:
        >>> map_from_config({"class": "NeuronMap", "config": {"units": 2}})
        NeuronMap(units=2, inputs=None, outputs=2, synapses=0, sensory_synapses=None)
    """
    owner, parts = "map_from_config", ("class", "config")
    if not isinstance(described, Mapping):
        raise bad_argument(owner, "a map's description", "be a dict, as map_to_config returns it", repr(described), TypeError)
    check_names(owner, "a map's description", map(str, described), parts, parts)
    name = described["class"]
    if name not in _MAP_CLASSES:
        raise bad_argument(owner, "class", f"be one of {', '.join(sorted(_MAP_CLASSES))}", repr(name))
    return _MAP_CLASSES[name].from_config(described["config"])


def random_polarities(rng: np.random.Generator, shape: tuple[int, ...], excitatory_fraction: float = 2 / 3) -> NDArray[np.int8]:
    """Return random signs of synapses, for `make_synapses` and `make_sensory_synapses`.

    Args:
        rng: random numbers.
        shape: shape of the result.
        excitatory_fraction: probability of +1.

    Returns:
        int8 array of -1 and +1.

    Example:
        >>> random_polarities(np.random.Generator(np.random.PCG64(0)), (2, 2), excitatory_fraction=1.0).tolist()
        [[1, 1], [1, 1]]
    """
    # Only rng.random is used in this package: NumPy may change how its other methods spend the same random bits.
    return np.where(rng.random(shape) < excitatory_fraction, 1, -1).astype(np.int8)


def random_order(rng: np.random.Generator, shape: tuple[int, ...], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return random numbers in [0, 1), for choosing the places with the smallest ones; larger weights tend to smaller numbers.

    Taking the places in this order draws them one after another without replacement, each with a probability in proportion to its weight
    among those left (Efraimidis and Spirakis 2006, Information Processing Letters 97, 181-185, doi:10.1016/j.ipl.2005.11.003).

    Args:
        rng: random numbers.
        shape: shape of the result.
        weights: positive, of that shape; None: all alike.

    Returns:
        float64 array.

    Example:
        >>> order = random_order(np.random.Generator(np.random.PCG64(0)), (2, 2), np.array([[1.0, 1e-9], [1e-9, 1.0]]))
        >>> np.argsort(order, axis=1)[:, 0].tolist()
        [0, 1]
    """
    uniform = rng.random(shape)
    if weights is None:
        return uniform
    waiting = -np.log1p(-uniform) / weights  # exponential times of rates `weights`
    return waiting / (1 + waiting)


def check_sparsity(owner: str, value: object) -> float:
    """Return a sparsity level as a float in [0, 1), or raise."""
    return check_interval(owner, "sparsity_level", value, 0, 1)


def _check_below(owner: str, name: str, value: object, end: int) -> int:
    index = check_integer(owner, name, value, minimum=None)
    if not 0 <= index < end:  # no counting from the end: a wrong id should not pass
        raise bad_argument(owner, name, f"be in 0 ... {end - 1}", index)
    return index


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view that cannot be written to; copies of a map lose the flag of an array itself."""
    view = array.view()
    view.flags.writeable = False
    return view


def _argument_names(cls: type[NeuronMap]) -> list[str]:
    """Names of the constructor's arguments; **kwargs stand for those of the next constructor up."""
    names: dict[str, None] = {}
    for ancestor in cls.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = list(inspect.signature(vars(ancestor)["__init__"]).parameters.values())[1:]
        names |= {p.name: None for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in names if name not in _MATRIX_NAMES]


def _plain(value: Any) -> Any:
    """Arrays and NumPy scalars, also inside lists, as values that JSON can hold."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
