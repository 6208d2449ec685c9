"""The kernels' text as CUDA, compiled by NVRTC for sm_90a.

What the table puts into registers stays there, and no branch that lanes of a warp take differently has come to lie around shuffles.
"""

from unittest.mock import patch

import mlx.core as mx
import pytest

from ember_mlx.kernels.loader import kernels_made_by
from ember_mlx.kernels.tiles import family_of
from ember_mlx.scans.cell import fused
from ember_mlx.scans.cell.gated import PROJECTED_LSTM
from ember_mlx.scans.cell.random_cases import random_arrays

from .comparisons import to_mlx
from .kernel_calls import KernelCall, Scan, calls_of, noting
from .nvrtc import compile_call, complaint, label, unsupported_reason

REASON = unsupported_reason()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
BY_STEP = ("lstm-512",)
# bytes that the assembler keeps in memory, arrays among them; 0 which does not exist said
SPILLED = {"ltc-128": 8}
CASES = {
    "cfc-64": ("cfc", "default", (3, 2, 64), False),
    "cfc-64-256-sequences": ("cfc", "default", (1, 256, 64), False),
    "cfc-mixed-memory": ("cfc", "mixed_memory", (3, 2, 64), False),
    "ncp-half": ("cfc", "layered", (3, 2, 56), True),
    "ncp-mixed-memory": ("cfc", "layered_mixed_memory", (3, 2, 56), False),
    "lstm-64": ("lstm", "lstm_bidirectional", (3, 2, 64), False),
    "lstm-62-200-sequences": ("lstm", "lstm_bidirectional", (1, 200, 62), False),
    "lstm-96-200-sequences": ("lstm", "lstm", (1, 200, 96), False),
    "lstm-160-500-sequences": ("lstm", "lstm", (1, 500, 160), False),
    "lstm-256": ("lstm", "lstm", (3, 2, 256), False),
    "lstm-512": ("lstm", "lstm", (3, 2, 512), False),
    "lstm-112-projected": ("lstm", "lstm_projected", (1, 200, 112), False),
    "lstm-256-projected": ("lstm", "lstm_projected_bidirectional", (3, 2, 256), False),
    "gru-64": ("gru", "gru", (3, 2, 64), False),
    "gru-62-200-sequences": ("gru", "gru", (1, 200, 62), False),
    "gru-117-200-sequences": ("gru", "gru", (1, 200, 117), False),
    "gru-256": ("gru", "gru", (3, 2, 256), False),
    "rnn-64": ("rnn", "tanh", (3, 2, 64), False),
    "rnn-192": ("rnn", "tanh", (3, 2, 192), False),
    "ltc-64": ("ltc", "full", (3, 2, 64), False),
    "ltc-sparse-rk4": ("ltc", "rk4_sparse", (3, 2, 64), False),
    "ltc-64-256-sequences": ("ltc", "full", (1, 256, 64), False),
    "ltc-128": ("ltc", "full", (2, 2, 128), False),
    "ltc-256": ("ltc", "full", (2, 2, 256), False),
    "ltc-mixed-memory": ("ltc", "mixed_memory", (3, 2, 64), False),
    "ltc-mixed-memory-72": ("ltc", "mixed_memory", (3, 2, 72), False),
    "lem-64": ("recurrent", "lem", (3, 2, 64), False),
    "gru-d-64-200-sequences": ("recurrent", "grud", (1, 200, 64), False),
    "gru-d-117": ("recurrent", "grud", (3, 2, 117), False),
    "ct-rnn-160-500-sequences": ("recurrent", "ctrnn", (1, 500, 160), False),
    "ode-lstm-256": ("recurrent", "odelstm", (3, 2, 256), False),
    "sru-64": ("recurrent", "sru_bidirectional", (3, 2, 64), False),
    "min-gru-300": ("recurrent", "mingru", (3, 2, 300), False),
    "ctrqnet-56": ("quantum", "ctrqnet_noise", (3, 2, 56), False),
}


@pytest.mark.parametrize("case", CASES)
def test_the_tables_layouts_compile_without_spills(case):
    name, variant, size, half = CASES[case]
    scan = Scan(name, variant, size, half)
    calls = calls_of("cuda", scan)
    parts = ("next", "previous") if case in BY_STEP else ("forward", "backward")
    assert set(parts) <= {call.name.rsplit("_")[-1] for call in calls}
    for call in calls:
        assert complaint(label(scan, call), compile_call(call), SPILLED.get(case, 0)) is None


@pytest.mark.parametrize(("D", "B", "H"), [(1, 200, 112), (2, 2, 256), (1, 2, 700)])
def test_a_projected_lstm_as_a_cell_compiles_without_spills(D, B, H):
    """To half as many features; with 700 units each step has launches of its own."""
    definition, calls = PROJECTED_LSTM.definition, list[KernelCall]()
    arrays = to_mlx(random_arrays(definition, D, 2, B, H, lengths=True, P=H // 2))
    with kernels_made_by("cuda", noting(calls)), patch.object(fused, "current_family", lambda: family_of("sm_90")):
        outputs = fused.cell_fused_forward("cuda", definition, arrays)
        fused.cell_fused_backward("cuda", definition, arrays, outputs, [mx.ones_like(a) for a in outputs])
    parts = {"next", "back", "previous"} if H == 700 else {"forward", "backward"}
    assert {call.name.split("_")[-1] for call in calls} == parts | {"arguments", "coefficients"}
    for call in dict.fromkeys(calls):
        assert complaint(call.name, compile_call(call)) is None
