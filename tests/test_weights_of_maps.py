"""Weights identify their map, and cannot be loaded for another one."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.optimizers import Adam, clip_grad_norm
from mlx.utils import tree_flatten

from ember_mlx import LTC, Bidirectional, CfC, CTRQNet, LQNet, NCPMap, RandomMap, StrideAware

LAYERS = {
    "cfc": lambda neuron_map: CfC(neuron_map),
    "ltc": lambda neuron_map: LTC(neuron_map),
    "lqnet": lambda neuron_map: LQNet(neuron_map),
    "ctrqnet": lambda neuron_map: CTRQNet(neuron_map),
    "strides": lambda neuron_map: StrideAware(LTC(neuron_map), [1, 2]),
    "both": lambda neuron_map: Bidirectional(CfC(neuron_map)),
    "in-a-model": lambda neuron_map: nn.Sequential(CfC(neuron_map), nn.Linear(9, 2)),
}
MAPS = {
    "random": lambda seed: RandomMap(9, 3, 4, seed=seed),
    "ncp": lambda seed: NCPMap(4, 3, 2, 4, seed=seed),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)
every_map = pytest.mark.parametrize("maps", MAPS)
X = mx.random.normal((2, 5, 4), key=mx.random.key(0))


@every_layer
@every_map
@pytest.mark.parametrize("strict", [True, False])
def test_saved_weights_load_only_onto_their_map(kind, maps, strict, tmp_path):
    path = str(tmp_path / "weights.safetensors")
    layer, same, other = (LAYERS[kind](MAPS[maps](seed)).eval() for seed in (1, 1, 2))
    layer.save_weights(path)
    same.load_weights(path, strict=strict)
    assert mx.array_equal(same(X), layer(X))
    if strict:
        with pytest.raises(ValueError, match="map_id"):
            other.load_weights(path)
    else:  # mlx.nn looks at no shape then: the next call does
        other.load_weights(path, strict=False)
        with pytest.raises(ValueError, match=r"the weights must be those of a layer on the same neuron map, got a .*map_id of another map"):
            other(X)


@every_layer
def test_update_with_weights_of_another_map_is_refused(kind):
    layer, other = (LAYERS[kind](RandomMap(9, 3, 4, seed=seed)) for seed in (1, 2))
    other.update(layer.parameters())
    with pytest.raises(ValueError, match="same neuron map"):
        other(X)


@every_layer
def test_the_map_is_told_by_its_synapses_not_by_their_polarity(kind):
    def explicit(polarity):
        neuron_map = RandomMap(9, 3, 4, seed=1)
        sources, targets = neuron_map.adjacency_matrix.nonzero()
        neuron_map.add_synapse(sources[0], targets[0], polarity)
        return LAYERS[kind](neuron_map)

    a, b = explicit(1), explicit(-1)
    b.update(a.parameters())
    b(X)


def test_a_fully_connected_map_needs_no_id():
    for layer in (CfC(5, 4), LTC(5, 4), LQNet(5, input_size=4), CTRQNet(5, input_size=4)):
        assert not [path for path, _ in tree_flatten(layer.parameters()) if "map_id" in path]


@every_layer
def test_training_leaves_the_id_alone(kind):
    model = LAYERS[kind](RandomMap(9, 3, 4, seed=1))
    model.freeze()
    model.unfreeze()  # of what holds the layer: mlx.nn then unfreezes the id too
    shapes = {path: a.shape for path, a in tree_flatten(model.parameters())}
    optimizer = Adam(1e-2, bias_correction=True)
    before = model(X)
    for _ in range(2):
        loss, gradients = nn.value_and_grad(model, lambda m: m(X).square().mean())(model)
        optimizer.update(model, clip_grad_norm(gradients, 1.0)[0])
        mx.eval(model.parameters(), optimizer.state, loss)
    assert {path: a.shape for path, a in tree_flatten(model.parameters())} == shapes
    assert not mx.array_equal(model(X), before)
    model.set_dtype(mx.bfloat16)
    assert model(X.astype(mx.bfloat16)).dtype == mx.bfloat16
