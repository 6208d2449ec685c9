"""The exact text of every error about an argument."""

import mlx.core as mx
import numpy as np
import pytest

from ember_mlx import (
    GRU,
    LTC,
    Bidirectional,
    CfC,
    CTRQNet,
    EnhancedNeuronMap,
    FullyConnectedMap,
    LQNet,
    NCPMap,
    NeuronMap,
    RandomMap,
    spatial_regularization,
)

X = mx.zeros((4, 5, 3))


def layer(**options):
    return CfC(6, 3, **options)


def gap_in_layers():
    return NeuronMap(3, input_dim=1, layers=[[0, 2], [1]], adjacency_matrix=np.zeros((3, 3)), sensory_adjacency_matrix=[[1, 0, 1]])


def skipping_map():
    return NeuronMap(3, layers=[[2], [1], [0]], adjacency_matrix=np.triu(np.ones((3, 3))).T, sensory_adjacency_matrix=[[0, 0, 1]])


CALLS = {
    "x-numpy": (TypeError, lambda: layer()(np.zeros((4, 5, 3))), "[CfC] x must be an mx.array, got numpy.ndarray; mx.array(x) makes one."),
    "x-integer": (TypeError, lambda: layer()(mx.zeros((4, 5, 3), mx.int32)), "[CfC] x must have a floating-point dtype, got int32."),
    "x-rank": (ValueError, lambda: layer()(mx.zeros((3,))), "[CfC] x must have shape (B, T, I), or (T, I) without batch, got (3,)."),
    "x-rank-time-first": (
        ValueError,
        lambda: layer(batch_first=False)(mx.zeros((1, 2, 3, 3))),
        "[CfC] x must have shape (T, B, I), or (T, I) without batch, got (1, 2, 3, 3).",
    ),
    "x-features": (
        ValueError,
        lambda: layer()(mx.zeros((4, 5, 2))),
        "[CfC] x must have I = 3 features on its last axis, got shape (4, 5, 2).",
    ),
    "x-empty": (
        ValueError,
        lambda: layer()(mx.zeros((4, 0, 3))),
        "[CfC] x must have at least one sequence and one step, got shape (4, 0, 3).",
    ),
    "dt-shape": (
        ValueError,
        lambda: layer()(X, time_deltas=mx.ones((5,))),
        "[CfC] time_deltas must have shape (B, T) = (4, 5), (4, 5, 1) or be a scalar, got (5,).",
    ),
    "dt-transposed": (
        ValueError,
        lambda: layer()(X, time_deltas=mx.ones((5, 4))),
        "[CfC] time_deltas must have shape (B, T) = (4, 5), (4, 5, 1) or be a scalar, got (5, 4).",
    ),
    "dt-per-unit": (
        ValueError,
        lambda: layer(batch_first=False)(X, time_deltas=mx.ones((4, 5, 6))),
        "[CfC] time_deltas must have shape (T, B) = (4, 5), (4, 5, 1) or be a scalar, got (4, 5, 6).",
    ),
    "dt-unbatched": (
        ValueError,
        lambda: layer()(X[0], time_deltas=mx.ones((1, 5))),
        "[CfC] time_deltas must have shape (T,) = (5,), (5, 1) or be a scalar, got (1, 5).",
    ),
    "dt-negative": (
        ValueError,
        lambda: layer()(X, time_deltas=mx.ones((4, 5)).at[2, 1].add(-1.5)),
        "[CfC] time_deltas must be finite and not negative, got -0.5 at (2, 1).",
    ),
    "dt-nan": (
        ValueError,
        lambda: layer()(X, time_deltas=mx.ones((4, 5)).at[0, 3].multiply(float("nan"))),
        "[CfC] time_deltas must be finite and not negative, got nan at (0, 3).",
    ),
    "dt-negative-number": (ValueError, lambda: layer()(X, time_deltas=-1), "[CfC] time_deltas must be finite and not negative, got -1."),
    "dt-infinite": (
        ValueError,
        lambda: layer()(X, time_deltas=float("inf")),
        "[CfC] time_deltas must be finite and not negative, got inf.",
    ),
    "dt-infinite-in-float32": (
        ValueError,
        lambda: layer()(X, time_deltas=1e39),
        "[CfC] time_deltas must be at most 3.4e+38, the largest number of x's dtype, got 1e+39.",
    ),
    "dt-beyond-float32": (
        ValueError,
        lambda: layer()(X, time_deltas=mx.full((4, 5), 1e300, mx.float64)),
        "[CfC] time_deltas must be at most 3.4e+38, the largest number of x's dtype, got 1e+300 at (0, 0).",
    ),
    "dt-text": (TypeError, lambda: layer()(X, time_deltas="1"), "[CfC] time_deltas must be an mx.array, got str."),
    "dt-bool": (TypeError, lambda: layer()(X, time_deltas=True), "[CfC] time_deltas must be an mx.array, got bool."),
    "lengths-ragged": (
        ValueError,
        lambda: layer()(X, lengths=[[1], [1, 2], 3, 4]),
        "[CfC] lengths must have rows of equal length, got [[1], [1, 2], 3, 4].",
    ),
    "lengths-text": (TypeError, lambda: layer()(X, lengths=["1", "2", "3", "4"]), "[CfC] lengths must hold integers, got <U1."),
    "lengths-none": (ValueError, lambda: layer()(X, lengths=[]), "[CfC] lengths must have shape (B,) = (4,), got (0,)."),
    "map-too-large": (
        ValueError,
        lambda: LTC(10**12, 3),
        "[LTC] neuron_map must need no array of more than 2147483647 elements, got one of shape (1000000000000, 1000000000000).",
    ),
    "input-too-large": (
        ValueError,
        lambda: LTC(10, 10**9),
        "[LTC] input_size must need no array of more than 2147483647 elements, got one of shape (1000000000, 10).",
    ),
    "hidden-too-large": (
        ValueError,
        lambda: GRU(3, 10**9),
        "[GRU] hidden_size must need no array of more than 2147483647 elements, got one of shape (3000000000, 1000000000).",
    ),
    "layers-too-many": (
        ValueError,
        lambda: GRU(3, 4, 10**9),
        "[GRU] num_layers must need no array of more than 2147483647 elements, got one of shape (1000000000, 12, 4).",
    ),
    "backbone-too-large": (
        ValueError,
        lambda: layer(backbone_layers=10**9),
        "[CfC] backbone_units must need no array of more than 2147483647 elements, got one of shape (1000000000, 128, 128).",
    ),
    "proj-too-large": (
        ValueError,
        lambda: layer(proj_size=10**10),
        "[CfC] proj_size must need no array of more than 2147483647 elements, got one of shape (10000000000, 6).",
    ),
    "config-none": (TypeError, lambda: CfC.from_config(None), "[CfC] config must be a dict, as get_config returns it, got NoneType."),
    "config-empty": (ValueError, lambda: CfC.from_config({}), "[CfC] config must hold 'neuron_map', got nothing."),
    "config-of-another": (
        ValueError,
        lambda: CfC.from_config(LTC(6, 3).get_config()),
        "[CfC] config must hold no other names than neuron_map, input_size, ",
    ),
    "config-bidirectional": (ValueError, lambda: Bidirectional.from_config({}), "[Bidirectional] config must hold 'layer', got nothing."),
    "config-map-text": (
        TypeError,
        lambda: CfC.from_config(layer().get_config() | {"neuron_map": "NCP"}),
        "[map_from_config] a map's description must be a dict, as map_to_config returns it, got 'NCP'.",
    ),
    "config-map-without-class": (
        ValueError,
        lambda: CfC.from_config(layer().get_config() | {"neuron_map": {"config": {}}}),
        "[map_from_config] a map's description must hold 'class', got 'config'.",
    ),
    "mapping-array": (
        ValueError,
        lambda: LTC(6, 3, input_mapping=np.array([1, 2])),
        "[LTC] input_mapping must be 'affine', 'linear' or None, got array([1, 2]).",
    ),
    "dt-integers": (
        TypeError,
        lambda: layer()(X, time_deltas=mx.ones((4, 5), mx.int32)),
        "[CfC] time_deltas must have a floating-point dtype, got int32.",
    ),
    "dt-list": (
        TypeError,
        lambda: layer()(X, time_deltas=[1.0] * 5),
        "[CfC] time_deltas must be an mx.array, got list; mx.array(time_deltas) makes one.",
    ),
    "lengths-range": (ValueError, lambda: layer()(X, lengths=[1, 0, 6, 5]), "[CfC] lengths must lie in 1..T = 1..5, got 0, 6."),
    "lengths-array-range": (
        ValueError,
        lambda: layer()(X, lengths=mx.array([1, 9, 2, 5])),
        "[CfC] lengths must lie in 1..T = 1..5, got 9.",
    ),
    "lengths-shape": (ValueError, lambda: layer()(X, lengths=[1, 2]), "[CfC] lengths must have shape (B,) = (4,), got (2,)."),
    "lengths-float": (TypeError, lambda: layer()(X, lengths=mx.ones((4,))), "[CfC] lengths must hold integers, got float32."),
    "lengths-float-list": (TypeError, lambda: layer()(X, lengths=[1.0, 2.0, 3.0, 4.0]), "[CfC] lengths must hold integers, got float64."),
    "lengths-number": (TypeError, lambda: layer()(X, lengths=3), "[CfC] lengths must be an mx.array or a sequence of integers, got int."),
    "lengths-unbatched": (
        ValueError,
        lambda: layer()(X[0], lengths=[3]),
        "[CfC] lengths must be None where x has no batch axis, got list.",
    ),
    "state-array": (
        TypeError,
        lambda: layer()(X, mx.zeros((4, 6))),
        "[CfC] initial_state must be a list [h, t] of arrays or None, got mlx.core.array.",
    ),
    "state-count": (
        ValueError,
        lambda: layer(mixed_memory=True)(X, [None, None]),
        "[CfC] initial_state must be a list [h, c, t] of arrays or None, got 2 entries.",
    ),
    "state-shape": (
        ValueError,
        lambda: layer()(X, [mx.zeros((4, 5)), None]),
        "[CfC] initial_state h must have shape (B, H) = (4, 6), got (4, 5).",
    ),
    "state-transposed": (
        ValueError,
        lambda: layer()(X, [None, mx.zeros((6, 4))]),
        "[CfC] initial_state t must have shape (B, H) = (4, 6), got (6, 4).",
    ),
    "state-unbatched": (
        ValueError,
        lambda: layer()(X[0], [mx.zeros((1, 6)), None]),
        "[CfC] initial_state h must have shape (H,) = (6,), got (1, 6).",
    ),
    "state-entry": (TypeError, lambda: layer()(X, [0.0, None]), "[CfC] initial_state h must be an mx.array, got float."),
    "return-sequences": (TypeError, lambda: layer()(X, return_sequences=1), "[CfC] return_sequences must be True or False, got 1."),
    "output": (ValueError, lambda: layer()(X, output="all"), "[CfC] output must be one of 'units', 'motor', got 'all'."),
    "output-projected": (
        ValueError,
        lambda: layer(proj_size=2)(X, output="motor"),
        "[CfC] output must be 'units', for which the projection was made, got 'motor'.",
    ),
    "mode": (ValueError, lambda: layer(mode="fast"), "[CfC] mode must be one of 'default', 'no_gate', 'pure', got 'fast'."),
    "activation": (
        ValueError,
        lambda: layer(activation="elu"),
        "[CfC] activation must be one of 'lecun_tanh', 'tanh', 'relu', 'silu', 'gelu', got 'elu'.",
    ),
    "map-type": (TypeError, lambda: CfC("64", 3), "[CfC] neuron_map must be a NeuronMap or an int, got str."),
    "map-zero": (ValueError, lambda: CfC(0, 3), "[CfC] neuron_map must be at least 1, got 0."),
    "map-unbuilt": (
        ValueError,
        lambda: CfC(FullyConnectedMap(6)),
        "[CfC] input_size must be given if neuron_map is not built, got None.",
    ),
    "map-mismatched": (
        ValueError,
        lambda: CfC(FullyConnectedMap(6, input_dim=4), 3),
        "[CfC] input_size must be 4, for which neuron_map is built, got 3.",
    ),
    "map-layer-gap": (
        ValueError,
        lambda: CfC(gap_in_layers()),
        "[CfC] neuron_map must have layers of consecutive neuron ids, got [0, 2].",
    ),
    "map-skipping-synapse": (
        ValueError,
        lambda: CfC(skipping_map()),
        "[CfC] neuron_map must have synapses only from the inputs to its first layer, from each layer to the next, and within a layer, "
        "got 1 others.",
    ),
    "input-size-zero": (ValueError, lambda: CfC(6, 0), "[CfC] input_size must be at least 1, got 0."),
    "input-size-float": (TypeError, lambda: CfC(6, 3.0), "[CfC] input_size must be an integer, got 3.0."),
    "backbone-on-sparse-map": (
        ValueError,
        lambda: CfC(NCPMap(4, 3, 2, 3, seed=1), backbone_layers=1),
        "[CfC] neuron_map must be fully connected and without layers to have a backbone, got NCPMap(units=9, inputs=3",
    ),
    "backbone-on-random-map": (
        ValueError,
        lambda: CfC(RandomMap(9, 3, 3), backbone_units=8),
        "[CfC] neuron_map must be fully connected and without layers to have a backbone, got RandomMap(units=9, inputs=3",
    ),
    "backbone-units": (ValueError, lambda: layer(backbone_units=0), "[CfC] backbone_units must be at least 1, got 0."),
    "backbone-layers": (ValueError, lambda: layer(backbone_layers=-1), "[CfC] backbone_layers must be at least 0, got -1."),
    "dropout": (ValueError, lambda: layer(backbone_dropout=1.5), "[CfC] backbone_dropout must be in [0, 1], got 1.5."),
    "time-scale": (
        ValueError,
        lambda: layer(time_scale_factor=0),
        "[CfC] time_scale_factor must be in (0, inf), got 0.",
    ),
    "time-scale-type": (TypeError, lambda: layer(time_scale_factor="1"), "[CfC] time_scale_factor must be a number, got '1'."),
    "proj-size": (ValueError, lambda: layer(proj_size=0), "[CfC] proj_size must be at least 1, got 0."),
    "mixed-memory": (TypeError, lambda: layer(mixed_memory=1), "[CfC] mixed_memory must be True or False, got 1."),
    "ltc-state-list": (TypeError, lambda: LTC(6, 3)(X, [mx.zeros((4, 6))]), "[LTC] initial_state v must be an mx.array, got list."),
    "ltc-state-shape": (
        ValueError,
        lambda: LTC(6, 3)(X, mx.zeros((4, 5))),
        "[LTC] initial_state v must have shape (B, H) = (4, 6), got (4, 5).",
    ),
    "ltc-state-mixed": (
        TypeError,
        lambda: LTC(6, 3, mixed_memory=True)(X, mx.zeros((4, 6))),
        "[LTC] initial_state must be a list [v, c] of arrays or None, got mlx.core.array.",
    ),
    "ltc-time-constants": (
        ValueError,
        lambda: LTC(6, 3).time_constants(X, time_deltas=mx.ones((5,))),
        "[LTC] time_deltas must have shape (B, T) = (4, 5), (4, 5, 1) or be a scalar, got (5,).",
    ),
    "ltc-solver": (
        ValueError,
        lambda: LTC(6, 3, solver="euler"),
        "[LTC] solver must be one of 'semi_implicit', 'explicit', 'rk4', got 'euler'.",
    ),
    "ltc-mapping": (
        ValueError,
        lambda: LTC(6, 3, input_mapping="none"),
        "[LTC] input_mapping must be 'affine', 'linear' or None, got 'none'.",
    ),
    "ltc-unfolds": (ValueError, lambda: LTC(6, 3, ode_unfolds=0), "[LTC] ode_unfolds must be at least 1, got 0."),
    "ltc-epsilon": (ValueError, lambda: LTC(6, 3, epsilon=-1e-8), "[LTC] epsilon must be in [0, inf), got -1e-08."),
    "batch-first": (TypeError, lambda: layer(batch_first="yes"), "[CfC] batch_first must be True or False, got 'yes'."),
    "nu-0": (ValueError, lambda: LQNet(6, nu_0=-1, input_size=3), "[LQNet] nu_0 must be in [0, inf), got -1."),
    "nu-0-type": (TypeError, lambda: LQNet(6, nu_0="1", input_size=3), "[LQNet] nu_0 must be a number, got '1'."),
    "beta": (ValueError, lambda: LQNet(6, beta=float("nan"), input_size=3), "[LQNet] beta must be in [0, inf), got nan."),
    "noise-scale": (ValueError, lambda: CTRQNet(6, noise_scale=-0.1, input_size=3), "[CTRQNet] noise_scale must be in [0, inf), got -0.1."),
    "time-scale-ctrqnet": (
        ValueError,
        lambda: CTRQNet(6, time_scale_factor=0, input_size=3),
        "[CTRQNet] time_scale_factor must be in (0, inf), got 0.",
    ),
    "harmonic": (
        TypeError,
        lambda: CTRQNet(6, use_harmonic_embedding=1, input_size=3),
        "[CTRQNet] use_harmonic_embedding must be True or False, got 1.",
    ),
    "map-unbuilt-lqnet": (
        ValueError,
        lambda: LQNet(FullyConnectedMap(6)),
        "[LQNet] input_size must be given if neuron_map is not built, got None.",
    ),
    "state-clock": (
        ValueError,
        lambda: LQNet(6, input_size=3)(X, [None, None, mx.zeros((4, 6))]),
        "[LQNet] initial_state t must have shape (B, 1) = (4, 1), got (4, 6).",
    ),
    "state-clock-unbatched": (
        ValueError,
        lambda: LQNet(6, input_size=3)(X[0], [None, None, mx.zeros((1, 1))]),
        "[LQNet] initial_state t must have shape (1,) = (1,), got (1, 1).",
    ),
    "state-count-lqnet": (
        ValueError,
        lambda: LQNet(6, input_size=3)(X, [None, None]),
        "[LQNet] initial_state must be a list [h_c, h_s, t] of arrays or None, got 2 entries.",
    ),
    "key-type": (TypeError, lambda: LQNet(6, input_size=3)(X, key=3), "[LQNet] key must be a key of mx.random.key, got int."),
    "key-array": (
        ValueError,
        lambda: LQNet(6, input_size=3)(X, key=mx.zeros((2,))),
        "[LQNet] key must be a key of mx.random.key, got (2,) of float32.",
    ),
    "key-of-another-layer": (
        TypeError,
        lambda: layer()(X, key=3),
        "[CfC] a call's argument must be one of x, initial_state, time_deltas, lengths, return_sequences, return_state, return_states, "
        "output, got 'key'.",
    ),
    "argument-of-ncps": (
        TypeError,
        lambda: Bidirectional(GRU(3, 4))(X, timespans=mx.ones((4, 5))),
        "[GRU] a call's argument must be one of x, initial_state, time_deltas, lengths, return_sequences, return_state, return_states, "
        "got 'timespans'.",
    ),
    "arguments-as-in-ncps": (
        TypeError,
        lambda: CfC(3, FullyConnectedMap(6)),
        "[CfC] neuron_map must come first, before input_size, got 3.",
    ),
    "spatial-layer": (
        TypeError,
        lambda: spatial_regularization(X),
        "[spatial_regularization] layer must be a layer on a neuron map, got mlx.core.array.",
    ),
    "spatial-map": (
        ValueError,
        lambda: spatial_regularization(LQNet(6, input_size=3)),
        "[spatial_regularization] layer must be on a map with coordinates, such as EnhancedNeuronMap, got a FullyConnectedMap.",
    ),
    "spatial-backbone": (
        ValueError,
        lambda: spatial_regularization(CfC(EnhancedNeuronMap(4, sparsity_level=0.0), 3, backbone_units=5)),
        "[CfC] backbone_layers must be 0 for weights between units, got 1.",
    ),
}


@pytest.mark.parametrize(("kind", "call", "message"), CALLS.values(), ids=CALLS)
def test_message(kind, call, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert type(caught.value) is kind


def test_values_are_not_looked_at_inside_compile():
    """They are not available there; a negative dt then goes into the equations."""
    run = mx.compile(lambda x, dt: layer()(x, time_deltas=dt))
    assert run(X, -mx.ones((4, 5))).shape == (4, 6)


def test_an_unknown_option_is_refused_before_any_work():
    with pytest.raises(TypeError, match="timespans"):
        layer()(None, timespans=1.0)
