"""Recurrent layers as mlx.nn modules."""

from ..forks import survive_forks
from .bidirectional import Bidirectional
from .cfc import CfC
from .gated import GRU, LSTM, RNN
from .ltc import LTC
from .quantum import CTRQNet, LQNet
from .recurrent import Recurrent
from .sequence_model import SequenceModel
from .spatial import spatial_regularization
from .strides import StrideAware, StrideAwareCfC, StrideAwareLTC

__all__ = [
    "GRU",
    "LSTM",
    "LTC",
    "RNN",
    "Bidirectional",
    "CTRQNet",
    "CfC",
    "LQNet",
    "Recurrent",
    "SequenceModel",
    "StrideAware",
    "StrideAwareCfC",
    "StrideAwareLTC",
    "spatial_regularization",
]

survive_forks()
