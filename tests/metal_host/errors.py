"""The host runner's errors: one exception class for every class of fault."""


class MetalHostError(Exception):
    """Anything the host runner reports."""


class UnsupportedPlatformError(MetalHostError):
    """This machine lacks what the host runner needs; a test turns it into a skip."""


# Faults in the text


class KernelTextError(MetalHostError):
    """Metal would not accept the kernel's text."""


class LintError(KernelTextError):
    """The text uses something that Metal lacks or that this project's subset leaves out."""

    def __init__(self, message: str, findings: list):
        """Keep the findings, so that a test can look at their rules."""
        super().__init__(message)
        self.findings = findings


class KernelCompileError(KernelTextError):
    """The compiler rejects the text; the message quotes the kernel's own lines."""


class AddressSpaceError(KernelCompileError):
    """Pointers or references of different address spaces are mixed."""


class ThreadgroupMemoryError(KernelTextError):
    """The threadgroup arrays are larger together than a threadgroup's memory."""


# Faults while it runs


class KernelFault(MetalHostError):
    """A fault found while the kernel ran."""


class BarrierError(KernelFault):
    """Not every thread of a threadgroup reaches the same barrier."""


class SimdgroupError(KernelFault):
    """A simdgroup operation reads a lane that takes no part, or is reached by only some of the lanes."""


class DataRaceError(KernelFault):
    """Two threads use one address, at least one writes, and no barrier lies between."""


class WriteConflictError(DataRaceError):
    """Two threads write different values to one address, and no barrier lies between."""


class OutOfBoundsError(KernelFault):
    """An access outside every array of the kernel."""


class ReadOnlyWriteError(KernelFault):
    """A write into an input array."""


class UninitialisedReadError(KernelFault):
    """A read of unwritten threadgroup memory or of an unwritten output."""


class UnwrittenOutputError(KernelFault):
    """The kernel ended and some elements of an output were never written."""


class KernelCrash(KernelFault):
    """The kernel's machine code crashed: a wild address, a stack overflow, an integer division by zero."""


class ScheduleError(KernelFault):
    """Results depend on the order in which the threads ran."""
