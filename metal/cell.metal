// Shared by the kernels that ember_mlx/scans/cell generates from a cell's step: how a scan of any cell is laid out on a threadgroup.
//
// A group takes ROWS sequences through all steps. SPLIT neighbouring lanes have the same units, unit `block * GROUPS + group` in each block, for
// every product of the step: so what is made of a unit stays in registers of these lanes, and only arguments of products, or the gradients of
// their results, lie in threadgroup memory. Forward, the lane with part 0 has all results of a unit, and its values are the valid ones; the other
// lanes do the same with what they have, and write nothing.

template <int H_, int THREADS_, int ROWS_, int SPLIT_>
struct CellTile {
  enum {
    GROUPS = THREADS_ / SPLIT_,
    BLOCKS = (H_ + int(GROUPS) - 1) / int(GROUPS),
    COUNT = int(BLOCKS) * ROWS_,              // values of a lane
    UNROLL = BLOCKS <= 4 ? int(BLOCKS) : 1,   // then they are in registers
    ROW = (H_ + 4 * SPLIT_ - 1) / (4 * SPLIT_) * 4 * SPLIT_  // floats of a padded row of an argument
  };
};

// The sequences of a group: row r is number row0 + r of B in one direction, and has length[r] of T steps; the longest has `steps`.
template <int ROWS>
struct CellRows {
  int T, B, direction, row0, count, steps;
  int length[ROWS];
};

template <int ROWS>
inline CellRows<ROWS> rows_of_group(device const int* lengths, device const int* dims, int group_index) {
  CellRows<ROWS> rows;
  rows.T = dims[0];
  rows.B = dims[1];
  int per_direction = (rows.B + ROWS - 1) / ROWS;
  rows.direction = group_index / per_direction;
  rows.row0 = group_index % per_direction * ROWS;
  rows.count = min(rows.B - rows.row0, ROWS);
  rows.steps = read_lengths<ROWS>(lengths, rows.row0, rows.B, rows.length);
  return rows;
}

// Whether a row has a step; where a group has one row, it has all that the group takes.
template <int ROWS>
inline bool has_step(thread const CellRows<ROWS>& rows, int t, int r) {
  return ROWS == 1 || t < rows.length[r];
}

// The place of a row at a step in arrays (D, T, B), and of its state in (D, B).
template <int ROWS>
inline int place_at(thread const CellRows<ROWS>& rows, int t, int r) {
  return (rows.direction * rows.T + t) * rows.B + rows.row0 + r;
}
template <int ROWS>
inline int place_of_state(thread const CellRows<ROWS>& rows, int r) {
  return rows.direction * rows.B + rows.row0 + min(r, rows.count - 1);
}

// The same of the nearest step and row that there are: what is read ahead is read without a condition, and not used where there is no such step.
template <int ROWS>
inline int place_near(thread const CellRows<ROWS>& rows, int t, int r) {
  return (rows.direction * rows.T + max(min(t, rows.T - 1), 0)) * rows.B + min(rows.row0 + r, rows.B - 1);
}

// The group's rows (width) of values (D, T, B, width) are 0 from step t on.
template <int THREADS, int ROWS>
inline void clear_steps(device float* values, int t, int width, thread const CellRows<ROWS>& rows, int thread_index) {
  clear_rest<ROWS, THREADS>(values + rows.direction * rows.T * rows.B * width, t, rows.T, rows.B, width, rows.row0, thread_index);
}

// Lanes without a unit of their own read the last one's: a condition that differs between lanes would tempt a compiler to make one branch of it and
// the same condition behind a product, around the shuffles.
inline int or_last(int index, int count) { return min(index, count - 1); }

// All results of a unit, from the lanes that own one each; valid in the lane with part 0.
template <typename P>
inline void gather(float owned, thread float* results) {
  results[0] = owned;
#pragma unroll
  for (int k = 1; k < P::OUTPUTS; k++) results[k] = simd_shuffle_xor(owned, k * int(P::COPIES));
}
