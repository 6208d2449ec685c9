"""All recurrences; tests and benchmarks sweep this list."""

from .cfc.scan import CFC
from .gated.scan import GRU, LSTM, RNN

RECURRENCES = {"cfc": CFC, "rnn": RNN, "lstm": LSTM, "gru": GRU}
