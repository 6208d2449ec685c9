// The sequences of a threadgroup: ROWS of them, of different lengths.

// How many steps each row of this group has; returns the most.
template <int ROWS>
inline int read_lengths(device const int* lengths, int row0, int B, thread int* length) {
  int most = 0;
  for (int r = 0; r < ROWS; r++) {
    length[r] = row0 + r < B ? lengths[row0 + r] : 0;
    most = length[r] > most ? length[r] : most;
  }
  return most;
}

// Rows (B, width) of step t from there on are 0 to the end of the sequence.
template <int ROWS, int THREADS, typename IO>
inline void clear_rest(device IO* values, int t, int T, int B, int width, int row0, int thread_index) {
  for (; t < T; t++) {
    for (int r = 0; r < ROWS && row0 + r < B; r++) {
      for (int j = thread_index; j < width; j += THREADS) values[(t * B + row0 + r) * width + j] = IO(0.0f);
    }
  }
}
