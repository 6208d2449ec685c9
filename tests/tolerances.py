"""The one table of tolerances, by the dtype that computes: against the float64 NumPy form, relative to the largest value."""

FORWARD = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
GRADIENT = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
FINITE_DIFFERENCE = 1e-7  # float64, central differences with steps of 1e-6
