"""Randomised tests: layers, calls and histories compared with plain float64 loops; `python -m tests.attack`, or `make attack`."""
