"""A standing attack: random layers, calls and histories against plain float64 loops; `python -m tests.attack`, or `make attack`."""
