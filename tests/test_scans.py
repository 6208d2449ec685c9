"""Every recurrence of the registry: its NumPy gradient against finite differences, and its forms against the float64 NumPy form."""

import inspect
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import ember_mlx
from ember_mlx.kernels.loader import source_folder
from ember_mlx.scans.dispatch import scan
from ember_mlx.scans.registry import RECURRENCES
from ember_mlx.scans.scratch import Scratch

from .comparisons import assert_close, to_mlx
from .tolerances import FINITE_DIFFERENCE, FORWARD, GRADIENT

CASES = [(name, variant) for name, recurrence in RECURRENCES.items() for variant in recurrence.variants]
SIZES = [(1, 2, 1), (7, 3, 31), (33, 4, 32), (7, 100, 100), (33, 31, 31)]
WITHOUT_GRADIENT = ("lengths", "dropout", "xi")


def cotangents_for(outputs, seed=1):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(a.shape) for a in outputs)


def differentiable(arrays):
    return [path for path, _ in tree_flatten(arrays) if not path.startswith(WITHOUT_GRADIENT)]


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{n}-{v}" for n, v in CASES])
def test_numpy_gradient_is_the_finite_difference(name, variant, lengths):
    recurrence = RECURRENCES[name]
    spec, arrays = recurrence.problem(variant, 6, 4, 5, lengths=lengths)
    outputs = recurrence.forward(spec, arrays)
    dy = cotangents_for(outputs)
    gradients = dict(tree_flatten(recurrence.backward(spec, arrays, outputs, dy)))
    assert sorted(gradients) == sorted(differentiable(arrays))
    rng, leaves = np.random.default_rng(2), dict(tree_flatten(arrays))

    def loss():
        return sum((a * b).sum() for a, b in zip(recurrence.forward(spec, arrays), dy, strict=True))

    for path in differentiable(arrays):
        leaf, before = leaves[path], leaves[path].copy()
        direction = rng.standard_normal(leaf.shape)
        values = []
        for sign in (1, -1):
            leaf[...] = before + sign * 1e-6 * direction
            values.append(loss())
        leaf[...] = before
        expected = (values[0] - values[1]) / 2e-6
        assert_close((gradients[path] * direction).sum(), expected, FINITE_DIFFERENCE, path)


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("size", SIZES, ids=[f"T{t}-B{b}-H{h}" for t, b, h in SIZES])
@pytest.mark.parametrize("backend", ["numpy", "ops"])
@pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{n}-{v}" for n, v in CASES])
def test_float32_agrees_with_float64_numpy(name, variant, backend, size, lengths):
    recurrence = RECURRENCES[name]
    spec, arrays = recurrence.problem(variant, *size, lengths=lengths)
    outputs = recurrence.forward(spec, arrays)
    dy = cotangents_for(outputs)
    expected = dict(tree_flatten(recurrence.backward(spec, arrays, outputs, dy)))
    paths = differentiable(arrays)
    fixed, leaves = to_mlx(arrays), dict(tree_flatten(to_mlx(arrays)))

    def run(*changed):
        values = dict(zip(paths, changed, strict=True))
        position = iter(tree_flatten(fixed))
        return scan(recurrence, spec, tree_map(lambda a: values.get(next(position)[0], a), fixed))

    with ember_mlx.use_backend(backend):
        got, gradients = mx.vjp(run, [leaves[p] for p in paths], [mx.array(a.astype(np.float32)) for a in dy])
        mx.eval(got, gradients)
    for k, (a, b) in enumerate(zip(got, outputs, strict=True)):
        assert_close(a, b, FORWARD["float32"], f"output {k}")
    for path, gradient in zip(paths, gradients, strict=True):
        assert_close(gradient, expected[path], GRADIENT["float32"], path)


def tags_of(*files):
    comments = re.findall(r"(?:#|//)((?: \(\d\),?)+)", "".join(file.read_text() for file in files))
    return set(re.findall(r"\d", "".join(comments)))


def test_forms_carry_the_same_equation_tags():
    folders = {Path(inspect.getfile(recurrence.ops)).parent for recurrence in RECURRENCES.values()}
    for folder in folders:
        if folder.name == "cell":  # all forms are made of one definition
            continue
        ops, kernel, around_it = folder / "ops.py", source_folder() / f"{folder.name}.metal", folder / "fused.py"
        numpy_files = [file for file in folder.glob("*.py") if "import mlx" not in file.read_text()]
        reference, ops, kernel, around_it = (tags_of(*files) for files in (numpy_files, [ops], [kernel], [around_it]))
        assert reference == ops == kernel
        assert set() < around_it <= kernel  # what the kernel's text does alone has no line in Python


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize(("name", "variant"), CASES, ids=[f"{n}-{v}" for n, v in CASES])
def test_what_the_forward_keeps_changes_no_gradient(name, variant, lengths):
    recurrence = RECURRENCES[name]
    spec, arrays = recurrence.problem(variant, 7, 3, 5, lengths=lengths)
    kept = Scratch(np.dtype(np.float64))
    outputs = recurrence.forward(spec, arrays, kept)
    dy = cotangents_for(outputs)
    for _ in range(2):  # it leaves what is kept as it is
        with_kept = dict(tree_flatten(recurrence.backward(spec, arrays, outputs, dy, kept)))
        for path, gradient in tree_flatten(recurrence.backward(spec, arrays, outputs, dy)):
            assert_close(with_kept[path], gradient, GRADIENT["float64"], path)
