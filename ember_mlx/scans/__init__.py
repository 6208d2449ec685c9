"""Recurrences: for each one its NumPy form, its MLX-ops form, and the function that chooses between them."""
