"""A forked process can use layers and NumPy forms that its parent has used."""

import multiprocessing
import os
import subprocess
import sys

import pytest

LAYERS = """
import faulthandler, os, sys
import mlx.core as mx, mlx.nn as nn
from ember_mlx import GRU, LTC, CfC, CTRQNet, StrideAwareCfC

layers = [GRU(3, 4), CfC(4, 3), LTC(32, 3, ode_unfolds=2), CTRQNet(4, input_size=3, noise_scale=0.0), StrideAwareCfC(4, [1, 2], 3)]
x = mx.random.normal((64, 5, 3))
mx.eval([layer.parameters() for layer in layers], x)

def losses():
    results = []
    for layer in layers:
        loss, gradients = nn.value_and_grad(layer, lambda m: (m(x) ** 2).mean())(layer)
        compiled = mx.compile(lambda a: layer(a, return_sequences=False))(x)
        mx.eval(loss, gradients, compiled, mx.random.normal((3,)))
        results.append(loss.item())
    return results

def in_child(send, expected):
    faulthandler.dump_traceback_later(60, exit=True)
    send(losses() == expected)

expected = losses()
mx.eval([layer.parameters() for layer in layers])  # nn.value_and_grad leaves copies of those that a loss does not need
mx.random.normal((3,))  # whose key nobody has looked at yet
"""
REFERENCE = """
import faulthandler, os, sys
import numpy as np
from ember_mlx.reference import LTCSpec, Synapses, ltc_backward, ltc_forward

H, I, B, T = 32, 4, 64, 4
numbers = np.random.default_rng(0)
kind = lambda S: {name: numbers.uniform(0.1, 1, S).astype(np.float32) for name in ("w", "sigma", "mu", "erev")}
spec = LTCSpec(Synapses(np.ones((H, H))), Synapses(np.ones((I, H))))
arrays = {"u": numbers.standard_normal((T, B, I)).astype(np.float32), "dt": np.ones((T, B), np.float32), "v0": np.zeros((B, H), np.float32)}
arrays |= {"synapses": kind(H * H), "sensory": kind(H * I)} | {name: np.ones(H, np.float32) for name in ("gleak", "vleak", "cm")}

def losses():
    (v,) = ltc_forward(spec, arrays)
    return [float(v.sum()), float(ltc_backward(spec, arrays, (v,), (v,))["v0"].sum())]

def in_child(send, expected):
    faulthandler.dump_traceback_later(60, exit=True)
    send(losses() == expected)

expected = losses()
assert "mlx" not in sys.modules
"""
BY_OS_FORK = """
child = os.fork()
if child == 0:
    in_child(lambda same: os._exit(0 if same else 3), expected)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert losses() == expected
"""
BY_MULTIPROCESSING = """
import multiprocessing
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=in_child, args=(queue.put, expected))
process.start()
process.join()
assert process.exitcode == 0
assert queue.get(timeout=10)
assert losses() == expected
"""

needs_fork = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork on this platform")
on_linux = pytest.mark.skipif(sys.platform == "darwin", reason="macOS's own libraries do not survive a fork")


@needs_fork
@on_linux
@pytest.mark.parametrize("how", [BY_OS_FORK, BY_MULTIPROCESSING], ids=["os.fork", "multiprocessing"])
@pytest.mark.parametrize("what", [LAYERS, REFERENCE], ids=["layers", "reference"])
def test_a_child_computes_what_its_parent_did(what, how):
    result = subprocess.run([sys.executable, "-c", what + how], capture_output=True, text=True, timeout=300, env=os.environ)
    assert result.returncode == 0, result.stderr


def test_at_exit():
    script = "import atexit, mlx.core as mx, ember_mlx\n"
    script += "ltc, x = ember_mlx.LTC(32, 4), mx.random.normal((64, 3, 4))\n"
    script += "before = ltc(x).tolist()\n"
    script += "atexit.register(lambda: print(ltc(x).tolist() == before))\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "True", "")
