"""The list of all recurrences, for tests and benchmarks."""

from .cell.scan import RECURRENT
from .cfc.scan import CFC
from .gated.scan import GRU, LSTM, RNN
from .ltc.scan import LTC
from .quantum.scan import QUANTUM

RECURRENCES = {"cfc": CFC, "ltc": LTC, "rnn": RNN, "lstm": LSTM, "gru": GRU, "quantum": QUANTUM, "recurrent": RECURRENT}
