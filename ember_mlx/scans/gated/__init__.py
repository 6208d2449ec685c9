"""The gated recurrences: RNN, LSTM and GRU, one scan with three cells."""
