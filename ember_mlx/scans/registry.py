"""All recurrences; tests and benchmarks sweep this list."""

from .cfc.scan import CFC
from .ltc.scan import LTC

RECURRENCES = {"cfc": CFC, "ltc": LTC}
