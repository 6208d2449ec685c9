"""The synapses of one kind, as lists ordered by target and by source."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Indices = NDArray[np.int32]


class Synapses:
    """The synapses from K sources to H targets, ordered by target and then by source.

    The object is immutable; it is compared and hashed by its contents.

    Args:
        matrix: (K, H), indexed [source, target]; a synapse wherever it is not 0.

    Example:
        >>> from ember_mlx.scans.ltc.synapses import Synapses
        >>> some = Synapses([[0, 1], [-1, 1]])
        >>> some.sources.tolist(), some.targets.tolist()
        ([1, 0, 1], [0, 1, 1])
    """

    def __init__(self, matrix: ArrayLike):
        exists: NDArray[np.bool_] = np.asarray(matrix) != 0
        self.inputs, self.units = exists.shape
        targets, sources = exists.T.nonzero()
        self.sources, self.targets = _frozen(sources), _frozen(targets)
        self._key = (self.inputs, self.units, np.packbits(exists).tobytes())
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Synapses) and self._hash == other._hash and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def __deepcopy__(self, memo: Any) -> "Synapses":
        return self  # immutable

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_held"}

    def __repr__(self) -> str:
        return f"Synapses({self.count} of {self.inputs} x {self.units})"

    @property
    def count(self) -> int:
        """S, the number of synapses."""
        return len(self.sources)

    @property
    def is_full(self) -> bool:
        """Whether no synapse is missing; an array with one value per synapse is then a flattened (H, K)."""
        return self.count == self.inputs * self.units

    @cached_property
    def by_source(self) -> Indices:
        """(S,) the synapses' indices, ordered by source."""
        return _frozen(np.argsort(self.sources, kind="stable"))

    def target_starts(self) -> Indices:
        """(H + 1,) the start of each target's synapses."""
        return _starts(self.targets, self.units)

    def source_starts(self) -> Indices:
        """(K + 1,) the start of each source's synapses in `by_source`."""
        return _starts(self.sources, self.inputs)

    def padded(self, by_target: bool) -> Indices:
        """(H, most) the indices of each target's synapses, or (K, most) of each source's, padded with S."""
        starts, order = (self.target_starts(), np.arange(self.count)) if by_target else (self.source_starts(), self.by_source)
        sizes = np.diff(starts)
        place = np.arange(sizes.max(initial=0))
        index = np.minimum(starts[:-1, None] + place, max(self.count - 1, 0))
        return _frozen(np.where(place < sizes[:, None], order[index] if self.count else index, self.count))


def parameter_gradients(p: dict[str, Any], by_num: Any, by_den: Any, by_argument: Any, by_product: Any) -> dict[str, Any]:
    """The gradients of w, sigma, mu and erev, as NumPy or MLX arrays, from sums over all rows and evaluations, (S,) each.

    Args:
        p: w, sigma, mu, erev.
        by_num: sum of d_num sigma(...).
        by_den: sum of d_den sigma(...).
        by_argument: sum of the gradient of sigma's argument.
        by_product: sum of the gradient of sigma's argument times v.
    """
    return {
        "w": p["erev"] * by_num + by_den,
        "sigma": by_product - p["mu"] * by_argument,
        "mu": -p["sigma"] * by_argument,
        "erev": p["w"] * by_num,
    }


def _starts(owners: Indices, count: int) -> Indices:
    return _frozen(np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=count))]))


def _frozen(a: Any) -> Indices:
    a = np.ascontiguousarray(a, np.int32)
    a.flags.writeable = False
    return a
