"""All recurrences; tests and benchmarks sweep this list."""

from .cfc.scan import CFC

RECURRENCES = {"cfc": CFC}
