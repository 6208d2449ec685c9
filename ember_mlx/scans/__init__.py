"""The recurrences: each has a NumPy form, an MLX-ops form, fused kernels, and a function that chooses between them."""
