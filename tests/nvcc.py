"""The kernels' text compiled by nvcc for sm_90, in the place of MLX's own compiler."""

import re
import shutil
import subprocess

import mlx.core as mx

NVCC = shutil.which("nvcc")
TYPES = {mx.float32: "float", mx.int32: "int", mx.float16: "__half", mx.bfloat16: "__nv_bfloat16"}


def constant(name, value):
    """A template argument as MLX writes it into a CUDA kernel's body."""
    if isinstance(value, mx.Dtype):
        return f"  using {name} = {TYPES[value]};\n"
    return f"  constexpr {'bool' if isinstance(value, bool) else 'int'} {name} = {str(value).lower()};\n"


def compiling(folder, reports):
    """In the place of mx.fast.cuda_kernel: compiles for sm_90, notes what the assembler says, and returns zeros."""

    def make(name, input_names, output_names, source, header):
        # nvcc makes an attribute of `__device__` by the word that the dialect defines away; MLX's compiler, NVRTC, does not
        header = re.sub(r"(?<!\w)device(?!\w)", "", header.replace("#define device\n", ""))

        def call(inputs, template, grid, threadgroup, output_shapes, output_dtypes):
            arrays = [f"const {TYPES[a.dtype]}* {n}" for a, n in zip(inputs, input_names, strict=True)]
            arrays += [f"{TYPES[dtype]}* {n}" for dtype, n in zip(output_dtypes, output_names, strict=True)]
            constants = "".join(constant(*pair) for pair in template)
            bounds = f"__launch_bounds__({threadgroup[0]})"
            kernel = (
                f"namespace mlx {{\n__global__ void {bounds} custom_kernel_{name}({', '.join(arrays)}) {{\n{constants}{source}\n}}\n}}\n"
            )
            path = folder / f"{name}.cu"
            path.write_text(f"#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n{header}\n{kernel}")
            command = [NVCC, "-std=c++17", "-arch=sm_90", "-Xptxas", "-v", "-cubin", "--keep", "--keep-dir", str(folder)]
            command += ["-o", str(path.with_suffix(".cubin")), str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[:4000]
            reports[name] = done.stderr
            return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]

        return call

    return make
