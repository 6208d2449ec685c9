// The kernels of LEM, generated from its step in ember_mlx/cells.py by `make steps`.
// They are here to be read; nothing loads this file.
// They stand on pointwise.metal, cell_pointwise.metal, product.metal, sequences.metal, cell.metal.

// The forward scan.
template <int H, int THREADS, int ROWS, int SPLIT, bool RESIDENT>
inline void lem_ff820f1bf5da_forward(
    device const float* x_proj,  // (D, T, B, 4, H)
    device const float* times,  // (D, T, B)
    device const float* weights,  // D times packed, one product after the other
    device const float* initial0,  // (D, B, H)
    device const float* initial1,  // (D, B, H)
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* after0,  // (D, T, B, H)
    device float* after1,  // (D, T, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 3 * C::COUNT <= 16 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  threadgroup float* arguments = (threadgroup float*)scratch;  // 2 times (ROWS, C::ROW)
  fill(arguments, 2 * ROWS * C::ROW, thread_index, THREADS, 0.0f);
  typedef Product<H, 3 * H, SPLIT, 3, THREADS, RESIDENT> Product0;  // W_y
  typedef Product<H, 1 * H, SPLIT, 1, THREADS, RESIDENT> Product1;  // W_z
  device const float* packed = weights + rows.direction * 4 * (int(Product0::FLOAT4S) + int(Product1::FLOAT4S)) * THREADS;
  Product0 product0;
  load_product(product0, packed, thread_index);
  packed += 4 * int(Product0::FLOAT4S) * THREADS;
  Product1 product1;
  load_product(product1, packed, thread_index);
  int own0_0 = or_last(product0.owned, 3);
  bool tanh0_0 = product0.owned == 2;
  float s0[C::COUNT], s1[C::COUNT], x3_read[C::COUNT], x0_0_read[C::COUNT];
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
  float dt_read[ROWS];
  if (AHEAD) {
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, 0, r);
        x3_read[i] = x_proj[(place * 4 + 3) * H + read];
        x0_0_read[i] = x_proj[(place * 4 + own0_0) * H + read];
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) dt_read[r] = times[place_near(rows, 0, r)];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int t = 0; t < rows.steps; t++) {
    float x3[C::COUNT], x0_0[C::COUNT];
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
        if (!AHEAD) x3_read[i] = x_proj[(place * 4 + 3) * H + read];
        x3[i] = x3_read[i];
        if (!AHEAD) x0_0_read[i] = x_proj[(place * 4 + own0_0) * H + read];
        x0_0[i] = x0_0_read[i];
      }
    }
    float v17[C::COUNT];
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
          x3_read[i] = x_proj[(place * 4 + 3) * H + read];
          x0_0_read[i] = x_proj[(place * 4 + own0_0) * H + read];
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) dt_read[r] = times[place_near(rows, t + 1, r)];
    }
    float q0_0[3 * C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)a0, block, q0_0 + 3 * block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, q0_0 + 3 * block * ROWS);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float value = q0_0[3 * i];
        value = tanh_or_sigmoid(tanh0_0, x0_0[i] + value);
        gather<Product0>(value, q0_0 + 3 * i);
      }
    }
    threadgroup float* a1 = arguments + 1 * ROWS * C::ROW;
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        v17[i] = s1[i] + ((dt[r] * q0_0[3 * i + 0]) * (q0_0[3 * i + 2] - s1[i]));
        if (part == 0 && u < H && r < rows.count) a1[r * C::ROW + u] = v17[i];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float q1_1[C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product1, (threadgroup const float4*)a1, block, q1_1 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product1, q1_1 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float v25 = (dt[r] * q0_0[3 * i + 1]) * (fast_tanh(x3[i] + q1_1[i]) - s0[i]);
        float next0 = s0[i] + v25;
        float next1 = v17[i];
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
inline void lem_0b61fcff2576_backward(
    device const float* d_after0,  // (D, T, B, H)
    device const float* d_after1,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 8, H)
    device const float* weights,  // D times packed, one transposed product after the other
    device const float* carry0,  // (D, B, H): from beyond these steps
    device const float* carry1,  // (D, B, H): from beyond these steps
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* d,  // (D, T, B, 5, H)
    device float* d_before0,  // (D, B, H)
    device float* d_before1,  // (D, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  enum { AHEAD = RESIDENT && 10 * C::COUNT <= 24 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  typedef Product<3 * H, H, SPLIT, 1, THREADS, RESIDENT> Product0;  // W_y
  typedef Product<1 * H, H, SPLIT, 1, THREADS, RESIDENT> Product1;  // W_z
  // floats of a row of each call's gradients
  enum { ROW0 = 4 * int(Product0::ROW4), ROW1 = 4 * int(Product1::ROW4) };
  threadgroup float* gradients = (threadgroup float*)scratch;
  fill(gradients, 1 * ROWS * (ROW0 + ROW1), thread_index, THREADS, 0.0f);
  device const float* packed = weights + rows.direction * 4 * (int(Product0::FLOAT4S) + int(Product1::FLOAT4S)) * THREADS;
  Product0 product0;
  load_product(product0, packed, thread_index);
  packed += 4 * int(Product0::FLOAT4S) * THREADS;
  Product1 product1;
  load_product(product1, packed, thread_index);
  float g0[C::COUNT], g1[C::COUNT], y0_read[C::COUNT], y1_read[C::COUNT], k0_read[C::COUNT], k1_read[C::COUNT];
  float k2_read[C::COUNT], k3_read[C::COUNT], k4_read[C::COUNT], k5_read[C::COUNT], k6_read[C::COUNT], k7_read[C::COUNT];
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
        k0_read[i] = coefficients[(place * 8 + 0) * H + read];
        k1_read[i] = coefficients[(place * 8 + 1) * H + read];
        k2_read[i] = coefficients[(place * 8 + 2) * H + read];
        k3_read[i] = coefficients[(place * 8 + 3) * H + read];
        k4_read[i] = coefficients[(place * 8 + 4) * H + read];
        k5_read[i] = coefficients[(place * 8 + 5) * H + read];
        k6_read[i] = coefficients[(place * 8 + 6) * H + read];
        k7_read[i] = coefficients[(place * 8 + 7) * H + read];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int t = rows.steps - 1; t >= 0; t--) {
    float y0[C::COUNT], y1[C::COUNT], k0[C::COUNT], k1[C::COUNT], k2[C::COUNT], k3[C::COUNT];
    float k4[C::COUNT], k5[C::COUNT], k6[C::COUNT], k7[C::COUNT];
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
        if (!AHEAD) k0_read[i] = coefficients[(place * 8 + 0) * H + read];
        k0[i] = k0_read[i];
        if (!AHEAD) k1_read[i] = coefficients[(place * 8 + 1) * H + read];
        k1[i] = k1_read[i];
        if (!AHEAD) k2_read[i] = coefficients[(place * 8 + 2) * H + read];
        k2[i] = k2_read[i];
        if (!AHEAD) k3_read[i] = coefficients[(place * 8 + 3) * H + read];
        k3[i] = k3_read[i];
        if (!AHEAD) k4_read[i] = coefficients[(place * 8 + 4) * H + read];
        k4[i] = k4_read[i];
        if (!AHEAD) k5_read[i] = coefficients[(place * 8 + 5) * H + read];
        k5[i] = k5_read[i];
        if (!AHEAD) k6_read[i] = coefficients[(place * 8 + 6) * H + read];
        k6[i] = k6_read[i];
        if (!AHEAD) k7_read[i] = coefficients[(place * 8 + 7) * H + read];
        k7[i] = k7_read[i];
        g0[i] += has_step(rows, t, r) ? y0[i] : 0.0f;
        g1[i] += has_step(rows, t, r) ? y1[i] : 0.0f;
      }
    }
    float r1[C::COUNT], m0[C::COUNT], r0[C::COUNT];
    threadgroup float* b1 = gradients + ROWS * (ROW0);
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float e1 = k2[i] * g0[i];
        float e3 = k0[i] * g0[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < H && r < rows.count) {
          device float* d_here = d + place_at(rows, t, r) * 5 * H + u;
          d_here[1 * H] = valid ? e1 : 0.0f;
          d_here[3 * H] = valid ? e3 : 0.0f;
          b1[r * ROW1 + u] = e3;
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
          y1_read[i] = d_after1[place * H + read];
          k0_read[i] = coefficients[(place * 8 + 0) * H + read];
          k1_read[i] = coefficients[(place * 8 + 1) * H + read];
          k2_read[i] = coefficients[(place * 8 + 2) * H + read];
          k3_read[i] = coefficients[(place * 8 + 3) * H + read];
          k4_read[i] = coefficients[(place * 8 + 4) * H + read];
          k5_read[i] = coefficients[(place * 8 + 5) * H + read];
          k6_read[i] = coefficients[(place * 8 + 6) * H + read];
          k7_read[i] = coefficients[(place * 8 + 7) * H + read];
        }
      }
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product1, (threadgroup const float4*)b1, block, r1 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product1, r1 + block * ROWS);
    }
    threadgroup float* b0 = gradients + 0;
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        m0[i] = g1[i] + r1[i];
        float e0 = k1[i] * m0[i];
        float e2 = k3[i] * m0[i];
        float e4 = k4[i] * g0[i] + k5[i] * m0[i];
        float e1 = k2[i] * g0[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < H && r < rows.count) {
          device float* d_here = d + place_at(rows, t, r) * 5 * H + u;
          d_here[0] = valid ? e0 : 0.0f;
          d_here[2 * H] = valid ? e2 : 0.0f;
          d_here[4 * H] = valid ? e4 : 0.0f;
          b0[r * ROW0 + u] = e0;
          b0[r * ROW0 + 1 * H + u] = e1;
          b0[r * ROW0 + 2 * H + u] = e2;
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
        float next0 = k7[i] * g0[i] + r0[i];
        float next1 = k6[i] * m0[i];
        g0[i] = has_step(rows, t, r) ? next0 : g0[i];
        g1[i] = has_step(rows, t, r) ? next1 : g1[i];
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
  clear_steps<THREADS>(d, rows.steps, 5 * H, rows, thread_index);
}

// What the derivative takes of the step.
template <int H, int THREADS>
inline void lem_6c3d642b764e_coefficients(
    device const float* x_proj,  // (D, T, R, 4, H)
    device const float* times,  // (D, T, R)
    device const float* before0,  // (N, H)
    device const float* before1,  // (N, H)
    device const float* results0,  // (N, 3, H)
    device const float* results1,  // (N, 1, H)
    device const int* dims,  // N, R, T, t
    device float* coefficients,  // (N, 8, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 4 + 0) * H + u];
  float x1 = x_proj[(place * 4 + 1) * H + u];
  float x2 = x_proj[(place * 4 + 2) * H + u];
  float x3 = x_proj[(place * 4 + 3) * H + u];
  float dt = times[place];
  float s0 = before0[index];
  float s1 = before1[index];
  float q0_0 = results0[(row * 3 + 0) * H + u];
  float q0_1 = results0[(row * 3 + 1) * H + u];
  float q0_2 = results0[(row * 3 + 2) * H + u];
  float q1_0 = results1[(row * 1 + 0) * H + u];
  float v11 = fast_sigmoid(x0 + q0_0);
  float v12 = dt * v11;
  float v14 = fast_tanh(x2 + q0_2);
  float v15 = v14 - s1;
  float v19 = fast_sigmoid(x1 + q0_1);
  float v20 = dt * v19;
  float v23 = fast_tanh(x3 + q1_0);
  float v24 = v23 - s0;
  coefficients[(row * 8 + 0) * H + u] = v20 * (1.0f - (v23 * v23));
  coefficients[(row * 8 + 1) * H + u] = (v15 * dt) * (v11 * (1.0f - v11));
  coefficients[(row * 8 + 2) * H + u] = (v24 * dt) * (v19 * (1.0f - v19));
  coefficients[(row * 8 + 3) * H + u] = v12 * (1.0f - (v14 * v14));
  coefficients[(row * 8 + 4) * H + u] = v24 * v19;
  coefficients[(row * 8 + 5) * H + u] = v15 * v11;
  coefficients[(row * 8 + 6) * H + u] = 1.0f - v12;
  coefficients[(row * 8 + 7) * H + u] = 1.0f - v20;
}

// The arguments of the products of stage 1.
template <int H, int THREADS>
inline void lem_82c29347537b_arguments(
    device const float* x_proj,  // (D, T, R, 4, H)
    device const float* times,  // (D, T, R)
    device const float* before1,  // (N, H)
    device const float* results0,  // (N, 3, H)
    device const int* dims,  // N, R, T, t
    device float* argument1,  // (N, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 4 + 0) * H + u];
  float x2 = x_proj[(place * 4 + 2) * H + u];
  float dt = times[place];
  float s1 = before1[index];
  float q0_0 = results0[(row * 3 + 0) * H + u];
  float q0_2 = results0[(row * 3 + 2) * H + u];
  float v17 = s1 + ((dt * fast_sigmoid(x0 + q0_0)) * (fast_tanh(x2 + q0_2) - s1));
  argument1[index] = v17;
}

// The states after one step.
template <int H, int THREADS>
inline void lem_854f60f780ae_next(
    device const float* x_proj,  // (D, T, R, 4, H)
    device const float* times,  // (D, T, R)
    device const float* before0,  // (N, H)
    device const float* results0,  // (N, 3, H)
    device const float* results1,  // (N, 1, H)
    device const int* dims,  // N, R, T, t
    device float* after0,  // (N, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x1 = x_proj[(place * 4 + 1) * H + u];
  float x3 = x_proj[(place * 4 + 3) * H + u];
  float dt = times[place];
  float s0 = before0[index];
  float q0_1 = results0[(row * 3 + 1) * H + u];
  float q1_0 = results1[(row * 1 + 0) * H + u];
  float v26 = s0 + ((dt * fast_sigmoid(x1 + q0_1)) * (fast_tanh(x3 + q1_0) - s0));
  after0[index] = v26;
}

// Behind one step backward and its products, and before those of the step before it.
template <int H, int THREADS>
inline void lem_7e637e96687e_previous(
    device const float* d_after0,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 8, H)
    device const float* arriving0,  // (D, B, H): of the states after step t
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
  device const float* by = coefficients + place * 8 * H + u;
  float g0 = arriving0[index] + (valid ? d_after0[place * H + u] : 0.0f);
  float r0 = returned0[index];
  float b0 = valid ? by[7 * H] * g0 + r0 : g0;
  before0[index] = b0;
  {
    int place = (direction * dims[2] + max(dims[3] - 1, 0)) * dims[1] + row % dims[1];
    bool valid = dims[3] > 0 && dims[3] - 1 < lengths[row % dims[1]];
    device const float* by = coefficients + place * 8 * H + u;
    float g0 = b0 + (valid ? d_after0[place * H + u] : 0.0f);
    d[(row * 1 + 0) * H + u] = valid ? by[0 * H] * g0 : 0.0f;
  }
}

// One step backward, before its products of level 1.
template <int H, int THREADS>
inline void lem_11a331a45316_back(
    device const float* d_after0,  // (D, T, B, H)
    device const float* d_after1,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 8, H)
    device const float* arriving0,  // (D, B, H): of the states after step t
    device const float* arriving1,  // (D, B, H): of the states after step t
    device const float* returned1,  // (D, B, H): what a product sends back
    device const int* lengths,  // (B)
    device const int* dims,  // N, R, T, t
    device float* d,  // (D, B, 4, H)
    device float* before1,  // (D, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  bool valid = dims[3] < lengths[row % dims[1]];
  device const float* by = coefficients + place * 8 * H + u;
  float g0 = arriving0[index] + (valid ? d_after0[place * H + u] : 0.0f);
  float g1 = arriving1[index] + (valid ? d_after1[place * H + u] : 0.0f);
  float r1 = returned1[index];
  float m0 = g1 + r1;
  d[(row * 4 + 0) * H + u] = valid ? by[1 * H] * m0 : 0.0f;
  d[(row * 4 + 1) * H + u] = valid ? by[2 * H] * g0 : 0.0f;
  d[(row * 4 + 2) * H + u] = valid ? by[3 * H] * m0 : 0.0f;
  d[(row * 4 + 3) * H + u] = valid ? by[4 * H] * g0 + by[5 * H] * m0 : 0.0f;
  float b1 = valid ? by[6 * H] * m0 : g1;
  before1[index] = b1;
}
