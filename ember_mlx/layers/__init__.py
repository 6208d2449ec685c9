"""Recurrent layers as mlx.nn modules."""

from .bidirectional import Bidirectional
from .cfc import CfC
from .gated import GRU, LSTM, RNN
from .ltc import LTC

__all__ = ["GRU", "LSTM", "LTC", "RNN", "Bidirectional", "CfC"]
