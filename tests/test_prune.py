"""Pruned LTC layers and maps."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from ember_mlx import LTC, NCPMap, NeuronMap, RandomMap, load, save

I, T, B = 3, 6, 4
LAYERS = {
    "full": lambda: LTC(8, I, ode_unfolds=2),
    "ncp": lambda: LTC(NCPMap(6, 4, 2, I, seed=1), ode_unfolds=2, output_mapping="linear"),
    "explicit-constraints": lambda: LTC(8, I, ode_unfolds=2, implicit_param_constraints=False),
    "mixed-memory": lambda: LTC(RandomMap(8, 2, I, 0.3, seed=1), mixed_memory=True, solver="explicit"),
}
LEAST = -np.inf  # its softplus is 0


def weights(layer, name):
    w = np.array(layer[name])
    return np.logaddexp(w, 0) if layer.implicit_param_constraints else w


@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_what_the_layer_does_without_those_conductances(name):
    mx.random.seed(4)
    layer = LAYERS[name]()
    threshold = float(np.median(weights(layer, "w")))
    before = dict(tree_flatten(layer.parameters()))
    pruned = layer.prune(threshold)
    assert pruned.neuron_map.synapse_count == (weights(layer, "w") >= threshold).sum() < layer.neuron_map.synapse_count
    assert pruned.neuron_map.sensory_synapse_count == (weights(layer, "sensory_w") >= threshold).sum()
    assert weights(pruned, "w").min() >= threshold
    x, dt = mx.random.normal((B, T, I)), mx.random.uniform(0, 2, (B, T))
    y, state = pruned(x, time_deltas=dt, return_state=True)
    for part in ("w", "sensory_w"):
        zero = LEAST if layer.implicit_param_constraints else 0.0
        layer[part] = mx.where(mx.array(weights(layer, part) >= threshold), layer[part], zero)
    expected, expected_state = layer(x, time_deltas=dt, return_state=True)
    for (_, a), (_, b) in zip(tree_flatten([y, state]), tree_flatten([expected, expected_state]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert all(mx.array_equal(before[key], a).item() for key, a in tree_flatten(layer.parameters()) if key not in ("w", "sensory_w"))


def test_it_can_be_saved_trained_and_pruned_to_nothing(tmp_path):
    layer = LTC(NCPMap(6, 4, 2, I, seed=1)).eval()
    layer.freeze(keys="mu", recurse=False)
    layer.set_dtype(mx.float16)
    pruned = layer.prune(1.1)
    assert not pruned.training
    assert pruned.dtype == mx.float16
    assert pruned.trainable_parameters().keys() == layer.trainable_parameters().keys()
    save(pruned, tmp_path / "layer.safetensors")
    same, x = load(tmp_path / "layer.safetensors"), mx.random.normal((B, T, I))
    assert mx.array_equal(same(x), pruned(x))
    assert pruned.neuron_map.layer_names == layer.neuron_map.layer_names
    nothing = layer.prune(100)
    assert nothing.neuron_map.synapse_count == nothing.neuron_map.sensory_synapse_count == 0
    assert mx.isfinite(nothing(x)).all()
    pruned.load_weights(list(tree_flatten(layer.parameters())), strict=False)
    with pytest.raises(ValueError, match=r"must be those of a layer on the same neuron map|must have shape"):
        pruned(x)


def test_maps():
    neurons = NCPMap(6, 4, 2, I, seed=1)
    keep = np.random.default_rng(0).random((12, 12)) < 0.5
    pruned = neurons.prune(keep)
    assert type(pruned) is NCPMap
    np.testing.assert_array_equal(pruned.adjacency_matrix, neurons.adjacency_matrix * keep)
    np.testing.assert_array_equal(pruned.sensory_adjacency_matrix, neurons.sensory_adjacency_matrix)
    assert neurons.prune() == neurons
    assert NeuronMap(2).prune(np.zeros((2, 2), int)).input_dim is None


FAULTS = {
    "threshold": (lambda: LTC(4, I).prune(0), ValueError, r"\[LTC\] threshold must be in \(0, inf\), got 0"),
    "threshold-type": (lambda: LTC(4, I).prune("a"), TypeError, r"\[LTC\] threshold must be a number, got 'a'"),
    "shape": (lambda: NeuronMap(2).prune([[1]]), ValueError, r"\[NeuronMap\] keep must have shape \(2, 2\), got \(1, 1\)"),
    "numbers": (lambda: NeuronMap(2).prune([[1, 2], [0, 0]]), ValueError, r"\[NeuronMap\] keep must hold bool or 0 and 1, got 2"),
    "type": (lambda: NeuronMap(2).prune(np.ones((2, 2))), TypeError, r"\[NeuronMap\] keep must hold bool or 0 and 1, got float64"),
    "unbuilt": (lambda: NeuronMap(2).prune(None, [[1, 1]]), ValueError, r"sensory synapses must follow build\(input_dim\)"),
}


@pytest.mark.parametrize(("call", "kind", "message"), FAULTS.values(), ids=FAULTS)
def test_what_is_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
