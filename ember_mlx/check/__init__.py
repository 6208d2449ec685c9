"""python -m ember_mlx --check: every kernel compiled, compared with NumPy and timed on this machine, in processes that may die."""

LIMIT = 180.0  # seconds of a job, unless told
