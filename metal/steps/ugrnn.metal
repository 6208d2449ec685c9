// The kernels of UGRNN, generated from its step in ember_mlx/cells.py by `make steps`.
// They are here to be read; nothing loads this file.
// They stand on pointwise.metal, cell_pointwise.metal, product.metal, sequences.metal, cell.metal.

// The forward scan.
template <int H, int THREADS, int ROWS, int SPLIT, bool RESIDENT>
inline void ugrnn_5b1e9cfa3449_forward(
    device const float* x_proj,  // (D, T, B, 2, H)
    device const float* weights,  // D times packed, one product after the other
    device const float* initial0,  // (D, B, H)
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* after0,  // (D, T, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 1 * C::COUNT <= 16 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  threadgroup float* arguments = (threadgroup float*)scratch;  // 2 times (ROWS, C::ROW)
  fill(arguments, 2 * ROWS * C::ROW, thread_index, THREADS, 0.0f);
  typedef Product<H, 2 * H, SPLIT, 2, THREADS, RESIDENT> Product0;  // R
  device const float* packed = weights + rows.direction * 4 * (int(Product0::FLOAT4S)) * THREADS;
  Product0 product0;
  load_product(product0, packed, thread_index);
  int own0_0 = or_last(product0.owned, 2);
  bool tanh0_0 = product0.owned == 0;
  float s0[C::COUNT], x0_0_read[C::COUNT];
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
        x0_0_read[i] = x_proj[(place * 2 + own0_0) * H + read];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int t = 0; t < rows.steps; t++) {
    float x0_0[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) x0_0_read[i] = x_proj[(place * 2 + own0_0) * H + read];
        x0_0[i] = x0_0_read[i];
      }
    }
    threadgroup float* a0 = arguments + (t % 2) * ROWS * C::ROW;
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        if (part == 0 && u < H && r < rows.count) a0[r * C::ROW + u] = s0[i];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (AHEAD) {
#pragma unroll(C::UNROLL)
      for (int block = 0; block < C::BLOCKS; block++) {
        int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          int i = block * ROWS + r;
          int place = place_near(rows, t + 1, r);
          x0_0_read[i] = x_proj[(place * 2 + own0_0) * H + read];
        }
      }
    }
    float q0_0[2 * C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)a0, block, q0_0 + 2 * block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, q0_0 + 2 * block * ROWS);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float value = q0_0[2 * i];
        value = tanh_or_sigmoid(tanh0_0, x0_0[i] + value);
        gather<Product0>(value, q0_0 + 2 * i);
      }
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float v11 = q0_0[2 * i + 0] + (q0_0[2 * i + 1] * (s0[i] - q0_0[2 * i + 0]));
        float next0 = v11;
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
inline void ugrnn_2cccf484e82f_backward(
    device const float* d_after0,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 3, H)
    device const float* weights,  // D times packed, one transposed product after the other
    device const float* carry0,  // (D, B, H): from beyond these steps
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* d,  // (D, T, B, 2, H)
    device float* d_before0,  // (D, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 4 * C::COUNT <= 24 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  typedef Product<2 * H, H, SPLIT, 1, THREADS, RESIDENT> Product0;  // R
  // floats of a row of each call's gradients
  enum { ROW0 = 4 * int(Product0::ROW4) };
  threadgroup float* gradients = (threadgroup float*)scratch;
  fill(gradients, 2 * ROWS * (ROW0), thread_index, THREADS, 0.0f);
  device const float* packed = weights + rows.direction * 4 * (int(Product0::FLOAT4S)) * THREADS;
  Product0 product0;
  load_product(product0, packed, thread_index);
  float g0[C::COUNT], y0_read[C::COUNT], k0_read[C::COUNT], k1_read[C::COUNT], k2_read[C::COUNT];
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
        k0_read[i] = coefficients[(place * 3 + 0) * H + read];
        k1_read[i] = coefficients[(place * 3 + 1) * H + read];
        k2_read[i] = coefficients[(place * 3 + 2) * H + read];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int t = rows.steps - 1; t >= 0; t--) {
    float y0[C::COUNT], k0[C::COUNT], k1[C::COUNT], k2[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) y0_read[i] = d_after0[place * H + read];
        y0[i] = y0_read[i];
        if (!AHEAD) k0_read[i] = coefficients[(place * 3 + 0) * H + read];
        k0[i] = k0_read[i];
        if (!AHEAD) k1_read[i] = coefficients[(place * 3 + 1) * H + read];
        k1[i] = k1_read[i];
        if (!AHEAD) k2_read[i] = coefficients[(place * 3 + 2) * H + read];
        k2[i] = k2_read[i];
        g0[i] += has_step(rows, t, r) ? y0[i] : 0.0f;
      }
    }
    float r0[C::COUNT];
    if (AHEAD) {
#pragma unroll(C::UNROLL)
      for (int block = 0; block < C::BLOCKS; block++) {
        int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          int i = block * ROWS + r;
          int place = place_near(rows, t - 1, r);
          y0_read[i] = d_after0[place * H + read];
          k0_read[i] = coefficients[(place * 3 + 0) * H + read];
          k1_read[i] = coefficients[(place * 3 + 1) * H + read];
          k2_read[i] = coefficients[(place * 3 + 2) * H + read];
        }
      }
    }
    threadgroup float* b0 = gradients + (t % 2 * ROW0 + 2 * (0)) * ROWS;
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float e0 = k0[i] * g0[i];
        float e1 = k1[i] * g0[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < H && r < rows.count) {
          device float* d_here = d + place_at(rows, t, r) * 2 * H + u;
          d_here[0] = valid ? e0 : 0.0f;
          d_here[1 * H] = valid ? e1 : 0.0f;
          b0[r * ROW0 + u] = e0;
          b0[r * ROW0 + 1 * H + u] = e1;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)b0, block, r0 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, r0 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float next0 = k2[i] * g0[i] + r0[i];
        g0[i] = has_step(rows, t, r) ? next0 : g0[i];
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
  clear_steps<THREADS>(d, rows.steps, 2 * H, rows, thread_index);
}

// What the derivative takes of the step.
template <int H, int THREADS>
inline void ugrnn_37d7b6e6902f_coefficients(
    device const float* x_proj,  // (D, T, R, 2, H)
    device const float* before0,  // (N, H)
    device const float* results0,  // (N, 2, H)
    device const int* dims,  // N, R, T, t
    device float* coefficients,  // (N, 3, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 2 + 0) * H + u];
  float x1 = x_proj[(place * 2 + 1) * H + u];
  float s0 = before0[index];
  float q0_0 = results0[(row * 2 + 0) * H + u];
  float q0_1 = results0[(row * 2 + 1) * H + u];
  float v6 = fast_tanh(x0 + q0_0);
  float v8 = fast_sigmoid(x1 + q0_1);
  float v16 = 1.0f - v8;
  coefficients[(row * 3 + 0) * H + u] = v16 * (1.0f - (v6 * v6));
  coefficients[(row * 3 + 1) * H + u] = (s0 - v6) * (v8 * v16);
  coefficients[(row * 3 + 2) * H + u] = v8;
}

// The states after one step.
template <int H, int THREADS>
inline void ugrnn_91dd0e81b3c1_next(
    device const float* x_proj,  // (D, T, R, 2, H)
    device const float* before0,  // (N, H)
    device const float* results0,  // (N, 2, H)
    device const int* dims,  // N, R, T, t
    device float* after0,  // (N, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 2 + 0) * H + u];
  float x1 = x_proj[(place * 2 + 1) * H + u];
  float s0 = before0[index];
  float q0_0 = results0[(row * 2 + 0) * H + u];
  float q0_1 = results0[(row * 2 + 1) * H + u];
  float v6 = fast_tanh(x0 + q0_0);
  after0[index] = v6 + (fast_sigmoid(x1 + q0_1) * (s0 - v6));
}

// Behind one step backward and its products, and before those of the step before it.
template <int H, int THREADS>
inline void ugrnn_b0a6fcda1fe8_previous(
    device const float* d_after0,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 3, H)
    device const float* arriving0,  // (D, B, H): of the states after step t
    device const float* returned0,  // (D, B, H): what a product sends back
    device const int* lengths,  // (B)
    device const int* dims,  // N, R, T, t
    device float* before0,  // (D, B, H)
    device float* d,  // (D, B, 2, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  place -= dims[3] == dims[2] ? dims[1] : 0;
  bool valid = dims[3] < lengths[row % dims[1]];
  device const float* by = coefficients + place * 3 * H + u;
  float g0 = arriving0[index] + (valid ? d_after0[place * H + u] : 0.0f);
  float r0 = returned0[index];
  float b0 = valid ? by[2 * H] * g0 + r0 : g0;
  before0[index] = b0;
  {
    int place = (direction * dims[2] + max(dims[3] - 1, 0)) * dims[1] + row % dims[1];
    bool valid = dims[3] > 0 && dims[3] - 1 < lengths[row % dims[1]];
    device const float* by = coefficients + place * 3 * H + u;
    float g0 = b0 + (valid ? d_after0[place * H + u] : 0.0f);
    d[(row * 2 + 0) * H + u] = valid ? by[0 * H] * g0 : 0.0f;
    d[(row * 2 + 1) * H + u] = valid ? by[1 * H] * g0 : 0.0f;
  }
}
