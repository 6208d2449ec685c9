"""python -m ember_mlx --check: compile every kernel, compare it with NumPy and time it, in separate processes that may crash."""

LIMIT = 180.0  # default time limit of a job in seconds
