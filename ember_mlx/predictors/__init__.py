"""Layers in NumPy, for predictions without MLX and for single steps: built from a configuration and weights, not trainable."""
