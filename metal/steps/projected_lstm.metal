// The kernels of ProjectedLSTM, generated from its step in ember_mlx/scans/cell/gated.py by `make steps`.
// They are here to be read; nothing loads this file.
// They stand on pointwise.metal, cell_pointwise.metal, product.metal, sequences.metal, cell.metal.

// The forward scan.
template <int H, int P, int THREADS, int ROWS, int SPLIT, bool RESIDENT>
inline void projectedlstm_3f5794af658e_forward(
    device const float* x_proj,  // (D, T, B, 4, H)
    device const float* weights,  // D times packed, one product after the other
    device const float* initial0,  // (D, B, P)
    device const float* initial1,  // (D, B, H)
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* after0,  // (D, T, B, P)
    device float* after1,  // (D, T, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  typedef CellTile<P, THREADS, ROWS, SPLIT> CP;
  enum { AHEAD = RESIDENT && 1 * C::COUNT <= 16 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  threadgroup float* arguments = (threadgroup float*)scratch;  // 1 times (ROWS, CP::ROW), 1 times (ROWS, C::ROW)
  fill(arguments, 1 * ROWS * CP::ROW + 1 * ROWS * C::ROW, thread_index, THREADS, 0.0f);
  typedef Product<P, 4 * H, SPLIT, 4, THREADS, RESIDENT> Product0;  // Wh
  typedef Product<H, 1 * P, SPLIT, 1, THREADS, RESIDENT> Product1;  // Wr
  device const float* packed = weights + rows.direction * 4 * (int(Product0::FLOAT4S) + int(Product1::FLOAT4S)) * THREADS;
  Product0 product0;
  load_product(product0, packed, thread_index);
  packed += 4 * int(Product0::FLOAT4S) * THREADS;
  Product1 product1;
  load_product(product1, packed, thread_index);
  int own0_0 = or_last(product0.owned, 4);
  bool tanh0_0 = product0.owned == 2;
  float s0[CP::COUNT];
  float s1[C::COUNT], x0_0_read[C::COUNT];
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      s1[i] = initial1[place_of_state(rows, r) * H + read];
    }
  }
#pragma unroll(CP::UNROLL)
  for (int block = 0; block < CP::BLOCKS; block++) {
    int u = block * CP::GROUPS + group, read = or_last(u, P);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      s0[i] = initial0[place_of_state(rows, r) * P + read];
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
        x0_0_read[i] = x_proj[(place * 4 + own0_0) * H + read];
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
        if (!AHEAD) x0_0_read[i] = x_proj[(place * 4 + own0_0) * H + read];
        x0_0[i] = x0_0_read[i];
      }
    }
    float v20[C::COUNT];
    threadgroup float* a0 = arguments + 0;
#pragma unroll(CP::UNROLL)
    for (int block = 0; block < CP::BLOCKS; block++) {
      int u = block * CP::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        if (part == 0 && u < P && r < rows.count) a0[r * CP::ROW + u] = s0[i];
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
          x0_0_read[i] = x_proj[(place * 4 + own0_0) * H + read];
        }
      }
    }
    float q0_0[4 * C::COUNT];
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)a0, block, q0_0 + 4 * block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      join_lanes<ROWS>(product0, q0_0 + 4 * block * ROWS);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float value = q0_0[4 * i];
        value = tanh_or_sigmoid(tanh0_0, x0_0[i] + value);  // (1), (2)
        gather<Product0>(value, q0_0 + 4 * i);
      }
    }
    threadgroup float* a1 = arguments + 1 * ROWS * CP::ROW;
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        v20[i] = (q0_0[4 * i + 1] * s1[i]) + (q0_0[4 * i + 0] * q0_0[4 * i + 2]);  // (3)
        if (part == 0 && u < H && r < rows.count) a1[r * C::ROW + u] = q0_0[4 * i + 3] * fast_tanh(v20[i]);  // (3)
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float q1_1[CP::COUNT];
#pragma unroll(CP::UNROLL)
    for (int block = 0; block < CP::BLOCKS; block++) {
      partial_sums<ROWS>(product1, (threadgroup const float4*)a1, block, q1_1 + block * ROWS);
    }
#pragma unroll(CP::UNROLL)
    for (int block = 0; block < CP::BLOCKS; block++) {
      join_lanes<ROWS>(product1, q1_1 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float next1 = v20[i];
        bool valid = has_step(rows, t, r);
        s1[i] = valid ? next1 : s1[i];
        if (part == 0 && u < H && r < rows.count) {
          after1[place_at(rows, t, r) * H + u] = valid ? next1 : 0.0f;
        }
      }
    }
#pragma unroll(CP::UNROLL)
    for (int block = 0; block < CP::BLOCKS; block++) {
      int u = block * CP::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float next0 = q1_1[i];
        bool valid = has_step(rows, t, r);
        s0[i] = valid ? next0 : s0[i];
        if (part == 0 && u < P && r < rows.count) {
          after0[place_at(rows, t, r) * P + u] = valid ? next0 : 0.0f;
        }
      }
    }
  }
  clear_steps<THREADS>(after0, rows.steps, P, rows, thread_index);
  clear_steps<THREADS>(after1, rows.steps, H, rows, thread_index);
}

// The backward scan.
template <int H, int P, int THREADS, int ROWS, int SPLIT, bool RESIDENT>
inline void projectedlstm_525ee03d21cf_backward(
    device const float* d_after0,  // (D, T, B, P)
    device const float* d_after1,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 6, H)
    device const float* weights,  // D times packed, one transposed product after the other
    device const float* carry0,  // (D, B, P): from beyond these steps
    device const float* carry1,  // (D, B, H): from beyond these steps
    device const int* lengths,  // (B)
    device const int* dims,  // T, B
    device float* d,  // (D, T, B, 4, H)
    device float* d_p,  // (D, T, B, 1, P)
    device float* d_before0,  // (D, B, P)
    device float* d_before1,  // (D, B, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  typedef CellTile<H, THREADS, ROWS, SPLIT> C;
  typedef CellTile<P, THREADS, ROWS, SPLIT> CP;
  enum { AHEAD = RESIDENT && 7 * C::COUNT + 1 * CP::COUNT <= 24 };
  CellRows<ROWS> rows = rows_of_group<ROWS>(lengths, dims, group_index);
  int group = thread_index / SPLIT, part = thread_index % SPLIT;
  typedef Product<4 * H, P, SPLIT, 1, THREADS, RESIDENT> Product0;  // Wh
  typedef Product<1 * P, H, SPLIT, 1, THREADS, RESIDENT> Product1;  // Wr
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
  float g0[CP::COUNT], y0_read[CP::COUNT];
  float g1[C::COUNT], y1_read[C::COUNT], k0_read[C::COUNT], k1_read[C::COUNT], k2_read[C::COUNT], k3_read[C::COUNT];
  float k4_read[C::COUNT], k5_read[C::COUNT];
#pragma unroll(C::UNROLL)
  for (int block = 0; block < C::BLOCKS; block++) {
    int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      g1[i] = carry1[place_of_state(rows, r) * H + read];
    }
  }
#pragma unroll(CP::UNROLL)
  for (int block = 0; block < CP::BLOCKS; block++) {
    int u = block * CP::GROUPS + group, read = or_last(u, P);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      g0[i] = carry0[place_of_state(rows, r) * P + read];
    }
  }
  if (AHEAD) {
#pragma unroll(CP::UNROLL)
    for (int block = 0; block < CP::BLOCKS; block++) {
      int u = block * CP::GROUPS + group, read = or_last(u, P);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, rows.steps - 1, r);
        y0_read[i] = d_after0[place * P + read];
      }
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, rows.steps - 1, r);
        y1_read[i] = d_after1[place * H + read];
        k0_read[i] = coefficients[(place * 6 + 0) * H + read];
        k1_read[i] = coefficients[(place * 6 + 1) * H + read];
        k2_read[i] = coefficients[(place * 6 + 2) * H + read];
        k3_read[i] = coefficients[(place * 6 + 3) * H + read];
        k4_read[i] = coefficients[(place * 6 + 4) * H + read];
        k5_read[i] = coefficients[(place * 6 + 5) * H + read];
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int t = rows.steps - 1; t >= 0; t--) {
    float y0[CP::COUNT];
    float y1[C::COUNT], k0[C::COUNT], k1[C::COUNT], k2[C::COUNT], k3[C::COUNT], k4[C::COUNT];
    float k5[C::COUNT];
#pragma unroll(CP::UNROLL)
    for (int block = 0; block < CP::BLOCKS; block++) {
      int u = block * CP::GROUPS + group, read = or_last(u, P);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) y0_read[i] = d_after0[place * P + read];
        y0[i] = y0_read[i];
        g0[i] += has_step(rows, t, r) ? y0[i] : 0.0f;
      }
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
      int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        int place = place_near(rows, t, r);
        if (!AHEAD) y1_read[i] = d_after1[place * H + read];
        y1[i] = y1_read[i];
        if (!AHEAD) k0_read[i] = coefficients[(place * 6 + 0) * H + read];
        k0[i] = k0_read[i];
        if (!AHEAD) k1_read[i] = coefficients[(place * 6 + 1) * H + read];
        k1[i] = k1_read[i];
        if (!AHEAD) k2_read[i] = coefficients[(place * 6 + 2) * H + read];
        k2[i] = k2_read[i];
        if (!AHEAD) k3_read[i] = coefficients[(place * 6 + 3) * H + read];
        k3[i] = k3_read[i];
        if (!AHEAD) k4_read[i] = coefficients[(place * 6 + 4) * H + read];
        k4[i] = k4_read[i];
        if (!AHEAD) k5_read[i] = coefficients[(place * 6 + 5) * H + read];
        k5[i] = k5_read[i];
        g1[i] += has_step(rows, t, r) ? y1[i] : 0.0f;
      }
    }
    float r1[C::COUNT], m0[C::COUNT];
    float r0[CP::COUNT];
    threadgroup float* b1 = gradients + ROWS * (ROW0);
#pragma unroll(CP::UNROLL)
    for (int block = 0; block < CP::BLOCKS; block++) {
      int u = block * CP::GROUPS + group;
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float e0 = g0[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < P && r < rows.count) {
          device float* d_here = d_p + place_at(rows, t, r) * 1 * P + u;
          d_here[0] = valid ? e0 : 0.0f;
          b1[r * ROW1 + u] = e0;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (AHEAD) {
#pragma unroll(CP::UNROLL)
      for (int block = 0; block < CP::BLOCKS; block++) {
        int u = block * CP::GROUPS + group, read = or_last(u, P);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          int i = block * ROWS + r;
          int place = place_near(rows, t - 1, r);
          y0_read[i] = d_after0[place * P + read];
        }
      }
#pragma unroll(C::UNROLL)
      for (int block = 0; block < C::BLOCKS; block++) {
        int u = block * C::GROUPS + group, read = or_last(u, H);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          int i = block * ROWS + r;
          int place = place_near(rows, t - 1, r);
          y1_read[i] = d_after1[place * H + read];
          k0_read[i] = coefficients[(place * 6 + 0) * H + read];
          k1_read[i] = coefficients[(place * 6 + 1) * H + read];
          k2_read[i] = coefficients[(place * 6 + 2) * H + read];
          k3_read[i] = coefficients[(place * 6 + 3) * H + read];
          k4_read[i] = coefficients[(place * 6 + 4) * H + read];
          k5_read[i] = coefficients[(place * 6 + 5) * H + read];
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
        m0[i] = g1[i] + k0[i] * r1[i];
        float e0 = k1[i] * m0[i];
        float e1 = k2[i] * m0[i];
        float e2 = k3[i] * m0[i];
        float e3 = k4[i] * r1[i];
        bool valid = has_step(rows, t, r);
        if (part == 0 && u < H && r < rows.count) {
          device float* d_here = d + place_at(rows, t, r) * 4 * H + u;
          d_here[0] = valid ? e0 : 0.0f;
          d_here[1 * H] = valid ? e1 : 0.0f;
          d_here[2 * H] = valid ? e2 : 0.0f;
          d_here[3 * H] = valid ? e3 : 0.0f;
          b0[r * ROW0 + u] = e0;
          b0[r * ROW0 + 1 * H + u] = e1;
          b0[r * ROW0 + 2 * H + u] = e2;
          b0[r * ROW0 + 3 * H + u] = e3;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll(CP::UNROLL)
    for (int block = 0; block < CP::BLOCKS; block++) {
      partial_sums<ROWS>(product0, (threadgroup const float4*)b0, block, r0 + block * ROWS);
    }
#pragma unroll(CP::UNROLL)
    for (int block = 0; block < CP::BLOCKS; block++) {
      join_lanes<ROWS>(product0, r0 + block * ROWS);
    }
#pragma unroll(C::UNROLL)
    for (int block = 0; block < C::BLOCKS; block++) {
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float next1 = k5[i] * m0[i];
        g1[i] = has_step(rows, t, r) ? next1 : g1[i];
      }
    }
#pragma unroll(CP::UNROLL)
    for (int block = 0; block < CP::BLOCKS; block++) {
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        int i = block * ROWS + r;
        float next0 = r0[i];
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
        d_before1[place_of_state(rows, r) * H + u] = g1[i];
      }
    }
  }
#pragma unroll(CP::UNROLL)
  for (int block = 0; block < CP::BLOCKS; block++) {
    int u = block * CP::GROUPS + group;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int i = block * ROWS + r;
      if (part == 0 && u < P && r < rows.count) {
        d_before0[place_of_state(rows, r) * P + u] = g0[i];
      }
    }
  }
  clear_steps<THREADS>(d, rows.steps, 4 * H, rows, thread_index);
  clear_steps<THREADS>(d_p, rows.steps, 1 * P, rows, thread_index);
}

// What the derivative takes of the step.
template <int H, int THREADS>
inline void projectedlstm_6f864e4b462f_coefficients(
    device const float* x_proj,  // (D, T, R, 4, H)
    device const float* before1,  // (N, H)
    device const float* results0,  // (N, 4, H)
    device const int* dims,  // N, R, T, t
    device float* coefficients,  // (N, 6, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 4 + 0) * H + u];
  float x1 = x_proj[(place * 4 + 1) * H + u];
  float x2 = x_proj[(place * 4 + 2) * H + u];
  float x3 = x_proj[(place * 4 + 3) * H + u];
  float s1 = before1[index];
  float q0_0 = results0[(row * 4 + 0) * H + u];
  float q0_1 = results0[(row * 4 + 1) * H + u];
  float q0_2 = results0[(row * 4 + 2) * H + u];
  float q0_3 = results0[(row * 4 + 3) * H + u];
  float v14 = fast_sigmoid(x0 + q0_0);  // (1), (2)
  float v15 = fast_sigmoid(x1 + q0_1);  // (1), (2)
  float v16 = fast_tanh(x2 + q0_2);  // (1), (2)
  float v17 = fast_sigmoid(x3 + q0_3);  // (1), (2)
  float v21 = fast_tanh((v15 * s1) + (v14 * v16));  // (3)
  coefficients[(row * 6 + 0) * H + u] = v17 * (1.0f - (v21 * v21));
  coefficients[(row * 6 + 1) * H + u] = v16 * (v14 * (1.0f - v14));
  coefficients[(row * 6 + 2) * H + u] = s1 * (v15 * (1.0f - v15));
  coefficients[(row * 6 + 3) * H + u] = v14 * (1.0f - (v16 * v16));
  coefficients[(row * 6 + 4) * H + u] = v21 * (v17 * (1.0f - v17));
  coefficients[(row * 6 + 5) * H + u] = v15;
}

// The arguments of the products of stage 1.
template <int H, int THREADS>
inline void projectedlstm_74f0200fc328_arguments(
    device const float* x_proj,  // (D, T, R, 4, H)
    device const float* before1,  // (N, H)
    device const float* results0,  // (N, 4, H)
    device const int* dims,  // N, R, T, t
    device float* argument1,  // (N, H)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * H) return;
  int row = index / H, u = index % H, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  float x0 = x_proj[(place * 4 + 0) * H + u];
  float x1 = x_proj[(place * 4 + 1) * H + u];
  float x2 = x_proj[(place * 4 + 2) * H + u];
  float x3 = x_proj[(place * 4 + 3) * H + u];
  float s1 = before1[index];
  float q0_0 = results0[(row * 4 + 0) * H + u];
  float q0_1 = results0[(row * 4 + 1) * H + u];
  float q0_2 = results0[(row * 4 + 2) * H + u];
  float q0_3 = results0[(row * 4 + 3) * H + u];
  float v20 = (fast_sigmoid(x1 + q0_1) * s1) + (fast_sigmoid(x0 + q0_0) * fast_tanh(x2 + q0_2));  // (1), (2), (3)
  argument1[index] = fast_sigmoid(x3 + q0_3) * fast_tanh(v20);  // (1), (2), (3)
}

// Of one step the arguments of the products of stage 1, and states after it.
template <int H, int THREADS>
inline void projectedlstm_9af3b12ae27b_next(
    device const float* x_proj,  // (D, T, R, 4, H)
    device const float* before1,  // (N, H)
    device const float* results0,  // (N, 4, H)
    device const int* dims,  // N, R, T, t
    device float* argument1,  // (N, H)
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
  float s1 = before1[index];
  float q0_0 = results0[(row * 4 + 0) * H + u];
  float q0_1 = results0[(row * 4 + 1) * H + u];
  float q0_2 = results0[(row * 4 + 2) * H + u];
  float q0_3 = results0[(row * 4 + 3) * H + u];
  float v20 = (fast_sigmoid(x1 + q0_1) * s1) + (fast_sigmoid(x0 + q0_0) * fast_tanh(x2 + q0_2));  // (1), (2), (3)
  argument1[index] = fast_sigmoid(x3 + q0_3) * fast_tanh(v20);  // (1), (2), (3)
  after1[index] = v20;
}

// Behind one step backward and its products, and before those of the step before it.
template <int P, int THREADS>
inline void projectedlstm_5359a0963ba5_previous(
    device const float* d_after0,  // (D, T, B, P)
    device const float* arriving0,  // (D, B, P): of the states after step t
    device const float* returned0,  // (D, B, P): what a product sends back
    device const int* lengths,  // (B)
    device const int* dims,  // N, R, T, t
    device float* before0,  // (D, B, P)
    device float* d,  // (D, B, 1, P)
    int group_index, int thread_index, threadgroup float4* scratch) {
  int index = group_index * THREADS + thread_index;
  if (index >= dims[0] * P) return;
  int row = index / P, u = index % P, direction = row / dims[1];
  int place = (direction * dims[2] + dims[3]) * dims[1] + row % dims[1];
  place -= dims[3] == dims[2] ? dims[1] : 0;
  bool valid = dims[3] < lengths[row % dims[1]];
  float g0 = arriving0[index] + (valid ? d_after0[place * P + u] : 0.0f);
  float r0 = returned0[index];
  float b0 = valid ? r0 : g0;
  before0[index] = b0;
  {
    int place = (direction * dims[2] + max(dims[3] - 1, 0)) * dims[1] + row % dims[1];
    bool valid = dims[3] > 0 && dims[3] - 1 < lengths[row % dims[1]];
    float g0 = b0 + (valid ? d_after0[place * P + u] : 0.0f);
    d[(row * 1 + 0) * P + u] = valid ? g0 : 0.0f;
  }
}

// One step backward, before its products of level 1.
template <int H, int THREADS>
inline void projectedlstm_7420349b1870_back(
    device const float* d_after1,  // (D, T, B, H)
    device const float* coefficients,  // (D, T, B, 6, H)
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
  device const float* by = coefficients + place * 6 * H + u;
  float g1 = arriving1[index] + (valid ? d_after1[place * H + u] : 0.0f);
  float r1 = returned1[index];
  float m0 = g1 + by[0 * H] * r1;
  d[(row * 4 + 0) * H + u] = valid ? by[1 * H] * m0 : 0.0f;
  d[(row * 4 + 1) * H + u] = valid ? by[2 * H] * m0 : 0.0f;
  d[(row * 4 + 2) * H + u] = valid ? by[3 * H] * m0 : 0.0f;
  d[(row * 4 + 3) * H + u] = valid ? by[4 * H] * r1 : 0.0f;
  float b1 = valid ? by[5 * H] * m0 : g1;
  before1[index] = b1;
}
