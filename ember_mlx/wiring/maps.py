"""Neuron maps without layers: all synapses, or a random subset."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from ..validation import check_number
from .neuron_map import NeuronMap, check_sparsity, random_order, random_polarities


class FullyConnectedMap(NeuronMap):
    """A map in which every input and every neuron connects to every neuron.

    Args:
        units: number of neurons.
        output_dim: number of output neurons; None: all units.
        input_dim: number of inputs; None: known later, from `build`.
        self_connections: whether a neuron also connects to itself.
        excitatory_fraction: probability, in [0, 1], that a synapse is excitatory.
        seed: seed of the polarities; None: a fresh one, kept in `seed`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size or `excitatory_fraction` is out of range.

    Example:
        >>> FullyConnectedMap(units=20, input_dim=10, output_dim=5)
        FullyConnectedMap(units=20, inputs=10, outputs=5, synapses=400, sensory_synapses=200)
        >>> FullyConnectedMap(20, self_connections=False).synapse_count
        380
    """

    def __init__(
        self,
        units: int,
        output_dim: int | None = None,
        input_dim: int | None = None,
        *,
        self_connections: bool = True,
        excitatory_fraction: float = 2 / 3,
        seed: int | None = 0,
    ) -> None:
        """See the class."""
        super().__init__(units, output_dim, input_dim, sparsity_level=0.0, seed=seed)
        if not isinstance(self_connections, bool | np.bool_):
            raise bad_argument(type(self).__name__, "self_connections", "be True or False", repr(self_connections), TypeError)
        self.self_connections = bool(self_connections)
        self.excitatory_fraction = check_excitatory_fraction(type(self).__name__, excitatory_fraction)

    def make_synapses(self, rng: np.random.Generator) -> NDArray[np.int8]:
        """Return every synapse, (units, units), without the diagonal if there are no self-connections."""
        polarities = random_polarities(rng, (self.units, self.units), self.excitatory_fraction)
        if not self.self_connections:
            np.fill_diagonal(polarities, 0)
        return polarities

    def make_sensory_synapses(self, rng: np.random.Generator) -> NDArray[np.int8]:
        """Return every synapse from an input, (inputs, units)."""
        return random_polarities(rng, (self.require_input_dim(), self.units), self.excitatory_fraction)


class RandomMap(NeuronMap):
    """A map with a random subset of all synapses, the same fraction of the recurrent and of the sensory ones.

    The number of recurrent synapses is units² * (1 - sparsity_level), rounded, and that of sensory ones
    inputs * units * (1 - sparsity_level). As far as these numbers allow, every neuron receives a synapse from an input
    or from another neuron.

    Args:
        units: number of neurons.
        output_dim: number of output neurons; None: all units.
        input_dim: number of inputs; None: known later, from `build`.
        sparsity_level: fraction of missing synapses, in [0, 1).
        seed: seed of the synapses; None: a fresh one, kept in `seed`.
        excitatory_fraction: probability, in [0, 1], that a synapse is excitatory.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a size, `sparsity_level` or `excitatory_fraction` is out of range.

    Example:
        >>> RandomMap(10, output_dim=2, input_dim=4, sparsity_level=0.8)
        RandomMap(units=10, inputs=4, outputs=2, synapses=20, sensory_synapses=8)
    """

    def __init__(
        self,
        units: int,
        output_dim: int | None = None,
        input_dim: int | None = None,
        sparsity_level: float = 0.5,
        seed: int | None = 0,
        *,
        excitatory_fraction: float = 2 / 3,
    ) -> None:
        """See the class."""
        level = check_sparsity(type(self).__name__, sparsity_level)
        super().__init__(units, output_dim, input_dim, sparsity_level=level, seed=seed)
        self.density = 1 - level
        self.excitatory_fraction = check_excitatory_fraction(type(self).__name__, excitatory_fraction)

    def make_synapses(self, rng: np.random.Generator) -> NDArray[np.int8]:
        """Return a random subset of all recurrent synapses, (units, units)."""
        order = random_order(rng, (self.units, self.units), self.synapse_weights())
        return self._draw_synapses(rng, order, np.ones(self.units, bool), spare_diagonal=True)

    def make_sensory_synapses(self, rng: np.random.Generator) -> NDArray[np.int8]:
        """Return a random subset of all sensory synapses, (inputs, units)."""
        # A neuron's synapse with itself does not count, since it carries no input.
        from_others = self.adjacency_matrix * (1 - np.eye(self.units, dtype=np.int8))
        needy = np.count_nonzero(from_others, axis=0) == 0
        return self._draw_synapses(rng, random_order(rng, (self.require_input_dim(), self.units)), needy)

    def _draw_synapses(
        self, rng: np.random.Generator, order: NDArray[np.float64], needy: NDArray[np.bool_], spare_diagonal: bool = False
    ) -> NDArray[np.int8]:
        """Take the first synapses of an order (sources, units), giving priority to the `needy` targets (units,)."""
        candidates = order + np.eye(self.units) if spare_diagonal else order
        first, targets = np.argmin(candidates, axis=0), np.arange(self.units)
        order[first[needy], targets[needy]] -= 1
        mask = np.zeros(order.size, np.int8)
        mask[np.argsort(order, axis=None, kind="stable")[: round(order.size * self.density)]] = 1
        return mask.reshape(order.shape) * random_polarities(rng, order.shape, self.excitatory_fraction)


def check_excitatory_fraction(owner: str, value: object) -> float:
    """Return the fraction as a float in [0, 1], or raise."""
    fraction = check_number(owner, "excitatory_fraction", value)
    if not 0 <= fraction <= 1:
        raise bad_argument(owner, "excitatory_fraction", "be in [0, 1]", fraction)
    return fraction
