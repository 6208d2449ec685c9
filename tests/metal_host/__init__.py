"""Runs Metal kernels on the CPU, and finds their faults; see README.md."""

from .compiler import unsupported_reason
from .errors import (
    AddressSpaceError,
    BarrierError,
    DataRaceError,
    KernelCompileError,
    KernelCrash,
    KernelFault,
    KernelTextError,
    LintError,
    MetalHostError,
    OutOfBoundsError,
    ReadOnlyWriteError,
    ScheduleError,
    SimdgroupError,
    ThreadgroupMemoryError,
    UninitialisedReadError,
    UnsupportedPlatformError,
    UnwrittenOutputError,
    WriteConflictError,
)
from .lint import lint_file
from .runner import HostKernel, metal_kernel, run_checked
from .runtime import SCHEDULES

__all__ = [
    "SCHEDULES",
    "AddressSpaceError",
    "BarrierError",
    "DataRaceError",
    "HostKernel",
    "KernelCompileError",
    "KernelCrash",
    "KernelFault",
    "KernelTextError",
    "LintError",
    "MetalHostError",
    "OutOfBoundsError",
    "ReadOnlyWriteError",
    "ScheduleError",
    "SimdgroupError",
    "ThreadgroupMemoryError",
    "UninitialisedReadError",
    "UnsupportedPlatformError",
    "UnwrittenOutputError",
    "WriteConflictError",
    "lint_file",
    "metal_kernel",
    "run_checked",
    "unsupported_reason",
]
