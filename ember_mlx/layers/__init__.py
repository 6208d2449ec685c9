"""Recurrent layers as mlx.nn modules."""

from .cfc import CfC

__all__ = ["CfC"]
