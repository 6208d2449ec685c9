// The kernels of SRU, generated from its step in ember_mlx/cells.py by `make steps`.
// They are here to be read; nothing loads this file.
// They stand on pointwise.metal, cell_pointwise.metal, product.metal, sequences.metal, cell.metal.

// The forward scan.
template <int H, int THREADS, int ROWS, int SPLIT, bool RESIDENT>
inline void sru_47349ea3643a_forward(
    device const float* x_proj,  // (D, T, B, 4, H)
    device const float* parameters,  // (D, 2, H)
    device const float* initial0,  // (D, B, H)
    device const float* initial1,  // (D, B, H)
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* after0,  // (D, T, B, H)
    device float* after1,  // (D, T, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 4 * C::COUNT <= 16 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  float p0[C::BLOCKS], p1[C::BLOCKS];
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group, read = or_last(u, H);
    p0[block] = parameters[(rows.direction * 2 + 0) * H + read];
    p1[block] = parameters[(rows.direction * 2 + 1) * H + read];
  }
  float s0[C::COUNT], s1[C::COUNT], x0_read[C::COUNT], x1_read[C::COUNT], x2_read[C::COUNT], x3_read[C::COUNT];
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      s0[i] = initial0[place_of_state(rows, r) * H + read];
      s1[i] = initial1[place_of_state(rows, r) * H + read];
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
        x0_read[i] = x_proj[(place * 4 + 0) * H + read];
        x1_read[i] = x_proj[(place * 4 + 1) * H + read];
        x2_read[i] = x_proj[(place * 4 + 2) * H + read];
        x3_read[i] = x_proj[(place * 4 + 3) * H + read];
      }
    }
  }
  for (int t = 0; t < rows.steps; t++) {
    float x0[C::COUNT], x1[C::COUNT], x2[C::COUNT], x3[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) x0_read[i] = x_proj[(place * 4 + 0) * H + read];
        x0[i] = x0_read[i];
        if (!AHEAD) x1_read[i] = x_proj[(place * 4 + 1) * H + read];
        x1[i] = x1_read[i];
        if (!AHEAD) x2_read[i] = x_proj[(place * 4 + 2) * H + read];
        x2[i] = x2_read[i];
        if (!AHEAD) x3_read[i] = x_proj[(place * 4 + 3) * H + read];
        x3[i] = x3_read[i];
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
          x0_read[i] = x_proj[(place * 4 + 0) * H + read];
          x1_read[i] = x_proj[(place * 4 + 1) * H + read];
          x2_read[i] = x_proj[(place * 4 + 2) * H + read];
          x3_read[i] = x_proj[(place * 4 + 3) * H + read];
        }
      }
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float v16 = x2[i] + (fast_sigmoid(x0[i] + (p0[block] * s1[i])) * (s1[i] - x2[i]));
        float v19 = x3[i] + (fast_sigmoid(x1[i] + (p1[block] * s1[i])) * (v16 - x3[i]));
        float next0 = v19;
        float next1 = v16;
        bool valid = has_step(rows, t, r);
        s0[i] = valid ? next0 : s0[i];
        s1[i] = valid ? next1 : s1[i];
        if (part == 0 && u < H && r < rows.count) {
          after0[place_at(rows, t, r) * H + u] = valid ? next0 : 0.0f;
          after1[place_at(rows, t, r) * H + u] = valid ? next1 : 0.0f;
        }
      }
    }
  }
  clear_steps<THREADS>(after0, rows.steps, H, rows, thread_index);
  clear_steps<THREADS>(after1, rows.steps, H, rows, thread_index);
}

// The backward scan.
template <int H, int THREADS, int ROWS, int SPLIT, bool RESIDENT>
inline void sru_a9f95a53f480_backward(
    device const float* d_after0,  // (D, T, B, H)
    device const float* d_after1,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 9, H)
    device const float* carry0,  // (D, B, H): from beyond these steps
    device const float* carry1,  // (D, B, H): from beyond these steps
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* d,  // (D, T, B, 6, H)
    device float* d_before0,  // (D, B, H)
    device float* d_before1,  // (D, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 11 * C::COUNT <= 24 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  float g0[C::COUNT], g1[C::COUNT], y0_read[C::COUNT], y1_read[C::COUNT], k0_read[C::COUNT], k1_read[C::COUNT];
  float k2_read[C::COUNT], k3_read[C::COUNT], k4_read[C::COUNT], k5_read[C::COUNT], k6_read[C::COUNT], k7_read[C::COUNT];
  float k8_read[C::COUNT];
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      g0[i] = carry0[place_of_state(rows, r) * H + read];
      g1[i] = carry1[place_of_state(rows, r) * H + read];
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
        y1_read[i] = d_after1[place * H + read];
        k0_read[i] = coefficients[(place * 9 + 0) * H + read];
        k1_read[i] = coefficients[(place * 9 + 1) * H + read];
        k2_read[i] = coefficients[(place * 9 + 2) * H + read];
        k3_read[i] = coefficients[(place * 9 + 3) * H + read];
        k4_read[i] = coefficients[(place * 9 + 4) * H + read];
        k5_read[i] = coefficients[(place * 9 + 5) * H + read];
        k6_read[i] = coefficients[(place * 9 + 6) * H + read];
        k7_read[i] = coefficients[(place * 9 + 7) * H + read];
        k8_read[i] = coefficients[(place * 9 + 8) * H + read];
      }
    }
  }
  for (int t = rows.steps - 1; t >= 0; t--) {
    float y0[C::COUNT], y1[C::COUNT], k0[C::COUNT], k1[C::COUNT], k2[C::COUNT], k3[C::COUNT];
    float k4[C::COUNT], k5[C::COUNT], k6[C::COUNT], k7[C::COUNT], k8[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) y0_read[i] = d_after0[place * H + read];
        y0[i] = y0_read[i];
        if (!AHEAD) y1_read[i] = d_after1[place * H + read];
        y1[i] = y1_read[i];
        if (!AHEAD) k0_read[i] = coefficients[(place * 9 + 0) * H + read];
        k0[i] = k0_read[i];
        if (!AHEAD) k1_read[i] = coefficients[(place * 9 + 1) * H + read];
        k1[i] = k1_read[i];
        if (!AHEAD) k2_read[i] = coefficients[(place * 9 + 2) * H + read];
        k2[i] = k2_read[i];
        if (!AHEAD) k3_read[i] = coefficients[(place * 9 + 3) * H + read];
        k3[i] = k3_read[i];
        if (!AHEAD) k4_read[i] = coefficients[(place * 9 + 4) * H + read];
        k4[i] = k4_read[i];
        if (!AHEAD) k5_read[i] = coefficients[(place * 9 + 5) * H + read];
        k5[i] = k5_read[i];
        if (!AHEAD) k6_read[i] = coefficients[(place * 9 + 6) * H + read];
        k6[i] = k6_read[i];
        if (!AHEAD) k7_read[i] = coefficients[(place * 9 + 7) * H + read];
        k7[i] = k7_read[i];
        if (!AHEAD) k8_read[i] = coefficients[(place * 9 + 8) * H + read];
        k8[i] = k8_read[i];
        g0[i] += has_step(rows, t, r) ? y0[i] : 0.0f;
        g1[i] += has_step(rows, t, r) ? y1[i] : 0.0f;
      }
    }
    float m0[C::COUNT];
    if (AHEAD) {
#pragma unroll(C::UNROLL)
      for (int block = 0; block < C::BLOCKS; block++) {
        int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          int i = block * ROWS + r;
          int place = place_near(rows, t - 1, r);
          y0_read[i] = d_after0[place * H + read];
          y1_read[i] = d_after1[place * H + read];
          k0_read[i] = coefficients[(place * 9 + 0) * H + read];
          k1_read[i] = coefficients[(place * 9 + 1) * H + read];
          k2_read[i] = coefficients[(place * 9 + 2) * H + read];
          k3_read[i] = coefficients[(place * 9 + 3) * H + read];
          k4_read[i] = coefficients[(place * 9 + 4) * H + read];
          k5_read[i] = coefficients[(place * 9 + 5) * H + read];
          k6_read[i] = coefficients[(place * 9 + 6) * H + read];
          k7_read[i] = coefficients[(place * 9 + 7) * H + read];
          k8_read[i] = coefficients[(place * 9 + 8) * H + read];
        }
      }
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        m0[i] = g1[i] + k0[i] * g0[i];
        float e0 = k8[i] * m0[i];
        float e1 = k7[i] * g0[i];
        float e2 = k6[i] * m0[i];
        float e3 = k5[i] * g0[i];
        float e4 = k2[i] * m0[i];
        float e5 = k1[i] * g0[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < H && r < rows.count) {
          device float* d_here = d + place_at(rows, t, r) * 6 * H + u;
          d_here[0] = valid ? e0 : 0.0f;
          d_here[1 * H] = valid ? e1 : 0.0f;
          d_here[2 * H] = valid ? e2 : 0.0f;
          d_here[3 * H] = valid ? e3 : 0.0f;
          d_here[4 * H] = valid ? e4 : 0.0f;
          d_here[5 * H] = valid ? e5 : 0.0f;
        }
        float next0 = 0.0f;
        float next1 = k3[i] * m0[i] + k4[i] * g0[i];
        g0[i] = valid ? next0 : g0[i];
        g1[i] = valid ? next1 : g1[i];
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
        d_before1[place_of_state(rows, r) * H + u] = g1[i];
      }
    }
  }
  clear_steps<THREADS>(d, rows.steps, 6 * H, rows, thread_index);
}

// What the derivative takes of the step.
template <int H, int THREADS>
inline void sru_4d0059ba0db4_coefficients(
    device const float* x_proj,  // (D, T, R, 4, H)
    device const float* parameters,  // (D, 2, H)
    device const float* before1,  // (N, H)
    device const int* dims,  // N, R, T, t
    device float* coefficients,  // (N, 9, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 4 + 0) * H + u];
  float x1 = x_proj[(place * 4 + 1) * H + u];
  float x2 = x_proj[(place * 4 + 2) * H + u];
  float x3 = x_proj[(place * 4 + 3) * H + u];
  float p0 = parameters[(direction * 2 + 0) * H + u];
  float p1 = parameters[(direction * 2 + 1) * H + u];
  float s1 = before1[index];
  float v10 = fast_sigmoid(x0 + (p0 * s1));
  float v13 = fast_sigmoid(x1 + (p1 * s1));
  float v14 = s1 - x2;
  float v24 = 1.0f - v13;
  float v26 = 1.0f - v10;
  float v28 = ((x2 + (v10 * v14)) - x3) * (v13 * v24);
  float v32 = v14 * (v10 * v26);
  coefficients[(row * 9 + 0) * H + u] = v13;
  coefficients[(row * 9 + 1) * H + u] = v28 * s1;
  coefficients[(row * 9 + 2) * H + u] = v32 * s1;
  coefficients[(row * 9 + 3) * H + u] = v10 + (v32 * p0);
  coefficients[(row * 9 + 4) * H + u] = v28 * p1;
  coefficients[(row * 9 + 5) * H + u] = v24;
  coefficients[(row * 9 + 6) * H + u] = v26;
  coefficients[(row * 9 + 7) * H + u] = v28;
  coefficients[(row * 9 + 8) * H + u] = v32;
}

// The states after one step.
template <int H, int THREADS>
inline void sru_03b4a153f4a7_next(
    device const float* x_proj,  // (D, T, R, 4, H)
    device const float* parameters,  // (D, 2, H)
    device const float* before1,  // (N, H)
    device const int* dims,  // N, R, T, t
    device float* after0,  // (N, H)
    device float* after1,  // (N, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 4 + 0) * H + u];
  float x1 = x_proj[(place * 4 + 1) * H + u];
  float x2 = x_proj[(place * 4 + 2) * H + u];
  float x3 = x_proj[(place * 4 + 3) * H + u];
  float p0 = parameters[(direction * 2 + 0) * H + u];
  float p1 = parameters[(direction * 2 + 1) * H + u];
  float s1 = before1[index];
  float v16 = x2 + (fast_sigmoid(x0 + (p0 * s1)) * (s1 - x2));
  after0[index] = x3 + (fast_sigmoid(x1 + (p1 * s1)) * (v16 - x3));
  after1[index] = v16;
}

// Behind one step backward and its products, and before those of the step before it.
template <int H, int THREADS>
inline void sru_b1aecddc6820_previous(
    device const float* d_after0,  // (D, T, B, H)
    device const float* d_after1,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 9, H)
    device const float* arriving0,  // (D, B, H): of the states after step t
    device const float* arriving1,  // (D, B, H): of the states after step t
    device const int* lengths,  // (B)
    device const int* dims,  // N, R, T, t
    device float* d_last,  // (D, B, 6, H)
    device float* before0,  // (D, B, H)
    device float* before1,  // (D, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  place -= dims[3] == dims[2] ? dims[1] : 0;
  bool valid = dims[3] < lengths[row % dims[1]];
  device const float* by = coefficients + place * 9 * H + u;
  float g0 = arriving0[index] + (valid ? d_after0[place * H + u] : 0.0f);
  float g1 = arriving1[index] + (valid ? d_after1[place * H + u] : 0.0f);
  float m0 = g1 + by[0 * H] * g0;
  d_last[(row * 6 + 0) * H + u] = valid ? by[8 * H] * m0 : 0.0f;
  d_last[(row * 6 + 1) * H + u] = valid ? by[7 * H] * g0 : 0.0f;
  d_last[(row * 6 + 2) * H + u] = valid ? by[6 * H] * m0 : 0.0f;
  d_last[(row * 6 + 3) * H + u] = valid ? by[5 * H] * g0 : 0.0f;
  d_last[(row * 6 + 4) * H + u] = valid ? by[2 * H] * m0 : 0.0f;
  d_last[(row * 6 + 5) * H + u] = valid ? by[1 * H] * g0 : 0.0f;
  float b0 = valid ? 0.0f : g0;
  before0[index] = b0;
  float b1 = valid ? by[3 * H] * m0 + by[4 * H] * g0 : g1;
  before1[index] = b1;
}
