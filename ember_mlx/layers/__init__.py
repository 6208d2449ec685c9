"""Recurrent layers as mlx.nn modules."""

from .cfc import CfC
from .quantum import CTRQNet, LQNet
from .spatial import spatial_regularization

__all__ = ["CTRQNet", "CfC", "LQNet", "spatial_regularization"]
