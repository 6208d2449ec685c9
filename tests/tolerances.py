"""The table of tolerances, by the dtype of the computation: compared with the float64 NumPy form, relative to the largest value."""

FORWARD = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
GRADIENT = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
FINITE_DIFFERENCE = 1e-7  # float64, central differences with steps of 1e-6
# float32, relative to the largest value of an array, however small: in units of how much the exact result moves when its inputs are rounded
ROUNDING = 2.0**-23  # what inputs are moved by, at most, and the least that any result is allowed
TIMES_ROUNDING = 8
TIMES_ROUNDING_SATURATED = 16  # after times at which gates saturate: the slopes s (1 - s) come from the stored s
POINTWISE = 6e-7  # relative, of the kernels' own tanh and the like on the CPU, where exp and divide are exact
# tests/attack: results in any dtype against float64 loops, relative to the largest value, or to a gradient's part in a random direction
ATTACK_TIMES_ROUNDING = 32  # times what rounded inputs move a result by, of which four samples are taken
ATTACK_GRADIENT = 3e-5
ATTACK_CURVATURE = 1e-3
FOLLOWED = 1e-2  # where rounded inputs move a result by more, no arithmetic of that precision follows it
