"""Every kernel has few enough arguments for Metal, which gives a kernel 31 buffers."""

import mlx.core as mx
import pytest

from ember_mlx.kernels.loader import kernels_made_by
from ember_mlx.scans.registry import RECURRENCES

from .comparisons import to_mlx
from .kernel_calls import Input, KernelCall, all_scans, calls_of, noting
from .metal_host import metal_kernel

METAL_BUFFERS = 31


def beyond(calls, most=METAL_BUFFERS):
    """The kernels with more buffers than that."""
    return sorted({f"{call.name}: {call.buffers} buffers" for call in calls if call.buffers > most})


def test_no_kernel_needs_more_buffers_than_metal_has():
    calls = {call for scan in all_scans("applegpu_g13") for call in calls_of("metal", scan)}
    names = {call.name for call in calls}
    assert {"cfc_backward_together", "ltc_backward", "quantum_backward"} <= names
    assert {"forward", "backward", "coefficients", "next", "back", "previous"} <= {name.rsplit("_")[-1] for name in names}
    assert not beyond(calls)


def test_a_kernel_with_too_many_buffers_is_named():
    inputs = tuple(Input(f"a{k}", mx.float32, 1) for k in range(30))
    call = KernelCall("wide", inputs, (("y", mx.float32),), "y[0] = a3[0];", "", ())
    assert beyond([call]) == []
    assert beyond([call._replace(source="y[0] = a3[a3_shape[0] - 1];")]) == ["wide: 32 buffers"]
    assert beyond([call._replace(outputs=(*call.outputs, ("z", mx.float32)))]) == ["wide: 32 buffers"]


@pytest.mark.parametrize(
    ("source", "buffers"),
    [("y[0] = a[0];", 3), ("y[0] = a[a_shape[0] - b_ndim];", 5), ("y[0] = a[a_strides[0]] + b_shape[0];", 5)],
    ids=["arrays", "shape-and-ndim", "strides-and-shape"],
)
def test_buffers_are_counted_as_mlx_numbers_them(source, buffers):
    calls, made = [], {"name": "k", "input_names": ["a", "b"], "output_names": ["y"], "source": source, "header": ""}
    call = {"inputs": [mx.zeros((9,)), mx.zeros((9, 2))], "template": [("N", 3)], "grid": (32, 1, 1), "threadgroup": (32, 1, 1)}
    call |= {"output_shapes": [(9,)], "output_dtypes": [mx.float32]}
    noting(calls)(**made)(**call)
    assert metal_kernel(**made).generated_text(**call).count("[[buffer(") == buffers
    assert calls[0].buffers == buffers


def test_calls_that_are_noted_have_the_shapes_of_their_results():
    recurrence, calls = RECURRENCES["cfc"], []
    spec, arrays = recurrence.problem("default", 3, 2, 8, lengths=True)
    with kernels_made_by("metal", noting(calls)):
        (y,) = recurrence.fused.forward("metal", spec, to_mlx(arrays))
    assert y.shape == (3, 2, 8)
    assert [call.name for call in calls] == ["cfc_forward"]
    assert dict(calls[0].template)["H"] == 8
