"""The synapses of one kind in the NumPy form: what num and den sum up, and the way back.

A row of values has a place for each synapse, target by target. Targets with about as many synapses lie side by side, each with as many
places as the greediest of them needs; a place that no synapse takes has weight 0. So all sums over synapses are matrix products.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..dense import Scratch, Sums
from ..pointwise import Array
from .synapses import Synapses, parameter_gradients

Tree = dict[str, Any]
Places = NDArray[np.intp]


class Group(NamedTuple):
    """Owners of about as many synapses.

    Args:
        owners: which of them, in the order of the grouping.
        places: of all of them.
        width: places of each.
    """

    owners: slice
    places: slice
    width: int

    def of(self, a: Array) -> Array:
        """The group's part of values at all places, (n, P) -> (owners, n, width), a view."""
        return a[:, self.places].reshape(len(a), self.owners.stop - self.owners.start, self.width).swapaxes(0, 1)


class Grouping(NamedTuple):
    """Synapses by owner, a target or a source.

    Args:
        groups: of owners; none has twice as many synapses as another of its group.
        owners: (R,) those that have synapses, in the groups' order.
        rank: each owner's place in `owners`, R for one without synapses.
        synapses: (P,) the number of the synapse at each place, S for none.
        places: (S,) the place of each synapse.
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
        """One value for each synapse, (S,) -> (P,); 0 where there is none."""
        return np.append(a, a.dtype.type(0)).take(self.synapses)

    def parted(self, a: Array) -> list[Array]:
        """(P, ...) -> for each group (owners, width, ...)."""
        return [a[group.places].reshape(-1, group.width, *a.shape[1:]) for group in self.groups]


@lru_cache(maxsize=64)
def grouping(synapses: Synapses, by_target: bool) -> Grouping:
    """The synapses by target or by source."""
    table, S = synapses.padded(by_target), synapses.count
    sizes = (table < S).sum(1)
    order = np.argsort(-sizes, kind="stable")
    owners = order[: np.count_nonzero(sizes)]
    groups: list[Group] = []
    start = place = 0
    while start < len(owners):
        width = int(sizes[owners[start]])
        stop = start + int(np.count_nonzero(2 * sizes[owners[start:]] > width))
        groups.append(Group(slice(start, stop), slice(place, place + (stop - start) * width), width))
        start, place = stop, place + (stop - start) * width
    numbers = [table[owners[group.owners], : group.width].reshape(-1) for group in groups]
    taken = np.concatenate([*numbers, np.zeros(0, np.intp)]).astype(np.intp)
    rank, places = np.full(len(table), len(owners)), np.zeros(S + 1, np.intp)
    rank[owners] = np.arange(len(owners))
    places[taken] = np.arange(len(taken))
    return Grouping(tuple(groups), owners, rank, taken, places[:S])


class _Some:
    """From the sources to the places and back, where some synapses are missing.

    Args:
        synapses: which there are, from K sources to H targets.
        sigma: (S,).
        scratch: where results lie.
    """

    def __init__(self, synapses: Synapses, sigma: Array, scratch: Scratch):
        self.scratch, self.by_source = scratch, grouping(synapses, by_target=False)
        by_target = grouping(synapses, by_target=True)
        self.sources = np.append(synapses.sources, 0).take(by_target.synapses).astype(np.intp)
        self.places = np.append(by_target.places, 0).take(self.by_source.synapses)  # in the order of the sources
        self.sigma = [a[:, :, None] for a in self.by_source.parted(self.by_source.at_places(sigma))]

    def scaled(self, v: Array, by: Array, out: Array) -> Array:
        """The source's value of each place, (n, K) -> (n, P), times `by` (P,) or (n, P), which may be `out`."""
        at_sources = v.take(self.sources, axis=1, out=self.scratch("at_sources", *out.shape), mode="clip")
        return np.multiply(at_sources, by, out=out)

    def to_sources(self, d: Array) -> Array:
        """From the gradients of all arguments (n, P) to those of the sources' values (n, K)."""
        n, sources = len(d), self.by_source
        ordered = d.take(self.places, axis=1, out=self.scratch("ordered", n, sources.size), mode="clip")
        sums = self.scratch("pulled", len(sources.owners) + 1, n, 1)
        sums[-1] = 0
        for group, sigma in zip(sources.groups, self.sigma, strict=True):
            np.matmul(group.of(ordered), sigma, out=sums[group.owners])
        return sums[:, :, 0].take(sources.rank, axis=0).T


class _All:
    """The same where no synapse is missing: a row of places is (H, K)."""

    def __init__(self, synapses: Synapses, sigma: Array, scratch: Scratch):
        self.synapses, self.sigma, self.scratch = synapses, sigma, scratch
        self.ones = np.ones((1, synapses.units), sigma.dtype)

    def scaled(self, v: Array, by: Array, out: Array) -> Array:
        """As that of _Some."""
        np.multiply(v[:, None], self._matrices(by), out=self._matrices(out))
        return out

    def to_sources(self, d: Array) -> Array:
        """As that of _Some."""
        scaled = np.multiply(d, self.sigma, out=self.scratch("scaled", *d.shape))
        return np.matmul(self.ones, self._matrices(scaled), out=self.scratch("pulled", len(d), 1, self.synapses.inputs))[:, 0]

    def _matrices(self, a: Array) -> Array:
        return a.reshape(*a.shape[:-1], self.synapses.units, self.synapses.inputs)


class Kind:
    """Synapses of one kind: what the step and its gradient ask of them.

    Args:
        synapses: from K sources to H targets.
        tree: w, sigma, mu, erev, (S,) each.
        scratch: where results lie.
    """

    def __init__(self, synapses: Synapses, tree: Tree, scratch: Scratch):
        self.tree, self.scratch, self.sums = tree, scratch, Sums(scratch.part("sums"))
        self.ends = (_All if synapses.is_full else _Some)(synapses, tree["sigma"], scratch)
        self.grouping, w = grouping(synapses, by_target=True), tree["w"]
        self.sigma, self.offset = (self.grouping.at_places(a) for a in (tree["sigma"], tree["sigma"] * tree["mu"]))
        self.weights = self.grouping.parted(np.stack([self.grouping.at_places(a) for a in (w * tree["erev"], w)], axis=1))

    def activate(self, v: Array, out: Array | None = None) -> tuple[Array, Array, Array]:
        """sigma(...) at each place, num (n, H) and den (n, H), from the sources' values v (n, K); the next call overwrites them."""
        active = self.scratch("active", len(v), self.grouping.size) if out is None else out
        self.ends.scaled(v, self.sigma, out=active)
        np.subtract(self.offset, active, out=active)
        np.exp(active, out=active)
        active += active.dtype.type(1)
        np.reciprocal(active, out=active)  # sigma(...) = 1 / (1 + exp(...))
        owners, rank = self.grouping.owners, self.grouping.rank
        sums = self.scratch("both", len(owners) + 1, len(v), 2)
        sums[-1] = 0
        for group, weights in zip(self.grouping.groups, self.weights, strict=True):
            np.matmul(group.of(active), weights, out=sums[group.owners])
        of_units = sums.take(rank, axis=0, out=self.scratch("of_units", len(rank), len(v), 2), mode="clip")
        return active, of_units[:, :, 0].T, of_units[:, :, 1].T

    def pull(self, slope: Array, d: Array) -> Array:
        """From the gradients (2, n, H) of num and den to that of the sources' values (n, K).

        Args:
            slope: (n, P) of each sigma by its argument; it becomes the gradient of the argument.
            d: (2, n, H).
        """
        by_owner, arriving = self._by_owner(d).swapaxes(1, 2), self.scratch("arriving", *slope.shape)
        for group, weights in zip(self.grouping.groups, self.weights, strict=True):
            np.matmul(by_owner[group.owners], weights.swapaxes(1, 2), out=group.of(arriving))
        slope *= arriving
        return self.ends.to_sources(slope)

    def accumulate(self, active: Array, by_argument: Array, v: Array, d: Array) -> None:
        """Add a block's part of the parameters' gradients.

        Args:
            active: (N, P).
            by_argument: (N, P) the gradient of sigma's argument, which this overwrites.
            v: (N, K).
            d: (2, N, H).
        """
        by_owner, both = self._by_owner(d), self.scratch("sums", self.grouping.size, 2)
        for group in self.grouping.groups:
            sums = np.matmul(by_owner[group.owners], group.of(active))
            both[group.places] = sums.swapaxes(1, 2).reshape(-1, 2)
        self.sums.add("by_num", both[:, 0])
        self.sums.add("by_den", both[:, 1])
        self.sums.add("by_argument", by_argument.sum(0))
        self.sums.add("by_product", self.ends.scaled(v, by_argument, out=by_argument).sum(0))

    def gradients(self) -> Tree:
        """The gradients in the structure of the tree."""
        return parameter_gradients(self.tree, **{name: a.take(self.grouping.places) for name, a in self.sums.totals.items()})

    def _by_owner(self, d: Array) -> Array:
        """The gradients (2, n, H) of num and den, target by target: (R, 2, n)."""
        result = self.scratch("by_owner", len(self.grouping.owners), 2, d.shape[1])
        result[...] = d.take(self.grouping.owners, axis=2).transpose(2, 0, 1)
        return result


def slope_of(active: Array, out: Array) -> Array:
    """sigma's slope from its value."""
    np.multiply(active, active, out=out)
    return np.subtract(active, out, out=out)
