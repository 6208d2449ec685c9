// The kernels of MinLSTM, generated from its step in ember_mlx/cells.py by `make steps`.
// They are here to be read; nothing loads this file.
// They stand on pointwise.metal, cell_pointwise.metal, product.metal, sequences.metal, cell.metal.

// The forward scan.
template <int H, int THREADS, int ROWS, int SPLIT, bool RESIDENT>
inline void minlstm_ca818bf17c54_forward(
    device const float* x_proj,  // (D, T, B, 3, H)
    device const float* initial0,  // (D, B, H)
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* after0,  // (D, T, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 3 * C::COUNT <= 16 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  float s0[C::COUNT], x0_read[C::COUNT], x1_read[C::COUNT], x2_read[C::COUNT];
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      s0[i] = initial0[place_of_state(rows, r) * H + read];
    }
  }
  if (AHEAD) {
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, 0, r);
        x0_read[i] = x_proj[(place * 3 + 0) * H + read];
        x1_read[i] = x_proj[(place * 3 + 1) * H + read];
        x2_read[i] = x_proj[(place * 3 + 2) * H + read];
      }
    }
  }
  for (int t = 0; t < rows.steps; t++) {
    float x0[C::COUNT], x1[C::COUNT], x2[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) x0_read[i] = x_proj[(place * 3 + 0) * H + read];
        x0[i] = x0_read[i];
        if (!AHEAD) x1_read[i] = x_proj[(place * 3 + 1) * H + read];
        x1[i] = x1_read[i];
        if (!AHEAD) x2_read[i] = x_proj[(place * 3 + 2) * H + read];
        x2[i] = x2_read[i];
      }
    }
    if (AHEAD) {
#pragma unroll(C::UNROLL)
      for (int block = 0; block < C::BLOCKS; block++) {
        int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          int i = block * ROWS + r;
          int place = place_near(rows, t + 1, r);
          x0_read[i] = x_proj[(place * 3 + 0) * H + read];
          x1_read[i] = x_proj[(place * 3 + 1) * H + read];
          x2_read[i] = x_proj[(place * 3 + 2) * H + read];
        }
      }
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float v11 = fast_sigmoid(soft_plus(-x1[i]) - soft_plus(-x0[i])) * (s0[i] - x2[i]);
        float next0 = x2[i] + v11;
        bool valid = has_step(rows, t, r);
        s0[i] = valid ? next0 : s0[i];
        if (part == 0 && u < H && r < rows.count) {
          after0[place_at(rows, t, r) * H + u] = valid ? next0 : 0.0f;
        }
      }
    }
  }
  clear_steps<THREADS>(after0, rows.steps, H, rows, thread_index);
}

// The backward scan.
template <int H, int THREADS, int ROWS, int SPLIT, bool RESIDENT>
inline void minlstm_192ae063db7a_backward(
    device const float* d_after0,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 4, H)
    device const float* carry0,  // (D, B, H): from beyond these steps
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* d,  // (D, T, B, 3, H)
    device float* d_before0,  // (D, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 5 * C::COUNT <= 24 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  float g0[C::COUNT], y0_read[C::COUNT], k0_read[C::COUNT], k1_read[C::COUNT], k2_read[C::COUNT], k3_read[C::COUNT];
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      g0[i] = carry0[place_of_state(rows, r) * H + read];
    }
  }
  if (AHEAD) {
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, rows.steps - 1, r);
        y0_read[i] = d_after0[place * H + read];
        k0_read[i] = coefficients[(place * 4 + 0) * H + read];
        k1_read[i] = coefficients[(place * 4 + 1) * H + read];
        k2_read[i] = coefficients[(place * 4 + 2) * H + read];
        k3_read[i] = coefficients[(place * 4 + 3) * H + read];
      }
    }
  }
  for (int t = rows.steps - 1; t >= 0; t--) {
    float y0[C::COUNT], k0[C::COUNT], k1[C::COUNT], k2[C::COUNT], k3[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) y0_read[i] = d_after0[place * H + read];
        y0[i] = y0_read[i];
        if (!AHEAD) k0_read[i] = coefficients[(place * 4 + 0) * H + read];
        k0[i] = k0_read[i];
        if (!AHEAD) k1_read[i] = coefficients[(place * 4 + 1) * H + read];
        k1[i] = k1_read[i];
        if (!AHEAD) k2_read[i] = coefficients[(place * 4 + 2) * H + read];
        k2[i] = k2_read[i];
        if (!AHEAD) k3_read[i] = coefficients[(place * 4 + 3) * H + read];
        k3[i] = k3_read[i];
        g0[i] += has_step(rows, t, r) ? y0[i] : 0.0f;
      }
    }
    if (AHEAD) {
#pragma unroll(C::UNROLL)
      for (int block = 0; block < C::BLOCKS; block++) {
        int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          int i = block * ROWS + r;
          int place = place_near(rows, t - 1, r);
          y0_read[i] = d_after0[place * H + read];
          k0_read[i] = coefficients[(place * 4 + 0) * H + read];
          k1_read[i] = coefficients[(place * 4 + 1) * H + read];
          k2_read[i] = coefficients[(place * 4 + 2) * H + read];
          k3_read[i] = coefficients[(place * 4 + 3) * H + read];
        }
      }
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float e0 = k3[i] * g0[i];
        float e1 = -k2[i] * g0[i];
        float e2 = k1[i] * g0[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < H && r < rows.count) {
          device float* d_here = d + place_at(rows, t, r) * 3 * H + u;
          d_here[0] = valid ? e0 : 0.0f;
          d_here[1 * H] = valid ? e1 : 0.0f;
          d_here[2 * H] = valid ? e2 : 0.0f;
        }
        float next0 = k0[i] * g0[i];
        g0[i] = valid ? next0 : g0[i];
      }
    }
  }
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      if (part == 0 && u < H && r < rows.count) {
        d_before0[place_of_state(rows, r) * H + u] = g0[i];
      }
    }
  }
  clear_steps<THREADS>(d, rows.steps, 3 * H, rows, thread_index);
}

// What the derivative takes of the step.
template <int H, int THREADS>
inline void minlstm_6b32c0c612b5_coefficients(
    device const float* x_proj,  // (D, T, R, 3, H)
    device const float* before0,  // (N, H)
    device const int* dims,  // N, R, T, t
    device float* coefficients,  // (N, 4, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 3 + 0) * H + u];
  float x1 = x_proj[(place * 3 + 1) * H + u];
  float x2 = x_proj[(place * 3 + 2) * H + u];
  float s0 = before0[index];
  float v4 = -x1;
  float v6 = -x0;
  float v9 = fast_sigmoid(soft_plus(v4) - soft_plus(v6));
  float v17 = 1.0f - v9;
  float v19 = (s0 - x2) * (v9 * v17);
  coefficients[(row * 4 + 0) * H + u] = v9;
  coefficients[(row * 4 + 1) * H + u] = v17;
  coefficients[(row * 4 + 2) * H + u] = v19 * fast_sigmoid(v4);
  coefficients[(row * 4 + 3) * H + u] = fast_sigmoid(v6) * v19;
}

// The states after one step.
template <int H, int THREADS>
inline void minlstm_fc487db46a23_next(
    device const float* x_proj,  // (D, T, R, 3, H)
    device const float* before0,  // (N, H)
    device const int* dims,  // N, R, T, t
    device float* after0,  // (N, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 3 + 0) * H + u];
  float x1 = x_proj[(place * 3 + 1) * H + u];
  float x2 = x_proj[(place * 3 + 2) * H + u];
  float s0 = before0[index];
  float v12 = x2 + (fast_sigmoid(soft_plus(-x1) - soft_plus(-x0)) * (s0 - x2));
  after0[index] = v12;
}

// Behind one step backward and its products, and before those of the step before it.
template <int H, int THREADS>
inline void minlstm_ad0f96ff0e6b_previous(
    device const float* d_after0,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 4, H)
    device const float* arriving0,  // (D, B, H): of the states after step t
    device const int* lengths,  // (B)
    device const int* dims,  // N, R, T, t
    device float* d_last,  // (D, B, 3, H)
    device float* before0,  // (D, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  place -= dims[3] == dims[2] ? dims[1] : 0;
  bool valid = dims[3] < lengths[row % dims[1]];
  device const float* by = coefficients + place * 4 * H + u;
  float g0 = arriving0[index] + (valid ? d_after0[place * H + u] : 0.0f);
  d_last[(row * 3 + 0) * H + u] = valid ? by[3 * H] * g0 : 0.0f;
  d_last[(row * 3 + 1) * H + u] = valid ? -by[2 * H] * g0 : 0.0f;
  d_last[(row * 3 + 2) * H + u] = valid ? by[1 * H] * g0 : 0.0f;
  float b0 = valid ? by[0 * H] * g0 : g0;
  before0[index] = b0;
}
