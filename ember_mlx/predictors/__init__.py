"""Layers in NumPy, for predictions where MLX is absent and for single steps: built from a configuration and weights, never trained."""
