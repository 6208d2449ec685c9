"""Fused kernels: their source, its compilation for a device, and the layout of their weights."""
