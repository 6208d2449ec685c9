"""Recurrent layers as mlx.nn modules."""

from .cfc import CfC
from .ltc import LTC

__all__ = ["LTC", "CfC"]
