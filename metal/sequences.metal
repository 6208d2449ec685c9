// Sequences of different lengths, ROWS of them per threadgroup.

// Reads the number of steps of each row of this threadgroup; returns the largest.
template <int ROWS>
inline int read_lengths(device const int* lengths, int row0, int B, thread int* length) {
  int most = 0;
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    length[r] = row0 + r < B ? lengths[row0 + r] : 0;
    most = length[r] > most ? length[r] : most;
  }
  return most;
}

// Zeroes rows (B, width) from step t on.
template <int ROWS, int THREADS, typename IO>
inline void clear_rest(device IO* values, int t, int T, int B, int width, int row0, int thread_index) {
  for (; t < T; t++) {
    for (int r = 0; r < ROWS && row0 + r < B; r++) {
      for (int j = thread_index; j < width; j += THREADS) values[(t * B + row0 + r) * width + j] = IO(0.0f);
    }
  }
}

// The sequences of a threadgroup: row r is sequence row0 + r of B and has length[r] steps; the longest has `steps`.
template <int ROWS>
struct Rows {
  int B, row0, steps;
  int length[ROWS];
};

template <int ROWS>
inline void load_rows(thread Rows<ROWS>& rows, device const int* lengths, int B, int row0) {
  rows.B = B;
  rows.row0 = row0;
  rows.steps = read_lengths<ROWS>(lengths, row0, B, rows.length);
}

template <int ROWS>
inline bool valid(thread const Rows<ROWS>& rows, int t, int r) {
  return unsigned(t) < unsigned(rows.length[r]);  // also false for negative t
}

// The index of row r at step t in an array (T, B).
template <int ROWS>
inline int place(thread const Rows<ROWS>& rows, int t, int r) {
  return t * rows.B + rows.row0 + r;
}

// Zeroes the threadgroup's rows of values (T, B, width) from step t on.
template <int THREADS, int ROWS>
inline void clear_rows(device float* values, int t, int T, int width, thread const Rows<ROWS>& rows, int thread_index) {
  clear_rest<ROWS, THREADS>(values, t, T, rows.B, width, rows.row0, thread_index);
}
