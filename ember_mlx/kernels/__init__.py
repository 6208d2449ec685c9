"""Fused kernels: their text, how it is compiled for a device, and how weights are laid out for it."""
