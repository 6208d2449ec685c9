"""All recurrences; tests and benchmarks sweep this list."""

from .cfc.scan import CFC
from .quantum.scan import QUANTUM

RECURRENCES = {"cfc": CFC, "quantum": QUANTUM}
