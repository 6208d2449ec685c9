"""Neural circuit policies: layered maps after the nervous system of C. elegans."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import bad_argument
from ..validation import check_integer, check_number, check_size
from .neuron_map import NeuronMap, check_sparsity, random_order, random_polarities

_EXCITATORY_FRACTION = 0.5
_COMMAND_FRACTION = 0.4  # fraction of an AutoNCPMap's non-motor neurons


class NCPMap(NeuronMap):
    """A neural circuit policy: inputs -> inter -> command -> motor neurons, with recurrent command neurons.

    Every input connects to `sensory_fanout` inter neurons and every inter neuron to `inter_fanout` command neurons; a
    neuron left without a source gets the average number of synapses of its layer. Every motor neuron receives from
    `motor_fanin` command neurons; a command neuron left without a target gets the average number of motor targets.
    Between command neurons, including self-connections, there are `recurrent_command_synapses`. Half of the synapses
    are excitatory. Ids are motor neurons first, then command, then inter neurons.

    Without explicit fan-outs, with density = 1 - sparsity_level:

        sensory_fanout             = max(1, int(inter_neurons * density))
        inter_fanout, motor_fanin  = max(1, int(command_neurons * density))
        recurrent_command_synapses = max(1, int(2 * command_neurons * density)), at most command_neurons²

    Args:
        inter_neurons: number of inter neurons.
        command_neurons: number of command neurons.
        motor_neurons: number of motor neurons, which are the outputs.
        sensory_neurons: number of inputs; None: known later, from `build`.
        sparsity_level: fraction of missing synapses, in [0, 1), which gives the defaults of the numbers below.
        seed: seed of the synapses; None: a fresh one, kept in `seed`.
        sensory_fanout: inter neurons per input, in [1, inter_neurons].
        inter_fanout: command neurons per inter neuron, in [1, command_neurons].
        recurrent_command_synapses: synapses between command neurons, in [0, command_neurons²].
        motor_fanin: command neurons per motor neuron, in [1, command_neurons].

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> policy = NCPMap(inter_neurons=5, command_neurons=3, motor_neurons=2, sensory_neurons=4)
        >>> policy.units, policy.output_dim, policy.layer_names
        (10, 2, ['inter', 'command', 'motor'])
        >>> [ids.tolist() for ids in policy.layers]
        [[5, 6, 7, 8, 9], [2, 3, 4], [0, 1]]

    Source: Lechner et al. (2020), Neural circuit policies enabling auditable autonomy, Nature Machine Intelligence 2,
    642-652, doi:10.1038/s42256-020-00237-3.
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
        sensory_fanout: int | None = None,
        inter_fanout: int | None = None,
        recurrent_command_synapses: int | None = None,
        motor_fanin: int | None = None,
    ) -> None:
        """See the class."""
        owner = type(self).__name__
        inter = check_integer(owner, "inter_neurons", inter_neurons)
        command = check_integer(owner, "command_neurons", command_neurons)
        motor = check_integer(owner, "motor_neurons", motor_neurons)
        if sensory_neurons is not None:
            check_integer(owner, "sensory_neurons", sensory_neurons)
        units = motor + command + inter
        check_size(owner, "inter_neurons + command_neurons + motor_neurons", units, units)
        ids = np.arange(units)
        super().__init__(
            len(ids),
            motor,
            sensory_neurons,
            layers=[ids[motor + command :], ids[motor : motor + command], ids[:motor]],
            layer_names=["inter", "command", "motor"],
            sparsity_level=sparsity_level,
            seed=seed,
        )
        self.inter_neurons, self.command_neurons, self.motor_neurons = inter, command, motor
        density = 1 - check_sparsity(owner, sparsity_level)
        inters, commands, pairs = ("inter_neurons", inter), ("command_neurons", command), ("command_neurons²", command**2)
        self.sensory_fanout = self._count("sensory_fanout", sensory_fanout, inter * density, inters)
        self.inter_fanout = self._count("inter_fanout", inter_fanout, command * density, commands)
        self.motor_fanin = self._count("motor_fanin", motor_fanin, command * density, commands)
        # Only the recurrent synapses may be 0.
        self.recurrent_command_synapses = self._count(
            "recurrent_command_synapses", recurrent_command_synapses, 2 * command * density, pairs, minimum=0
        )

    @property
    def sensory_neurons(self) -> int | None:
        """Number of inputs; None while the map is unbuilt."""
        return self.input_dim

    def make_synapses(self, rng: np.random.Generator) -> NDArray[np.int8]:
        """Return inter -> command, command -> command and command -> motor synapses, (units, units)."""
        motor, command = slice(0, self.motor_neurons), slice(self.motor_neurons, self.motor_neurons + self.command_neurons)
        inter = slice(command.stop, self.units)
        weights = self.synapse_weights()
        if weights is None:
            weights = np.ones((self.units, self.units))
        matrix = np.zeros((self.units, self.units), np.int8)
        matrix[inter, command] = _connect(rng, weights[inter, command], self.inter_fanout)
        recurrent = _choose(rng, weights[command, command].reshape(1, -1), self.recurrent_command_synapses)
        matrix[command, command] = _signed(rng, recurrent.reshape(self.command_neurons, self.command_neurons))
        matrix[command, motor] = _connect(rng, weights[command, motor].T, self.motor_fanin).T
        return matrix

    def make_sensory_synapses(self, rng: np.random.Generator) -> NDArray[np.int8]:
        """Return input -> inter synapses, (inputs, units)."""
        matrix = np.zeros((self.require_input_dim(), self.units), np.int8)
        first_inter = self.motor_neurons + self.command_neurons
        matrix[:, first_inter:] = _connect(rng, np.ones((len(matrix), self.inter_neurons)), self.sensory_fanout)
        return matrix

    def _count(self, name: str, given: int | None, wanted: float, limit: tuple[str, int], minimum: int = 1) -> int:
        """The given number of synapses, checked, or the wanted one rounded and clipped to the limit."""
        limit_name, largest = limit
        if given is None:
            return min(max(int(wanted), 1), largest)
        owner = type(self).__name__
        count = check_integer(owner, name, given, minimum)
        if count > largest:
            raise bad_argument(owner, name, f"be at most {limit_name} = {largest}", count)
        return count


class AutoNCPMap(NCPMap):
    """A neural circuit policy of a given size: 40 % of the non-motor neurons are command neurons.

    Args:
        units: number of neurons.
        output_size: number of motor neurons, below units - 2.
        sparsity_level: fraction of missing synapses, in [0.1, 0.9].
        seed: seed of the synapses; None: a fresh one, kept in `seed`.
        input_dim: number of inputs; None: known later, from `build`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> policy = AutoNCPMap(28, 4)
        >>> policy.inter_neurons, policy.command_neurons, policy.motor_neurons
        (15, 9, 4)

    Source: Lechner et al. (2020), doi:10.1038/s42256-020-00237-3.
    """

    def __init__(
        self,
        units: int,
        output_size: int,
        sparsity_level: float = 0.5,
        seed: int | None = 0,
        *,
        input_dim: int | None = None,
    ) -> None:
        """See the class."""
        owner = type(self).__name__
        units = check_integer(owner, "units", units)
        output_size = check_integer(owner, "output_size", output_size)
        if output_size >= units - 2:
            raise bad_argument(owner, "output_size", f"be below units - 2 = {units - 2}", output_size)
        level = check_number(owner, "sparsity_level", sparsity_level)
        if not 0.1 <= level <= 0.9:
            raise bad_argument(owner, "sparsity_level", "be in [0.1, 0.9]", level)
        if input_dim is not None:
            check_integer(owner, "input_dim", input_dim)
        command = max(int(_COMMAND_FRACTION * (units - output_size)), 1)
        super().__init__(units - output_size - command, command, output_size, input_dim, level, seed)


def _connect(rng: np.random.Generator, weights: NDArray[np.float64], fanout: int) -> NDArray[np.int8]:
    """Signed synapses (sources, targets): `fanout` per source, and the mean fan-in for a target that has none."""
    sources, targets = weights.shape
    mask = _choose(rng, weights, fanout)
    fanin = min(max(sources * fanout // targets, 1), sources)
    unreached = ~mask.any(axis=0)
    mask[:, unreached] = _choose(rng, weights.T, fanin).T[:, unreached]
    return _signed(rng, mask)


def _choose(rng: np.random.Generator, weights: NDArray[np.float64], count: int) -> NDArray[np.int8]:
    """A mask of the weights' shape with `count` ones at random positions of each row, likelier for larger weights."""
    mask = np.zeros(weights.shape, np.int8)
    order = random_order(rng, weights.shape, None if (weights == 1).all() else weights)
    np.put_along_axis(mask, np.argsort(order, axis=1, kind="stable")[:, :count], 1, axis=1)
    return mask


def _signed(rng: np.random.Generator, mask: NDArray[np.int8]) -> NDArray[np.int8]:
    return mask * random_polarities(rng, mask.shape, _EXCITATORY_FRACTION)
