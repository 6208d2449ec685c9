"""Initial values of weights and biases."""

import math

import mlx.core as mx


def glorot_uniform(outputs: int, inputs: int, blocks: int = 1) -> mx.array:
    """(blocks * outputs, inputs): `blocks` weights stacked by rows, each uniform in +-sqrt(6 / (inputs + outputs)).

    Source: Glorot and Bengio, AISTATS 2010.
    """
    bound = math.sqrt(6 / (inputs + outputs))
    return mx.random.uniform(-bound, bound, (blocks * outputs, inputs))


def uniform(shape: tuple[int, ...], fan_in: int) -> mx.array:
    """Uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return mx.random.uniform(-bound, bound, shape)


def uniform_bias(size: int, fan_in: int) -> mx.array:
    """(size,), uniform in +-1/sqrt(fan_in)."""
    return uniform((size,), fan_in)
