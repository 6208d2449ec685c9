"""The list of all recurrences, for tests and benchmarks."""

from .cell.scan import GRU, LSTM, RECURRENT, RNN
from .cfc.scan import CFC
from .ltc.scan import LTC
from .quantum.scan import QUANTUM

RECURRENCES = {"cfc": CFC, "ltc": LTC, "rnn": RNN, "lstm": LSTM, "gru": GRU, "quantum": QUANTUM, "recurrent": RECURRENT}
