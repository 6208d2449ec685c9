"""mx.export_function: every layer's inference, over whole sequences and step by step, imported in another process."""

import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from ember_mlx import use_backend

from .test_predictors import ALL, STEPPED, is_timed, made
from .test_saving import I

B, T = 2, 4
NAMES = [name for name in ALL if name not in ("bfloat16", "float16")]
STEPS = [name for name in STEPPED if name in NAMES]
RUN = """
import sys, numpy as np, mlx.core as mx
for name in open(sys.argv[1] + "/names").read().splitlines():
    folder = sys.argv[1] + "/" + name
    given = [mx.array(a) for a in np.load(folder + ".npz").values()]
    np.savez(folder + ".out.npz", *map(np.array, mx.import_function(folder + ".mlxfn")(*given)))
assert "ember_mlx" not in sys.modules
"""


def whole(name):
    """A function of whole sequences, and arrays for it."""
    module = made(name)
    x = mx.random.normal((B, T, I)) if getattr(module, "batch_first", True) else mx.random.normal((T, B, I))
    if not is_timed(module):
        return lambda x: [a for _, a in tree_flatten([module(x)])], [x]
    return lambda x, dt: [a for _, a in tree_flatten([module(x, time_deltas=dt)])], [x, mx.random.uniform(0, 2, x.shape[:2])]


def step(name):
    """A function of one step and the previous states, and arrays for it, as in docs/deploy.md."""
    module, x, dt = made(name), mx.random.normal((B, I)), mx.random.uniform(0, 2, (B,))
    axis, timed = (1 if module.batch_first else 0), is_timed(module)
    _, state = module(mx.expand_dims(x, axis), return_state=True)
    names, arrays = zip(*tree_flatten(state), strict=True)

    def run(x, dt, *states):
        times = mx.expand_dims(dt, axis) if timed else None
        before = tree_unflatten(list(zip(names, states, strict=True)))
        y, after = module(mx.expand_dims(x, axis), before, times, return_sequences=False, return_state=True)
        return [y, *(a for _, a in tree_flatten(after))]

    return run, [x, dt, *arrays]


def export(folder, name, function, arrays):
    """Export a function and its arrays; returns its results in this process."""
    mx.eval(arrays)
    mx.export_function(f"{folder}/{name}.mlxfn", function, *arrays)
    np.savez(f"{folder}/{name}.npz", *map(np.array, arrays))
    return function(*arrays)


def test_all_are_the_same_in_a_process_without_this_package(tmp_path):
    expected = {}
    for kind, names in ((whole, NAMES), (step, STEPS)):
        for name in names:
            key = f"{kind.__name__} {name}"
            expected[key] = export(tmp_path, key, *kind(name))
    (tmp_path / "names").write_text("\n".join(expected))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], check=True, timeout=120, env=environment, cwd=tmp_path)
    for key, arrays in expected.items():
        with np.load(tmp_path / f"{key}.out.npz") as got:
            assert len(got.files) == len(arrays), key
            for a, b in zip(got.values(), arrays, strict=True):
                np.testing.assert_allclose(a, np.array(b), rtol=0, atol=1e-6 * max(1, np.abs(np.array(b)).max(initial=0)), err_msg=key)


@pytest.mark.parametrize("name", ["gru", "cfc", "cfc sparse", "ltc", "lqnet", "strides", "both ways", "model"])
def test_another_length_is_an_error_and_never_other_numbers(tmp_path, name):
    module = made(name)
    mx.eval(module.parameters())
    path = str(tmp_path / "layer.mlxfn")
    for shapeless, message in ((False, "No imported function found"), (True, "output_shapes|reshape|broadcast|shape")):
        mx.export_function(path, lambda x: module(x), mx.zeros((B, T, I)), shapeless=shapeless)
        with pytest.raises((ValueError, RuntimeError), match=message):
            mx.eval(mx.import_function(path)(mx.zeros((B, T + 1, I))))


def test_several_lengths_in_one_file(tmp_path):
    module = made("cfc")
    mx.eval(module.parameters())
    with mx.exporter(str(tmp_path / "layer.mlxfn"), lambda x: module(x)) as exporter:
        for length in (3, 5):
            exporter(mx.zeros((1, length, I)))
    imported = mx.import_function(str(tmp_path / "layer.mlxfn"))
    for length in (3, 5):
        x = mx.random.normal((1, length, I))
        np.testing.assert_allclose(imported(x)[0], module(x), atol=1e-6)


def test_a_named_backend_says_what_to_do(tmp_path):
    module = made("cfc")
    said = r"no values inside mx\.compile, mx\.vmap and export; use 'auto' or 'ops'"
    with use_backend("numpy"), pytest.raises(RuntimeError, match=said):
        mx.export_function(str(tmp_path / "layer.mlxfn"), lambda x: module(x), mx.zeros((B, T, I)))
