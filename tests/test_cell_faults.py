"""Unusual but legal steps of cells, each of which some form once computed wrongly or not at all."""

import time
from typing import ClassVar

import numpy as np
import pytest

from ember_mlx import step
from ember_mlx.scans.cell.random_cases import random_arrays
from ember_mlx.scans.cell.reference import cell_backward, cell_forward
from ember_mlx.step import evaluation
from ember_mlx.step.cell import Cell, Parameter
from ember_mlx.step.saved import cell_from_config, cell_to_config
from ember_mlx.testing import check_cell

from .metal_host import metal_kernel
from .test_cell_kernels import TILES, compare
from .test_kernels import kernels_on, on_host


class ResultIsState(Cell):
    """A product's result is a state, beside its gate."""

    states = ("h", "q")
    h_products: ClassVar = {"V": 1}

    def step(self, x, h, V):
        q = V(h)
        return step.sigmoid(x + q), q


class InputIsState(Cell):
    """An x is a state, beside its gate."""

    states = ("h", "last")
    h_products: ClassVar = {"V": 1}

    def step(self, x, h, V):
        return step.sigmoid(x + V(h)), x


class ResultIsArgument(Cell):
    """A product's result goes to another product, beside its gate."""

    h_products: ClassVar = {"V": 1, "W": 1}

    def step(self, x, h, V, W):
        q = V(h)
        return step.sigmoid(x + q) + W(q)


class InputIsArgument(Cell):
    """An x goes to a product, beside its gate."""

    h_products: ClassVar = {"V": 1, "W": 1}

    def step(self, x, h, V, W):
        return step.sigmoid(x + V(h)) + W(x)


class SmallConditions(Cell):
    """Conditions of time, of parameters, and of numbers choose between whole values."""

    parameters: ClassVar = {"a": (0.1, 0.4), "b": (0.1, 0.4)}

    def step(self, x, h, dt, a, b):
        return step.where(dt > 0.5, 0.9 * h, x + h) + step.where(a > b, x, 0.3 * h) + step.where(0 * h + 1 > 0.5, h, x)


class XZero(Cell):
    """A parameter and a state have the names that the values of x once had."""

    states = ("x1",)
    x_products = 2
    parameters: ClassVar = {"x0": (0.1, 0.4)}

    def step(self, x, x0, x1):
        return x[0] * x0 + 0.5 * x1 * step.tanh(x[1])


class OnlyCompared(Cell):
    """No gradient for x, and no product."""

    def step(self, x, h):
        return step.where(x > 0, 0.9, 0.5) * h


class OfNumbers(Cell):
    """Functions of numbers, where there is no parameter."""

    def __init__(self, coupling=0.0):
        self.coupling = coupling

    def step(self, x, h):
        return step.exp(self.coupling * h + 0.5) * x + 0.3 * step.sqrt(self.coupling * x + 4) * step.cos(self.coupling * h) * h


CELLS = [ResultIsState, InputIsState, ResultIsArgument, InputIsArgument, SmallConditions, XZero, OnlyCompared, OfNumbers]
by_name = pytest.mark.parametrize("cell", CELLS, ids=[cell.__name__ for cell in CELLS])


@by_name
def test_a_form_computes_what_the_step_says(cell):
    check_cell(cell, backends=["numpy", "ops"])


@on_host
@pytest.mark.parametrize("tile", ["resident", "by-step"])
@by_name
def test_and_so_do_kernels(cell, tile):
    spec = cell().definition
    with kernels_on("host", TILES[tile], metal_kernel) as kind:
        compare(kind, spec, random_arrays(spec, 2, 3, 2, 5, lengths=True))


def test_cells_that_share_a_plan_need_not_share_nodes():
    """Of two equal steps one has nodes that it does not use, and the derivative's come after those."""

    def made(more):
        class Decaying(Cell):
            parameters: ClassVar = {"rate": 0.3}

            def step(self, x, h, dt, rate):
                after = step.tanh(x + h * step.exp(-rate * step.sin(rate)) * step.log1p(dt))
                if more:
                    step.exp(step.tanh(step.sin(h) * 2))
                return after

        return Decaying().definition

    first, second = made(True), made(False)
    assert first == second
    arrays, results = random_arrays(first, 1, 3, 2, 4, lengths=False), []
    for spec in (first, second):
        evaluation._order.cache_clear()
        outputs = cell_forward(spec, arrays)
        results.append([*outputs, cell_backward(spec, arrays, outputs, outputs)["parameters"]["rate"]])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_shared_parameter_makes_another_step():
    def made(shared):
        class Scaled(Cell):
            parameters: ClassVar = {"scale": Parameter(0.5, shared=shared)}

            def step(self, x, h, scale):
                return scale * (x + h)

        return Scaled().definition

    assert made(False) == made(False)
    assert made(False) != made(True)


class Doubling(Cell):
    """Written out, its state has 3 ** 60 names."""

    h_products: ClassVar = {"V": 1, "W": 1}

    def step(self, x, h, V, W):
        for _ in range(60):
            h = h + step.tanh(h * h + x)
        W(h)
        return h + V(h)


class Long(Cell):
    """Time alone is no state; as text it is as long."""

    def step(self, x, h, dt):
        for _ in range(60):
            dt = dt + step.tanh(dt * dt)
        return dt


@pytest.mark.parametrize("cell", [Doubling, Long])
def test_messages_about_long_steps_are_short_and_come_at_once(cell):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"^\[{cell.__name__}\] ") as caught:
        cell().definition  # noqa: B018
    assert len(str(caught.value)) < 1000
    assert time.perf_counter() - start < 5


class Tiny(Cell):
    """Its derivative has a number that no float is."""

    def step(self, x, h):
        return h / 1e-320 + x


class OfComparison(Cell):
    """A product takes numbers."""

    h_products: ClassVar = {"V": 1}

    def step(self, x, h, V):
        return V(h > 0) + x


class StepSetting(Cell):
    """A setting that hides the step."""

    def __init__(self, step=2):
        self.step = step

    def step(self, x, h):
        return x + h


class Called(Cell):
    """A step that is no function."""

    class Step:
        def __call__(self, x, h):
            return x + h

    step = Step()


@pytest.mark.parametrize(
    ("cell", "error", "words"),
    [
        (Tiny, ValueError, "step must have a derivative"),
        (OfComparison, ValueError, "V takes numbers, got a comparison"),
        (StepSetting, TypeError, "step must be a function; a setting has another name, got 2"),
        (Called, TypeError, "step must be a function"),
    ],
)
def test_what_cannot_be_names_the_cell(cell, error, words):
    with pytest.raises(error, match=rf"^\[{cell.__name__}\] .*{words}"):
        cell().definition  # noqa: B018


def test_of_two_classes_with_one_name_none_is_guessed():
    def made(factor):
        class Namesake(Cell):
            def step(self, x, h):
                return x + factor * h

        Namesake.__qualname__ = f"Namesake{factor}"
        return Namesake

    first, second = made(0.5), made(0.25)
    config = cell_to_config(first())
    assert type(cell_from_config("load", config, [first])) is first
    with pytest.raises(ValueError, match=r"\[load\] classes must have one Namesake, got .*Namesake0.25, .*Namesake0.5\."):
        cell_from_config("load", config, [first, second])
