"""Neuron maps with coordinates, and their wiring cost."""

import copy
import json
import pickle

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from matplotlib.figure import Figure
from mlx.utils import tree_flatten

from ember_mlx import (
    GRU,
    LTC,
    Bidirectional,
    CfC,
    CTRQNet,
    EnhancedNCPMap,
    EnhancedNeuronMap,
    LQNet,
    NCPMap,
    RandomMap,
    StrideAware,
    spatial_regularization,
)
from ember_mlx.wiring import communicability, map_from_config, map_to_config

POINTS = np.random.default_rng(0).standard_normal((12, 3))
MAPS = {
    "grid": lambda: EnhancedNeuronMap(30, 4, 5, 0.8, 3, network_structure=(4, 4, 2), distance_metric="manhattan"),
    "points": lambda: EnhancedNeuronMap(12, 2, 3, coordinates=POINTS, distance_metric="cosine", distance_power=2, neuron_type="ctrqnet"),
    "default": lambda: EnhancedNeuronMap(17, sparsity_level=0.9, neuron_params={"time_scale_factor": 3}),
    "one": lambda: EnhancedNeuronMap(1, input_dim=1, sparsity_level=0.0),
    "ncp": lambda: EnhancedNCPMap(8, 5, 3, 4, seed=2, network_structure=(4, 2, 2)),
    "ncp-fanouts": lambda: EnhancedNCPMap(8, 5, 3, 4, seed=2, inter_fanout=2, motor_fanin=3, distance_metric="chebyshev"),
}


@pytest.fixture(params=MAPS.values(), ids=MAPS.keys())
def neuron_map(request):
    return request.param()


def test_config_and_copies_are_equal(neuron_map):
    config = json.loads(json.dumps(map_to_config(neuron_map)))
    for again in (map_from_config(config), copy.deepcopy(neuron_map), pickle.loads(pickle.dumps(neuron_map))):
        assert again == neuron_map
        assert again.get_config() == neuron_map.get_config()
        assert np.array_equal(again.coordinates, neuron_map.coordinates)
        assert again.get_dynamic_properties() == neuron_map.get_dynamic_properties()
    moved = type(neuron_map).from_config(
        config["config"] | {"network_structure": None, "coordinates": (neuron_map.coordinates + 1).tolist()}
    )
    assert moved != neuron_map


def test_spatial_properties(neuron_map):
    properties = neuron_map.get_spatial_properties()
    assert list(properties) == [
        *("coordinates", "network_structure", "distance_metric", "distance_power", "distance_matrix", "communicability_matrix")
    ]
    assert properties["coordinates"].shape == (neuron_map.units, 3)
    with pytest.raises(ValueError, match="read-only"):
        neuron_map.coordinates[0, 0] = 1
    for name in ("distance_matrix", "communicability_matrix"):
        matrix = properties[name]
        assert matrix.shape == (neuron_map.units, neuron_map.units)
        assert np.isfinite(matrix).all()
        assert (matrix >= 0).all()
        assert np.abs(np.diag(matrix)).max() < 1e-12
    assert np.array_equal(properties["distance_matrix"], properties["distance_matrix"].T)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("euclidean", np.sqrt(14)),
        ("manhattan", 6.0),
        ("chebyshev", 3.0),
    ],
)
def test_distances(metric, expected):
    points = [[1.0, 2, 3], [2.0, 4, 6]]
    distance = EnhancedNeuronMap(2, coordinates=points, distance_metric=metric).distance_matrix[0, 1]
    squared = EnhancedNeuronMap(2, coordinates=points, distance_metric=metric, distance_power=2).distance_matrix[0, 1]
    assert distance == pytest.approx(expected)
    assert squared == pytest.approx(expected**2)


def test_cosine_distance_is_of_directions():
    distance = EnhancedNeuronMap(3, coordinates=[[1, 0, 0], [0, 5, 0], [0, 0.5, 0]], distance_metric="cosine").distance_matrix
    assert distance[0, 1] == pytest.approx(1)
    assert distance[1, 2] == pytest.approx(0, abs=1e-12)


def test_the_grid_is_filled_in_order():
    grid = EnhancedNeuronMap(5, network_structure=(2, 2, 2))
    assert grid.coordinates.tolist() == [[1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [2, 1, 1]]
    assert EnhancedNeuronMap(100).network_structure == (5, 5, 4)
    assert EnhancedNeuronMap(27).network_structure == (3, 3, 3)


@pytest.mark.parametrize("sparsity_level", [0.7, 0.9])
def test_near_neurons_are_joined_more_often(sparsity_level):
    shares = []
    for seed in range(5):
        spatial, plain = (
            make(64, 4, 5, sparsity_level, seed, **options)
            for make, options in ((EnhancedNeuronMap, {"distance_power": 2.0}), (RandomMap, {}))
        )
        distance = spatial.distance_matrix
        assert spatial.synapse_count == plain.synapse_count
        assert spatial.sensory_synapse_count == plain.sensory_synapse_count
        shares.append(distance[spatial.adjacency_matrix != 0].mean() / distance[plain.adjacency_matrix != 0].mean())
        from_others = np.abs(spatial.adjacency_matrix) * (1 - np.eye(64))
        assert (from_others.sum(axis=0) + np.abs(spatial.sensory_adjacency_matrix).sum(axis=0) > 0).all()
    assert max(shares) < 0.8


def test_a_spatial_policy_is_a_policy_of_short_synapses():
    lengths = []
    for seed in range(8):
        spatial = EnhancedNCPMap(20, 12, 6, 5, 0.7, seed, distance_power=3.0)
        plain = NCPMap(20, 12, 6, 5, 0.7, seed)
        assert [ids.tolist() for ids in spatial.layers] == [ids.tolist() for ids in plain.layers]
        distance = spatial.distance_matrix
        lengths.append([distance[m.adjacency_matrix != 0].mean() for m in (spatial, plain)])
        command, motor = np.arange(6, 18), np.arange(6)
        assert np.count_nonzero(spatial.adjacency_matrix[np.ix_(command, command)]) == plain.recurrent_command_synapses
        assert (np.count_nonzero(spatial.adjacency_matrix[np.ix_(command, motor)], axis=0) >= plain.motor_fanin).all()
    assert np.mean(lengths, axis=0)[0] < 0.85 * np.mean(lengths, axis=0)[1]


def test_communicability_is_the_matrix_exponential():
    rng = np.random.default_rng(1)
    for symmetric in (True, False):
        w = rng.random((9, 9)) * (rng.random((9, 9)) < 0.4)
        w = w + w.T if symmetric else w
        strength = (w.sum(0) + w.sum(1)) / 2
        m = w / np.sqrt(np.outer(strength, strength))
        expected = term = np.eye(9)
        for k in range(1, 40):
            term = term @ m / k
            expected = expected + term
        np.fill_diagonal(expected, 0)
        np.testing.assert_allclose(communicability(w), expected, rtol=1e-12, atol=1e-12)
    line = np.diag([1.0, 1.0], k=1)  # 0 -> 1 -> 2: signals travel forwards only, and the last one sends nothing
    paths = communicability(line)
    assert paths[0, 1] > paths[0, 2] > 0
    assert not np.tril(paths).any()
    assert not communicability(np.zeros((3, 3))).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: EnhancedNeuronMap(9, network_structure=(2, 2, 2)),
            "network_structure must have at least units = 9 grid points, got 2 x 2 x 2 = 8.",
        ),
        (lambda: EnhancedNeuronMap(9, network_structure=(3, 3)), "network_structure must be three integers (x, y, z), got (3, 3)."),
        (lambda: EnhancedNeuronMap(9, network_structure=(3, 0, 3)), "network_structure must be at least 1, got 0."),
        (lambda: EnhancedNeuronMap(3, coordinates=np.zeros((2, 3))), "coordinates must have shape (units, 3) = (3, 3), got (2, 3)."),
        (lambda: EnhancedNeuronMap(3, coordinates=np.zeros((3, 2))), "coordinates must have shape (units, 3) = (3, 3), got (3, 2)."),
        (
            lambda: EnhancedNeuronMap(2, coordinates=[[0, 0, 0], [0, 0]]),
            "coordinates must have rows of equal length, got [[0, 0, 0], [0, 0]].",
        ),
        (lambda: EnhancedNeuronMap(1, coordinates=[["a", "b", "c"]]), "coordinates must hold numbers, got <U1."),
        (lambda: EnhancedNeuronMap(1, coordinates=[[0, np.nan, 0]]), "coordinates must be finite, got nan."),
        (
            lambda: EnhancedNeuronMap(2, coordinates=[[0, 0, 0], [0, 0, 1]], distance_metric="cosine"),
            "coordinates must differ from the origin if distance_metric is 'cosine', got [0.0, 0.0, 0.0].",
        ),
        (
            lambda: EnhancedNeuronMap(1, coordinates=[[0, 0, 0]], network_structure=(1, 1, 1)),
            "network_structure must be None if coordinates are given, got (1, 1, 1).",
        ),
        (
            lambda: EnhancedNeuronMap(9, distance_metric="hamming"),
            "distance_metric must be one of 'euclidean', 'manhattan', 'chebyshev', 'cosine', got 'hamming'.",
        ),
        (lambda: EnhancedNeuronMap(9, distance_power=0), "distance_power must be in (0, inf), got 0."),
        (lambda: EnhancedNeuronMap(9, neuron_type=3), "neuron_type must be a str or None, got 3."),
        (lambda: EnhancedNeuronMap(9, neuron_params=[1]), "neuron_params must be a dict or None, got [1]."),
        (lambda: EnhancedNeuronMap(9, neuron_params={"tau": 1}), "neuron_params must have names among 'time_scale_factor', got 'tau'."),
        (
            lambda: EnhancedNeuronMap(9, neuron_params={"time_scale_factor": 0}),
            "neuron_params time_scale_factor must be in (0, inf), got 0.",
        ),
    ],
)
def test_complaints(make, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert str(caught.value) == f"[EnhancedNeuronMap] {message}"


def test_drawing_is_in_three_dimensions(neuron_map, tmp_path):
    figure = neuron_map.draw(tmp_path / "map.png", title="A map in space")
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert axes.name == "3d"
    lines = [c for c in axes.collections if type(c).__name__ == "Line3DCollection"]
    assert sum(len(c.get_colors()) for c in lines) == neuron_map.synapse_count
    places = np.concatenate([np.stack(c._offsets3d, axis=1) for c in axes.collections if type(c).__name__ == "Path3DCollection"])
    assert sorted(map(tuple, places)) == sorted(map(tuple, neuron_map.coordinates))
    assert figure.texts[0].get_text() == "A map in space"
    assert (tmp_path / "map.png").stat().st_size > 10_000
    renderer = figure.canvas.get_renderer()
    box = figure.legends[0].get_window_extent(renderer)
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


LAYERS = {
    "cfc": lambda: CfC(EnhancedNeuronMap(14, 3, 2, 0.6)),
    "cfc-pure": lambda: CfC(EnhancedNeuronMap(14, 3, 2, 0.6), mode="pure"),
    "cfc-ncp": lambda: CfC(EnhancedNCPMap(6, 4, 2, 2)),
    "lqnet": lambda: LQNet(EnhancedNeuronMap(14, 3, 2, 0.6)),
    "ctrqnet-ncp": lambda: CTRQNet(EnhancedNCPMap(6, 4, 2, 2)),
    # one unfold, or a step goes further than from unit to unit; without softplus, which MLX computes in float32 only
    "ltc": lambda: LTC(EnhancedNeuronMap(14, 14, 2, 0.6), ode_unfolds=1, implicit_param_constraints=False),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_recurrent_weights_are_what_joins_the_units(kind):
    """A weight of the matrix is not 0 exactly where moving one unit's state moves another unit in the next step."""
    mx.random.seed(0)
    layer = LAYERS[kind]()
    layer.eval()
    H, names = layer.units, layer.state_names
    joined = np.array(mx.abs(layer.recurrent_weights()).sum(axis=0)) > 0

    def step(state):
        given = state[None] if layer.bare_state else [state[None], *[None] * (len(names) - 1)]
        return layer(mx.zeros((1, 1, 2)), given, return_sequences=False)[0]

    _, jacobian = mx.jvp(mx.vmap(step), [mx.random.normal((1, H)) * mx.ones((H, 1))], [mx.eye(H)])
    moved = np.abs(np.array(jacobian[0])) > 1e-12  # [source, target]
    np.fill_diagonal(moved, False)
    np.fill_diagonal(joined, False)
    if kind == "cfc-ncp":  # its layers act one after another in one step: a motor neuron feels inter neurons through command ones
        assert (moved | ~joined).all()
        for ids in layer.neuron_map.layers:
            assert joined[np.ix_(ids, ids)].sum() == len(ids) * (len(ids) - 1)
        other = np.abs(layer.neuron_map.adjacency_matrix) > 0
        for source, target in zip(layer.neuron_map.layers[:-1], layer.neuron_map.layers[1:], strict=True):
            assert np.array_equal(joined[np.ix_(source, target)], other[np.ix_(source, target)])
    elif isinstance(layer, CfC | LTC):
        assert np.array_equal(joined, moved)
    else:  # rotation and relaxation follow each other in one step
        assert (moved | ~joined).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_cost_is_strength_times_length_times_communicability(kind):
    mx.random.seed(1)
    layer = LAYERS[kind]()
    strengths = np.abs(np.array(layer.recurrent_weights(), np.float64)).mean(axis=0)
    expected = (strengths * layer.neuron_map.distance_matrix * communicability(strengths)).sum()
    assert spatial_regularization(layer).item() == pytest.approx(expected, rel=1e-5)


def test_a_layer_made_of_layers_costs_what_they_cost():
    layer = Bidirectional(StrideAware(CfC(EnhancedNeuronMap(8, input_dim=3)), [1, 2]))
    parts = [*layer.forward_layer.layers, *layer.backward_layer.layers]
    expected = sum(spatial_regularization(part).item() for part in parts)
    assert spatial_regularization(layer).item() == pytest.approx(expected, rel=1e-6)
    gradient = nn.value_and_grad(layer, spatial_regularization)(layer)[1]
    for direction in ("forward_layer", "backward_layer"):
        assert all(any(mx.any(a != 0) for _, a in tree_flatten(part)) for part in gradient[direction]["layers"])
    with pytest.raises(TypeError, match=r"\[spatial_regularization\] layer must be a layer on a neuron map, got ember_mlx.+GRU"):
        spatial_regularization(Bidirectional(GRU(3, 4)))


@pytest.mark.parametrize("kind", LAYERS)
def test_slope_of_the_cost_is_the_finite_difference(kind):
    mx.random.seed(1)
    layer = LAYERS[kind]()
    holder, name = (layer.stages[0].heads, "weight") if isinstance(layer, CfC) else (layer, "w" if isinstance(layer, LTC) else "R")
    with mx.stream(mx.cpu):
        layer.set_dtype(mx.float64)
        before = holder[name]
        direction = mx.random.normal(before.shape).astype(mx.float64)

        def cost(step):
            holder[name] = before + step * direction
            return spatial_regularization(layer)

        slope = mx.grad(cost)(mx.array(0.0, mx.float64)).item()
        expected = (cost(mx.array(1e-6, mx.float64)).item() - cost(mx.array(-1e-6, mx.float64)).item()) / 2e-6
    assert abs(slope) > 0.01
    assert slope == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_cost_can_be_descended(kind):
    layer = LAYERS[kind]()
    gradient, optimizer, values = nn.value_and_grad(layer, spatial_regularization), optim.SGD(2e-2), []
    for _ in range(60):
        value, gradients = gradient(layer)
        optimizer.update(layer, gradients)
        mx.eval(layer.parameters())
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]
