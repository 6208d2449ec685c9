"""A custom neuron map: a small-world network, drawn to a PNG.

Most neurons of a nervous system connect to neighbours and a few to distant neurons, which keeps all paths short: a
"small world" (Watts and Strogatz 1998, Nature 393, 440-442, doi:10.1038/30918). `SmallWorldMap` starts with a ring in
which every neuron connects to its nearest neighbours, and then rewires some synapses to random targets. It overrides
the two methods of `NeuronMap` that make synapses; the base class provides seed, matrices, masks, drawing and saving.
Every layer accepts it.

    python examples/small_world_map.py --units 24 --rewiring 0.15
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ember_mlx import CfC, NeuronMap


class SmallWorldMap(NeuronMap):
    """A directed Watts-Strogatz network in which a neuron is either excitatory or inhibitory.

    Args:
        units: number of neurons.
        output_dim: number of output neurons; None: all units.
        input_dim: number of inputs; None: known later, from `build`.
        neighbours: outgoing synapses per neuron, even, in [2, units - 1].
        rewiring: probability that a synapse targets a random neuron instead of a neighbour.
        excitatory_fraction: probability that a neuron is excitatory.
        seed: seed of the synapses.

    Example:
        >>> SmallWorldMap(10, output_dim=2, input_dim=2, neighbours=4).synapse_count
        40
    """

    def __init__(
        self,
        units: int,
        output_dim: int | None = None,
        input_dim: int | None = None,
        *,
        neighbours: int = 4,
        rewiring: float = 0.15,
        excitatory_fraction: float = 0.75,
        seed: int | None = 0,
    ) -> None:
        """See the class."""
        super().__init__(units, output_dim, input_dim, seed=seed)
        if neighbours % 2 or not 2 <= neighbours < units:
            raise ValueError(f"[SmallWorldMap] neighbours must be even and in [2, units - 1] = [2, {units - 1}], got {neighbours}.")
        # Stored under the names of the arguments, for get_config.
        self.neighbours, self.rewiring, self.excitatory_fraction = neighbours, rewiring, excitatory_fraction

    def make_synapses(self, rng: np.random.Generator) -> NDArray[np.int8]:
        """Return the rewired ring, (units, units)."""
        matrix = np.zeros((self.units, self.units), np.int8)
        signs = np.where(rng.random(self.units) < self.excitatory_fraction, 1, -1)
        half = self.neighbours // 2
        for source in range(self.units):
            targets = {(source + step) % self.units for step in range(-half, half + 1) if step != 0}
            for target in sorted(targets):
                free = [unit for unit in range(self.units) if unit != source and unit not in targets]
                if free and rng.random() < self.rewiring:
                    targets.remove(target)
                    targets.add(free[int(rng.random() * len(free))])
            matrix[source, list(targets)] = signs[source]
        return matrix

    def make_sensory_synapses(self, rng: np.random.Generator) -> NDArray[np.int8]:
        """Return the inputs' synapses, (inputs, units): each input excites one arc of the ring."""
        inputs = self.require_input_dim()
        matrix = np.zeros((inputs, self.units), np.int8)
        matrix[np.arange(self.units) * inputs // self.units, np.arange(self.units)] = 1
        return matrix


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw a small-world neuron map.")
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--rewiring", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/small_world_map.png"))
    options = parser.parse_args(arguments)

    small_world = SmallWorldMap(options.units, output_dim=3, input_dim=4, rewiring=options.rewiring, seed=options.seed)
    print(small_world)
    for name, matrix in (("recurrent", small_world.adjacency_matrix), ("sensory", small_world.sensory_adjacency_matrix)):
        print(f"{name:>9}: {np.sum(matrix > 0):3d} excitatory, {np.sum(matrix < 0):3d} inhibitory synapses")

    options.out.parent.mkdir(parents=True, exist_ok=True)
    small_world.draw(options.out, title=f"A small world of {small_world.units} neurons")
    print(f"drawn to {options.out}")

    layer = CfC(small_world, output="motor", return_sequences=True)  # any layer takes any map
    y = layer(mx.random.normal((8, 20, 4)), time_deltas=0.1)
    print(f"a CfC on it: x (8, 20, 4) -> y {y.shape}")


if __name__ == "__main__":
    main()
