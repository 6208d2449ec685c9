"""Neuron maps: their synapses, checks, configs, and reproducibility by seed."""

import copy
import hashlib
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from ember_mlx.wiring import (
    AutoNCPMap,
    EnhancedNCPMap,
    FullyConnectedMap,
    NCPMap,
    NeuronMap,
    RandomMap,
    map_from_config,
    map_to_config,
    random_polarities,
)

SEEDS = range(20)
MAPS = {
    "explicit": lambda: NeuronMap(3, 1, 2, adjacency_matrix=np.eye(3), sensory_adjacency_matrix=[[1, 0, -1], [0, 0, 1]]),
    "explicit-layered": lambda: NeuronMap(3, 1, 2, layers=[[2], [1], [0]], layer_names=["a", "b", "c"]),
    "explicit-empty-unbuilt": lambda: NeuronMap(4),
    "fully-connected": lambda: FullyConnectedMap(6, 2, 3, seed=3),
    "fully-connected-unbuilt": lambda: FullyConnectedMap(6, self_connections=False, excitatory_fraction=0.25),
    "random": lambda: RandomMap(7, 2, 3, sparsity_level=0.7, seed=5),
    "random-unbuilt": lambda: RandomMap(7, excitatory_fraction=1),
    "ncp": lambda: NCPMap(6, 4, 2, 5, seed=7),
    "ncp-fanouts-unbuilt": lambda: NCPMap(6, 4, 2, sensory_fanout=2, inter_fanout=3, recurrent_command_synapses=0, motor_fanin=1),
    "auto-ncp": lambda: AutoNCPMap(20, 4, 0.3, 11, input_dim=6),
    "auto-ncp-unbuilt": lambda: AutoNCPMap(20, 4),
}
NCP_SIZES = [(1, 1, 1, 1), (2, 1, 1, 3), (7, 5, 3, 4), (3, 9, 8, 2), (20, 2, 6, 1), (4, 4, 1, 30)]


class ChainMap(NeuronMap):
    """Each neuron excites the next; only the recurrent synapses are its own."""

    def __init__(self, units, output_dim=None, input_dim=None, *, steps=(1,), seed=0):
        super().__init__(units, output_dim, input_dim, seed=seed)
        self.steps = steps

    def make_synapses(self, rng):
        return sum(np.eye(self.units, k=step, dtype=int) for step in self.steps)


class LongChainMap(ChainMap):
    def __init__(self, **kwargs):
        super().__init__(100, **kwargs)

    def get_config(self):
        return {name: value for name, value in super().get_config().items() if name != "units"}


@pytest.fixture(params=MAPS.values(), ids=MAPS.keys())
def neuron_map(request):
    return request.param()


def through_json(neuron_map):
    return map_from_config(json.loads(json.dumps(map_to_config(neuron_map))))


def digest(neuron_map):
    data = neuron_map.adjacency_matrix.tobytes() + neuron_map.sensory_adjacency_matrix.tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


# What every map promises


def test_matrices_and_masks_agree(neuron_map):
    neuron_map.build(neuron_map.input_dim or 4)
    for matrix, mask, rows, count in (
        (neuron_map.adjacency_matrix, neuron_map.get_recurrent_mask(), neuron_map.units, neuron_map.synapse_count),
        (neuron_map.sensory_adjacency_matrix, neuron_map.get_input_mask(), neuron_map.input_dim, neuron_map.sensory_synapse_count),
    ):
        assert matrix.shape == mask.shape == (rows, neuron_map.units)
        assert matrix.dtype == np.int8
        assert mask.dtype == np.float32
        np.testing.assert_array_equal(mask, matrix != 0)
        assert np.isin(matrix, (-1, 0, 1)).all()
        assert count == mask.sum()
        assert type(count) is int
    assert neuron_map.input_size == neuron_map.input_dim
    assert neuron_map.output_size == neuron_map.output_dim
    output_mask = neuron_map.get_output_mask()
    assert output_mask.dtype == np.float32
    assert output_mask.tolist() == [1.0] * neuron_map.output_dim + [0.0] * (neuron_map.units - neuron_map.output_dim)


def test_matrices_are_read_only(neuron_map):
    neuron_map.build(neuron_map.input_dim or 4)
    for matrix in (neuron_map.adjacency_matrix, neuron_map.sensory_adjacency_matrix):
        with pytest.raises(ValueError, match="read-only"):
            matrix[0, 0] = 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["deepcopy", "pickle"])
def test_copies_are_equal_read_only_and_apart(neuron_map, duplicate):
    again = duplicate(neuron_map)
    assert again == neuron_map
    assert not again.adjacency_matrix.flags.writeable
    again.add_synapse(0, 0, -1 if neuron_map.adjacency_matrix[0, 0] > 0 else 1)
    assert again != neuron_map


def test_masks_are_the_callers_own(neuron_map):
    mask = neuron_map.get_recurrent_mask()
    mask[:] = 5
    assert neuron_map.get_recurrent_mask().max(initial=0) <= 1


def test_config_round_trip_through_json(neuron_map):
    again = through_json(neuron_map)
    assert type(again) is type(neuron_map)
    assert again == neuron_map
    assert again.seed == neuron_map.seed
    assert again.get_config() == neuron_map.get_config()
    again.build(again.input_dim or 4)
    neuron_map.build(neuron_map.input_dim or 4)
    assert again == neuron_map


def test_config_round_trip_keeps_synapses_added_by_hand(neuron_map):
    neuron_map.build(neuron_map.input_dim or 4)
    for source, target in ((0, 1), (1, 0), (2, 2)):
        polarity = -1 if neuron_map.adjacency_matrix[source, target] > 0 else 1
        neuron_map.add_synapse(source, target, polarity)
        assert neuron_map.adjacency_matrix[source, target] == polarity
    neuron_map.add_sensory_synapse(1, 0, -1)
    again = through_json(neuron_map)
    assert again == neuron_map
    assert again.sensory_adjacency_matrix[1, 0] == -1


def test_adding_a_synapse_to_an_unbuilt_map_keeps_it_unbuilt():
    ring = RandomMap(5)
    ring.add_synapse(0, 0, -1)
    again = through_json(ring)
    assert not again.is_built()
    assert again.adjacency_matrix[0, 0] == -1


def test_a_frozen_map_takes_no_synapse_and_its_configuration_makes_one_that_does():
    neuron_map = NeuronMap(2, input_dim=1)
    neuron_map.freeze()
    for add in (neuron_map.add_synapse, neuron_map.add_sensory_synapse, copy.deepcopy(neuron_map).add_synapse):
        with pytest.raises(
            ValueError, match=r"\[NeuronMap\] a synapse must be added before a layer is made of the map, got a layer's own map"
        ):
            add(0, 1, 1)
    assert neuron_map.synapse_count == neuron_map.sensory_synapse_count == 0
    other = NeuronMap.from_config(neuron_map.get_config())
    other.add_synapse(0, 1, 1)
    assert other.synapse_count == 1


def test_a_held_matrix_does_not_change_with_the_map():
    pair = NeuronMap(2)
    before = pair.adjacency_matrix
    pair.add_synapse(0, 1, 1)
    assert before.sum() == 0
    assert pair.synapse_count == 1


def test_build_is_idempotent_and_late_build_equals_early_build():
    for make in (lambda **k: FullyConnectedMap(5, **k), lambda **k: RandomMap(5, **k), lambda **k: AutoNCPMap(9, 2, **k)):
        late = make()
        assert not late.is_built()
        assert late.input_dim is None
        late.synapse_count  # noqa: B018  reading early must not change what comes later
        late.build(3)
        late.build(np.int64(3))
        assert late.is_built()
        assert late == make(input_dim=3)


def test_the_recurrent_synapses_do_not_depend_on_the_inputs():
    for make in (lambda n: RandomMap(8, input_dim=n), lambda n: NCPMap(5, 4, 2, n), lambda n: FullyConnectedMap(8, input_dim=n)):
        np.testing.assert_array_equal(make(1).adjacency_matrix, make(9).adjacency_matrix)


def test_equality_and_repr():
    assert RandomMap(5, seed=1) == RandomMap(5, seed=1)
    assert RandomMap(5, seed=1) != RandomMap(5, seed=2)
    assert RandomMap(5) != RandomMap(5, input_dim=2)
    assert RandomMap(5) != RandomMap(5, output_dim=2)
    assert RandomMap(5) != "map"
    explicit = NeuronMap(5, adjacency_matrix=RandomMap(5).adjacency_matrix)
    assert explicit != RandomMap(5)
    assert NeuronMap(2, layers=[[0], [1]]) != NeuronMap(2, layers=[[1], [0]])
    assert NeuronMap(2, layers=[[0], [1]]) != NeuronMap(2)
    assert repr(NCPMap(2, 1, 1)) == "NCPMap(units=4, inputs=None, outputs=1, synapses=4, sensory_synapses=None)"
    with pytest.raises(TypeError, match="unhashable"):
        hash(explicit)


# The same seed, the same map


def test_golden_matrices():
    policy = NCPMap(3, 2, 1, 2, seed=42)
    assert policy.adjacency_matrix.tolist() == [
        [0, 0, 0, 0, 0, 0],
        [-1, 0, -1, 0, 0, 0],
        [-1, 0, 1, 0, 0, 0],
        [0, 0, -1, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, -1, 0, 0, 0, 0],
    ]
    assert policy.sensory_adjacency_matrix.tolist() == [
        [0, 0, 0, -1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize(
    ("neuron_map", "golden"),
    [
        pytest.param(FullyConnectedMap(20, 10, 10, seed=1), "802806f202da1083", id="fully-connected"),
        pytest.param(RandomMap(33, 4, 7, 0.8, seed=2), "989a8249aea63b81", id="random"),
        pytest.param(NCPMap(12, 7, 4, 5, 0.6, seed=3), "d9b6a9a582117947", id="ncp"),
        pytest.param(AutoNCPMap(64, 8, 0.75, seed=2**40, input_dim=9), "9bef59f5514b1a06", id="auto-ncp"),
    ],
)
def test_golden_digests(neuron_map, golden):
    assert digest(neuron_map) == golden


def test_seeds_differ_and_none_draws_one_that_is_kept():
    assert len({digest(RandomMap(10, input_dim=3, seed=seed)) for seed in SEEDS}) == len(SEEDS)
    fresh = RandomMap(10, input_dim=3, seed=None)
    assert fresh == RandomMap(10, input_dim=3, seed=fresh.seed)
    assert fresh.seed != RandomMap(10, seed=None).seed


def test_polarities_follow_the_excitatory_fraction():
    rng = np.random.Generator(np.random.PCG64(0))
    signs = random_polarities(rng, (200, 200))
    assert signs.dtype == np.int8
    assert np.mean(signs > 0) == pytest.approx(2 / 3, abs=0.01)
    assert (random_polarities(rng, (9,), 0.0) == -1).all()


# The explicit map


def test_explicit_map_has_only_what_it_was_given():
    empty = NeuronMap(3, 1, 2)
    assert (empty.synapse_count, empty.sensory_synapse_count, empty.layers, empty.layer_names) == (0, 0, None, None)
    given = NeuronMap(2, sensory_adjacency_matrix=np.array([[1, -1]] * 5, np.float32))
    assert given.input_dim == 5
    assert given.is_built()
    assert given.sparsity_level is None


def test_explicit_layers():
    layered = NeuronMap(4, 1, layers=[np.array([3, 1]), [2], [0]])
    assert [ids.tolist() for ids in layered.layers] == [[3, 1], [2], [0]]
    assert layered.layer_names == ["layer 1", "layer 2", "layer 3"]
    layered.layers.pop()
    layered.layer_names.pop()
    assert len(layered.layers) == len(layered.layer_names) == 3


# Maps without layers


@pytest.mark.parametrize(("units", "inputs"), [(1, 1), (2, 5), (20, 10)])
def test_fully_connected(units, inputs):
    full = FullyConnectedMap(units=units, input_dim=inputs, output_dim=units)
    assert full.is_fully_connected
    assert full.layers is None
    assert (full.synapse_count, full.sensory_synapse_count) == (units * units, inputs * units)
    without_self = FullyConnectedMap(units, input_dim=inputs, self_connections=False)
    assert not without_self.is_fully_connected
    np.testing.assert_array_equal(without_self.get_recurrent_mask(), 1 - np.eye(units))
    assert FullyConnectedMap(units).is_fully_connected
    assert FullyConnectedMap(units).output_dim == units


def test_fully_connected_polarities():
    assert (FullyConnectedMap(30, excitatory_fraction=1.0).adjacency_matrix == 1).all()
    assert (FullyConnectedMap(30, input_dim=4, excitatory_fraction=0).sensory_adjacency_matrix == -1).all()


@pytest.mark.parametrize("sparsity_level", [0.0, 0.1, 0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize(("units", "inputs"), [(1, 1), (7, 2), (32, 5), (31, 31)])
def test_random_map_counts_and_reach(units, inputs, sparsity_level):
    for seed in SEEDS:
        neuron_map = RandomMap(units, None, inputs, sparsity_level, seed)
        assert neuron_map.synapse_count == round(units * units * (1 - sparsity_level))
        assert neuron_map.sensory_synapse_count == round(inputs * units * (1 - sparsity_level))
        from_others = neuron_map.get_recurrent_mask() * (1 - np.eye(units))
        reached = (from_others.sum(axis=0) + neuron_map.get_input_mask().sum(axis=0)) > 0
        possible = neuron_map.synapse_count * (units > 1) + neuron_map.sensory_synapse_count
        assert reached.sum() == min(units, possible)


def test_random_map_keeps_its_sparsity():
    assert RandomMap(4).sparsity_level == 0.5
    assert RandomMap(4, sparsity_level=0).is_fully_connected
    assert not RandomMap(4, input_dim=2).is_fully_connected


# Neural circuit policies


def test_ncp_ids_and_layers():
    policy = NCPMap(5, 3, 2, 4)
    assert (policy.units, policy.input_dim, policy.sensory_neurons, policy.output_dim) == (10, 4, 4, 2)
    assert [ids.tolist() for ids in policy.layers] == [[5, 6, 7, 8, 9], [2, 3, 4], [0, 1]]
    assert policy.layer_names == ["inter", "command", "motor"]
    assert (policy.inter_neurons, policy.command_neurons, policy.motor_neurons) == (5, 3, 2)


@pytest.mark.parametrize("sparsity_level", [0.0, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("sizes", NCP_SIZES, ids=lambda sizes: "inter{}-command{}-motor{}-sensory{}".format(*sizes))
def test_ncp_synapses(sizes, sparsity_level):
    for seed in SEEDS:
        policy = NCPMap(*sizes, sparsity_level, seed)
        inter, command, motor = policy.layers
        recurrent, sensory = policy.get_recurrent_mask(), policy.get_input_mask()
        inter_command, command_motor = recurrent[np.ix_(inter, command)], recurrent[np.ix_(command, motor)]
        command_command = recurrent[np.ix_(command, command)]
        assert inter_command.sum() + command_motor.sum() + command_command.sum() == policy.synapse_count
        assert sensory[:, inter].sum() == policy.sensory_synapse_count
        assert command_command.sum() == policy.recurrent_command_synapses
        assert (sensory[:, inter].sum(axis=1) >= policy.sensory_fanout).all()
        assert (inter_command.sum(axis=1) >= policy.inter_fanout).all()
        assert (command_motor.sum(axis=0) >= policy.motor_fanin).all()
        for block in (sensory[:, inter], inter_command, command_motor):
            assert block.any(axis=0).all()
            assert block.any(axis=1).all()


def test_ncp_without_forgotten_neurons_has_exact_counts():
    policy = NCPMap(8, 6, 4, 40, sensory_fanout=3, inter_fanout=6, recurrent_command_synapses=5, motor_fanin=6)
    assert (policy.get_input_mask().sum(axis=1) == 3).all()
    assert policy.synapse_count == 8 * 6 + 5 + 6 * 4
    assert policy.sensory_synapse_count == 40 * 3


def test_ncp_forgotten_neurons_get_the_mean_fan_in():
    policy = NCPMap(100, 1, 1, 4, sensory_fanout=50)
    fanin = policy.get_input_mask()[:, policy.layers[0]].sum(axis=0)
    once = NCPMap(100, 1, 1, 4, sensory_fanout=1).get_input_mask()[:, policy.layers[0]].sum(axis=0)
    assert fanin.min() >= 1
    assert 1.9 <= fanin.mean() <= 2.3
    assert (once >= 1).all()


def test_ncp_polarities_are_balanced():
    policy = NCPMap(60, 40, 20, 30)
    signs = policy.adjacency_matrix[policy.adjacency_matrix != 0]
    assert abs(signs.mean()) < 0.1


@pytest.mark.parametrize(
    ("units", "outputs", "sparsity_level", "expected"),
    [
        pytest.param(28, 4, 0.5, (15, 9, 4, 7, 4, 9, 4), id="28-units"),
        pytest.param(19, 7, 0.5, (8, 4, 7, 4, 2, 4, 2), id="19-units"),
        pytest.param(64, 8, 0.75, (34, 22, 8, 8, 5, 11, 5), id="64-units-sparse"),
        pytest.param(4, 1, 0.1, (2, 1, 1, 1, 1, 1, 1), id="smallest"),
        pytest.param(10, 2, 0.9, (5, 3, 2, 1, 1, 1, 1), id="sparsest"),
    ],
)
def test_auto_ncp_sizes(units, outputs, sparsity_level, expected):
    policy = AutoNCPMap(units, outputs, sparsity_level)
    sizes = (policy.inter_neurons, policy.command_neurons, policy.motor_neurons)
    fanouts = (policy.sensory_fanout, policy.inter_fanout, policy.recurrent_command_synapses, policy.motor_fanin)
    assert sizes + fanouts == expected
    assert policy.units == units


# Subclasses


def test_subclass_with_one_hook_gets_every_sensory_synapse():
    chain = ChainMap(4, input_dim=2, steps=(1, 2))
    assert chain.synapse_count == 5
    assert chain.get_input_mask().all()


def test_subclass_is_registered_and_keeps_its_arguments():
    chain = ChainMap(4, 1, 2, steps=(1, 3))
    chain.add_synapse(3, 0, -1)
    again = through_json(chain)
    assert again == chain
    assert list(again.steps) == [1, 3]


def test_subclass_with_keyword_arguments_of_its_base():
    chain = LongChainMap(input_dim=2, steps=(5,))
    assert chain.get_config()["steps"] == [5]
    assert through_json(chain) == chain


def test_the_last_class_of_a_name_wins():
    first = type("TwiceMap", (NeuronMap,), {})
    second = type("TwiceMap", (NeuronMap,), {})
    assert type(through_json(first(2))) is second


def test_a_config_without_matrices_is_made_from_the_seed():
    assert map_from_config({"class": "RandomMap", "config": {"units": 5, "seed": 4}}) == RandomMap(5, seed=4)


def test_numpy_numbers_are_accepted():
    made = RandomMap(np.int32(5), np.int64(2), np.uint8(3), np.float32(0.5), np.int16(1))
    assert made == RandomMap(5, 2, 3, 0.5, 1)
    assert type(made.units) is int
    made.add_synapse(np.int64(0), np.int32(1), np.int8(-1))
    json.dumps(made.get_config())
    NCPMap(np.int64(3), np.int64(2), np.int64(1), np.int64(2), sensory_fanout=np.int64(2))


# Complaints


class WrongShapeMap(NeuronMap):
    def make_synapses(self, rng):
        return np.zeros((2, 3))


class WrongValueMap(NeuronMap):
    def make_synapses(self, rng):
        return np.zeros((self.units, self.units))

    def make_sensory_synapses(self, rng):
        return np.full((self.input_dim, self.units), 2)


class ForgetfulMap(NeuronMap):
    def __init__(self, units, rate=1):
        super().__init__(units)


def built(units=3, inputs=2):
    return NeuronMap(units, input_dim=inputs)


COMPLAINTS = {
    "units-float": (lambda: RandomMap(3.0), TypeError, "[RandomMap] units must be an integer, got 3.0."),
    "units-bool": (lambda: FullyConnectedMap(True), TypeError, "[FullyConnectedMap] units must be an integer, got True."),
    "units-text": (lambda: NeuronMap("3"), TypeError, "[NeuronMap] units must be an integer, got '3'."),
    "units-zero": (lambda: NeuronMap(0), ValueError, "[NeuronMap] units must be at least 1, got 0."),
    "output-negative": (lambda: NeuronMap(3, -1), ValueError, "[NeuronMap] output_dim must be at least 1, got -1."),
    "output-large": (lambda: NeuronMap(3, 4), ValueError, "[NeuronMap] output_dim must be at most units = 3, got 4."),
    "input-zero": (lambda: NeuronMap(3, input_dim=0), ValueError, "[NeuronMap] input_dim must be at least 1, got 0."),
    "seed-float": (lambda: RandomMap(3, seed=0.5), TypeError, "[RandomMap] seed must be an integer, got 0.5."),
    "seed-negative": (lambda: RandomMap(3, seed=-1), ValueError, "[RandomMap] seed must be at least 0, got -1."),
    "sparsity-one": (lambda: RandomMap(3, sparsity_level=1), ValueError, "[RandomMap] sparsity_level must be in [0, 1), got 1."),
    "sparsity-negative": (lambda: NCPMap(1, 1, 1, sparsity_level=-0.1), ValueError, "[NCPMap] sparsity_level must be in [0, 1), got -0.1."),
    "sparsity-nan": (lambda: RandomMap(3, sparsity_level=np.nan), ValueError, "[RandomMap] sparsity_level must be in [0, 1), got nan."),
    "sparsity-bool": (lambda: RandomMap(3, sparsity_level=False), TypeError, "[RandomMap] sparsity_level must be a number, got False."),
    "sparsity-none": (lambda: RandomMap(3, sparsity_level=None), TypeError, "[RandomMap] sparsity_level must be a number, got None."),
    "fraction-large": (
        lambda: FullyConnectedMap(3, excitatory_fraction=1.5),
        ValueError,
        "[FullyConnectedMap] excitatory_fraction must be in [0, 1], got 1.5.",
    ),
    "self-connections-int": (
        lambda: FullyConnectedMap(3, self_connections=1),
        TypeError,
        "[FullyConnectedMap] self_connections must be True or False, got 1.",
    ),
    "matrix-shape": (
        lambda: NeuronMap(2, adjacency_matrix=np.zeros((2, 3))),
        ValueError,
        "[NeuronMap] adjacency_matrix must have shape (2, 2), got (2, 3).",
    ),
    "matrix-value": (
        lambda: NeuronMap(2, adjacency_matrix=[[0, 2], [0, 0]]),
        ValueError,
        "[NeuronMap] adjacency_matrix must hold only -1, 0 and +1, got 2.",
    ),
    "matrix-bool": (
        lambda: NeuronMap(1, adjacency_matrix=[[True]]),
        TypeError,
        "[NeuronMap] adjacency_matrix must hold numbers, got bool.",
    ),
    "matrix-ragged": (
        lambda: NeuronMap(2, adjacency_matrix=[[1, 0], [1]]),
        ValueError,
        "[NeuronMap] adjacency_matrix must have rows of equal length, got [[1, 0], [1]].",
    ),
    "sensory-shape": (
        lambda: NeuronMap(2, sensory_adjacency_matrix=[1, 0]),
        ValueError,
        "[NeuronMap] sensory_adjacency_matrix must have shape (inputs, 2), got (2,).",
    ),
    "sensory-empty": (
        lambda: NeuronMap(2, sensory_adjacency_matrix=np.zeros((0, 2))),
        ValueError,
        "[NeuronMap] sensory_adjacency_matrix must have shape (inputs, 2), got (0, 2).",
    ),
    "sensory-rows": (
        lambda: NeuronMap(2, input_dim=3, sensory_adjacency_matrix=[[1, 0]]),
        ValueError,
        "[NeuronMap] sensory_adjacency_matrix must have shape (3, 2), got (1, 2).",
    ),
    "layers-missing": (
        lambda: NeuronMap(3, layers=[[0], [1]]),
        ValueError,
        "[NeuronMap] layers must hold each of the ids 0 ... 2 exactly once, got [[0], [1]].",
    ),
    "layers-float": (
        lambda: NeuronMap(2, layers=[[0.0, 1.0]]),
        TypeError,
        "[NeuronMap] layers must hold one list of integer neuron ids per layer, got [[0.0, 1.0]].",
    ),
    "layers-empty": (
        lambda: NeuronMap(1, layers=[]),
        ValueError,
        "[NeuronMap] layers must hold each of the ids 0 ... 0 exactly once, got [].",
    ),
    "layers-number": (lambda: NeuronMap(2, layers=3), TypeError, "[NeuronMap] layers must be a list of lists of neuron ids, got 3."),
    "layers-ragged": (
        lambda: NeuronMap(3, layers=[[[0], [1, 2]]]),
        ValueError,
        "[NeuronMap] layers[0] must have rows of equal length, got [[0], [1, 2]].",
    ),
    "layer-names-number": (
        lambda: NeuronMap(2, layers=[[0], [1]], layer_names=3),
        TypeError,
        "[NeuronMap] layer_names must be a list of str, one per layer, got 3.",
    ),
    "layer-names-text": (
        lambda: NeuronMap(2, layers=[[0], [1]], layer_names="ab"),
        TypeError,
        "[NeuronMap] layer_names must be a list of str, one per layer, got 'ab'.",
    ),
    "enhanced-unknown": (
        lambda: EnhancedNCPMap(4, 3, 2, foo=1),
        TypeError,
        "EnhancedNCPMap.__init__() got an unexpected keyword argument 'foo'",
    ),
    "config-text": (
        lambda: NeuronMap.from_config("NCP"),
        TypeError,
        "[NeuronMap] config must be a dict, as get_config returns it, got 'NCP'.",
    ),
    "units-large": (
        lambda: NeuronMap(10**9),
        ValueError,
        "[NeuronMap] units must need no array of more than 2147483647 elements, got one of shape (1000000000, 1000000000).",
    ),
    "inputs-large": (
        lambda: NeuronMap(4).build(10**11),
        ValueError,
        "[NeuronMap] input_dim must need no array of more than 2147483647 elements, got one of shape (100000000000, 4).",
    ),
    "policy-large": (
        lambda: AutoNCPMap(10**10, 3),
        ValueError,
        "[AutoNCPMap] inter_neurons + command_neurons + motor_neurons must need no array of more than 2147483647 elements, got one of "
        "shape (10000000000, 10000000000).",
    ),
    "layer-names-alone": (lambda: NeuronMap(1, layer_names=["a"]), ValueError, "[NeuronMap] layer_names must come with layers, got ['a']."),
    "layer-names-count": (
        lambda: NeuronMap(2, layers=[[0], [1]], layer_names=["a"]),
        ValueError,
        "[NeuronMap] layer_names must hold 2 names, got ['a'].",
    ),
    "build-again": (lambda: built().build(3), ValueError, "[NeuronMap] input_dim must be 2, with which this map was built, got 3."),
    "build-float": (lambda: NeuronMap(2).build(2.0), TypeError, "[NeuronMap] input_dim must be an integer, got 2.0."),
    "unbuilt-matrix": (
        lambda: RandomMap(2).sensory_adjacency_matrix,
        ValueError,
        "[RandomMap] sensory synapses must follow build(input_dim), got an unbuilt map.",
    ),
    "unbuilt-mask": (
        lambda: RandomMap(2).get_input_mask(),
        ValueError,
        "[RandomMap] sensory synapses must follow build(input_dim), got an unbuilt map.",
    ),
    "unbuilt-add": (
        lambda: NeuronMap(2).add_sensory_synapse(0, 0, 1),
        ValueError,
        "[NeuronMap] sensory synapses must follow build(input_dim), got an unbuilt map.",
    ),
    "source-large": (lambda: built().add_synapse(3, 0, 1), ValueError, "[NeuronMap] source must be in 0 ... 2, got 3."),
    "source-negative": (lambda: built().add_synapse(-1, 0, 1), ValueError, "[NeuronMap] source must be in 0 ... 2, got -1."),
    "source-input": (lambda: built().add_sensory_synapse(2, 0, 1), ValueError, "[NeuronMap] source must be in 0 ... 1, got 2."),
    "target-float": (lambda: built().add_synapse(0, 1.0, 1), TypeError, "[NeuronMap] target must be an integer, got 1.0."),
    "target-large": (lambda: built().add_sensory_synapse(0, 3, 1), ValueError, "[NeuronMap] target must be in 0 ... 2, got 3."),
    "polarity-zero": (lambda: built().add_synapse(0, 1, 0), ValueError, "[NeuronMap] polarity must be -1 or +1, got 0."),
    "polarity-bool": (lambda: built().add_synapse(0, 1, True), TypeError, "[NeuronMap] polarity must be an integer, got True."),
    "inter-zero": (lambda: NCPMap(0, 1, 1), ValueError, "[NCPMap] inter_neurons must be at least 1, got 0."),
    "command-float": (lambda: NCPMap(1, 1.5, 1), TypeError, "[NCPMap] command_neurons must be an integer, got 1.5."),
    "motor-negative": (lambda: NCPMap(1, 1, -2), ValueError, "[NCPMap] motor_neurons must be at least 1, got -2."),
    "sensory-zero": (lambda: NCPMap(1, 1, 1, 0), ValueError, "[NCPMap] sensory_neurons must be at least 1, got 0."),
    "sensory-fanout": (
        lambda: NCPMap(3, 2, 1, sensory_fanout=4),
        ValueError,
        "[NCPMap] sensory_fanout must be at most inter_neurons = 3, got 4.",
    ),
    "inter-fanout": (
        lambda: NCPMap(3, 2, 1, inter_fanout=3),
        ValueError,
        "[NCPMap] inter_fanout must be at most command_neurons = 2, got 3.",
    ),
    "recurrent": (
        lambda: NCPMap(3, 2, 1, recurrent_command_synapses=5),
        ValueError,
        "[NCPMap] recurrent_command_synapses must be at most command_neurons² = 4, got 5.",
    ),
    "motor-fanin": (
        lambda: NCPMap(3, 2, 1, motor_fanin=3),
        ValueError,
        "[NCPMap] motor_fanin must be at most command_neurons = 2, got 3.",
    ),
    "motor-fanin-zero": (lambda: NCPMap(3, 2, 1, motor_fanin=0), ValueError, "[NCPMap] motor_fanin must be at least 1, got 0."),
    "auto-output": (lambda: AutoNCPMap(8, 6), ValueError, "[AutoNCPMap] output_size must be below units - 2 = 6, got 6."),
    "auto-dense": (lambda: AutoNCPMap(8, 2, 0.05), ValueError, "[AutoNCPMap] sparsity_level must be in [0.1, 0.9], got 0.05."),
    "auto-sparse": (lambda: AutoNCPMap(8, 2, 0.95), ValueError, "[AutoNCPMap] sparsity_level must be in [0.1, 0.9], got 0.95."),
    "auto-input": (lambda: AutoNCPMap(8, 2, input_dim=0), ValueError, "[AutoNCPMap] input_dim must be at least 1, got 0."),
    "hook-shape": (
        lambda: WrongShapeMap(2).adjacency_matrix,
        ValueError,
        "[WrongShapeMap] make_synapses() must have shape (2, 2), got (2, 3).",
    ),
    "hook-value": (
        lambda: WrongValueMap(2, input_dim=1).sensory_adjacency_matrix,
        ValueError,
        "[WrongValueMap] make_sensory_synapses() must hold only -1, 0 and +1, got 2.",
    ),
    "forgotten-argument": (
        lambda: ForgetfulMap(2).get_config(),
        ValueError,
        "[ForgetfulMap] rate must be stored as an attribute, like every constructor argument, got none.",
    ),
}


@pytest.mark.parametrize(("wrong", "kind", "message"), COMPLAINTS.values(), ids=COMPLAINTS.keys())
def test_complaints(wrong, kind, message):
    with pytest.raises(kind) as caught:
        wrong()
    assert type(caught.value) is kind
    assert str(caught.value) == message


def test_an_unknown_class_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"^\[map_from_config\] class must be one of .*NCPMap.*, got 'NoMap'\.$"):
        map_from_config({"class": "NoMap", "config": {}})


def test_sizes_cannot_be_set():
    with pytest.raises(AttributeError):
        NeuronMap(2).units = 3


def test_import_needs_neither_mlx_nor_matplotlib():
    code = (
        "import sys; sys.modules['mlx'] = sys.modules['matplotlib'] = sys.modules['networkx'] = None; "
        "from ember_mlx.wiring import NCPMap; NCPMap(3, 2, 1, 2).synapse_count"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
