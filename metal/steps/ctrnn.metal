// The kernels of CTRNN, generated from its step in ember_mlx/cells.py by `make steps`.
// They are here to be read; nothing loads this file.
// They stand on pointwise.metal, cell_pointwise.metal, product.metal, sequences.metal, cell.metal.

// The forward scan.
template <int H, int THREADS, int ROWS, int SPLIT, bool RESIDENT>
inline void ctrnn_b332b0bb3942_forward(
    device const float* x_proj,  // (D, T, B, 1, H)
    device const float* times,  // (D, T, B)
    device const float* parameters,  // (D, 1, H)
    device const float* weights,  // D times packed, one product after the other
    device const float* initial0,  // (D, B, H)
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* after0,  // (D, T, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 2 * C::COUNT <= 16 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  threadgroup float* arguments = (threadgroup float*)scratch;  // 4 times (ROWS, C::ROW)
  fill(arguments, 4 * ROWS * C::ROW, thread_index, THREADS, 0.0f);
  typedef Product<H, 1 * H, SPLIT, 1, THREADS, RESIDENT> Product0;  // R
  device const float* packed = weights + rows.direction * 4 * (int(Product0::FLOAT4S)) * THREADS;
  Product0 product0;
  load_product(product0, packed, thread_index);
  float p0[C::BLOCKS];
  float v7[C::BLOCKS];
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group, read = or_last(u, H);
    p0[block] = parameters[(rows.direction * 1 + 0) * H + read];
    v7[block] = exp(p0[block]);
  }
  float s0[C::COUNT], x0_read[C::COUNT];
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      s0[i] = initial0[place_of_state(rows, r) * H + read];
    }
  }
  float dt_read[ROWS];
  if (AHEAD) {
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, 0, r);
        x0_read[i] = x_proj[(place * 1 + 0) * H + read];
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) dt_read[r] = times[place_near(rows, 0, r)];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int t = 0; t < rows.steps; t++) {
    float x0[C::COUNT];
    float dt[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (!AHEAD) dt_read[r] = times[place_near(rows, t, r)];
      dt[r] = dt_read[r];
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) x0_read[i] = x_proj[(place * 1 + 0) * H + read];
        x0[i] = x0_read[i];
      }
    }
    float v9[C::COUNT], v17[C::COUNT], v24[C::COUNT], v31[C::COUNT];
    threadgroup float* a0 = arguments + 0 * ROWS * C::ROW;
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
          x0_read[i] = x_proj[(place * 1 + 0) * H + read];
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) dt_read[r] = times[place_near(rows, t + 1, r)];
    }
    float q0_0[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)a0, block, q0_0 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, q0_0 + block * ROWS);
    }
    threadgroup float* a1 = arguments + 1 * ROWS * C::ROW;
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        v9[i] = exp_minus_one(((-dt[r]) * 0.25f) * v7[block]);
        v17[i] = s0[i] - ((fast_tanh(x0[i] + q0_0[i]) - s0[i]) * v9[i]);
        if (part == 0 && u < H && r < rows.count) a1[r * C::ROW + u] = v17[i];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float q1_0[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)a1, block, q1_0 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, q1_0 + block * ROWS);
    }
    threadgroup float* a2 = arguments + 2 * ROWS * C::ROW;
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        v24[i] = v17[i] - ((fast_tanh(x0[i] + q1_0[i]) - v17[i]) * v9[i]);
        if (part == 0 && u < H && r < rows.count) a2[r * C::ROW + u] = v24[i];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float q2_0[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)a2, block, q2_0 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, q2_0 + block * ROWS);
    }
    threadgroup float* a3 = arguments + 3 * ROWS * C::ROW;
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        v31[i] = v24[i] - ((fast_tanh(x0[i] + q2_0[i]) - v24[i]) * v9[i]);
        if (part == 0 && u < H && r < rows.count) a3[r * C::ROW + u] = v31[i];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float q3_0[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)a3, block, q3_0 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, q3_0 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float next0 = v31[i] - ((fast_tanh(x0[i] + q3_0[i]) - v31[i]) * v9[i]);
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
inline void ctrnn_d85da1918d7d_backward(
    device const float* d_after0,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 11, H)
    device const float* weights,  // D times packed, one transposed product after the other
    device const float* carry0,  // (D, B, H): from beyond these steps
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* d,  // (D, T, B, 7, H)
    device float* d_before0,  // (D, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 12 * C::COUNT <= 24 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  typedef Product<1 * H, H, SPLIT, 1, THREADS, RESIDENT> Product0;  // R
  // floats of a row of each call's gradients
  enum { ROW0 = 4 * int(Product0::ROW4), ROW1 = 4 * int(Product0::ROW4), ROW2 = 4 * int(Product0::ROW4), ROW3 = 4 * int(Product0::ROW4) };
  threadgroup float* gradients = (threadgroup float*)scratch;
  fill(gradients, 1 * ROWS * (ROW0 + ROW1 + ROW2 + ROW3), thread_index, THREADS, 0.0f);
  device const float* packed = weights + rows.direction * 4 * (int(Product0::FLOAT4S)) * THREADS;
  Product0 product0;
  load_product(product0, packed, thread_index);
  float g0[C::COUNT], y0_read[C::COUNT], k0_read[C::COUNT], k1_read[C::COUNT], k2_read[C::COUNT], k3_read[C::COUNT];
  float k4_read[C::COUNT], k5_read[C::COUNT], k6_read[C::COUNT], k7_read[C::COUNT], k8_read[C::COUNT], k9_read[C::COUNT];
  float k10_read[C::COUNT];
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
        k0_read[i] = coefficients[(place * 11 + 0) * H + read];
        k1_read[i] = coefficients[(place * 11 + 1) * H + read];
        k2_read[i] = coefficients[(place * 11 + 2) * H + read];
        k3_read[i] = coefficients[(place * 11 + 3) * H + read];
        k4_read[i] = coefficients[(place * 11 + 4) * H + read];
        k5_read[i] = coefficients[(place * 11 + 5) * H + read];
        k6_read[i] = coefficients[(place * 11 + 6) * H + read];
        k7_read[i] = coefficients[(place * 11 + 7) * H + read];
        k8_read[i] = coefficients[(place * 11 + 8) * H + read];
        k9_read[i] = coefficients[(place * 11 + 9) * H + read];
        k10_read[i] = coefficients[(place * 11 + 10) * H + read];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int t = rows.steps - 1; t >= 0; t--) {
    float y0[C::COUNT], k0[C::COUNT], k1[C::COUNT], k2[C::COUNT], k3[C::COUNT], k4[C::COUNT];
    float k5[C::COUNT], k6[C::COUNT], k7[C::COUNT], k8[C::COUNT], k9[C::COUNT], k10[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) y0_read[i] = d_after0[place * H + read];
        y0[i] = y0_read[i];
        if (!AHEAD) k0_read[i] = coefficients[(place * 11 + 0) * H + read];
        k0[i] = k0_read[i];
        if (!AHEAD) k1_read[i] = coefficients[(place * 11 + 1) * H + read];
        k1[i] = k1_read[i];
        if (!AHEAD) k2_read[i] = coefficients[(place * 11 + 2) * H + read];
        k2[i] = k2_read[i];
        if (!AHEAD) k3_read[i] = coefficients[(place * 11 + 3) * H + read];
        k3[i] = k3_read[i];
        if (!AHEAD) k4_read[i] = coefficients[(place * 11 + 4) * H + read];
        k4[i] = k4_read[i];
        if (!AHEAD) k5_read[i] = coefficients[(place * 11 + 5) * H + read];
        k5[i] = k5_read[i];
        if (!AHEAD) k6_read[i] = coefficients[(place * 11 + 6) * H + read];
        k6[i] = k6_read[i];
        if (!AHEAD) k7_read[i] = coefficients[(place * 11 + 7) * H + read];
        k7[i] = k7_read[i];
        if (!AHEAD) k8_read[i] = coefficients[(place * 11 + 8) * H + read];
        k8[i] = k8_read[i];
        if (!AHEAD) k9_read[i] = coefficients[(place * 11 + 9) * H + read];
        k9[i] = k9_read[i];
        if (!AHEAD) k10_read[i] = coefficients[(place * 11 + 10) * H + read];
        k10[i] = k10_read[i];
        g0[i] += has_step(rows, t, r) ? y0[i] : 0.0f;
      }
    }
    float r3[C::COUNT], m0[C::COUNT], r2[C::COUNT], m1[C::COUNT], r1[C::COUNT], m2[C::COUNT];
    float r0[C::COUNT], m3[C::COUNT];
    threadgroup float* b3 = gradients + ROWS * (ROW0 + ROW1 + ROW2);
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float e4 = -k5[i] * g0[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < H && r < rows.count) {
          device float* d_here = d + place_at(rows, t, r) * 7 * H + u;
          d_here[4 * H] = valid ? e4 : 0.0f;
          b3[r * ROW3 + u] = e4;
        }
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
          int place = place_near(rows, t - 1, r);
          y0_read[i] = d_after0[place * H + read];
          k0_read[i] = coefficients[(place * 11 + 0) * H + read];
          k1_read[i] = coefficients[(place * 11 + 1) * H + read];
          k2_read[i] = coefficients[(place * 11 + 2) * H + read];
          k3_read[i] = coefficients[(place * 11 + 3) * H + read];
          k4_read[i] = coefficients[(place * 11 + 4) * H + read];
          k5_read[i] = coefficients[(place * 11 + 5) * H + read];
          k6_read[i] = coefficients[(place * 11 + 6) * H + read];
          k7_read[i] = coefficients[(place * 11 + 7) * H + read];
          k8_read[i] = coefficients[(place * 11 + 8) * H + read];
          k9_read[i] = coefficients[(place * 11 + 9) * H + read];
          k10_read[i] = coefficients[(place * 11 + 10) * H + read];
        }
      }
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)b3, block, r3 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, r3 + block * ROWS);
    }
    threadgroup float* b2 = gradients + ROWS * (ROW0 + ROW1);
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        m0[i] = k0[i] * g0[i] + r3[i];
        float e3 = -k6[i] * m0[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < H && r < rows.count) {
          device float* d_here = d + place_at(rows, t, r) * 7 * H + u;
          d_here[3 * H] = valid ? e3 : 0.0f;
          b2[r * ROW2 + u] = e3;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)b2, block, r2 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, r2 + block * ROWS);
    }
    threadgroup float* b1 = gradients + ROWS * (ROW0);
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        m1[i] = k0[i] * m0[i] + r2[i];
        float e2 = -k7[i] * m1[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < H && r < rows.count) {
          device float* d_here = d + place_at(rows, t, r) * 7 * H + u;
          d_here[2 * H] = valid ? e2 : 0.0f;
          b1[r * ROW1 + u] = e2;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)b1, block, r1 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, r1 + block * ROWS);
    }
    threadgroup float* b0 = gradients + 0;
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        m2[i] = k0[i] * m1[i] + r1[i];
        m3[i] = -k1[i] * g0[i] - k2[i] * m0[i] - k3[i] * m1[i] - k4[i] * m2[i];
        float e0 = -k5[i] * g0[i] - k6[i] * m0[i] - k7[i] * m1[i] - k8[i] * m2[i];
        float e1 = -k8[i] * m2[i];
        float e5 = k10[i] * m3[i];
        float e6 = -k9[i] * m3[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < H && r < rows.count) {
          device float* d_here = d + place_at(rows, t, r) * 7 * H + u;
          d_here[0] = valid ? e0 : 0.0f;
          d_here[1 * H] = valid ? e1 : 0.0f;
          d_here[5 * H] = valid ? e5 : 0.0f;
          d_here[6 * H] = valid ? e6 : 0.0f;
          b0[r * ROW0 + u] = e1;
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
        float next0 = k0[i] * m2[i] + r0[i];
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
  clear_steps<THREADS>(d, rows.steps, 7 * H, rows, thread_index);
}

// What the derivative takes of the step.
template <int H, int THREADS>
inline void ctrnn_bae8247cf98c_coefficients(
    device const float* x_proj,  // (D, T, R, 1, H)
    device const float* times,  // (D, T, R)
    device const float* parameters,  // (D, 1, H)
    device const float* before0,  // (N, H)
    device const float* results0,  // (N, 1, H)
    device const float* results1,  // (N, 1, H)
    device const float* results2,  // (N, 1, H)
    device const float* results3,  // (N, 1, H)
    device const int* dims,  // N, R, T, t
    device float* coefficients,  // (N, 11, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 1 + 0) * H + u];
  float dt = times[place];
  float p0 = parameters[(direction * 1 + 0) * H + u];
  float s0 = before0[index];
  float q0_0 = results0[(row * 1 + 0) * H + u];
  float q1_0 = results1[(row * 1 + 0) * H + u];
  float q2_0 = results2[(row * 1 + 0) * H + u];
  float q3_0 = results3[(row * 1 + 0) * H + u];
  float v6 = (-dt) * 0.25f;
  float v7 = exp(p0);
  float v9 = exp_minus_one(v6 * v7);
  float v13 = fast_tanh(x0 + q0_0);
  float v14 = v13 - s0;
  float v17 = s0 - (v14 * v9);
  float v20 = fast_tanh(x0 + q1_0);
  float v21 = v20 - v17;
  float v24 = v17 - (v21 * v9);
  float v27 = fast_tanh(x0 + q2_0);
  float v28 = v27 - v24;
  float v34 = fast_tanh(x0 + q3_0);
  float v43 = 1.0f + v9;
  coefficients[(row * 11 + 0) * H + u] = v43;
  coefficients[(row * 11 + 1) * H + u] = v34 - (v24 - (v28 * v9));
  coefficients[(row * 11 + 2) * H + u] = v28;
  coefficients[(row * 11 + 3) * H + u] = v21;
  coefficients[(row * 11 + 4) * H + u] = v14;
  coefficients[(row * 11 + 5) * H + u] = (1.0f - (v34 * v34)) * v9;
  coefficients[(row * 11 + 6) * H + u] = (1.0f - (v27 * v27)) * v9;
  coefficients[(row * 11 + 7) * H + u] = (1.0f - (v20 * v20)) * v9;
  coefficients[(row * 11 + 8) * H + u] = (1.0f - (v13 * v13)) * v9;
  coefficients[(row * 11 + 9) * H + u] = (v43 * v7) * 0.25f;
  coefficients[(row * 11 + 10) * H + u] = (v43 * v6) * v7;
}

// The arguments of the products of stage 1.
template <int H, int THREADS>
inline void ctrnn_0080a7d54817_arguments(
    device const float* x_proj,  // (D, T, R, 1, H)
    device const float* times,  // (D, T, R)
    device const float* parameters,  // (D, 1, H)
    device const float* before0,  // (N, H)
    device const float* results0,  // (N, 1, H)
    device const int* dims,  // N, R, T, t
    device float* argument1,  // (N, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 1 + 0) * H + u];
  float dt = times[place];
  float p0 = parameters[(direction * 1 + 0) * H + u];
  float s0 = before0[index];
  float q0_0 = results0[(row * 1 + 0) * H + u];
  float v15 = (fast_tanh(x0 + q0_0) - s0) * exp_minus_one(((-dt) * 0.25f) * exp(p0));
  argument1[index] = s0 - v15;
}

// The arguments of the products of stage 2.
template <int H, int THREADS>
inline void ctrnn_6e933caa784c_arguments(
    device const float* x_proj,  // (D, T, R, 1, H)
    device const float* times,  // (D, T, R)
    device const float* parameters,  // (D, 1, H)
    device const float* before0,  // (N, H)
    device const float* results0,  // (N, 1, H)
    device const float* results1,  // (N, 1, H)
    device const int* dims,  // N, R, T, t
    device float* argument2,  // (N, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 1 + 0) * H + u];
  float dt = times[place];
  float p0 = parameters[(direction * 1 + 0) * H + u];
  float s0 = before0[index];
  float q0_0 = results0[(row * 1 + 0) * H + u];
  float q1_0 = results1[(row * 1 + 0) * H + u];
  float v9 = exp_minus_one(((-dt) * 0.25f) * exp(p0));
  float v17 = s0 - ((fast_tanh(x0 + q0_0) - s0) * v9);
  argument2[index] = v17 - ((fast_tanh(x0 + q1_0) - v17) * v9);
}

// The arguments of the products of stage 3.
template <int H, int THREADS>
inline void ctrnn_b537fbbec0a2_arguments(
    device const float* x_proj,  // (D, T, R, 1, H)
    device const float* times,  // (D, T, R)
    device const float* parameters,  // (D, 1, H)
    device const float* before0,  // (N, H)
    device const float* results0,  // (N, 1, H)
    device const float* results1,  // (N, 1, H)
    device const float* results2,  // (N, 1, H)
    device const int* dims,  // N, R, T, t
    device float* argument3,  // (N, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 1 + 0) * H + u];
  float dt = times[place];
  float p0 = parameters[(direction * 1 + 0) * H + u];
  float s0 = before0[index];
  float q0_0 = results0[(row * 1 + 0) * H + u];
  float q1_0 = results1[(row * 1 + 0) * H + u];
  float q2_0 = results2[(row * 1 + 0) * H + u];
  float v9 = exp_minus_one(((-dt) * 0.25f) * exp(p0));
  float v17 = s0 - ((fast_tanh(x0 + q0_0) - s0) * v9);
  float v24 = v17 - ((fast_tanh(x0 + q1_0) - v17) * v9);
  argument3[index] = v24 - ((fast_tanh(x0 + q2_0) - v24) * v9);
}

// The states after one step.
template <int H, int THREADS>
inline void ctrnn_a4c83b10f9cb_next(
    device const float* x_proj,  // (D, T, R, 1, H)
    device const float* times,  // (D, T, R)
    device const float* parameters,  // (D, 1, H)
    device const float* before0,  // (N, H)
    device const float* results0,  // (N, 1, H)
    device const float* results1,  // (N, 1, H)
    device const float* results2,  // (N, 1, H)
    device const float* results3,  // (N, 1, H)
    device const int* dims,  // N, R, T, t
    device float* after0,  // (N, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 1 + 0) * H + u];
  float dt = times[place];
  float p0 = parameters[(direction * 1 + 0) * H + u];
  float s0 = before0[index];
  float q0_0 = results0[(row * 1 + 0) * H + u];
  float q1_0 = results1[(row * 1 + 0) * H + u];
  float q2_0 = results2[(row * 1 + 0) * H + u];
  float q3_0 = results3[(row * 1 + 0) * H + u];
  float v9 = exp_minus_one(((-dt) * 0.25f) * exp(p0));
  float v17 = s0 - ((fast_tanh(x0 + q0_0) - s0) * v9);
  float v24 = v17 - ((fast_tanh(x0 + q1_0) - v17) * v9);
  float v31 = v24 - ((fast_tanh(x0 + q2_0) - v24) * v9);
  after0[index] = v31 - ((fast_tanh(x0 + q3_0) - v31) * v9);
}

// Behind one step backward and its products, and before those of the step before it.
template <int H, int THREADS>
inline void ctrnn_53d124a4e8f8_previous(
    device const float* d_after0,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 11, H)
    device const float* arriving0,  // (D, B, H): of the states after step t
    device const float* returned3,  // (D, B, H): what a product sends back
    device const float* returned2,  // (D, B, H): what a product sends back
    device const float* returned1,  // (D, B, H): what a product sends back
    device const float* returned0,  // (D, B, H): what a product sends back
    device const int* lengths,  // (B)
    device const int* dims,  // N, R, T, t
    device float* before0,  // (D, B, H)
    device float* d,  // (D, B, 1, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  place -= dims[3] == dims[2] ? dims[1] : 0;
  bool valid = dims[3] < lengths[row % dims[1]];
  device const float* by = coefficients + place * 11 * H + u;
  float g0 = arriving0[index] + (valid ? d_after0[place * H + u] : 0.0f);
  float r3 = returned3[index];
  float r2 = returned2[index];
  float r1 = returned1[index];
  float r0 = returned0[index];
  float m0 = by[0 * H] * g0 + r3;
  float m1 = by[0 * H] * m0 + r2;
  float m2 = by[0 * H] * m1 + r1;
  float b0 = valid ? by[0 * H] * m2 + r0 : g0;
  before0[index] = b0;
  {
    int place = (direction * dims[2] + max(dims[3] - 1, 0)) * dims[1] + row % dims[1];
    bool valid = dims[3] > 0 && dims[3] - 1 < lengths[row % dims[1]];
    device const float* by = coefficients + place * 11 * H + u;
    float g0 = b0 + (valid ? d_after0[place * H + u] : 0.0f);
    d[(row * 1 + 0) * H + u] = valid ? -by[5 * H] * g0 : 0.0f;
  }
}

// One step backward, before its products of level 1.
template <int H, int THREADS>
inline void ctrnn_7ea5d9140ef7_back(
    device const float* d_after0,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 11, H)
    device const float* arriving0,  // (D, B, H): of the states after step t
    device const float* returned3,  // (D, B, H): what a product sends back
    device const int* lengths,  // (B)
    device const int* dims,  // N, R, T, t
    device float* d,  // (D, B, 1, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  bool valid = dims[3] < lengths[row % dims[1]];
  device const float* by = coefficients + place * 11 * H + u;
  float g0 = arriving0[index] + (valid ? d_after0[place * H + u] : 0.0f);
  float r3 = returned3[index];
  float m0 = by[0 * H] * g0 + r3;
  d[(row * 1 + 0) * H + u] = valid ? -by[6 * H] * m0 : 0.0f;
}

// One step backward, before its products of level 2.
template <int H, int THREADS>
inline void ctrnn_8db22dce45f1_back(
    device const float* d_after0,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 11, H)
    device const float* arriving0,  // (D, B, H): of the states after step t
    device const float* returned3,  // (D, B, H): what a product sends back
    device const float* returned2,  // (D, B, H): what a product sends back
    device const int* lengths,  // (B)
    device const int* dims,  // N, R, T, t
    device float* d,  // (D, B, 1, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  bool valid = dims[3] < lengths[row % dims[1]];
  device const float* by = coefficients + place * 11 * H + u;
  float g0 = arriving0[index] + (valid ? d_after0[place * H + u] : 0.0f);
  float r3 = returned3[index];
  float r2 = returned2[index];
  float m0 = by[0 * H] * g0 + r3;
  float m1 = by[0 * H] * m0 + r2;
  d[(row * 1 + 0) * H + u] = valid ? -by[7 * H] * m1 : 0.0f;
}

// One step backward, before its products of level 3.
template <int H, int THREADS>
inline void ctrnn_5fbce768e394_back(
    device const float* d_after0,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 11, H)
    device const float* arriving0,  // (D, B, H): of the states after step t
    device const float* returned3,  // (D, B, H): what a product sends back
    device const float* returned2,  // (D, B, H): what a product sends back
    device const float* returned1,  // (D, B, H): what a product sends back
    device const int* lengths,  // (B)
    device const int* dims,  // N, R, T, t
    device float* d,  // (D, B, 4, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  bool valid = dims[3] < lengths[row % dims[1]];
  device const float* by = coefficients + place * 11 * H + u;
  float g0 = arriving0[index] + (valid ? d_after0[place * H + u] : 0.0f);
  float r3 = returned3[index];
  float r2 = returned2[index];
  float r1 = returned1[index];
  float m0 = by[0 * H] * g0 + r3;
  float m1 = by[0 * H] * m0 + r2;
  float m2 = by[0 * H] * m1 + r1;
  float m3 = -by[1 * H] * g0 - by[2 * H] * m0 - by[3 * H] * m1 - by[4 * H] * m2;
  d[(row * 4 + 0) * H + u] = valid ? -by[8 * H] * m2 : 0.0f;
  d[(row * 4 + 1) * H + u] = valid ? -by[5 * H] * g0 - by[6 * H] * m0 - by[7 * H] * m1 - by[8 * H] * m2 : 0.0f;
  d[(row * 4 + 2) * H + u] = valid ? by[10 * H] * m3 : 0.0f;
  d[(row * 4 + 3) * H + u] = valid ? -by[9 * H] * m3 : 0.0f;
}
