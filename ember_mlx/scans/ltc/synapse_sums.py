"""The synapses of one kind in the NumPy form: their sums in num and den, and the gradients.

With sigma(a) = (1 + tanh(a / 2)) / 2 a sum over synapses is a product with tanh values plus a constant: the factors 1/2 are folded into the
weights, the ones into the constant. NumPy's tanh takes half as long as its exp and a reciprocal on AVX-512, and 10% less on AVX2.

Values are (..., P, n): n sequences for each of P slots. Each synapse has one slot, ordered by target; the states of sources and targets are
(..., K, n) and (..., H, n). Targets with similar numbers of synapses form a group, each with as many slots as the largest of them needs; an
unused slot has weight 0. So all sums over synapses are matrix products, one per group.

If synapses are missing, a slot's n values are contiguous in memory: gathering a source's value for a slot copies n values. If none is
missing nothing is gathered, and a sequence's P values are contiguous, so that the synapses' constants stay in the cache.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..held import held_by_first
from ..linear import Sums
from ..pointwise import Array
from ..scratch import Scratch
from .synapses import Synapses, parameter_gradients

Tree = dict[str, Any]
WIDEST = 128  # most sequences for which a slot's constants are expanded; broadcasting over few costs several times the product
# The approximate cost of one more group, in slots at 32 sequences: a slot of a target is computed, a slot of a source only copied.
TARGET_GROUP, SOURCE_GROUP = 60, 400
Places = NDArray[np.intp]


class Group(NamedTuple):
    """Owners with similar numbers of synapses.

    Args:
        owners: the range of owners, in the order of the grouping.
        places: the range of their slots.
        width: slots per owner.
    """

    owners: slice
    places: slice
    width: int

    def of(self, a: Array) -> Array:
        """The group's part of the values in all slots, (..., P, n) -> (..., owners, width, n), a view."""
        return a[..., self.places, :].reshape(*a.shape[:-2], self.owners.stop - self.owners.start, self.width, a.shape[-1])


class Grouping(NamedTuple):
    """Synapses by owner, a target or a source.

    Args:
        groups: the groups of owners.
        owners: (R,) the owners that have synapses, in the groups' order.
        rank: each owner's index in `owners`, R for one without synapses.
        synapses: (P,) the index of the synapse in each slot, S for none.
        places: (S,) the slot of each synapse.
    """

    groups: tuple[Group, ...]
    owners: Places
    rank: Places
    synapses: Places
    places: Places

    @property
    def size(self) -> int:
        """P."""
        return len(self.synapses)

    def at_places(self, a: Array) -> Array:
        """One value per synapse, (S,) -> one per slot, (P,); 0 in unused slots."""
        return np.append(a, a.dtype.type(0)).take(self.synapses)

    def parted(self, a: Array) -> list[Array]:
        """(P, ...) -> a list with (owners, width, ...) for each group."""
        return [a[group.places].reshape(-1, group.width, *a.shape[1:]) for group in self.groups]


@held_by_first
def grouping(synapses: Synapses, by_target: bool) -> Grouping:
    """The synapses grouped by target or by source."""
    table, S = synapses.padded(by_target), synapses.count
    sizes = (table < S).sum(1)
    order = np.argsort(-sizes, kind="stable")
    owners = order[: np.count_nonzero(sizes)]
    groups: list[Group] = []
    start = place = 0
    for stop in _cuts(sizes[owners], TARGET_GROUP if by_target else SOURCE_GROUP):
        width = int(sizes[owners[start]])
        groups.append(Group(slice(start, stop), slice(place, place + (stop - start) * width), width))
        start, place = stop, place + (stop - start) * width
    numbers = [table[owners[group.owners], : group.width].reshape(-1) for group in groups]
    taken = np.concatenate([*numbers, np.zeros(0, np.intp)]).astype(np.intp)
    rank, places = np.full(len(table), len(owners)), np.zeros(S + 1, np.intp)
    rank[owners] = np.arange(len(owners))
    places[taken] = np.arange(len(taken))
    return Grouping(tuple(groups), owners, rank, taken, places[:S])


def _cuts(sizes: Places, price: int) -> list[int]:
    """The ends of the groups that minimise slots plus `price` per group, for owners of these sizes, largest first.

    Example:
        >>> _cuts(np.array([9, 8, 8, 2, 2, 1]), price=5)
        [3, 6]
    """
    ends = [*(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(sizes)] if len(sizes) else []
    best: list[tuple[int, list[int]]] = [(0, [])]  # best cost and cuts for the owners before each end
    for k, end in enumerate(ends):
        starts = [0, *ends[:k]]
        costs = [best[j][0] + (end - start) * int(sizes[start]) + price for j, start in enumerate(starts)]
        j = int(np.argmin(costs))
        best.append((costs[j], [*best[j][1], end]))
    return best[-1][1]


class _Ends:
    """From the sources to the slots and back, if some synapses are missing.

    Args:
        synapses: the synapses, from K sources to H targets.
        sigma: (S,), halved.
        scratch: buffers for results.
    """

    def __init__(self, synapses: Synapses, sigma: Array, scratch: Scratch):
        self.scratch, self.by_source, self.is_full = scratch, grouping(synapses, by_target=False), synapses.is_full
        by_target = grouping(synapses, by_target=True)
        self.sources = np.append(synapses.sources, 0).take(by_target.synapses).astype(np.intp)
        self.places = np.append(by_target.places, 0).take(self.by_source.synapses)  # in source order
        self.spread: Array | None = None
        self.sigma = [a[:, None] for a in self.by_source.parted(self.by_source.at_places(sigma))]

    def laid_out(self, memory: Array, places: int, *shape: int) -> Array:
        """(N,) -> (..., P, n), a view with this `shape` (..., n)."""
        return memory.reshape(*shape[:-1], places, shape[-1])

    def constants(self, of_places: Array, n: int) -> Array:
        """The slots' constants (..., P) expanded to (..., P, n) or (..., P, 1), to compute with (P, n). `of_places` is always the same."""
        if n > WIDEST:
            return of_places[..., None]
        if self.spread is None or self.spread.shape[-1] != n:
            self.spread = self.scratch("spread", *of_places.shape, n)
            self.spread[...] = of_places[..., None]
        return self.spread

    def scaled(self, v: Array, by: Array, out: Array) -> Array:
        """Each slot's source value, (..., K, n) -> (..., P, n), times `by`."""
        return np.multiply(v.take(self.sources, axis=-2, out=out, mode="clip"), by, out=out)

    def products(self, v: Array, d: Array) -> Array:
        """Each synapse's sums over all rows, (S, 2): of its part of d (N, P, n) times its source's values v (N, K, n), and of that part."""
        owners = self.by_source.owners
        by_source = self.scratch("sources", len(d), len(owners), d.shape[-1], 2)
        by_source[..., 0], by_source[..., 1] = v.take(owners, axis=-2), 1
        both = self.scratch("by source", self.by_source.size, 2)
        for group, of_group in zip(self.by_source.groups, self._by_source(d), strict=True):
            both[group.places] = np.matmul(of_group, by_source[:, group.owners]).sum(0).reshape(-1, 2)
        return both.take(self.by_source.places, axis=0)

    def to_sources(self, d: Array) -> Array:
        """From the gradients of all arguments (..., P, n) to those of the sources' values (..., K, n)."""
        *lead, _, n = d.shape
        sums = self.scratch("pulled", *lead, len(self.by_source.owners) + 1, 1, n)
        sums[..., -1, :, :] = 0
        for group, sigma, of_group in zip(self.by_source.groups, self.sigma, self._by_source(d), strict=True):
            np.matmul(sigma, of_group, out=sums[..., group.owners, :, :])
        return sums[..., 0, :].take(self.by_source.rank, axis=-2)

    def _by_source(self, d: Array) -> list[Array]:
        """The slots' values (..., P, n) in source order: (..., owners, width, n) for each group of sources."""
        *lead, places, n = d.shape
        if self.is_full and places:  # they are (H, K)
            K = len(self.by_source.owners)
            return [d.reshape(*lead, places // K, K, n).swapaxes(-3, -2)]
        ordered = d.take(self.places, axis=-2, out=self.scratch("ordered", *lead, self.by_source.size, n), mode="clip")
        return [group.of(ordered) for group in self.by_source.groups]


class Kind:
    """Synapses of one kind: their sums and gradients, for the step and its backward.

    Args:
        synapses: from K sources to H targets.
        tree: w, sigma, mu, erev, (S,) each.
        scratch: buffers for results.
    """

    def __init__(self, synapses: Synapses, tree: Tree, scratch: Scratch):
        self.tree, self.scratch, self.sums = tree, scratch, Sums(scratch.part("sums"))
        half = tree["w"].dtype.type(0.5)
        sigma, w = tree["sigma"] * half, tree["w"] * half
        self.ends = _Ends(synapses, sigma, scratch)
        self.grouping = grouping(synapses, by_target=True)
        self.in_order = np.array_equal(self.grouping.rank, np.arange(len(self.grouping.owners)))  # each target is its own owner
        self.constants = np.stack([self.grouping.at_places(a) for a in (sigma, sigma * tree["mu"])])
        parted = (self.grouping.parted(self.grouping.at_places(a)) for a in (w * tree["erev"], w))
        self.weights = [np.stack(both, axis=1) for both in zip(*parted, strict=True)]  # (owners, 2, width) per group
        ones = [weights.sum(-1) for weights in self.weights]
        self.constant = np.concatenate([*ones, np.zeros((1, 2), w.dtype)]).take(self.grouping.rank, axis=0)  # (H, 2), for num and den

    def laid_out(self, memory: Array, *shape: int) -> Array:
        """(N,) -> values (..., P, n), given their other axes (..., n)."""
        return self.ends.laid_out(memory, self.grouping.size, *shape)

    def room(self, name: str, *shape: int) -> Array:
        """A buffer for values (..., P, n), given their other axes (..., n)."""
        return self.laid_out(self.scratch(name, self.grouping.size * math.prod(shape)), *shape)

    def activate(self, v: Array, active: Array, out: Array) -> None:
        """From v (..., K, n) to the tanh values of the slots (..., P, n), and num and den without `constant` in `out` (..., H, 2, n)."""
        *lead, _, n = v.shape
        sigma, offset = self.ends.constants(self.constants, n)
        self.ends.scaled(v, sigma, out=active)
        active -= offset
        np.tanh(active, out=active)
        sums = out if self.in_order else self.scratch("sums", *lead, len(self.grouping.owners) + 1, 2, n)
        for group, weights in zip(self.grouping.groups, self.weights, strict=True):
            np.matmul(weights, group.of(active), out=sums[..., group.owners, :, :])
        if not self.in_order:
            sums[..., -1, :, :] = 0
            sums.take(self.grouping.rank, axis=-3, out=out, mode="clip")

    def pull(self, active: Array, d: Array, out: Array) -> Array:
        """From the gradients of num and den to that of the sources' values (..., K, n).

        Args:
            active: (..., P, n).
            d: (..., H, 2, n).
            out: (..., P, n); it becomes the gradient of tanh's argument.
        """
        by_owner, arriving = self._by_owner(d), self.room("arriving", *d.shape[:-3], d.shape[-1])
        for group, weights in zip(self.grouping.groups, self.weights, strict=True):
            np.matmul(weights.swapaxes(1, 2), by_owner[..., group.owners, :, :], out=group.of(arriving))
        np.multiply(active, active, out=out)
        np.subtract(1, out, out=out)  # tanh's slope
        out *= arriving
        return self.ends.to_sources(out)

    def accumulate(self, active: Array, by_argument: Array, v: Array, d: Array) -> None:
        """Add a block's part of the parameters' gradients.

        Args:
            active: (N, P, n).
            by_argument: (N, P, n) the gradient of tanh's argument.
            v: (N, K, n).
            d: (N, H, 2, n).
        """
        # added per row, not to the sum, to keep the digits of synapses that are hardly active
        active = np.add(active, 1, out=self.room("twice sigma", *active.shape[:-2], active.shape[-1]))
        by_owner, both = self._by_owner(d).swapaxes(-1, -2), self.scratch("sums", self.grouping.size, 2)
        for group in self.grouping.groups:
            of_rows = np.matmul(group.of(active), by_owner[:, group.owners])
            both[group.places] = of_rows.sum(0).reshape(-1, 2)
        both = both.take(self.grouping.places, axis=0)
        self.sums.add("by_num", both[:, 0])
        self.sums.add("by_den", both[:, 1])
        by_product = self.ends.products(v, by_argument)
        self.sums.add("by_product", by_product[:, 0])
        self.sums.add("by_argument", by_product[:, 1])

    def gradients(self) -> Tree:
        """The gradients in the structure of the tree."""
        half = self.tree["w"].dtype.type(0.5)  # for sigma(...) and for its argument
        return parameter_gradients(self.tree, **{name: half * a for name, a in self.sums.totals.items()})

    def _by_owner(self, d: Array) -> Array:
        """The gradients (..., H, 2, n) of num and den, for the targets that have synapses: (..., R, 2, n)."""
        if self.in_order:
            return d
        owners = self.grouping.owners
        return d.take(owners, axis=-3, out=self.scratch("by_owner", *d.shape[:-3], len(owners), *d.shape[-2:]), mode="clip")
