"""The layout of an LTC's synapses in the NumPy form, on maps of every shape."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from ember_mlx.scans.ltc.synapse_sums import Kind, _cuts, grouping
from ember_mlx.scans.ltc.synapses import Synapses
from ember_mlx.scans.scratch import Scratch

from .tolerances import FINITE_DIFFERENCE, FORWARD

rng = np.random.default_rng(3)
MATRICES = {
    "full": np.ones((5, 4)),
    "one missing": 1 - np.eye(4, 6)[:, ::-1] * (np.arange(4) == 2)[:, None],
    "few with many": np.array([[1, 0, 0, 0, 1], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [1, 0, 1, 0, 1], [1, 0, 0, 0, 0], [1, 0, 1, 0, 0]]),
    "one": np.outer(np.arange(3) == 1, np.arange(4) == 3),
    "none": np.zeros((3, 4)),
    "random": rng.random((23, 17)) < 0.2,
}


def kind_of(synapses, tree):
    return Kind(synapses, tree, Scratch(np.dtype(np.float64)))


def random_tree(S):
    return {"w": rng.random(S), "sigma": rng.uniform(-3, 5, S), "mu": rng.random(S), "erev": rng.choice([-1.0, 1.0], S)}


def sums_one_by_one(synapses, tree, v):
    num, den = np.zeros((2, synapses.units, v.shape[1]))
    for s in range(synapses.count):
        i, j = synapses.sources[s], synapses.targets[s]
        active = 1 / (1 + np.exp(-tree["sigma"][s] * (v[i] - tree["mu"][s])))
        num[j] += tree["w"][s] * tree["erev"][s] * active
        den[j] += tree["w"][s] * active
    return num, den


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_every_synapse_has_one_place(matrix):
    synapses = Synapses(matrix)
    for by_target, owners in ((True, synapses.targets), (False, synapses.sources)):
        found = grouping(synapses, by_target)
        assert sorted(found.synapses[found.synapses < synapses.count]) == list(range(synapses.count))
        for group in found.groups:
            place_owner = np.repeat(found.owners[group.owners], group.width)
            numbers = found.synapses[group.places]
            assert (owners[numbers[numbers < synapses.count]] == place_owner[numbers < synapses.count]).all()


@pytest.mark.parametrize("price", [0, 1, 3, 10, 1000])
def test_groups_are_the_cheapest(price):
    sizes = np.array([9, 8, 8, 5, 5, 4, 2, 2, 1])

    def cost(cuts):
        return sum((stop - start) * sizes[start] + price for start, stop in pairwise([0, *cuts, len(sizes)]))

    inner = range(1, len(sizes))
    cheapest = min(cost(cuts) for k in range(len(sizes)) for cuts in combinations(inner, k))
    assert cost(_cuts(sizes, price)[:-1]) == cheapest


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("n", [0, 1, 5])
def test_sums_and_their_gradients(matrix, n):
    synapses = Synapses(matrix)
    tree, v = random_tree(synapses.count), rng.standard_normal((synapses.inputs, n))
    d = rng.standard_normal((synapses.units, 2, n))

    def loss():
        return float(sum((a * b).sum() for a, b in zip(d.swapaxes(0, 1), sums_one_by_one(synapses, tree, v), strict=True)))

    kind = kind_of(synapses, tree)
    active, by_argument, sums = kind.room("active", n), kind.room("by_argument", n), np.empty((synapses.units, 2, n))
    kind.activate(v, active, out=sums)
    sums += kind.constant[:, :, None]
    for ours, expected in zip(sums.swapaxes(0, 1), sums_one_by_one(synapses, tree, v), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=FORWARD["float64"])
    gradients = {"v": kind.pull(active, d, out=by_argument).copy()}
    kind.accumulate(active[None], by_argument[None], v[None], d[None])
    gradients |= kind.gradients()
    for name, a in {"v": v, **tree}.items():
        assert gradients[name].shape == a.shape
        for index in np.ndindex(a.shape):
            before, step = a[index], 1e-6
            a[index] = before + step
            above = loss()
            a[index] = before - step
            below = loss()
            a[index] = before
            assert abs(gradients[name][index] - (above - below) / (2 * step)) < FINITE_DIFFERENCE, (name, index)
