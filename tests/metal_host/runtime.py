"""Calling the runtime: its argument structures, and messages for its faults."""

import ctypes
import ctypes.util
import functools
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import errors
from .arrays import byte_range
from .compiler import quoted_line, runtime_library
from .dwarf import line_of

SCHEDULES = ("forward", "reverse", "shuffled")
MAX_THREADS = 1024
THREADGROUP_BYTES = 32768
THREADGROUP_SPAN = -1

u32, u64, address = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p


class Place(ctypes.Structure):
    """The thread and source location of an access."""

    _fields_ = (
        *((name, u32) for name in ("thread", "group", "writes", "atomic")),
        ("code", u64),
        ("file", ctypes.c_char_p),
        *((name, u32) for name in ("line", "column")),
    )


class Fault(ctypes.Structure):
    """A fault found by the runtime."""

    _fields_ = (("kind", ctypes.c_int32), ("span", ctypes.c_int32), ("offset", ctypes.c_int64), ("size", u32), ("count", u32))
    _fields_ += (("here", Place), ("there", Place))


class Span(ctypes.Structure):
    """One array's memory."""

    _fields_ = (("base", address), ("size", u64), *((name, u32) for name in ("writable", "initialised", "cell_bytes", "reserved")))
    _fields_ += (("unwritten", u64), ("first_unwritten", u64))


class Named(ctypes.Structure):
    """One threadgroup array's name."""

    _fields_ = (("begin", address), ("name", ctypes.c_char_p), ("size", u64), ("element_size", u64))


class Launch(ctypes.Structure):
    """One launch."""

    _fields_ = (
        ("entry", address),
        ("buffers", ctypes.POINTER(address)),
        ("grid", u32 * 3),
        ("group", u32 * 3),
        *((name, u32) for name in ("schedule", "seed", "checked", "strict_simd")),
        *((name, address) for name in ("threadgroup_begin", "threadgroup_end")),
        ("spans", ctypes.POINTER(Span)),
        *((name, u32) for name in ("span_count", "threadgroup_cell_bytes")),
        *((name, u64) for name in ("switches", "accesses")),
        *((name, u32) for name in ("name_count", "flush_denormals")),
        ("names", Named * 64),
        ("fault", Fault),
    )


FAULT_KINDS = ("none", "barrier_after_return", "divergent_barrier", "divergent_simd", "inactive_lane", "race", "write_conflict")
FAULT_KINDS += ("out_of_bounds", "read_only_write", "uninitialised_read", "crash", "needs_byte_cells")
ONE_AT_A_TIME = threading.Lock()


@functools.cache
def runtime() -> ctypes.CDLL:
    """The runtime, loaded so that kernels find its functions and those of the math library."""
    ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6", mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(runtime_library()), mode=ctypes.RTLD_GLOBAL)


@dataclass(frozen=True)
class LoadedKernel:
    """A kernel's machine code in memory."""

    path: Path
    entry: int
    threadgroup_begin: int
    threadgroup_end: int

    @property
    def threadgroup_bytes(self) -> int:
        """The size of all threadgroup variables together."""
        return self.threadgroup_end - self.threadgroup_begin


def load(path: Path) -> LoadedKernel:
    """Load a compiled kernel."""
    runtime()
    library = ctypes.CDLL(str(path))
    bounds = (address * 2)()
    library.msl_bounds(bounds)
    entry = ctypes.cast(library.msl_entry, address).value
    return LoadedKernel(path, entry, bounds[0] or 0, bounds[1] or 0)


@dataclass
class Buffer:
    """One argument of the kernel in memory."""

    name: str
    data: np.ndarray
    writable: bool = False
    initialised: bool = True

    def span(self, byte_cells: bool) -> Span:
        """Its bounds, and whether the checker keeps one cell per byte or per element."""
        low, high = byte_range(self.data)
        cell_bytes = 1 if byte_cells else self.data.itemsize
        return Span(low, high - low, self.writable, self.initialised, cell_bytes, 0, 0, 0)


def launch(
    kernel: LoadedKernel,
    buffers: list[Buffer],
    grid,
    group,
    schedule: str,
    seed: int,
    checked: bool,
    strict_simd: bool,
    byte_cells=False,
    flush_denormals=False,
):
    """Run the kernel once and return the launch with its fault, if any."""
    pointers = (address * len(buffers))(*(buffer.data.ctypes.data for buffer in buffers))
    spans = (Span * len(buffers))(*(buffer.span(byte_cells) for buffer in buffers))
    request = Launch(kernel.entry, pointers, (u32 * 3)(*grid), (u32 * 3)(*group))
    request.schedule, request.seed = SCHEDULES.index(schedule), seed
    request.checked, request.strict_simd, request.flush_denormals = checked, strict_simd, flush_denormals
    request.threadgroup_begin, request.threadgroup_end = kernel.threadgroup_begin, kernel.threadgroup_end
    request.spans, request.span_count = spans, len(buffers)
    request.threadgroup_cell_bytes = 1 if byte_cells else 4
    with ONE_AT_A_TIME:
        if runtime().host_launch(ctypes.byref(request)) < 0:
            raise errors.MetalHostError("[metal_host] no memory for the threads' stacks")
    return request


# Faults in words


class FaultReport:
    """Makes the message for a launch's fault."""

    def __init__(self, name: str, kernel: LoadedKernel, buffers: list[Buffer], request: Launch, originals: dict[str, str]):
        """Store the inputs of the message."""
        self.name, self.kernel, self.buffers, self.request, self.originals = name, kernel, buffers, request, originals

    def exception(self) -> errors.KernelFault:
        """The fault as an exception."""
        fault = self.request.fault
        kind, text = getattr(self, FAULT_KINDS[fault.kind])(fault)
        places = self.places(fault)
        return kind(f"[metal_host] kernel `{self.name}`: {text}" + "".join(f"\n{line}" for line in places))

    def wants_byte_cells(self) -> bool:
        """Not a fault: the checker has to look at memory byte by byte."""
        return FAULT_KINDS[self.request.fault.kind] == "needs_byte_cells"

    def barrier_after_return(self, fault: Fault):
        """Some threads have returned, others wait."""
        text = f"{fault.count} of {fault.size} threads wait at a threadgroup_barrier, but thread {fault.there.thread} has returned"
        return errors.BarrierError, text

    def divergent_barrier(self, fault: Fault):
        """Threads wait at two barriers."""
        text = f"threads {fault.here.thread} and {fault.there.thread} of one threadgroup wait at different threadgroup_barriers"
        return errors.BarrierError, text

    def divergent_simd(self, fault: Fault):
        """Only some lanes reach a simdgroup function."""
        waits = "a threadgroup_barrier" if fault.size else "another simdgroup function"
        text = f"a simdgroup function is reached by {fault.count} lanes of a simdgroup while thread {fault.there.thread} waits at {waits}"
        return errors.SimdgroupError, text

    def inactive_lane(self, fault: Fault):
        """A shuffle reads an absent lane."""
        text = f"thread {fault.here.thread} reads lane {fault.count} of its simdgroup, which takes no part in this function"
        return errors.SimdgroupError, text

    def race(self, fault: Fault):
        """Two accesses without order."""
        here, there = fault.here, fault.there
        text = (
            f"data race on {self.target(fault)}: {self.who(there)} {self.verb(there)} it and {self.who(here, there)} {self.verb(here)} it "
            f"{self.why_unordered(fault)}"
        )
        return errors.DataRaceError, text

    def write_conflict(self, fault: Fault):
        """Two different values for one address."""
        here, there = fault.here, fault.there
        text = (
            f"write conflict on {self.target(fault)}: {self.who(there)} and {self.who(here, there)} write different values "
            f"{self.why_unordered(fault)}"
        )
        return errors.WriteConflictError, text

    def out_of_bounds(self, fault: Fault):
        """An access outside every array."""
        verb = "write" if fault.here.writes else "read"
        return errors.OutOfBoundsError, f"out-of-bounds {verb} of {fault.size} bytes at {self.target(fault)} by {self.who(fault.here)}"

    def read_only_write(self, fault: Fault):
        """A write to an input."""
        return errors.ReadOnlyWriteError, f"{self.who(fault.here)} writes into the input {self.target(fault)}"

    def uninitialised_read(self, fault: Fault):
        """A read of unwritten memory."""
        where = "of this threadgroup " if fault.span == THREADGROUP_SPAN else ""
        return errors.UninitialisedReadError, f"{self.who(fault.here)} reads {self.target(fault)}, which no thread {where}has written"

    def crash(self, fault: Fault):
        """A signal."""
        name = signal.Signals(fault.count).name
        text = f"crash ({name}) in {self.who(fault.here)}: a wild address, a stack overflow (endless recursion) or a division by zero"
        return errors.KernelCrash, text + ("" if self.request.checked else "; checked=True may say more")

    # The parts of a sentence

    def who(self, place: Place, other: Place | None = None) -> str:
        """The thread, and its threadgroup if relevant."""
        same_group = other is not None and other.group == place.group
        return f"thread {place.thread}" + ("" if same_group else f" of threadgroup run #{place.group}")

    def verb(self, place: Place) -> str:
        """The kind of access."""
        return ("atomically " if place.atomic else "") + ("writes" if place.writes else "reads")

    def why_unordered(self, fault: Fault) -> str:
        """Which barrier is missing."""
        if fault.here.group != fault.there.group:
            return "and nothing orders threadgroups of one launch"
        memory = "mem_threadgroup" if fault.span == THREADGROUP_SPAN else "mem_device"
        return f"without a barrier of mem_flags::{memory} between"

    def target(self, fault: Fault) -> str:
        """`name[element]`, or the distance outside of the array."""
        if fault.span == THREADGROUP_SPAN:
            return self.threadgroup_target(fault.offset)
        buffer = self.buffers[fault.span]
        size = buffer.data.itemsize
        element, rest = divmod(fault.offset, size)
        inside = f"{buffer.name}[{element}]" + (f" + {rest} bytes" if rest else "")
        span = self.request.spans[fault.span].size
        return inside if 0 <= fault.offset < span else f"{inside} ({buffer.name} has {span // size} elements)"

    def threadgroup_target(self, offset: int) -> str:
        """A threadgroup address by the name of its array, or the nearest one."""
        where = self.request.threadgroup_begin + offset
        named = [entry for entry in self.request.names[: self.request.name_count] if entry.begin]
        if not named:
            return f"threadgroup memory + {offset} bytes"
        nearest = min(named, key=lambda entry: max(entry.begin - where, where - entry.begin - entry.size + 1, 0))
        element = (where - nearest.begin) // nearest.element_size
        text = f"threadgroup {nearest.name.decode()}[{element}]"
        outside = not 0 <= where - nearest.begin < nearest.size
        return text + (f" ({nearest.name.decode()} has {nearest.size // nearest.element_size} elements)" if outside else "")

    def places(self, fault: Fault) -> list[str]:
        """The source lines involved."""
        lines = []
        for place in (fault.there, fault.here):
            found = self.text_place(place)
            entry = f"  {found[0]}:{found[1]}: thread {place.thread}" if found else None
            if entry and entry not in lines:
                lines += [entry, *quoted_line(self.originals, *found)]
        return lines

    def text_place(self, place: Place) -> tuple[str, int] | None:
        """Piece and line of the kernel's source."""
        if place.code:
            return line_of(self.kernel.path, place.code - 1)
        return (place.file.decode(), place.line) if place.file else None
