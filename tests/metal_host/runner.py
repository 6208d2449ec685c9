"""`metal_kernel`: mx.fast.metal_kernel's construction and call, run on the CPU."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from . import compiler, errors, lint, rewrite, signature
from .arrays import HostArray, as_input, new_output, same_bits, to_mlx
from .runtime import MAX_THREADS, SCHEDULES, THREADGROUP_BYTES, Buffer, FaultReport, LoadedKernel, launch, load

MLX_METAL_KERNEL = mx.fast.metal_kernel  # kept: a test may put this module's function in its place


@dataclass(frozen=True)
class RunStatistics:
    """What the last launch of a kernel did; of a `run_checked`, the launch with the access checker."""

    switches: int  # from one thread to another
    accesses: int  # that were checked
    threadgroup_bytes: int


@dataclass
class Call:
    """One call's arguments, read as MLX reads them."""

    inputs: list[HostArray]
    shapes: list[tuple[int, ...]]
    dtypes: list[mx.Dtype]
    grid: tuple[int, int, int]
    group: tuple[int, int, int]
    init_value: float | None
    signature: signature.Signature


class HostKernel:
    """A Metal kernel that runs on the CPU; made by `metal_kernel`."""

    def __init__(self, name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, verify, fast_math=False):
        """See `metal_kernel`."""
        self.name, self.source, self.header = name, source, header
        self.input_names, self.output_names = list(input_names), list(output_names)
        self.ensure_row_contiguous, self.atomic_outputs, self.verify = ensure_row_contiguous, atomic_outputs, verify
        self.fast_math = fast_math
        self.last: RunStatistics | None = None
        self.originals = {"source": source, "header": header}
        self._loaded: dict[tuple, LoadedKernel] = {}

    # The public calls

    def __call__(
        self,
        *,
        inputs,
        output_shapes,
        output_dtypes,
        grid,
        threadgroup,
        template=None,
        init_value=None,
        verbose=False,
        stream=None,
        checked=False,
        schedule="forward",
        seed=0,
        strict_simd=None,
    ) -> list[mx.array]:
        """Run the kernel; the arguments up to `stream` are MLX's.

        Args:
            checked: check every access: races, bounds, uninitialised reads; `strict_simd` is then on unless said otherwise.
            schedule: the order in which threads and threadgroups run: "forward", "reverse" or "shuffled" (by `seed`).
            strict_simd: a fault when only some lanes of a simdgroup reach a simdgroup function, or when it reads an absent lane.
        """
        call = self._read(inputs, output_shapes, output_dtypes, grid, threadgroup, template, init_value)
        if verbose:
            print(signature.printed(self.name, call.signature.text(self.header, self.source)))
        if self.verify:
            return self._verified(call)
        strict = checked if strict_simd is None else strict_simd
        return [to_mlx(output) for output in self._run(call, checked, schedule, seed, strict)]

    def run_checked(
        self,
        *,
        inputs,
        output_shapes,
        output_dtypes,
        grid,
        threadgroup,
        template=None,
        init_value=None,
        stream=None,
        strict_simd=True,
        allow_unwritten=False,
        rules_off=(),
        tolerance=None,
    ) -> list[mx.array]:
        """Run the kernel and raise at anything that is wrong with it.

        In turn: lint, the address-space check, one run with the access checker, then the three schedules, whose results must be
        the same bit for bit. Outputs start as NaN unless `init_value` says otherwise, and must be written whole.

        Args:
            strict_simd: see the plain call.
            allow_unwritten: accept outputs that the kernel leaves partly unwritten.
            rules_off: names of lint rules not to apply.
            tolerance: for kernels that add floats atomically: results of the schedules need only be this close, relatively.
        """
        call = self._read(inputs, output_shapes, output_dtypes, grid, threadgroup, template, init_value)
        return self._verified(call, strict_simd, allow_unwritten, rules_off, tolerance)

    def generated_text(self, *, inputs, output_shapes, output_dtypes, template=None, **_) -> str:
        """The text that MLX would hand to the Metal compiler for this call."""
        call = self._read(inputs, output_shapes, output_dtypes, (1, 1, 1), (1, 1, 1), template, None)
        return call.signature.text(self.header, self.source)

    def lint(self, rules_off=()) -> list[lint.Finding]:
        """What the lint finds in the text."""
        findings = lint.lint(self.source, self.header, self.input_names, len(self.output_names))
        return [finding for finding in findings if finding.rule not in rules_off]

    # The steps

    def _read(self, inputs, output_shapes, output_dtypes, grid, threadgroup, template, init_value) -> Call:
        for label, given, names in (
            ("inputs", inputs, self.input_names),
            ("output_shapes", output_shapes, self.output_names),
            ("output_dtypes", output_dtypes, self.output_names),
        ):
            if len(given) != len(names):
                raise ValueError(f"[metal_kernel] Expected `{label}` to have size {len(names)} but got size {len(given)}.")
        arrays = [as_input(value, self.ensure_row_contiguous) for value in inputs]
        grid, group = dispatch_size(grid, threadgroup)
        generated = signature.generate(
            self.name, self.input_names, arrays, self.output_names, output_dtypes, self.source, template, self.atomic_outputs
        )
        return Call(arrays, [tuple(shape) for shape in output_shapes], list(output_dtypes), grid, group, init_value, generated)

    def _library(self, call: Call, checked: bool) -> LoadedKernel:
        kernel = self._loaded.get((call.signature, checked))
        if kernel is None:
            text = rewrite.text_to_run(call.signature, self.header, self.source)
            kernel = load(compiler.kernel_library(self.name, text, checked, self.originals, self.fast_math))
            self._loaded[call.signature, checked] = kernel
        if kernel.threadgroup_bytes > THREADGROUP_BYTES:
            raise errors.ThreadgroupMemoryError(
                f"[metal_host] kernel `{self.name}` declares {kernel.threadgroup_bytes} bytes of threadgroup memory; "
                f"a threadgroup has {THREADGROUP_BYTES}."
            )
        return kernel

    def _run(self, call: Call, checked: bool, schedule: str, seed=0, strict_simd=False, byte_cells=False, allow_unwritten=True):
        if schedule not in SCHEDULES:
            raise ValueError(f"[metal_host] schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}.")
        kernel = self._library(call, checked)
        outputs = [new_output(shape, dtype, call.init_value) for shape, dtype in zip(call.shapes, call.dtypes, strict=True)]
        buffers = self._buffers(call, outputs)
        done = launch(kernel, buffers, call.grid, call.group, schedule, seed, checked, strict_simd, byte_cells, self.fast_math)
        self.last = RunStatistics(done.switches, done.accesses, kernel.threadgroup_bytes)
        if done.fault.kind:
            report = FaultReport(self.name, kernel, buffers, done, self.originals)
            if not byte_cells and report.wants_byte_cells():
                return self._run(call, checked, schedule, seed, strict_simd, True, allow_unwritten)
            raise report.exception()
        if checked and not allow_unwritten:
            self._require_written(buffers, done)
        return outputs

    def _buffers(self, call: Call, outputs: list[np.ndarray]) -> list[Buffer]:
        buffers = []
        for parameter in call.signature.parameters:
            if parameter.content == "output":
                buffers.append(Buffer(parameter.name, outputs[parameter.array], True, call.init_value is not None))
                continue
            data = call.inputs[parameter.array].data
            if parameter.content == "shape":
                data = np.array(data.shape, np.int32)
            elif parameter.content == "strides":
                data = np.array([stride // data.itemsize for stride in data.strides], np.int64)
            elif parameter.content == "ndim":
                data = np.array(data.ndim, np.int32)
            buffers.append(Buffer(parameter.name, data))
        return buffers

    def _require_written(self, buffers: list[Buffer], done) -> None:
        for index, buffer in enumerate(buffers):
            span = done.spans[index]
            if buffer.writable and not buffer.initialised and span.unwritten:
                element = span.first_unwritten * span.cell_bytes // buffer.data.itemsize
                count = span.unwritten * span.cell_bytes // buffer.data.itemsize
                where = tuple(int(i) for i in np.unravel_index(element, buffer.data.shape))
                raise errors.UnwrittenOutputError(
                    f"[metal_host] kernel `{self.name}` leaves {count} of {buffer.data.size} elements of output "
                    f"{buffer.name} unwritten, the first at {where} (flat {element})."
                )

    def _verified(self, call: Call, strict_simd=True, allow_unwritten=False, rules_off=(), tolerance=None) -> list[mx.array]:
        findings = self.lint(rules_off)
        if findings:
            raise errors.LintError(lint.message(self.name, findings, self.originals), findings)
        compiler.check_address_spaces(self.name, rewrite.text_to_check(call.signature, self.header, self.source), self.originals)
        self._run(call, True, "forward", 0, strict_simd, allow_unwritten=allow_unwritten)
        checked = self.last
        results = {schedule: self._run(call, False, schedule, 1, strict_simd) for schedule in SCHEDULES}
        for schedule in SCHEDULES[1:]:
            self._compare(results[SCHEDULES[0]], results[schedule], schedule, tolerance)
        self.last = checked
        return [to_mlx(output) for output in results[SCHEDULES[0]]]

    def _compare(self, expected: list[np.ndarray], found: list[np.ndarray], schedule: str, tolerance: float | None) -> None:
        for name, a, b in zip(self.output_names, expected, found, strict=True):
            same = same_bits(a, b) if tolerance is None else np.isclose(a, b, tolerance, tolerance, equal_nan=True).reshape(-1)
            if not same.all():
                first = int(np.argmin(same))
                raise errors.ScheduleError(
                    f"[metal_host] kernel `{self.name}`: output {name} depends on the order of the threads: {(~same).sum()} of "
                    f"{a.size} elements differ between the schedules {SCHEDULES[0]} and {schedule}, the first at flat index {first}: "
                    f"{a.reshape(-1)[first]} and {b.reshape(-1)[first]}."
                )


def dispatch_size(grid, threadgroup):
    """Grid and threadgroup as MLX dispatches them: a threadgroup is never larger than the grid."""
    grid, group = tuple(int(n) for n in grid), tuple(int(n) for n in threadgroup)
    if len(grid) != 3 or len(group) != 3 or min(grid + group) < 1:
        raise ValueError(f"[metal_host] grid and threadgroup must be three numbers above zero, got {grid} and {group}.")
    if group[0] * group[1] * group[2] > MAX_THREADS:
        raise ValueError(f"[metal_host] a threadgroup has at most {MAX_THREADS} threads, got {group}.")
    return grid, tuple(min(a, b) for a, b in zip(grid, group, strict=True))


def metal_kernel(
    name: str,
    input_names,
    output_names,
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options=None,
    *,
    verify: bool = False,
    fast_math: bool = False,
) -> HostKernel:
    """mx.fast.metal_kernel on the CPU: the same construction, the same call, the kernel's text unchanged.

    Args:
        verify: every call is a `run_checked`: for code that makes and calls its kernels itself, with this function in the place of
            mx.fast.metal_kernel.
        fast_math: functions are as inaccurate as Metal's specification allows, those of fast:: by its table for fast math and the others by
            that without it, products and sums are fused, and denormals are 0.
        compile_options: accepted and not used; the host's arithmetic is that of math_mode "safe".
    """
    options = {} if compile_options is None else {"compile_options": compile_options}
    MLX_METAL_KERNEL(name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, **options)  # checks them
    return HostKernel(name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, verify, fast_math)


def run_checked(kernel: HostKernel, **call) -> list[mx.array]:
    """`kernel.run_checked(**call)`."""
    return kernel.run_checked(**call)
