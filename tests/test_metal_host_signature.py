"""The generated kernel source equals MLX's, byte for byte."""

import os
import sys
import tempfile

import mlx.core as mx
import pytest

from tests.metal_host import metal_kernel

SHAPES = {"scalar": (), "one": (1,), "seven": (7,), "eight": (8,), "matrix": (3, 4), "empty": (0, 2)}
DTYPES = [mx.bool_, mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.int8, mx.int16, mx.int32, mx.int64, mx.float16, mx.float32]
DTYPES += [mx.bfloat16, mx.complex64]
TEMPLATE = [("T", mx.bfloat16), ("N", 3), ("M", -12), ("B", True), ("C", False), ("U", mx.bool_)]


def name_of(dtype):
    return str(dtype).removeprefix("mlx.core.")


def printed_by_mlx(construction, call):
    """What MLX prints with verbose=True; tracing a call for export prints it on machines without Metal too."""
    kernel = mx.fast.metal_kernel(**construction)
    arrays = [value for value in call["inputs"] if isinstance(value, mx.array)]

    def traced(*values):
        remaining = iter(values[:-1])
        inputs = [next(remaining) if isinstance(value, mx.array) else value for value in call["inputs"]]
        return kernel(**{**call, "inputs": inputs}, verbose=True)[0] + values[-1].astype(call["output_dtypes"][0])

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as file:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            mx.export_function(os.path.join(folder, "kernel.mlxfn"), traced, *arrays, mx.zeros(call["output_shapes"][0]))
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        file.seek(0)
        return file.read()


def printed_here(construction, call, capsys):
    from tests.metal_host import signature

    kernel = metal_kernel(**construction)
    print(signature.printed(kernel.name, kernel.generated_text(**call)))
    return capsys.readouterr().out


def kernel_call(inputs, source, names=("x", "bias", "dims"), outputs=(mx.float32,), template=None, **construction):
    call = {
        "inputs": inputs,
        "output_shapes": [(2,)] * len(outputs),
        "output_dtypes": list(outputs),
        "grid": (8, 1, 1),
        "threadgroup": (8, 1, 1),
    }
    if template is not None:
        call["template"] = template
    output_names = [f"y{i}" for i in range(len(outputs))]
    full = {"name": "scan", "input_names": list(names[: len(inputs)]), "output_names": output_names, "source": source, **construction}
    return full, call


def cases():
    x, scalar, small = mx.zeros((3, 4)), mx.array(1.0), mx.zeros((2,), mx.int32)
    for dtype in DTYPES:
        for shape in ("scalar", "seven", "eight"):
            yield f"{name_of(dtype)}-{shape}", kernel_call([mx.zeros(SHAPES[shape], dtype)], "x_shape", outputs=(dtype,))
    for shape in SHAPES:
        yield f"metadata-{shape}", kernel_call([mx.zeros(SHAPES[shape])], "x_shape x_strides x_ndim thread_position_in_grid")
    for words in ("x_shape", "x_strides", "x_ndim", "x_strides x_shape", "xx_shape"):
        yield f"uses-{words.replace(' ', '-')}", kernel_call([x, scalar, small], f"{words} dims_shape")
    for argument in TEMPLATE:
        yield f"template-{argument[0]}", kernel_call([x], "y0[0] = 1;", template=[argument])
    yield "template-all", kernel_call([x], "y0[0] = 1; grid_size", template=TEMPLATE)
    yield "template-none", kernel_call([x], "y0[0] = 1;", template=[])
    for atomic in (False, True):
        yield f"atomic-{atomic}", kernel_call([x, small], "threads_per_grid", outputs=(mx.float32, mx.int32), atomic_outputs=atomic)
    yield "outputs-two", kernel_call([x], "y0[0] = 1;", outputs=(mx.float32, mx.bfloat16))
    yield "outputs-two-shape", kernel_call([x], "x_shape", outputs=(mx.float32, mx.bfloat16))
    yield "outputs-three-shapes-attribute", kernel_call([x, small], "x_shape dims_ndim grid_origin", outputs=(mx.float32,) * 3)
    yield "outputs-three-shapes", kernel_call([x, small, x], "x_shape bias_ndim dims_strides", outputs=(mx.float32,) * 3)
    yield "no-inputs", kernel_call([], "y0[0] = 1;")
    yield "python-scalars", kernel_call([1, 2.5, True], "y0[0] = 1;")
    yield "python-scalars-large", kernel_call([2**31 - 1, 2**31, -(2**31)], "y0[0] = 1;")
    yield "header", kernel_call([x], "y0[0] = 1;", header="// helpers\nfloat f();\n")
    yield "header-without-newline", kernel_call([x], "y0[0] = 1;", header="// helpers")
    yield "odd-name", kernel_call([x], "y0[0] = 1;", name="my-kernel.2 b")
    yield "transposed", kernel_call([x.T], "x_strides", ensure_row_contiguous=False)
    from tests.metal_host.signature import ATTRIBUTES

    for attribute in ATTRIBUTES:
        yield f"attribute-{attribute}", kernel_call([x], f"uint v = {attribute}; // {attribute}")
    yield "attributes-all", kernel_call([x], " ".join(reversed(ATTRIBUTES)), outputs=(mx.int32, mx.int32))


CASES = dict(cases())


@pytest.mark.parametrize("name", CASES)
def test_text_is_mlx_own(name, capsys):
    construction, call = CASES[name]
    with capsys.disabled():
        expected = printed_by_mlx(construction, call)
    assert expected.startswith("Generated source code for")
    assert printed_here(construction, call, capsys) == expected


def message_of(make):
    with pytest.raises(ValueError, match="metal_kernel") as caught:
        make()
    return str(caught.value).strip()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"inputs": [1, 2]}, id="inputs"),
        pytest.param({"output_shapes": [(8,)] * 2}, id="shapes"),
        pytest.param({"output_dtypes": [mx.float32] * 2}, id="dtypes"),
        pytest.param({"template": [("T", 1.5)]}, id="template-float"),
        pytest.param({"template": [("T", "float32")]}, id="template-text"),
    ],
)
def test_argument_errors_are_mlx_own(change):
    call = {"inputs": [1], "grid": (8, 1, 1), "threadgroup": (8, 1, 1), "output_shapes": [(8,)], "output_dtypes": [mx.float32], **change}
    construction = {"name": "k", "input_names": ["x"], "output_names": ["y"], "source": "y[0] = x;"}
    own = message_of(lambda: metal_kernel(**construction)(**call))

    def trace(folder):
        kernel = mx.fast.metal_kernel(**construction)
        mx.export_function(os.path.join(folder, "kernel.mlxfn"), lambda a: kernel(**call)[0] + a, mx.zeros((8,)))

    with tempfile.TemporaryDirectory() as folder:
        assert own == message_of(lambda: trace(folder))


def test_a_kernel_needs_an_output():
    construction = {"name": "k", "input_names": ["x"], "output_names": [], "source": ""}
    assert message_of(lambda: metal_kernel(**construction)) == message_of(lambda: mx.fast.metal_kernel(**construction))


def test_verbose_prints_the_text(capsys):
    construction, call = kernel_call([mx.zeros((8,))], "y0[thread_position_in_grid.x % 2] = 1;")
    metal_kernel(**construction)(**call, verbose=True)
    out = capsys.readouterr().out
    assert out.startswith("Generated source code for `scan`:\n```\n")
    assert out.endswith("}\n\n```\n")
