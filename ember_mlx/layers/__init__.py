"""Recurrent layers as mlx.nn modules."""

from .bidirectional import Bidirectional
from .cfc import CfC
from .gated import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "Bidirectional", "CfC"]
